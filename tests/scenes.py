"""Draw scenes with numbers in them, to judge a reader of handwritten numbers: forms, notes, pages on a table.

The digits are MNIST's test digits, and all else is computed. Where the same fonts are installed, the same seed gives
the same pictures. Shapes are (height, width), and points are (x, y), in pixels. Ink and colours go from 0 to 1.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from scipy import ndimage
from skimage.morphology import remove_small_objects, skeletonize
from skimage.transform import ProjectiveTransform

from handwriting import Rng, enlarged, ruling
from mnist_utils import load_split

Shape = Sequence[int]
Placed = list[tuple[str, np.ndarray, int, int]]  # each digit's name, ink (h, w), left and top

INKS = [(0.07, 0.12, 0.45), (0.06, 0.06, 0.08), (0.72, 0.09, 0.12), (0.04, 0.38, 0.2)]  # blue, black, red, green
NOTES = [(0.98, 0.92, 0.45), (0.97, 0.62, 0.72), (0.6, 0.88, 0.5), (0.55, 0.8, 0.95), (0.98, 0.7, 0.35)]
PAPER, DARK_NOTE = (0.92, 0.9, 0.86), (0.15, 0.17, 0.22)
WORDS = ("milk bread apples call Anna noon meeting Friday please water the plants thanks Haus nicht Fenster pomme "
         "bonjour casa verde mercado Exit Open STOP Push HOTEL CAFE Room quiet with care yes? never! & @home #tag")
LETTERS = "AEFHKMNPRWXacdehkmnrwx?%@#+=*"  # read alone, each of these looks like no digit
NO_TEXT = ("LastResort", "STIXSiz", "STIXNon", "cmex", "cmsy", "cmmi", "D050", "Standard", "Droid", "DejaVuMath",
           "DejaVuSansDisplay", "DejaVuSerifDisplay")
FONTS = sorted(str(path) for folder in (matplotlib.get_data_path(), "/usr/share/fonts")
               for path in Path(folder).rglob("*.[ot]tf") if not path.name.startswith(NO_TEXT))
DATASET = Path(__file__).parents[1] / "dataset"
test_digits = cache(load_split)


@dataclass(frozen=True)
class Scene:
    """A picture, the numbers in it line by line, and each digit with the box (left, top, right, bottom) of its ink."""

    picture: Image.Image
    numbers: tuple[str, ...]
    digits: tuple[tuple[str, tuple[float, float, float, float]], ...]


class Pen(NamedTuple):
    """A pen, and how a hand holds it."""

    colour: np.ndarray  # (3, 1, 1)
    width: float  # of its line, as a share of a letter's height
    follows: bool  # whether it draws a digit's centre line, or keeps the digit's own widths
    grainy: float  # how much the paper's grain shows
    slant: float  # pixels to the right for each pixel up


def resized(array: np.ndarray, shape: Shape) -> np.ndarray:
    """The array (h, w), enlarged or reduced smoothly to this shape."""
    return np.asarray(Image.fromarray(np.float32(array)).resize(shape[::-1], Image.Resampling.BICUBIC))


def cloud(shape: Shape, cell: float | tuple[float, float], rng: Rng) -> np.ndarray:
    """Smooth noise of about unit size, with lumps of `cell` pixels, or cell[0] high and cell[1] wide."""
    cells = [max(2, round(n / c)) for n, c in zip(shape, np.broadcast_to(cell, 2))]
    return resized(rng.standard_normal(cells, np.float32), shape)


def near(colour: Sequence[float] | np.ndarray, rng: Rng, far: float = 0.025) -> np.ndarray:
    """A colour near this one, as float32 (3, 1, 1)."""
    return np.float32(np.reshape(colour, (3, 1, 1)) + rng.normal(0, far, (3, 1, 1))).clip(0.02, 1)


def new_pen(rng: Rng, light: bool = False) -> Pen:
    """A random ballpoint, pencil or felt pen. With `light`, it is a felt pen with light ink, for dark paper."""
    kind = 1 if light else rng.choice(3, p=[0.45, 0.35, 0.2])
    low, high, grainy = [(0.04, 0.075, 0.08), (0.08, 0.15, 0), (0.045, 0.09, 0.28)][kind]  # ballpoint, felt, pencil
    colour = (0.95, 0.9, 0.75) if light else (0.3, 0.3, 0.32) if kind == 2 else rng.choice(INKS, p=[0.4, 0.3, 0.2, 0.1])
    follows = kind != 1 or rng.random() < 0.3
    return Pen(near(colour, rng, 0.03), rng.uniform(low, high), follows, grainy, rng.normal(0, 0.12))


def penned(shape: np.ndarray, letter: float, scale: float, pen: Pen, rng: Rng) -> np.ndarray:
    """Bend a shape (H, W) a little and draw it with a pen, `scale` times as large: ink (h, w), cropped.

    `letter` is a letter's height in the shape's pixels. Where a pen follows the centre line, blots remain blots.
    """
    shape = np.pad(shape, round(0.3 * max(letter, len(shape))))
    y, x = np.ogrid[:shape.shape[0], :shape.shape[1]]
    bends = [0.025 * letter * cloud(shape.shape, letter / 2, rng) for _ in "yx"]
    slant = (pen.slant + rng.normal(0, 0.04)) * (y - shape.shape[0] / 2)
    shape = ndimage.map_coordinates(np.float32(shape), [y + bends[0] + 0 * x, x + bends[1] + slant], order=1) > 0.5
    inside, line = ndimage.distance_transform_edt(shape), skeletonize(shape)
    half, radius = np.median(inside[line]), max(pen.width * letter / 2, 0.75 / scale)
    brush = (radius if pen.follows else 0.6 * half) * (1 + 0.15 * cloud(shape.shape, letter / 3, rng)).clip(0.6, 1.5)
    less = max(half, radius) - 0.8 * radius + 2 if pen.follows else np.clip(half - radius, -0.15 * half, 0.35 * half)
    depth = inside - less - ndimage.distance_transform_edt(~shape)
    depth = np.maximum(depth, brush - ndimage.distance_transform_edt(~line))
    depth = resized(ndimage.gaussian_filter(depth, 1.5), tuple(max(2, round(n * scale)) for n in shape.shape))
    ink = np.clip(depth * scale + 0.5, 0, 1)
    ink = ink[ndimage.find_objects(np.uint8(ink > 0.2))[0]]
    patches = 1 - rng.uniform(0, 0.3) * cloud(ink.shape, max(2, letter * scale / 5), rng).clip(0, 1.5)
    return 0.95 * ink * (patches * (1 - pen.grainy * cloud(ink.shape, 1.4, rng).clip(0, 1.5))).clip(0, 1)


def glyphs(count: int, height: float, pen: Pen, rng: Rng, widest: float = 1.3) -> list[tuple[str, np.ndarray]]:
    """Random test digits with their ink, up to `height` high and `widest` times `height` wide."""
    parts, (images, labels) = [], test_digits("test", DATASET)
    for i in rng.integers(len(labels), size=count):
        shape = remove_small_objects(enlarged(images[i], 120) > 0.5, max_size=250)
        scale = min(height * rng.uniform(0.88, 1) / 120, widest * height / shape.shape[1])
        parts.append((str(labels[i]), penned(shape, 120, scale, pen, rng)))
    return parts


def row(parts: list[tuple[str, np.ndarray]], gaps: Sequence[float], drops: Sequence[float]) -> Placed:
    """Slide digits to the left until they touch, then add `gaps`. `drops` start at the baseline; all are in pixels."""
    tops = np.array([round(drop) - len(ink) for (_, ink), drop in zip(parts, drops)])
    tops -= tops.min()
    tall, lefts, right = max(top + len(ink) for (_, ink), top in zip(parts, tops)), [], np.array([0])
    for (_, ink), top, gap in zip(parts, tops, [0, *gaps]):
        dark = np.pad(ink > 0.25 * ink.max(), [(top, tall - top - len(ink)), (0, 0)])
        lefts.append(round(gap + (right - np.where(dark.any(1), dark.argmax(1), 9999)).max()))
        right = np.where(dark.any(1), lefts[-1] + dark.shape[1] - dark[:, ::-1].argmax(1), 0)
        right = ndimage.maximum_filter1d(right.clip(lefts[-1] + 0.15 * dark.shape[1]), 3)  # never left of each other
    return [(*part, left - min(lefts), top) for part, left, top in zip(parts, lefts, tops)]


def loose_row(count: int, height: float, pen: Pen, rng: Rng, touch: float = 0.12, wide: float = 0) -> Placed:
    """An uneven line of digits. `touch` and `wide` are the shares of gaps that are none or up to 1.2 digits wide."""
    parts, kind = glyphs(count, height, pen, rng), rng.random(count - 1)
    mean = np.mean([ink.shape[1] for _, ink in parts])
    gaps = (height * rng.uniform(0.06, 0.3) * rng.uniform(0.6, 1.5, count - 1)).clip(2, max(2, mean))
    gaps[kind < touch] = -height * rng.uniform(0, 0.05)
    gaps[kind > 1 - wide] = rng.uniform(0.6, 1.2) * mean
    return row(parts, gaps, height * (rng.uniform(-0.1, 0.1, count) + rng.normal(0, 0.03) * np.arange(count)))


def page_of(rows: list[Placed], shape: Sequence[float], rng: Rng) -> tuple[Shape, list[Placed]]:
    """Place lines of digits below each other, somewhere on a page of about this shape."""
    tall = [max(top + len(ink) for _, ink, _, top in placed) for placed in rows]
    wide = max(left + ink.shape[1] for placed in rows for _, ink, left, _ in placed)
    pitch = round(rng.uniform(0.25, 0.7) * max(tall))
    block = np.array([sum(tall) + pitch * (len(rows) - 1), wide])
    whole = np.maximum(shape, 1.1 * block).astype(int)
    y, x = (rng.uniform(0.1, 0.9, 2) * (whole - block)).astype(int)
    return tuple(whole.tolist()), [[(name, ink, x + left, y + top + sum(tall[:i]) + i * pitch)
                                    for name, ink, left, top in placed] for i, placed in enumerate(rows)]


def surface(shape: Shape, rng: Rng, kind: str = "") -> np.ndarray:
    """A table or wall (3, H, W), turned by any angle: "wood", "cloth", "stone", "plastic" or "wall"."""
    kind = kind or rng.choice(["wood", "cloth", "stone", "plastic"], p=[0.4, 0.25, 0.2, 0.15])
    side = int(np.hypot(*shape) / 2) + 4  # at half size, as if a little out of focus
    flat, (y, x) = (side, side), (line.astype(np.float32) for line in np.ogrid[:side, :side])
    dark = 0.8 * (light := rng.uniform(0.15, 0.9) * near((0.8, 0.8, 0.8), rng, rng.uniform(0, 0.18)))
    if kind == "wood":
        dark = 0.6 * (light := rng.uniform(0.35, 1.05) * near((0.84, 0.67, 0.48), rng, 0.04))
        rings = y / rng.uniform(8, 30) + 2.5 * cloud(flat, (side / 5, side / 1.5), rng)
        grain = 0.5 + 0.12 * np.sin(6 * rings) + 0.15 * cloud(flat, (2, 90), rng) + 0.12 * cloud(flat, (12, 200), rng)
        plank = (y[:, 0] * rng.uniform(1, 6) / side).astype(int)
        grain += (rng.normal(0, 0.12, 7)[plank] - (np.diff(plank, prepend=0) > 0))[:, None]
    elif kind == "cloth":
        thread, check, dark = rng.uniform(0.8, 1.6), rng.uniform(20, 120), near(light, rng, 0.2)
        grain = 0.25 + 0.1 * np.sin(x * thread + 0.7 * cloud(flat, 30, rng)) * np.sin(y * thread)
        grain += 0.06 * cloud(flat, 2.5, rng) + 0.1 * cloud(flat, side / 4, rng)
        grain += rng.choice([0, 0.3]) * (x % check > check / 2) + rng.choice([0, 0.3]) * (y % check > check / 2)
    else:
        fine, rough = {"stone": (16, 0.25), "wall": (5, 0.15), "plastic": (2, 0.03)}[kind]
        grain = 0.5 + 0.2 * cloud(flat, side / 4, rng) + rough * (cloud(flat, fine, rng) + cloud(flat, 2.5, rng))
    grain = np.float32(Image.fromarray(np.float32(grain)).rotate(rng.uniform(-25, 25) + 90 * rng.integers(2), 2))
    top, left = ((side - n // 2) // 2 for n in shape)
    grain = resized(grain[top:top + shape[0] // 2, left:left + shape[1] // 2], shape)
    return dark + grain * (light - dark)


def camera(view: np.ndarray, rng: Rng, harsh: float = 1) -> Image.Image:
    """A JPEG photo of a view (3, H, W). The larger `harsh` is, the stronger are the lamp, a shadow and noise."""
    y, x = np.ogrid[-1:1:90j, -1:1:120j]
    (left, top), way, edge = rng.uniform(-1.2, 1.2, 2), rng.normal(size=2), rng.normal(0, 0.5)
    light = 1 - harsh * rng.uniform(0, 0.1) * ((x - left) ** 2 + (y - top) ** 2)
    depth = (way[0] * x + way[1] * y + 0.1 * cloud((90, 120), 30, rng) - edge) / rng.uniform(0.03, 0.3)
    light *= 1 - (rng.random() < 0.6 * harsh) * rng.uniform(0.15, 0.5) / (1 + np.exp(-depth.clip(-30, 30)))
    view = view * (255 + harsh * rng.normal(0, 13) * np.float32([[[1]], [[0]], [[-1]]]))  # the lamp's colour
    view *= resized(light.clip(0.3, 1), view.shape[1:])
    view += harsh * rng.uniform(0, 8) * cloud(view.shape[1:], rng.uniform(1, 2), rng)
    Image.fromarray(np.moveaxis(np.uint8(view.clip(0, 255)), 0, 2)).save(
        buffer := io.BytesIO(), "JPEG", quality=int(rng.integers(90 - 55 * harsh, 98)))
    return Image.open(buffer).convert("RGB")


def shot(flat: Shape, rows: list[Placed], rng: Rng, paper: np.ndarray, ink: np.ndarray, lines: np.ndarray | None = None,
         more: np.ndarray | None = None, behind: np.ndarray | None = None, lean: float = 0, harsh: float = 1,
         soft: float = 1.2) -> Scene:
    """Photograph a page with lines of digits, printed `lines` (H, W) and `more` ink (H, W), on `behind` (3, H, W).

    The page is turned by up to `lean` degrees. Without `behind`, it fills the picture. Otherwise the picture's edge
    may cut off a part of the page, but no digit. `soft` is the largest blur in pixels.
    """
    layer, (height, width), marks = np.zeros(flat, np.float32) if more is None else more, flat, []
    for name, dark, left, top in (place for placed in rows for place in placed):
        place = layer[top:top + dark.shape[0], left:left + dark.shape[1]]
        place[:] = 1 - (1 - place) * (1 - dark)  # crossing strokes get darker
        marks.append((name, np.argwhere(dark > 0.25 * dark.max())[:, ::-1] + [left + 0.5, top + 0.5]))
    shape = flat if behind is None else behind.shape[1:]
    size, corners = np.array(shape)[::-1], np.array([[0, 0], [width, 0], [width, height], [0, height]])
    angle, tilt = np.deg2rad(rng.uniform(-lean, lean)), rng.uniform(-0.01, 0.01, 2) * lean / size
    move = rng.uniform(-0.25, 0.25, 2) * size * (behind is not None and more is None)
    for ease in np.linspace(1, 0, 12):  # nearer to the middle and to level, until all digits are in the picture
        c, s = np.cos(ease * angle), np.sin(ease * angle)
        moved = (corners - [width / 2, height / 2]) @ [[c, s], [-s, c]]
        moved = moved / (1 + moved @ tilt)[:, None] + size / 2 + ease * move
        there = ProjectiveTransform.from_estimate(corners, moved)
        ends = [(there(points).min(0) - 0.5, there(points).max(0) + 0.5) for _, points in marks]
        if all(start.min() > 2 and (size - end).min() > 2 for start, end in ends):
            break
    back = [[1, 0, 60], [0, 1, 60], [0, 0, 1]] @ there.inverse.params
    blur = ImageFilter.GaussianBlur(rng.uniform(0, soft))
    grain = 1 + 0.012 * cloud(shape, rng.uniform(1, 3), rng) + 0.02 * cloud(shape, max(shape) / 3, rng)
    view = paper * grain
    for part, colour, mode in ((lines, near([rng.uniform(0, 0.6)] * 3, rng, 0.2), "wrap"), (layer, ink, "constant")):
        if part is not None:  # lines go on beyond the page's edge
            seen = Image.fromarray(np.pad(np.uint8(part * 255), 60, mode)).transform(
                shape[::-1], Image.Transform.PERSPECTIVE, (back / back[2, 2]).ravel()[:8], Image.Resampling.BICUBIC)
            view += np.float32(seen.filter(blur)) / 255 * (colour - view)
    if behind is not None:
        ImageDraw.Draw(mask := Image.new("L", shape[::-1])).polygon([tuple(point) for point in moved], 255)
        shade = mask.reduce(4).rotate(0, translate=tuple(rng.integers(-3, 4, 2).tolist()))
        shade = np.float32(shade.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 4)))) * rng.uniform(0.2, 0.6) / 255
        behind = behind * (1 - resized(shade, shape))
        view = behind + np.float32(mask.filter(ImageFilter.GaussianBlur(0.8))) / 255 * (view - behind)
    digits = tuple((name, (*start.tolist(), *end.tolist())) for (name, _), (start, end) in zip(marks, ends))
    return Scene(camera(view, rng, harsh), tuple("".join(place[0] for place in placed) for placed in rows), digits)


def touching(rng: Rng) -> Scene:
    """Two digits that touch: at a point, side by side, by a few pixels, or one stroke over the other."""
    tall, pen, kind = rng.uniform(40, 195), new_pen(rng), rng.integers(4)
    height = tall * rng.uniform(0.6, 0.8)
    parts, stroke = glyphs(2, height, pen, rng), max(2, max(pen.width, 0.09) * height)
    drops = np.array([[0, height * drop] for drop in np.linspace(-0.1, 0.1, 7)])
    drop = min(drops, key=lambda drop: row(parts, [0], drop)[1][2]) if kind == 1 else rng.choice(drops)
    overlap = [rng.uniform(0, 1), rng.uniform(1, 2), max(2, 0.05 * height), stroke * rng.uniform(1, 2)][kind]
    flat, rows = page_of([row(parts, [-overlap], drop)], (tall, tall * rng.uniform(1, 2)), rng)
    return shot(flat, rows, rng, near(PAPER, rng), pen.colour, harsh=0.3, soft=0.012 * height)


def line(rng: Rng) -> Scene:
    """One uneven line of 2 to 6 digits, on plain or ruled paper that fills the picture."""
    pen, height = new_pen(rng), 36 * 4 ** rng.random()
    placed, least = loose_row(rng.integers(2, 7), height, pen, rng, 0.25, 0.2), height * rng.uniform((1.4, 2), (3, 7))
    flat, rows = page_of([placed], least, rng)
    lines = 2 * ruling(flat, rng) if rng.random() < 0.5 else None
    return shot(flat, rows, rng, near(PAPER, rng), pen.colour, lines, lean=2, harsh=0.6, soft=0.012 * height)


def form(rng: Rng) -> Scene:
    """3 to 9 digits, each in one printed box; the boxes share walls, have gaps, or are a comb without tops."""
    pen, tall, style, count = new_pen(rng), int(rng.uniform(44, 120)), rng.integers(3), int(rng.integers(3, 10))
    wide, gap, edge = int(tall * rng.uniform(0.7, 1)), int(tall * rng.uniform(0.06, 0.3)) * (style == 1), tall // 2
    image, placed = Image.new("L", (edge * 2 + count * (wide + gap), edge * 2 + tall)), []
    thick, size, high = int(rng.integers(1, 5)), rng.uniform(0.55, 0.9) * min(tall, 1.2 * wide), rng.uniform(0.4, 0.8)
    for i, (name, ink) in enumerate(glyphs(count, size, pen, rng, widest=0.98 * wide / size)):
        left, top, foot = edge + i * (wide + gap), edge + int(high * tall) * (style == 2), edge + tall
        walls = [(left, top), (left, foot), (left + wide, foot), (left + wide, top), (left, top)]
        ImageDraw.Draw(image).line(walls[:4] if style == 2 else walls, 255, thick)
        x, y = np.subtract((wide, tall), ink.shape[::-1]) * rng.uniform(0.2, 0.8, 2) + rng.normal(0, 0.03 * tall, 2)
        placed.append((name, ink, left + round(x), edge + round(y)))
    return shot(image.size[::-1], [placed], rng, near(PAPER, rng), pen.colour,
                np.float32(image) / 255 * rng.uniform(0.5, 1), lean=1.5, harsh=0.6, soft=0.012 * tall)


def desk(rng: Rng, sticky: bool = False) -> Scene:
    """A page with 1 to 3 lines of 3 to 7 digits on a table, or a sticky note with one number on a table or wall."""
    wide, light = 900 * (16 / 9) ** rng.random(), sticky and rng.random() < 0.2
    size = np.array([wide * rng.choice([0.5625, 0.67, 0.75]), wide]).astype(int)
    pen, counts = new_pen(rng, light), rng.integers(3, 8 - sticky, 1 if sticky else rng.integers(1, 4))
    shape = np.full(2, size.min() * rng.uniform(0.5, 0.85)) if sticky else size * rng.uniform(0.6, 0.9, 2)
    height = min(rng.uniform(46, 120), 0.85 * shape[1] / counts.max(), 0.7 * shape[0] / len(counts) / 1.5)
    flat, rows = page_of([loose_row(count, height, pen, rng) for count in counts], shape, rng)
    paper = near(DARK_NOTE if light else rng.choice(NOTES) if sticky else PAPER, rng, 0.05)
    lines = None if sticky or rng.random() < 0.5 else 2 * ruling(flat, rng)
    behind = surface(tuple(size.tolist()), rng, "wall" if sticky and rng.random() < 0.4 else "")
    return shot(flat, rows, rng, paper, pen.colour, lines, None, behind, lean=12, soft=1.5)


def lettering(text: str, size: int, rng: Rng) -> np.ndarray:
    """Text in a random font: ink (h, w), cropped."""
    face = ImageFont.truetype(rng.choice(FONTS), size)
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = ruler.multiline_textbbox((0, 0), text, face, spacing=size / 4)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(image).multiline_text((1 - left, 1 - top), text, 255, face, spacing=size / 4)
    return np.float32(image) / 255


def words(rng: Rng) -> Scene:
    """Words, letters or signs, printed or as by hand, on paper, on a sign, or on a page on a table."""
    pen, hand = new_pen(rng, light := rng.random() < 0.2)._replace(follows=True), rng.random() < 0.5
    text = "\n".join(" ".join(rng.choice(WORDS.split(), rng.integers(1, 4))) for _ in range(rng.integers(1, 4)))
    text = " ".join(rng.choice(list(LETTERS), rng.integers(1, 7))) if rng.random() < 0.25 else text
    ink = lettering(text, 60 if hand else int(rng.uniform(24, 110)), rng)
    ink = np.pad(penned(ink > 0.5, 45, rng.uniform(0.6, 1.8), pen, rng) if hand else ink, int(rng.uniform(20, 90)))
    paper = near(DARK_NOTE if light else rng.choice([*NOTES, *[PAPER] * 5]), rng)
    behind = surface(tuple(int(1.25 * n) for n in ink.shape), rng) if rng.random() < 0.4 else None
    return shot(ink.shape, [], rng, paper, pen.colour, None, ink, behind, lean=2 if behind is None else 6)


def nothing(rng: Rng) -> Scene:
    """A picture without any writing by hand: bare surfaces, empty or printed pages, noise, grass, or keys."""
    shape = tuple(rng.integers(400, 1000, 2).tolist())
    kind, view = rng.choice(["bare", "page", "print", "keys", "noise", "grass"]), surface(shape, rng)
    if kind == "noise":
        view = rng.uniform(0, 0.8) + rng.uniform(0.05, 0.3) * rng.standard_normal((3, *shape), np.float32)
    if kind == "grass":
        draw = ImageDraw.Draw(image := Image.fromarray(np.uint8(np.moveaxis(view, 0, 2).clip(0, 1) * 90)))
        for x, y, dx, dy in rng.normal([0.5, 0.6, 0, 0.07], [0.4, 0.4, 0.03, 0.03], (4000, 4)) * [*shape[::-1], *shape]:
            draw.line([x, y, x + dx, y - dy], tuple((rng.uniform(40, 220) * np.array([0.6, 1, 0.3])).astype(int)), 3)
        view = np.moveaxis(np.float32(image), 2, 0) / 255
    if kind in ("bare", "noise", "grass"):
        return Scene(camera(view, rng), (), ())
    flat, more, ink = tuple(int(0.8 * n) for n in shape), None, near(PAPER, rng) * (1 - 0.8 * (kind == "print"))
    paper, size = near(DARK_NOTE if kind == "keys" else PAPER, rng), int(rng.integers(9, 17))
    if kind == "print":
        lines = [" ".join(rng.choice(WORDS.split(), flat[1] // (4 * size))) for _ in range(flat[0] // (2 * size))]
        more = np.pad(resized(lettering("\n".join(lines), size, rng), [n - 60 for n in flat]), 30).clip(0, 1)
    if kind == "keys":
        draw, face = ImageDraw.Draw(image := Image.new("L", flat[::-1])), rng.choice(FONTS)
        for i, j in np.ndindex(flat[0] // (4 * size), flat[1] // (4 * size)):
            x, y = (4 * j + i % 3) * size, 4 * i * size
            draw.rounded_rectangle([x, y, x + 3.6 * size, y + 3.6 * size], size / 2, 110)
            draw.text((x + size, y + size / 2), rng.choice(list(LETTERS)), 255, ImageFont.truetype(face, 2 * size))
        more = np.float32(image) / 255
    return shot(flat, [], rng, paper, ink, 2 * ruling(flat, rng) * (kind == "page"), more, view, lean=12)


def sheet(scenes: list[Scene], captions: list[str]) -> Image.Image:
    """The pictures side by side in rows of three, each within 280 x 210 pixels and with its caption below."""
    whole = Image.new("RGB", (3 * 290, -(-len(scenes) // 3) * 235), "white")
    for i, (scene, caption) in enumerate(zip(scenes, captions)):
        whole.paste(ImageOps.contain(scene.picture, (280, 210)), (x := i % 3 * 290, y := i // 3 * 235))
        ImageDraw.Draw(whole).text((x, y + 213), caption, "black", ImageFont.load_default(14))
    return whole


KINDS: dict[str, Callable[[Rng], Scene]] = {
    "touching": touching, "line": line, "form": form, "table": desk, "note": partial(desk, sticky=True), "words": words,
    "nothing": nothing}
