"""Ink: MNIST's digits drawn with a pen of any width, printed and bent words, straight strokes.

Lengths are in pixels, and ink runs from 0 to 1.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.morphology import skeletonize
from torch import Tensor
from tqdm import tqdm

TILE = 72  # a digit is drawn in a tile of 72 × 72 pixels
FIELD = 56  # a digit's distances are kept on a grid of 56 × 56
PART = 16  # digits are drawn at once
STEPS = 16.0  # distances are kept in sixteenths of that grid


class Digits:
    """Handwritten digits, as distances from which a pen of any width can draw them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, bar: tqdm | None = None) -> None:
        """`images` are (N, 28, 28) uint8, `labels` (N,). Takes about half a millisecond for each; `bar` shows it."""
        if bar is not None:
            bar.reset(total=len(images))
        self.labels = labels.astype(int)
        self.outline = torch.zeros(len(images), FIELD, FIELD, dtype=torch.uint8)  # distance inside the ink, + 128
        self.line = torch.zeros(len(images), FIELD, FIELD, dtype=torch.uint8)  # distance from the centre line
        self.boxes = torch.zeros(len(images), 4)  # left, top, right, bottom of the ink, on the grid
        for number, image in enumerate(images):
            if bar is not None:
                bar.update()
            size = (FIELD, FIELD)
            ink = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) > 128
            if not ink.any():
                continue
            inside = ndimage.distance_transform_edt(ink) - ndimage.distance_transform_edt(~ink)
            away = ndimage.distance_transform_edt(~skeletonize(ink))
            self.outline[number] = torch.from_numpy((128 + STEPS * inside).clip(0, 255).astype(np.uint8))
            self.line[number] = torch.from_numpy((STEPS * away).clip(0, 255).astype(np.uint8))
            rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
            self.boxes[number] = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


class Writing(NamedTuple):
    """One digit to draw: which, how large and how bent."""

    digit: int  # its number in the bank
    height: float
    stretch: float  # width, relative to MNIST's
    slant: float  # to the right for each pixel up
    angle: float  # radians, clockwise
    pen: float  # width of the pen, relative to the height; 0 for MNIST's own strokes
    growth: float  # added to MNIST's own strokes on each side, relative to the height


def draw_digits(bank: Digits, writings: list[Writing], generator: torch.Generator) -> np.ndarray:
    """Each digit's ink (K, TILE, TILE), float32, drawn in the middle of a tile."""
    # a hand's irregularity: smooth, about two hundredths of the height
    bends = torch.randn(len(writings), 2, 5, 5, generator=generator)
    parts = range(0, len(writings), PART)  # few at a time stay in the processor's cache
    return np.concatenate([_draw_some(bank, writings[part:part + PART], bends[part:part + PART]) for part in parts]
                          or [np.zeros((0, TILE, TILE), np.float32)])


def _draw_some(bank: Digits, writings: list[Writing], bends: Tensor) -> np.ndarray:
    index = torch.tensor([one.digit for one in writings])
    height, stretch, slant, angle, pen, growth = (
        torch.tensor([one[field] for one in writings])[:, None, None] for field in range(1, 7))
    left, top, right, bottom = (bank.boxes[index, side][:, None, None] for side in range(4))
    scale = (bottom - top) / height  # grid steps for each pixel
    x = (torch.arange(TILE) + 0.5 - TILE / 2)[None, None, :]
    y = (torch.arange(TILE) + 0.5 - TILE / 2)[None, :, None]
    bend = F.interpolate(bends, size=(TILE, TILE), mode="bilinear", align_corners=True) * (0.022 * height)[:, None]
    x, y = angle.cos() * x + angle.sin() * y + bend[:, 0], angle.cos() * y - angle.sin() * x + bend[:, 1]
    x, y = scale * (x + slant * y) / stretch + (left + right) / 2, scale * y + (top + bottom) / 2
    places = torch.stack([x, y], -1) * (2 / FIELD) - 1
    fields = torch.stack([bank.outline[index], bank.line[index]], 1).float()
    # beyond the grid there is no ink: the border repeats, and ink never reaches it
    outline, line = F.grid_sample(fields, places, padding_mode="border", align_corners=False).unbind(1)
    outline, line = (outline - 128) / STEPS / scale, line / STEPS / scale
    own, drawn = outline + growth * height, (pen * height / 2).clamp_min(0.55) - line
    ink: np.ndarray = (torch.where(pen > 0, drawn, own) + 0.5).clamp(0, 1).numpy()
    ink[~np.isfinite(ink)] = 0
    return ink


@cache
def words(count: int = 4000, seed: int = 0) -> list[np.ndarray]:
    """Printed and bent words, letters and signs: ink (h, w) with h of about 40.

    The fonts are matplotlib's, so they are the same on every machine. Letters that look like a digit
    occur only inside words.
    """
    rng = np.random.default_rng(seed)
    fonts = sorted(path for path in Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")
                   if path.name.startswith(("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmtt10", "cmss10"))
                   and "Display" not in path.name)
    letters, alone, signs = [list(text) for text in (
        "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "acdefhkmnprtuvwxyACDEFGHJKLMNPQRTUVWXY", "+*#%&?=@!:;()[]{}<>\\_'\"~^$")]
    bank: list[np.ndarray] = []
    while len(bank) < count:
        font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), 40)
        kind = rng.random()
        length = int(rng.integers(2, 9))
        text = "".join(rng.choice(letters, length) if kind < 0.6 else rng.choice(alone, 1) if kind < 0.85
                       else rng.choice(signs, int(rng.integers(1, 3))))
        if kind < 0.3:
            text = text.capitalize()
        image = Image.new("L", (round(font.getlength(text)) + 40, 80))
        ImageDraw.Draw(image).text((20, 10), text, 255, font)
        ink = np.asarray(image, np.float32) / 255
        if rng.random() < 0.6:  # as by hand: bent, with a pen of one width
            y, x = np.indices(ink.shape, np.float32)
            bends = [ndimage.zoom(rng.normal(0, rng.uniform(0.5, 2), [n // 12 + 2 for n in ink.shape]),
                                  [n / (n // 12 + 2) for n in ink.shape], order=1) for _ in "yx"]
            slant = rng.normal(0, 0.15) * (y - 40)
            ink = ndimage.map_coordinates(ink, [y + bends[0], x + bends[1] + slant], order=1)
            if rng.random() < 0.6 and (ink > 0.5).any():
                away = ndimage.distance_transform_edt(~skeletonize(ink > 0.5))
                ink = np.clip(rng.uniform(0.8, 2.6) + 0.5 - away, 0, 1).astype(np.float32)
        rows, columns = np.flatnonzero((ink > 0.2).any(1)), np.flatnonzero((ink > 0.2).any(0))
        if len(rows) > 5 and len(columns) > 5:
            bank.append(np.ascontiguousarray(ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1], np.float32))
    return bank


def paste(canvas: np.ndarray, ink: np.ndarray, left: int, top: int) -> None:
    """Put ink (h, w) on a canvas, as far as it lies inside; crossing strokes keep the darker value."""
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + ink.shape[1], canvas.shape[1]), min(top + ink.shape[0], canvas.shape[0])
    if x1 > x0 and y1 > y0:
        place = canvas[y0:y1, x0:x1]
        np.maximum(place, ink[y0 - top:y1 - top, x0 - left:x1 - left], out=place)


def draw_segment(canvas: np.ndarray, start: tuple[float, float], end: tuple[float, float], width: float) -> None:
    """Draw a straight pen stroke from (x, y) to (x, y)."""
    margin = width / 2 + 1
    x0, x1 = max(0, int(min(start[0], end[0]) - margin)), min(canvas.shape[1], int(max(start[0], end[0]) + margin) + 1)
    y0, y1 = max(0, int(min(start[1], end[1]) - margin)), min(canvas.shape[0], int(max(start[1], end[1]) + margin) + 1)
    if x1 <= x0 or y1 <= y0:
        return
    y, x = np.ogrid[y0:y1, x0:x1]
    along = np.subtract(end, start)
    share = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / max(along @ along, 1e-6)
    share = share.clip(0, 1)
    away = np.hypot(x - start[0] - share * along[0], y - start[1] - share * along[1])
    place = canvas[y0:y1, x0:x1]
    np.maximum(place, (width / 2 - away + 0.5).clip(0, 1), out=place)
