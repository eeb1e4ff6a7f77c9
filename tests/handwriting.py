"""Make pictures of handwriting from MNIST's test digits: photos of pages, drawings, and lines of digits.

Functions that vary their result take a random generator, so the same seed gives the same pictures.
"""

import io
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage
from skimage.measure import approximate_polygon
from skimage.morphology import skeletonize
from skimage.transform import ProjectiveTransform, warp

from mnist.picture import crop
from mnist_utils import load_split

Rng = np.random.Generator
FONTS = ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold",
         "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10", "cmb10"]


def enlarged(digit: np.ndarray, height: int) -> np.ndarray:
    """The digit (28, 28) uint8, cropped to its ink and enlarged with sharp edges: (height, W) float, 0 to 1."""
    cropped = np.pad(crop(digit), 1)
    factor = height / (cropped.shape[0] - 2)
    size = [max(3, round(side * factor)) for side in cropped.shape[::-1]]
    smooth = np.asarray(Image.fromarray(cropped).convert("F").resize(size, Image.Resampling.BICUBIC)) / 255
    return np.clip((smooth - 0.45) * max(factor / 2, 1) + 0.5, 0, 1)


def placed(ink: np.ndarray, shape: tuple[int, int], rng: Rng, margin: float = 0.04) -> np.ndarray:
    """Place the ink at random on an empty page of this shape.

    Where there is room, it is at least `margin` of the page's side away from each edge.
    """
    page = np.zeros(shape)
    room = [side - length for side, length in zip(shape, ink.shape)]
    top, left = (int(rng.uniform(margin * side, max(margin * side, free - margin * side)))
                 for side, free in zip(shape, room))
    top, left = min(top, room[0]), min(left, room[1])
    page[top:top + ink.shape[0], left:left + ink.shape[1]] = ink
    return page


def ruling(shape: tuple[int, int], rng: Rng) -> np.ndarray:
    """Printed lines or squares on a page (H, W), 0 to 1, thinner and fainter than a pen's strokes."""
    lines = np.zeros(shape)
    step = rng.uniform(0.08, 0.25) * min(shape)
    thickness = max(1, round(0.006 * min(shape)))
    for axis in (0, 1)[:rng.integers(1, 3)]:
        for position in np.arange(rng.uniform(0, step), shape[axis], step).astype(int):
            lines[(slice(None),) * axis + (slice(position, position + thickness),)] = 1
    return lines * rng.uniform(0.15, 0.35)


def tilted(layers: list[np.ndarray], rng: Rng, degrees: float = 15, perspective: float = 0.06) -> list[np.ndarray]:
    """Turn all layers (H, W) by the same random angle, and apply the same random perspective.

    `degrees` is the largest angle. `perspective` is the largest shift of a corner, as a share of its
    distance from the centre. Outside the page, the first layer is empty and the others are mirrored.
    """
    height, width = layers[0].shape
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, height / 2]
    moved = corners * (1 + rng.uniform(-perspective, perspective, (4, 1)))
    turned = moved @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = [width / 2, height / 2]
    transform = ProjectiveTransform.from_estimate(turned + centre, corners + centre)
    return [warp(layer, transform, order=1, mode="reflect" if edge else "constant", preserve_range=True)
            for edge, layer in zip([False] + [True] * (len(layers) - 1), layers)]


def photographed(ink: np.ndarray, lines: np.ndarray, rng: Rng, shadow: bool = True) -> Image.Image:
    """A photo of ink and printed lines (H, W) on paper, with paper grain, a shadow, noise and JPEG artefacts."""
    height, width = ink.shape
    paper = rng.uniform(0.8, 1, 3)
    pen = rng.uniform(0, 0.35, 3)
    rule = paper * rng.uniform([0.3, 0.5, 0.8], 1)
    page = paper + lines[..., None] * (rule - paper)
    page = page + ink[..., None] * (pen - page)
    grain = ndimage.gaussian_filter(rng.normal(size=ink.shape), 1 + 0.002 * height)
    page *= 1 + rng.uniform(0.005, 0.02) * (grain / grain.std())[..., None]
    if shadow:
        angle, edge = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
        y, x = np.mgrid[-0.5:0.5:height * 1j, -0.5:0.5:width * 1j]
        distance = np.cos(angle) * x + np.sin(angle) * y - edge
        page *= (1 - rng.uniform(0.2, 0.5) / (1 + np.exp(-distance / rng.uniform(0.005, 0.1))))[..., None]
    page += rng.normal(scale=rng.uniform(0, 0.02), size=page.shape)
    picture = Image.fromarray(np.rint(255 * page.clip(0, 1)).astype(np.uint8))
    buffer = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.002) * height)).save(
        buffer, "JPEG", quality=int(rng.integers(40, 96)))
    return Image.open(buffer)


def page(digit: np.ndarray, rng: Rng, kind: str = "photo") -> Image.Image:
    """A photo of one dark digit on a light page, with sides of 100 to 2,000 pixels.

    `kind` is "plain", "shadow", "ruled", "tilted", or "photo", which is all of them at once.
    """
    height, width = (round(100 * 20 ** rng.uniform()) for _ in "hw")
    height, width = max(height, width // 2), max(width, height // 2)
    ink = enlarged(digit, round(rng.uniform(0.3, 0.75) * min(height, width)))[:, :width]
    lines = ruling((height, width), rng) if kind in ("ruled", "photo") else np.zeros((height, width))
    layers = [placed(ink, (height, width), rng, 0.12), lines]
    if kind in ("tilted", "photo"):
        flat = layers
        while on_rim((layers := tilted(flat, rng))[0]):
            flat = [placed(ink, (height, width), rng, 0.12), lines]
    return photographed(*layers, rng, shadow=kind in ("shadow", "photo"))


def on_rim(ink: np.ndarray) -> bool:
    """Whether some of the ink (H, W) touches the picture's edge, so that a part of it may be cut off."""
    return max(side.max() for side in (ink[:2], ink[-2:], ink[:, :2], ink[:, -2:])) > 0.1


def stroked(digit: np.ndarray, brush: float, rng: Rng, side: int = 280) -> Image.Image:
    """The digit's centre line, drawn with a round brush of `brush` pixels, black on white."""
    line = skeletonize(enlarged(digit, round(0.6 * side)) > 0.5)
    line = placed(line[:, :round(0.8 * side)], (side, side), rng, 0.1)
    near = ndimage.distance_transform_edt(line == 0) <= max(brush / 2, 0.5)
    return Image.fromarray(np.where(near, 0, 255).astype(np.uint8))


def traced(digit: np.ndarray, finer: int = 1) -> list[list[tuple[float, float]]]:
    """The digit's centre line as strokes of a pen, centred on a square paper and 0.6 of its height.

    Each stroke is a list of (x, y), 0 to 1. A larger `finer` gives more points. Nothing is random.
    """
    side = 280
    line = skeletonize(enlarged(digit, round(0.6 * side)) > 0.5)
    corner = (side - np.array(line.shape)) / 2
    paths = [ndimage.gaussian_filter1d(np.array(path, float), 4, axis=0, mode="nearest") for path in _paths(line)
             if len(path) > side / 30]
    strokes = [approximate_polygon(path, 2 / finer) for path in paths]
    return [[(x, y) for y, x in ((stroke + corner) / side).tolist()] for stroke in strokes]


def _paths(line: np.ndarray) -> list[list[tuple[int, int]]]:
    """Split a skeleton (H, W) into paths, which are lists of pixels (y, x).

    Each path goes on as far as it can. No step between two pixels is in more than one path.
    """
    pixels = set(zip(*(part.tolist() for part in line.nonzero())))
    steps = {(y, x): [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)
                      if (dy or dx) and (y + dy, x + dx) in pixels
                      # no diagonal step where straight steps lead to the same pixel
                      and not (dy and dx and {(y + dy, x), (y, x + dx)} & pixels)] for y, x in pixels}
    paths = []
    while any(steps.values()):
        odd = [pixel for pixel in steps if len(steps[pixel]) % 2] or [pixel for pixel in steps if steps[pixel]]
        path = [min(odd)]
        while steps[path[-1]]:
            here, before = np.array(path[-1]), np.array(path[-8:][0])
            there = max(sorted(steps[path[-1]]), key=lambda pixel: (here - before) @ (pixel - here))
            steps[path[-1]].remove(there)
            steps[there].remove(path[-1])
            path.append(there)
        paths.append(path)
    return paths


def written(digits: list[list[np.ndarray]], rng: Rng, height: int = 120, uneven: float = 0.25) -> np.ndarray:
    """Write lines of digits, from left to right: ink (H, W), 0 to 1.

    `digits` has one list for each line. Each digit has a random height, from (1 - uneven) * height to
    height, in pixels.
    """
    rows = []
    for line in digits:
        parts = [enlarged(digit, round(height * rng.uniform(1 - uneven, 1))) for digit in line]
        tall = round(1.25 * height)
        row = [np.zeros((tall, round(0.4 * height)))]
        for part in parts:
            top = int(rng.uniform(0, tall - part.shape[0])) if tall > part.shape[0] else 0
            cell = np.zeros((tall, part.shape[1] + round(height * rng.uniform(0.12, 0.4))))
            cell[top:top + part.shape[0], :part.shape[1]] = part[:tall]
            row.append(cell)
        rows.append(np.concatenate(row, 1))
    width = max(row.shape[1] for row in rows) + round(0.3 * height)
    blank = np.zeros((round(0.3 * height), width))
    return np.concatenate([blank, *[np.pad(row, [(0, round(0.15 * height)), (0, width - row.shape[1])])
                                    for row in rows], blank])


def touching(one: np.ndarray, other: np.ndarray, overlap: int, height: int = 100) -> np.ndarray:
    """Two digits side by side, which overlap by `overlap` pixels: ink (H, W), 0 to 1."""
    one, other = enlarged(one, height), enlarged(other, height)
    page = np.zeros((height + 60, one.shape[1] + other.shape[1] + 60))
    page[30:30 + one.shape[0], 30:30 + one.shape[1]] = one
    left = 30 + one.shape[1] - overlap
    place = page[35:35 + other.shape[0], left:left + other.shape[1]]
    np.maximum(place, other[:len(place)], out=place)
    return page


def printed(text: str, font: str, size: int) -> Image.Image:
    """Text in one of matplotlib's fonts, black on white."""
    letters = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf"), size)
    page = Image.new("L", (2 * size, 2 * size), 255)
    ImageDraw.Draw(page).text((size // 2, size // 3), text, font=letters, fill=0)
    return page


def letters() -> list[Image.Image]:
    """Letters that look like no digit. Their fonts are not used to calibrate a network."""
    return [printed(letter, font, 150) for font in FONTS for letter in "ACEFGHJKLMNPRTUVWXYacdefhkmnrtuvwxy"]


def main() -> None:
    """Make the sample pictures: python tests/handwriting.py, from the top folder."""
    folder = Path("figures", "samples")
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_split("test")
    rng = np.random.default_rng(8)
    first = {digit: images[labels == digit][1] for digit in range(10)}

    lines = ruling((300, 400), rng)
    photographed(*tilted([placed(enlarged(first[7], 150), lines.shape, rng, 0.2), lines], rng), rng).save(
        folder / "seven.jpg", quality=85)
    ink = written([[first[digit] for digit in (0, 3, 1, 6)], [first[digit] for digit in (5, 2, 9, 4, 8)]], rng, 80)
    photographed(ink, ruling(ink.shape, rng), rng).save(folder / "number.jpg", quality=85)
    stroked(first[3], 2, rng).save(folder / "thin.png")
    page = touching(first[2], first[5], 30, 120)
    Image.fromarray(np.rint(255 * (1 - page)).astype(np.uint8)).save(folder / "touching.png")


if __name__ == "__main__":
    main()
