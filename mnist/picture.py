"""From any picture of handwriting to digits in MNIST's format.

    picture = to_mnist("my-seven.jpg")    # uint8 (28, 28), ink 255

First a photograph is cleaned, then each digit is framed as MNIST's authors framed their scans. Each
step is a function of its own: read_picture → enlarge → find_ink → find_strokes → find_pieces → fit.
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

AnyPicture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor
PICTURE_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MIN_CONTRAST = 0.05  # between ink and paper; black on white is 1
MIN_INK = 0.3  # in a photograph; grain and shadows are weaker
MAX_PIXELS = 64_000_000
MAX_PARTS = 100  # connected parts of strokes in a picture; a page of text has more
CROWDED = "the picture holds {} separate strokes: crop it to the digits"
MIN_SIDE = 5  # pixels
MIN_DIGIT = 0.3  # height of a digit, relative to the tallest one
MIN_STROKE = 0.45  # ink of a stroke, relative to the typical stroke in the picture
MIN_PART = 0.12  # longer side of a part of strokes, relative to the longest one; a speck is smaller
DIGIT_SIDE = 20  # pixels: the longer side of a digit in MNIST
STROKE_WIDTHS = 1.7, 3.1  # pixels: 80 % of MNIST's digits lie in this range
MIN_WORKING_SIDE, MAX_WORKING_SIDE = 200, 1000  # pixels: the longer side, to which pictures are resized
MAX_PATH = 1000  # characters; a longer one, such as a data URL, is shortened in messages
MARGIN = 20  # pixels of paper kept around the ink of a drawing


class PictureError(ValueError):
    """A picture cannot be read, or there is nothing in it; the message is meant for the user."""


@dataclass(frozen=True)
class Picture:
    """A picture in grey levels."""

    grey: np.ndarray  # (H, W) float32, 0 black to 1 white
    notes: tuple[str, ...] = ()  # remarks for the user
    scale: float = 1.0  # pixels of the original per pixel of `grey`


# reading

def read_picture(image: AnyPicture) -> Picture:
    """Read a picture in any usual form as grey levels, upright, resized to MAX_WORKING_SIDE at most.

    `image` is a path, a file's bytes, a binary file object, a Pillow image of any mode, a NumPy
    array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a torch tensor (H, W), (C, H, W) or
    (1, C, H, W). Its numbers run from 0 to 1, from 0 to 255, or in uint16 to 65,535. A transparent
    picture is laid on paper that contrasts with its ink. Raises PictureError for anything else.
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
        name = str(image)
        return _open(image, name if len(name) <= MAX_PATH else f"{name[:100]}…")
    if isinstance(image, bytes | bytearray | memoryview):
        return _open(io.BytesIO(image), "the picture")
    if hasattr(image, "read"):
        return _open(image, str(getattr(image, "name", "the picture")))
    raise PictureError(f"a {type(image).__name__} is no picture: give a file, a Pillow image, an array or a tensor")


def _open(source: Any, name: str) -> Picture:
    try:
        if isinstance(source, str | os.PathLike) and Path(source).exists() and not Path(source).is_file():
            raise PictureError(f"{name} is a folder or a device, not a picture")
        with Image.open(source, formats=PICTURE_FORMATS) as picture:
            size = picture.size
            # decodes a very large JPEG at half its size or less
            picture.draft(None, (2 * MAX_WORKING_SIDE, 2 * MAX_WORKING_SIDE))
            return _from_pillow(picture, name, size)
    except (PictureError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise PictureError(f"{name} does not exist") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is not a supported image file: {', '.join(PICTURE_FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} is too large: at most {MAX_PIXELS:,} pixels are read") from error
    except PermissionError as error:
        raise PictureError(f"{name} may not be read: its permissions forbid it") from error
    except Exception as error:  # Pillow's many formats raise a dozen types for damaged files
        raise PictureError(f"{name} is truncated or damaged") from error


def _from_pillow(picture: Image.Image, name: str, size: tuple[int, int]) -> Picture:
    """`size` is the original's; `picture` may be a smaller draft of it."""
    if math.prod(size) > MAX_PIXELS:
        raise PictureError(f"{name} has {size[0]:,} × {size[1]:,} pixels: at most {MAX_PIXELS:,} are read")
    try:
        # a phone's MPO holds a thumbnail as well
        animated = getattr(picture, "is_animated", False) and picture.format != "MPO"
        notes = ("it holds several pictures, of which the first was read",) if animated else ()
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in ("F", "I") or upright.mode.startswith("I;16"):
            values = np.asarray(upright)
            return replace(_from_array(values, channels_first=False, sixteen_bits=upright.mode != "F"), notes=notes)
        if upright.has_transparency_data:
            layers = upright.convert("RGBA")
            layers.thumbnail((2 * MAX_WORKING_SIDE, 2 * MAX_WORKING_SIDE), Image.Resampling.BOX)
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

    Where little of the picture is opaque, that is ink, and the paper gets a contrasting tone. Where most
    of it is opaque, the picture has paper of its own, and that tone fills the missing corner or edge.
    """
    most = alpha.max()
    if not most:
        return np.zeros_like(grey)
    seen = alpha > most / 2
    typical = np.median(grey[seen])
    own = seen.mean() > 0.5 and np.ptp(grey[seen]) > 255 * MIN_CONTRAST
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
    if values.dtype.kind == "f":  # resizing overshoots 0 and 1 a little: that is no other scale
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
    """The picture, reduced where it is large; `longest` is its longer side in pixels of the original."""
    if min(grey.size) < MIN_SIDE:
        raise PictureError(f"the picture has {grey.width} × {grey.height} pixels: too few for a digit")
    if max(grey.size) > MAX_WORKING_SIDE:
        grey.thumbnail((MAX_WORKING_SIDE, MAX_WORKING_SIDE), Image.Resampling.BOX)
    return Picture(np.asarray(grey, np.float32) / 255, notes, longest / max(grey.size))


def crop_drawing(drawing: Image.Image) -> Image.Image:
    """A drawing on a transparent background, cropped to its ink and to the paper that reading needs around it.

    Each pixel takes time. Not smaller than MIN_WORKING_SIDE where the drawing is not, because
    `enlarge` would enlarge it again.
    """
    left, top, right, bottom = drawing.getbbox() or (0, 0, *drawing.size)
    edges = []
    for low, high, side in ((left, right, drawing.width), (top, bottom, drawing.height)):
        length = min(max(high - low + 2 * MARGIN, MIN_WORKING_SIDE), side)
        start = min(max((low + high - length) // 2, 0), side - length)
        edges.append((start, start + length))
    (left, right), (top, bottom) = edges
    return drawing.crop((left, top, right, bottom))


# cleaning

def enlarge(grey: np.ndarray) -> np.ndarray:
    """Enlarge a small picture (H, W) by a whole factor to at least MIN_WORKING_SIDE; others stay as they are."""
    factor = math.ceil(MIN_WORKING_SIDE / max(grey.shape))
    if factor == 1:
        return grey
    size = [factor * side for side in grey.shape[::-1]]
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


def find_ink(grey: np.ndarray, ink: str = "auto") -> tuple[np.ndarray, bool]:
    """The amount of ink (H, W) from 0 to 1 at each pixel, and whether the picture is a photograph.

    `grey` is (H, W) from 0 to 1. The amount is the contrast with the paper nearby, so neither a shadow
    nor the tone of the paper matters. `ink` is "dark" or "light"; by default the edge of the picture
    is taken for paper, and decides. A picture whose paper is uneven counts as a photograph. Raises
    ValueError for another `ink`.
    """
    if ink not in ("auto", "dark", "light"):
        raise ValueError(f"ink is dark, light or auto, not {ink!r}")
    if np.ptp(grey) < MIN_CONTRAST:
        return np.zeros_like(grey), False
    depth = max(1, round(0.04 * min(grey.shape)))
    rim = np.concatenate([side.ravel() for side in (grey[:depth], grey[-depth:], grey[:, :depth], grey[:, -depth:])])
    paper, span = float(np.median(rim)), np.ptp(grey)
    bare = rim[np.abs(rim - paper) <= 0.5 * span]  # a stroke may cross the edge
    unevenness = np.ptp(np.percentile(bare, [5, 95])) / span
    even = unevenness <= (0.1 if len(bare) > 0.7 * len(rim) else 0.02 if len(bare) > 0.5 * len(rim) else 0)
    apart = _dark_or_light(grey, paper if even else None)
    even &= ink in ("auto", apart)  # otherwise the edge is not paper, but a frame or a table
    dark = (apart if ink == "auto" else ink) == "dark"
    level = grey if dark else 1 - grey
    if even:
        return np.clip(1 - level / max(paper if dark else 1 - paper, 0.05), 0, 1), False
    # a grey closing fills strokes with the paper around them, and keeps shadows, which are wider
    smooth = ndimage.gaussian_filter(level, max(0.7, 0.002 * max(grey.shape)))
    around = ndimage.grey_closing(smooth, size=max(grey.shape) // 5)
    strength = np.clip(1 - smooth / np.maximum(around, 0.05), 0, 1)
    return np.where(strength > MIN_INK, strength, 0), True


def _dark_or_light(grey: np.ndarray, paper: float | None) -> str:
    """Which ink contrasts more: with this paper, or where it is None, with the local median."""
    if paper is not None:
        return "dark" if paper - grey.min() > grey.max() - paper else "light"
    small = Image.fromarray(np.rint(255 * grey).astype(np.uint8))
    small.thumbnail((200, 200), Image.Resampling.BOX)
    levels = np.pad(np.asarray(small), 30, mode="symmetric")
    around = median(levels, np.ones((61, 61), np.uint8))
    # as a ratio, because light multiplies: ink changes it by more than a shadow does
    difference = np.log((levels + 10.0) / (around + 10.0))[30:-30, 30:-30]
    strong = np.abs(difference) > 0.5 * np.abs(difference).max()
    return "dark" if difference[strong].sum() < 0 else "light"


def find_strokes(ink: np.ndarray) -> np.ndarray:
    """A mask (H, W) of the pen strokes, without ruling, grain and specks."""
    noise = 1.4826 * np.median(np.abs(ink - np.median(ink)))
    candidates = ink[ink > max(0.08, 6 * noise)]
    if not candidates.size:
        return np.zeros(ink.shape, bool)
    strong = candidates[candidates >= threshold_otsu(candidates)] if np.ptp(candidates) > 0 else candidates
    strokes = ink > MIN_STROKE * np.median(strong)
    parts, _ = ndimage.label(strokes, np.ones((3, 3)))
    boxes = [_box(slices) for slices in ndimage.find_objects(parts)]
    sides = np.array([_side(box) for box in boxes])
    inside = np.array([not _cut_off(box, ink.shape) for box in boxes])
    keep = sides > MIN_PART * (sides[inside] if inside.any() else sides).max()
    return np.concatenate([[False], keep])[parts]


# from strokes to digits

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive


@dataclass(frozen=True)
class Piece:
    """The strokes that are taken for one digit."""

    strokes: np.ndarray  # (h, w) bool, cropped to the box
    box: Box


def find_pieces(strokes: np.ndarray, photograph: bool = False) -> tuple[list[Piece], bool]:
    """Segment strokes (H, W) into digits, in reading order: line by line, from left to right.

    Two connected parts belong to one digit where one is small and close to the other, such as the bar
    of a 5, or directly above it. In a photograph, parts that touch the edge of the picture are left
    out, unless there is nothing else: they are a shadow, the edge of the paper, or an incomplete
    digit. The second result says whether one of them is as large as a digit. In other pictures only
    parts along a whole side are left out. Raises PictureError if there are more than MAX_PARTS.
    """
    parts, count = ndimage.label(strokes, np.ones((3, 3)))
    if count > MAX_PARTS:
        raise PictureError(CROWDED.format(count))
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
    """Whether it touches the edge of the picture."""
    margin = 0.005 * max(shape)
    return min(box[:2]) <= margin or box[2] >= shape[1] - margin or box[3] >= shape[0] - margin


def _spans(box: Box, shape: tuple[int, int]) -> bool:
    """Whether it touches the edge and runs along a whole side, as a frame or a line does."""
    return _cut_off(box, shape) and (box[2] - box[0] > 0.95 * shape[1] or box[3] - box[1] > 0.95 * shape[0])


def _side(box: Box) -> int:
    """The longer side."""
    return max(box[2] - box[0], box[3] - box[1])


def _around(boxes: Iterable[Box]) -> Box:
    left, top, right, bottom = zip(*boxes)
    return min(left), min(top), max(right), max(bottom)


def _belong(one: Box, other: Box) -> bool:
    """Whether two parts belong to one digit."""
    across = min(one[2], other[2]) - max(one[0], other[0])  # horizontal overlap; negative: distance
    along = min(one[3], other[3]) - max(one[1], other[1])  # vertical overlap; negative: distance
    smaller, size = sorted((_side(one), _side(other)))
    if smaller < 0.6 * size:  # a bar, a loop, a broken-off part
        return across > -0.15 * size and along > -0.15 * size
    return across > 0.4 * min(one[2] - one[0], other[2] - other[0]) and along > -0.08 * size


def _lines(pieces: list[Piece]) -> list[list[Piece]]:
    """Group pieces into lines, from top to bottom; a piece continues the line whose last piece is level with it."""
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
    """Strokes (h, w) in MNIST's format: uint8 (28, 28), ink 255.

    The stroke width is brought into the range STROKE_WIDTHS first; for the rest see `frame`.
    """
    return frame(_of_usual_width(strokes))


def frame(ink: np.ndarray) -> np.ndarray:
    """Ink (h, w) from 0 to 1, cropped to its bounding box, in MNIST's frame: uint8 (28, 28), at most 255.

    The longer side becomes 20 pixels, by area averaging, and the centre of mass moves to (14, 14), as
    https://github.com/facebookresearch/qmnist reconstructed it.
    """
    scale = DIGIT_SIDE / max(ink.shape)
    size = [max(1, round(side * scale)) for side in ink.shape[::-1]]
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BOX))
    return _centred(np.rint(small * (255 / small.max())).astype(np.uint8))


def crop(ink: np.ndarray) -> np.ndarray:
    """Ink (H, W) without the empty rows and columns at its edges."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _of_usual_width(strokes: np.ndarray) -> np.ndarray:
    """Thicken or thin strokes (h, w), so that in a digit of 20 pixels their width is within STROKE_WIDTHS."""
    side, middle = max(strokes.shape), skeletonize(strokes)
    width = 2 * np.median(ndimage.distance_transform_edt(np.pad(strokes, 1))[1:-1, 1:-1][middle])
    usual = np.clip(width * DIGIT_SIDE / side, *STROKE_WIDTHS)
    # growth on each side; it takes into account that the digit grows as well
    growth = (usual * side - DIGIT_SIDE * width) / (2 * (DIGIT_SIDE - usual))
    if abs(growth) < 0.5:
        return strokes
    if growth > 0:
        return ndimage.distance_transform_edt(~np.pad(strokes, math.ceil(growth))) <= growth
    thinner = ndimage.distance_transform_edt(np.pad(strokes, 1))[1:-1, 1:-1] > -growth
    thinner |= ndimage.distance_transform_edt(~middle) <= width / 2 + growth  # otherwise thin parts would vanish
    if not thinner.any():  # a blob has no skeleton that is a line
        return strokes
    return crop(thinner)


def in_mnist_form(grey: np.ndarray) -> np.ndarray | None:
    """The picture as uint8 (28, 28), ink 255 on paper 0, where its digit already has MNIST's size; else None.

    A digit off the centre is shifted by whole pixels, so nothing is resampled.
    """
    if grey.shape != (28, 28):
        return None
    levels = np.rint(255 * grey).astype(np.uint8)
    for picture in (levels, 255 - levels):
        if picture.max() > 127 and DIGIT_SIDE - 1 <= max((digit := crop(picture)).shape) <= DIGIT_SIDE:
            return _centred(digit)
    return None


def _centred(digit: np.ndarray) -> np.ndarray:
    """A digit of at most 20 × 20 in a picture (28, 28), its centre of mass at (14, 14) to the nearest pixel."""
    top, left = (int(np.clip(round(14 - middle), 0, 28 - side))
                 for middle, side in zip(ndimage.center_of_mass(digit), digit.shape))
    return np.pad(digit, [(top, 28 - top - digit.shape[0]), (left, 28 - left - digit.shape[1])])


def to_mnist(image: AnyPicture, ink: str = "auto") -> np.ndarray:
    """A picture of one digit in MNIST's format: uint8 (28, 28), ink 255 on paper 0.

    `image` is anything that `read_picture` takes; for `ink` see `find_ink`. Raises PictureError if
    the picture cannot be read, and if it is blank.
    """
    picture = prepare(image, ink).picture
    if picture is None:
        raise PictureError("the picture is blank")
    return picture


@dataclass(frozen=True)
class Prepared:
    """A picture prepared for the network."""

    picture: np.ndarray | None  # of all strokes as one digit, uint8 (28, 28); None for a blank picture
    pieces: list[Piece]  # in reading order, boxes in pixels of the upright original; empty if already in MNIST's format
    notes: tuple[str, ...]
    cut_off: bool = False  # whether something as large as a digit touches the edge of a photograph


def prepare(image: AnyPicture, ink: str = "auto") -> Prepared:
    """Take a picture through all steps. For arguments and errors see `read_picture`, `find_ink`, `find_pieces`.

    Marks much smaller than the digits, such as dots and hyphens, are left out, and a note says so.
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
    pieces = [piece for piece in found if len(piece.strokes) > MIN_DIGIT * tallest]
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
