"""From any picture of handwriting to digits as MNIST shows them.

    picture = to_mnist("my-seven.jpg")    # uint8 (28, 28), ink 255

It does what MNIST's makers did to their scans, and before that what photographs need, in steps
that can be called by themselves: read_picture → enlarge → find_ink → find_strokes → find_pieces → fit.
"""

import io
import itertools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.filters.rank import median
from skimage.morphology import skeletonize
from torch import Tensor

AnyPicture = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray | Tensor
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
LEAST_CONTRAST = 0.05  # between ink and paper, of that between black and white
LEAST_INK = 0.3  # in a photograph, where grain and shadows come to less
MAX_PIXELS = 64_000_000
MOST_PARTS = 100  # of a picture's strokes; a page of text has more
MIN_SIDE = 5  # pixels
LEAST_DIGIT = 0.3  # of the tallest one's height
DIGIT_SIDE = 20  # pixels of a digit's longer side in MNIST
STROKE_WIDTHS = 1.7, 3.1  # pixels: four fifths of MNIST's digits are within
FEWEST, MOST = 200, 1000  # pixels of the longer side at which a picture is worked on


class PictureError(ValueError):
    """A picture cannot be read, or holds nothing to read; the message is for whoever gave it."""


@dataclass(frozen=True)
class Picture:
    """A picture as it was read."""

    grey: np.ndarray  # (H, W) float32, 0 black to 1 white
    notes: tuple[str, ...] = ()  # what its owner should know
    scale: float = 1.0  # pixels of the original for one of `grey`


# reading

def read_picture(image: AnyPicture) -> Picture:
    """Read a picture in any of the usual forms as grey levels, upright, and of a size to work at.

    `image` is a path, a file's bytes, a binary file object, a Pillow image of any mode, a NumPy
    array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a torch tensor (H, W), (C, H, W) or
    (1, C, H, W); numbers run from 0 to 1 or from 0 to 255, or to 65,535 in uint16. Transparent
    ink is laid on paper that it stands out from. Raises PictureError for whatever is no picture.
    """
    if isinstance(image, Tensor):
        if image.layout != torch.strided:
            raise PictureError(f"a tensor of the layout {image.layout} is no picture: make it dense")
        values = image.detach().cpu()
        return _from_array((values.float() if values.is_floating_point() else values).numpy(), channels_first=True)
    if isinstance(image, np.ndarray):
        return _from_array(image, channels_first=False)
    if isinstance(image, Image.Image):
        return _from_pillow(image, "the picture", image.size)
    if isinstance(image, str | os.PathLike):
        return _open(image, f"{image!s:.100}")
    if isinstance(image, bytes | bytearray | memoryview):
        return _open(io.BytesIO(image), "the picture")
    if hasattr(image, "read"):
        return _open(image, str(getattr(image, "name", "the picture")))
    raise PictureError(f"a {type(image).__name__} is no picture: give a file, a Pillow image, an array or a tensor")


def _open(source: Any, name: str) -> Picture:
    try:
        if isinstance(source, str | os.PathLike) and Path(source).exists() and not Path(source).is_file():
            raise PictureError(f"{name} is a folder or a device, not a picture")
        with Image.open(source, formats=FORMATS) as picture:
            size = picture.size
            picture.draft(None, (2 * MOST, 2 * MOST))  # a very large JPEG is decoded at a half or less
            return _from_pillow(picture, name, size)
    except (PictureError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise PictureError(f"{name} does not exist") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is no picture of a kind that can be read: {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large: at most {MAX_PIXELS:,} pixels are read") from error
    except PermissionError as error:
        raise PictureError(f"{name} may not be read: its permissions forbid it") from error
    except Exception as error:  # Pillow's many formats raise a dozen types for damaged files
        raise PictureError(f"{name} is truncated or damaged") from error


def _from_pillow(picture: Image.Image, name: str, size: tuple[int, int]) -> Picture:
    """`size` is that of the original, of which `picture` may be a smaller draft."""
    if math.prod(size) > MAX_PIXELS:
        raise PictureError(f"{name} has {size[0]:,} × {size[1]:,} pixels: at most {MAX_PIXELS:,} are read")
    try:
        animated = getattr(picture, "is_animated", False) and picture.format != "MPO"  # a phone's, with a thumbnail
        notes = ("it holds several pictures, of which the first was read",) if animated else ()
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in ("F", "I") or upright.mode.startswith("I;16"):
            grey = _from_array(np.asarray(upright), channels_first=False, sixteen_bits=upright.mode != "F")
            return replace(grey, notes=notes)
        if upright.has_transparency_data:
            layers = upright.convert("RGBA")
            layers.thumbnail((2 * MOST, 2 * MOST), Image.Resampling.BOX)
            grey = Image.fromarray(_on_paper(np.asarray(layers.convert("RGB").convert("L")),
                                             np.asarray(layers.getchannel("A"))))
        else:
            grey = upright.convert("RGB").convert("L")
    except (PictureError, MemoryError):
        raise
    except Exception as error:
        raise PictureError(f"{name} is truncated or damaged") from error
    return _resized(grey, notes, max(size))


def _on_paper(grey: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay grey levels (H, W) on paper, by their opacity (H, W); both uint8.

    The paper contrasts with what is seen, where that is little: ink. Where it is most of the
    picture it brings its own paper, and only a corner or a rim is missing.
    """
    most = alpha.max()
    if not most:
        return np.zeros_like(grey)
    seen = alpha > most / 2
    typical = np.median(grey[seen])
    own = seen.mean() > 0.5 and np.ptp(grey[seen]) > 255 * LEAST_CONTRAST
    paper = typical if own else 255 if typical < 128 else 0
    return np.rint(paper + (grey - float(paper)) * (alpha / float(most))).astype(np.uint8)


def _from_array(values: np.ndarray, *, channels_first: bool, sixteen_bits: bool = False) -> Picture:
    shape = " × ".join(map(str, values.shape)) or "no dimensions"
    if values.dtype.kind not in "buif":
        raise PictureError(f"an array of {values.dtype} is no picture: it must hold numbers")
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 4:
        raise PictureError(f"an array of {shape} holds several pictures: predict_many takes them")
    if values.ndim == 3:
        axis = 0 if channels_first else -1
        if values.shape[axis] not in (1, 3, 4):
            raise PictureError(f"an array of {shape} is no picture: one has 1, 3 or 4 channels, "
                               f"{'first' if channels_first else 'last'}; predict_many takes several pictures")
        values = np.moveaxis(values, axis, -1)
    else:
        values = values[..., None]
    if values.ndim != 3:
        raise PictureError(f"an array of {shape} is no picture: it must be height × width, "
                           f"or that with 1, 3 or 4 channels")
    if not values.size or values.shape[0] * values.shape[1] > MAX_PIXELS:
        raise PictureError(f"an array of {shape} {'is empty' if not values.size else 'is too large'}: "
                           f"a picture has from {MIN_SIDE} × {MIN_SIDE} to {MAX_PIXELS:,} pixels")
    if values.dtype.kind == "f":  # what resizing adds to 0 and 1 is no other scale
        values = np.where((values > -0.01) & (values < 1.01), values.clip(0, 1), values)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise PictureError("the picture holds numbers that are not finite")
    wide = sixteen_bits or values.dtype == np.uint16
    top = 65535 if wide and high > 255 else 1 if high <= 1 else 255
    if low < 0 or high > top:
        raise PictureError(f"the picture holds numbers from {low:g} to {high:g}: "
                           f"they must run from 0 to 1, or from 0 to 255")
    levels = np.rint(values.astype(np.float32) * (255 / top)).astype(np.uint8)
    bands = [Image.fromarray(np.ascontiguousarray(levels[..., band])) for band in range(levels.shape[2])]
    colour = Image.merge("RGB", bands[:3]).convert("L") if len(bands) > 1 else bands[0]
    if len(bands) == 4:
        colour = Image.fromarray(_on_paper(np.asarray(colour), levels[..., 3]))
    return _resized(colour, (), max(colour.size))


def _resized(grey: Image.Image, notes: tuple[str, ...], longest: int) -> Picture:
    """The picture at a size to work at; `longest` is its longer side in the original's pixels."""
    if min(grey.size) < MIN_SIDE:
        raise PictureError(f"the picture has {grey.width} × {grey.height} pixels: too few for a digit")
    if max(grey.size) > MOST:
        grey.thumbnail((MOST, MOST), Image.Resampling.BOX)
    return Picture(np.asarray(grey, np.float32) / 255, notes, longest / max(grey.size))


# cleaning

def enlarge(grey: np.ndarray) -> np.ndarray:
    """A small picture (H, W) enlarged by a whole number, so that strokes have an inside and an outline."""
    factor = math.ceil(FEWEST / max(grey.shape))
    if factor == 1:
        return grey
    size = [factor * side for side in grey.shape[::-1]]
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


def find_ink(grey: np.ndarray, ink: str = "auto") -> tuple[np.ndarray, bool]:
    """How much ink there is at each place (H, W), from 0 to 1, and whether it is a photograph's.

    `grey` is (H, W) from 0 to 1. What counts is how far a place stands out from the paper around
    it, so that neither a shadow nor the paper's tone matters. `ink` says "dark" or "light"; by
    default the rim of the picture is taken for paper. A photograph is what has no even paper.
    Raises ValueError for another `ink`.
    """
    if ink not in ("auto", "dark", "light"):
        raise ValueError(f"ink is dark, light or auto, not {ink!r}")
    if np.ptp(grey) < LEAST_CONTRAST:
        return np.zeros_like(grey), False
    depth = max(1, round(0.04 * min(grey.shape)))
    rim = np.concatenate([side.ravel() for side in (grey[:depth], grey[-depth:], grey[:, :depth], grey[:, -depth:])])
    paper, span = float(np.median(rim)), np.ptp(grey)
    bare = rim[np.abs(rim - paper) <= 0.5 * span]  # a stroke may run over the rim
    unevenness = np.ptp(np.percentile(bare, [5, 95])) / span
    even = unevenness <= (0.1 if len(bare) > 0.7 * len(rim) else 0.02 if len(bare) > 0.5 * len(rim) else 0)
    apart = _dark_or_light(grey, paper if even else None)
    even &= ink in ("auto", apart)  # else the rim is not the paper: it is a frame, or a table
    dark = (apart if ink == "auto" else ink) == "dark"
    level = grey if dark else 1 - grey
    if even:
        return np.clip(1 - level / max(paper if dark else 1 - paper, 0.05), 0, 1), False
    # a closing fills strokes with the paper around them, and leaves wider shadows as they are
    smooth = ndimage.gaussian_filter(level, max(0.7, 0.002 * max(grey.shape)))
    around = ndimage.grey_closing(smooth, size=max(grey.shape) // 5)
    strength = np.clip(1 - smooth / np.maximum(around, 0.05), 0, 1)
    return np.where(strength > LEAST_INK, strength, 0), True


def _dark_or_light(grey: np.ndarray, paper: float | None) -> str:
    """Which ink stands out more: from that paper, or from the median of the surroundings."""
    if paper is not None:
        return "dark" if paper - grey.min() > grey.max() - paper else "light"
    small = Image.fromarray(np.rint(255 * grey).astype(np.uint8))
    small.thumbnail((200, 200), Image.Resampling.BOX)
    levels = np.pad(np.asarray(small), 30, mode="symmetric")
    around = median(levels, np.ones((61, 61), np.uint8))
    # as a ratio, because light and shadow multiply; ink is a greater one than they are
    difference = np.log((levels + 10.0) / (around + 10.0))[30:-30, 30:-30]
    strong = np.abs(difference) > 0.5 * np.abs(difference).max()
    return "dark" if difference[strong].sum() < 0 else "light"


def find_strokes(ink: np.ndarray) -> np.ndarray:
    """Which places (H, W) belong to strokes, as booleans: not the ruling, the paper's grain, or specks."""
    noise = 1.4826 * np.median(np.abs(ink - np.median(ink)))
    candidates = ink[ink > max(0.08, 6 * noise)]
    if not candidates.size:
        return np.zeros(ink.shape, bool)
    strong = candidates[candidates >= threshold_otsu(candidates)] if np.ptp(candidates) > 0 else candidates
    strokes = ink > 0.45 * np.median(strong)
    parts, _ = ndimage.label(strokes, np.ones((3, 3)))
    boxes = [_box(slices) for slices in ndimage.find_objects(parts)]
    sides = np.array([_side(box) for box in boxes])
    inside = np.array([not _cut_off(box, ink.shape) for box in boxes])
    keep = sides > 0.12 * (sides[inside] if inside.any() else sides).max()
    return np.concatenate([[False], keep])[parts]


# from strokes to digits

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are just outside


@dataclass(frozen=True)
class Piece:
    """What is taken for one digit."""

    strokes: np.ndarray  # (h, w) booleans, cropped to the box
    box: Box


def find_pieces(strokes: np.ndarray, photograph: bool = False) -> tuple[list[Piece], bool]:
    """Part strokes (H, W) into digits, in reading order: line by line, from left to right.

    Parts belong to one digit where one is small and close to the other, as the bar of a 5 is, or
    stands right above it. Where there is something else, what runs out of a photograph is left
    out: it is a shadow, the edge of the paper, or a digit of which the rest is missing; whether
    something as large as a digit runs out of it, is the second result. Elsewhere only what runs
    along a whole side is left out.
    Raises PictureError where there are more parts than MOST_PARTS.
    """
    parts, count = ndimage.label(strokes, np.ones((3, 3)))
    if count > MOST_PARTS:
        raise PictureError(f"the picture holds {count:,} separate marks: cut out the part with the digits")
    boxes = [_box(slices) for slices in ndimage.find_objects(parts)]
    out = [(_cut_off if photograph else _spans)(box, strokes.shape) for box in boxes]
    if alone := all(out):
        out = [False] * count
    groups = [{index} for index in range(count) if not out[index]]
    merged = True
    while merged:
        merged = False
        for one, other in itertools.combinations(groups, 2):
            if _belong(*(_around(boxes[index] for index in group) for group in (one, other))):
                one |= other
                groups.remove(other)
                merged = True
                break
    pieces = []
    for group in groups:
        left, top, right, bottom = box = _around(boxes[index] for index in group)
        mask = np.isin(parts[top:bottom, left:right], [index + 1 for index in group])
        pieces.append(Piece(mask, box))
    tallest = max((len(piece.strokes) for piece in pieces), default=0)
    large = [0.5 * tallest < box[3] - box[1] < 2 * tallest and not _spans(box, strokes.shape) for box in boxes]
    missed = (alone and photograph) or any(left_out and size for left_out, size in zip(out, large))
    return [piece for line in _lines(pieces) for piece in line], missed


def _box(slices: tuple[slice, slice]) -> Box:
    rows, columns = slices
    return columns.start, rows.start, columns.stop, rows.stop


def _cut_off(box: Box, shape: tuple[int, int]) -> bool:
    """Whether it touches the rim."""
    margin = 0.005 * max(shape)
    return min(box[:2]) <= margin or box[2] >= shape[1] - margin or box[3] >= shape[0] - margin


def _spans(box: Box, shape: tuple[int, int]) -> bool:
    """Whether it runs along a whole side: a frame, a line, the edge of a table."""
    return _cut_off(box, shape) and (box[2] - box[0] > 0.95 * shape[1] or box[3] - box[1] > 0.95 * shape[0])


def _side(box: Box) -> int:
    """Its longer side."""
    return max(box[2] - box[0], box[3] - box[1])


def _around(boxes: Iterable[Box]) -> Box:
    left, top, right, bottom = zip(*boxes)
    return min(left), min(top), max(right), max(bottom)


def _belong(one: Box, other: Box) -> bool:
    """Whether two parts are one digit's."""
    across = min(one[2], other[2]) - max(one[0], other[0])  # how far they stand above each other, or apart
    along = min(one[3], other[3]) - max(one[1], other[1])  # how far they stand beside each other, or apart
    smaller, size = sorted((_side(one), _side(other)))
    if smaller < 0.6 * size:  # a bar, a loop, a piece broken off
        return across > -0.15 * size and along > -0.15 * size
    return across > 0.4 * min(one[2] - one[0], other[2] - other[0]) and along > -0.08 * size


def _lines(pieces: list[Piece]) -> list[list[Piece]]:
    """Lines from top to bottom; a piece continues the line whose last piece stands beside it."""
    lines: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.box[0]):
        def beside(line: list[Piece], box: Box = piece.box) -> float:
            last = line[-1].box
            shared = min(last[3], box[3]) - max(last[1], box[1])
            return shared / min(last[3] - last[1], box[3] - box[1])

        best = max(lines, key=beside, default=None)
        if best is not None and beside(best) > 0.3:
            best.append(piece)
        else:
            lines.append([piece])
    return sorted(lines, key=lambda line: np.mean([piece.box[1] for piece in line]))


def fit(strokes: np.ndarray) -> np.ndarray:
    """Strokes (h, w) as MNIST shows a digit: uint8 (28, 28), ink 255.

    Strokes of a width that MNIST hardly has are brought to its range first; for the rest see `frame`.
    """
    return frame(_of_usual_width(strokes))


def frame(ink: np.ndarray) -> np.ndarray:
    """Ink (h, w) from 0 to 1, cropped to its box, in MNIST's frame: uint8 (28, 28), the darkest 255.

    The longer side becomes 20 pixels, by averaging areas, and the centre of mass comes to
    (14, 14), as https://github.com/facebookresearch/qmnist reconstructed it.
    """
    scale = DIGIT_SIDE / max(ink.shape)
    size = [max(1, round(side * scale)) for side in ink.shape[::-1]]
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BOX))
    return _centred(np.rint(small * (255 / small.max())).astype(np.uint8))


def crop(ink: np.ndarray) -> np.ndarray:
    """Ink (H, W) without the empty rows and columns around it."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _of_usual_width(strokes: np.ndarray) -> np.ndarray:
    """Thicken or thin strokes (h, w), so that in a digit of 20 pixels they are within STROKE_WIDTHS."""
    side, middle = max(strokes.shape), skeletonize(strokes)
    width = 2 * np.median(ndimage.distance_transform_edt(np.pad(strokes, 1))[1:-1, 1:-1][middle])
    usual = np.clip(width * DIGIT_SIDE / side, *STROKE_WIDTHS)
    # by so much on each side that width and digit, which grows as well, come to that proportion
    growth = (usual * side - DIGIT_SIDE * width) / (2 * (DIGIT_SIDE - usual))
    if abs(growth) < 0.5:
        return strokes
    if growth > 0:
        return ndimage.distance_transform_edt(~np.pad(strokes, math.ceil(growth))) <= growth
    thinner = ndimage.distance_transform_edt(np.pad(strokes, 1))[1:-1, 1:-1] > -growth
    thinner |= ndimage.distance_transform_edt(~middle) <= width / 2 + growth  # else thin parts would vanish
    if not thinner.any():  # a blob, whose middle is no line
        return strokes
    return crop(thinner)


def in_mnist_form(grey: np.ndarray) -> np.ndarray | None:
    """The picture as uint8 (28, 28), ink 255 on paper 0, if its digit has MNIST's size and nothing is around it.

    It is moved by whole pixels where it is off the centre, and so loses nothing. None for all others.
    """
    if grey.shape != (28, 28):
        return None
    levels = np.rint(255 * grey).astype(np.uint8)
    for picture in (levels, 255 - levels):
        if picture.max() > 127 and DIGIT_SIDE - 1 <= max((digit := crop(picture)).shape) <= DIGIT_SIDE:
            return _centred(digit)
    return None


def _centred(digit: np.ndarray) -> np.ndarray:
    """A digit of at most 20 × 20 in a picture of 28 × 28, its centre of mass as near to (14, 14) as whole pixels go."""
    top, left = (int(np.clip(round(14 - middle), 0, 28 - side))
                 for middle, side in zip(ndimage.center_of_mass(digit), digit.shape))
    return np.pad(digit, [(top, 28 - top - digit.shape[0]), (left, 28 - left - digit.shape[1])])


def to_mnist(image: AnyPicture, ink: str = "auto") -> np.ndarray:
    """A picture of one digit as MNIST would show it: uint8 (28, 28), ink 255 on paper 0.

    `image` is whatever `read_picture` takes, `ink` is "dark" or "light" where that cannot be
    found by itself. Raises PictureError where it cannot be read, and where it is blank.
    """
    picture = prepare(image, ink).picture
    if picture is None:
        raise PictureError("the picture is blank: there is no ink to be seen")
    return picture


@dataclass(frozen=True)
class Prepared:
    """A picture, ready for the network."""

    picture: np.ndarray | None  # all its strokes as one digit, uint8 (28, 28); None where there are none
    pieces: list[Piece]  # in reading order, with boxes in the upright original's pixels; none if in MNIST's form
    notes: tuple[str, ...]
    cut_off: bool = False  # whether something as large as a digit runs out of the picture


def prepare(image: AnyPicture, ink: str = "auto") -> Prepared:
    """Take a picture through all the steps; for arguments and errors see `read_picture`, `find_ink`, `find_pieces`.

    Marks much smaller than the digits, such as dots and hyphens, are left out, and noted.
    """
    source = read_picture(image)
    ready = in_mnist_form(source.grey) if ink == "auto" else None
    if ready is not None:
        return Prepared(ready, [], source.notes)
    grey = enlarge(source.grey)
    amount, photograph = find_ink(grey, ink)
    found, cut_off = find_pieces(find_strokes(amount), photograph)
    if not found:
        return Prepared(None, [], source.notes)
    tallest = max(len(piece.strokes) for piece in found)
    pieces = [piece for piece in found if len(piece.strokes) > LEAST_DIGIT * tallest]
    notes = source.notes
    if len(pieces) < len(found):
        notes += (f"small marks left out: {len(found) - len(pieces)}",)
    left, top, right, bottom = _around(piece.box for piece in pieces)
    whole = np.zeros((bottom - top, right - left), bool)
    for piece in pieces:
        whole[piece.box[1] - top:piece.box[3] - top, piece.box[0] - left:piece.box[2] - left] |= piece.strokes
    scale = source.scale * source.grey.shape[0] / grey.shape[0]
    pieces = [replace(piece, box=tuple(round(scale * edge) for edge in piece.box)) for piece in pieces]
    return Prepared(fit(whole), pieces, notes, cut_off)
