"""Spoiled pictures: fifteen corruptions to test with, and nine blemishes to train with.

    >>> foggy = corrupt(images, "fog", seed=0)    # uint8 (N, 28, 28), as the images are

The corruptions are those of MNIST-C (Mu & Gilmer 2019) at the severities that they published,
written anew from what their program does; the random numbers differ from the published files.
Motion blur, which they leave to ImageMagick, is its one-sided Gaussian with whole-pixel steps.
The blemishes are relatives of these: see `blemish`.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from scipy import ndimage
from skimage.feature import canny
from skimage.util import random_noise
from torch import Tensor

from mnist_train import warp, warp_amounts

SIDE = 28
CENTRE = (SIDE - 1) / 2
PART = 200  # images at a time: fog needs half a megabyte for each


def corrupt(images: np.ndarray, name: str, seed: int = 0) -> np.ndarray:
    """Images (N, 28, 28) uint8, each corrupted in its own way; equal arguments give equal pictures.

    Raises ValueError for a name that is not in CORRUPTIONS.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"there is no corruption {name!r}: choose from {', '.join(CORRUPTIONS)}")
    rng, corrupted = np.random.default_rng(seed), np.empty_like(images)
    for start in range(0, len(images), PART):
        part = images[start:start + PART] / 255
        corrupted[start:start + PART] = np.rint(255 * np.clip(CORRUPTIONS[name](part, rng), 0, 1))
    return corrupted


# each takes and gives ink (N, 28, 28) from 0 to 1

def shot_noise(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """As if at most three photons reached each pixel."""
    return rng.poisson(3 * ink) / 3


def impulse_noise(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """17 of 100 pixels black or white."""
    return random_noise(ink, "s&p", rng=rng, amount=0.17)


def glass_blur(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Blurred up and down, half of the pixels swapped with a neighbour, and that twice, then blurred again.

    The published files are blurred along one axis alone: their program took the other for colours.
    """
    ink, every = ndimage.gaussian_filter(ink, (0, 0.7, 0), mode="nearest"), np.arange(len(ink))
    for row, column in [(row, column) for row in range(SIDE - 1, 1, -1) for column in range(SIDE - 1, 1, -1)] * 2:
        swapped = every[rng.random(len(ink)) < 0.5]
        there = swapped, row - rng.integers(2, size=len(swapped)), column - rng.integers(2, size=len(swapped))
        here = swapped, row, column
        ink[here], ink[there] = ink[there], ink[here]
    return ndimage.gaussian_filter(ink, (0, 0.7, 0), mode="nearest")


def motion_blur(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Drawn out to one side, in a direction of its own between -45° and 45°."""
    steps = np.arange(21)
    weights = np.exp(-steps**2 / (2 * 3**2))
    angles = np.radians(rng.uniform(-45, 45, len(ink)))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    blurred = np.zeros_like(ink)
    for step, weight in zip(steps, weights / weights.sum()):
        down, right = (np.rint(step * part).astype(int)[:, None, None] for part in (np.sin(angles), np.cos(angles)))
        blurred += weight * ink[np.arange(len(ink))[:, None, None], (rows + down).clip(0, SIDE - 1),
                                (columns + right).clip(0, SIDE - 1)]
    return blurred


def shear(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Slanted by 0.4 radians (23°) to either side, as scikit-image did until 0.19."""
    return _either_side(ink, rng, lambda angle: [[1, -np.sin(angle)], [0, np.cos(angle)]])


def scale(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Seven tenths as large."""
    return _transformed(ink, np.eye(2) / 0.7)


def rotate(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Turned by 0.4 radians (23°) to either side."""
    return _either_side(ink, rng, lambda angle: [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def brightness(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Half as much ink as there can be, everywhere on top."""
    return ink + 0.5


def translate(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Moved by three pixels along both axes, to one of four corners."""
    moved, corners = np.empty_like(ink), rng.integers(4, size=len(ink))
    for corner in range(4):
        here = corners == corner
        moved[here] = ndimage.shift(ink[here], (0, 3 if corner & 1 else -3, 3 if corner & 2 else -3), order=1)
    return moved


def stripe(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """A quarter at the left and one at the right as a negative."""
    striped = 1 - ink
    striped[:, :, 7:21] = ink[:, :, 7:21]
    return striped


def fog(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Behind three times as much cloud as there is ink, then dimmed to what can be."""
    most = ink.max((1, 2), keepdims=True)
    return (ink + 3 * _clouds(len(ink), 1.4**2, rng)[:, :SIDE, :SIDE]) * most / (most + 3)


def spatter(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """With drops of mud."""
    wet = _blurred(rng.normal(0.65, 0.3, ink.shape), 1) > 0.65
    mud = _blurred(wet.astype(float), 1.5)
    mud[mud < 0.8] = 0
    return ink * (1 - mud) + 63 / 255 * mud


def dotted_line(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """With a dashed line from one side to the other."""
    left, right = rng.integers(27, size=(2, len(ink)))
    line = _line(np.zeros(len(ink)), left, np.full(len(ink), 27), right)
    line[:, :, np.arange(SIDE) % 4 < 2] = 0
    return ink + line


def zigzag(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """With a zigzag line from one side to the other, two pixels to each side of a straight one."""
    row, rise = rng.integers(27, size=len(ink)), rng.integers(-5, 5, size=len(ink))
    angle = np.arctan(rise / 23)
    length = 23 / np.cos(angle)
    along = np.stack([np.full(len(ink), place) for place in (0, 2, 6, 10, 14, 18, 22)] + [length])
    aside = np.stack([np.full(len(ink), place) for place in (0, 2, -2, 2, -2, 2, -2)] + [-1 / (length - 20)])
    columns = along * np.cos(angle) - aside * np.sin(angle) + 2
    rows = along * np.sin(angle) + aside * np.cos(angle) + row
    for number in range(len(along) - 1):
        ink = np.minimum(ink + _line(columns[number], rows[number], columns[number + 1], rows[number + 1]), 1)
    return ink


def canny_edges(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Only the outlines, one pixel wide."""
    return np.stack([canny(image) for image in ink]).astype(float)


CORRUPTIONS: dict[str, Callable[[np.ndarray, Generator], np.ndarray]] = {function.__name__: function for function in (
    shot_noise, impulse_noise, glass_blur, motion_blur, shear, scale, rotate, brightness, translate, stripe, fog,
    spatter, dotted_line, zigzag, canny_edges)}


def _blurred(ink: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(ink, (0, sigma, sigma), mode="nearest")


def _transformed(ink: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What stands at (x, y) of the result stood at `matrix` times it before, both seen from the centre."""
    whole = np.eye(3)
    whole[1:, 1:] = matrix[::-1, ::-1]  # from (x, y) to (row, column)
    centre = np.array([0, CENTRE, CENTRE])
    return ndimage.affine_transform(ink, whole, centre - whole @ centre, order=1)


def _either_side(ink: np.ndarray, rng: Generator, matrix: Callable[[float], list]) -> np.ndarray:
    """Each image transformed by the matrix for either 0.4 or -0.4."""
    turned, left = np.empty_like(ink), rng.random(len(ink)) < 0.5
    for here, angle in ((left, -0.4), (~left, 0.4)):
        turned[here] = _transformed(ink[here], np.array(matrix(angle)))
    return turned


def _line(x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> np.ndarray:
    """A soft line from (x0, y0) to (x1, y1) for each image (N,), as ink (N, 28, 28)."""
    x0, y0, x1, y1 = (np.asarray(place, float)[:, None, None] for place in (x0, y0, x1, y1))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    away = np.abs(rows - y0 - (y1 - y0) / (x1 - x0) * (columns - x0)).clip(max=2.29)
    return np.where((columns >= np.floor(x0)) & (columns < np.ceil(x1)), np.log(1 - away / 2.3) + 1, 0).clip(0, 1)


def _clouds(count: int, decay: float, rng: Generator) -> np.ndarray:
    """Fractal clouds (count, 256, 256) from 0 to 1 by the diamond-square algorithm (Fournier et al. 1982).

    At each level the middle of every four known places gets their mean and a random amount, which
    is `decay` times smaller from level to level; the map goes on beyond its borders.
    """
    clouds, step, amount = np.zeros((count, 256, 256), np.float32), 256, 1.0

    def between(*four: np.ndarray) -> np.ndarray:
        return sum(four) / 4 + amount * rng.uniform(-1, 1, four[0].shape).astype(np.float32)

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        right, below = np.roll(corners, -1, 2), np.roll(corners, -1, 1)
        middles = clouds[:, half::step, half::step] = between(corners, right, below, np.roll(right, -1, 1))
        clouds[:, ::step, half::step] = between(corners, right, middles, np.roll(middles, 1, 1))
        clouds[:, half::step, ::step] = between(corners, below, middles, np.roll(middles, 1, 2))
        step, amount = half, amount / decay
    clouds -= clouds.min((1, 2), keepdims=True)
    return clouds / clouds.max((1, 2), keepdims=True)


# blemishes: each takes and gives ink (N, 28, 28) from 0 to 1, as tensors

def blemish(images: np.ndarray, seed: int) -> np.ndarray:
    """Images (N, 28, 28) uint8, half of them left as they are, each of the others with one of nine blemishes.

    They are what may befall a picture: paper that is grey and uneven, too much light, noise, lines,
    a part in negative, blur, strokes of which only the outline or the edge is left, spots, and a
    stronger warp. Each of MNIST-C's fifteen corruptions has a relative among them, often at a
    random strength around its own, so what a network that has learned them does on MNIST-C says
    that it has learned them, and nothing of corruptions that nobody thought of.
    """
    generator, blemished = torch.Generator().manual_seed(seed), np.empty_like(images)
    for start in range(0, len(images), 5000):
        ink = torch.from_numpy(images[start:start + 5000]) / 255
        chosen = torch.randint(2 * len(BLEMISHES), [len(ink)], generator=generator)
        for number, function in enumerate(BLEMISHES):
            here = (chosen == number).nonzero()[:, 0]
            if len(here):
                ink[here] = function(ink[here], generator).clip(0, 1)
        blemished[start:start + 5000] = (255 * ink).round().to(torch.uint8).numpy()
    return blemished


def _uneven_paper(ink: Tensor, generator: torch.Generator) -> Tensor:
    share, level, roughness = _random(3, len(ink), 1, 1, generator=generator)
    share = 0.2 + 0.8 * share
    return share * ink + (1 - share) * (level + roughness * (_smooth(len(ink), 4, generator) - 0.5))


def _bright(ink: Tensor, generator: torch.Generator) -> Tensor:
    return ink + 0.6 * _random(len(ink), 1, 1, generator=generator)


def _noisy(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Rough strokes, and up to a quarter of the pixels black or white."""
    share, strength = _random(2, len(ink), 1, 1, generator=generator) * torch.tensor([0.25, 0.3]).view(2, 1, 1, 1)
    rough = ink + strength * (ink > 0.1) * torch.randn(ink.shape, generator=generator)
    dice = _random(*ink.shape, generator=generator)
    return torch.where(dice < share / 2, 0.0, torch.where(dice > 1 - share / 2, 1.0, rough))


def _lined(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Three straight lines of 6 to 30 pixels."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for _ in range(3):
        row, column, angle, length = _random(4, len(ink), 1, 1, generator=generator)
        down, right, sin, cos = rows - SIDE * row, columns - SIDE * column, (np.pi * angle).sin(), (np.pi * angle).cos()
        near = (1.6 - (down * cos - right * sin).abs()).clip(0, 1)
        ink = ink.maximum(near * ((down * sin + right * cos).abs() < 3 + 12 * length))
    return ink


def _part_in_negative(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Between two rows, or more often columns, or outside of them."""
    start, end = (SIDE * _random(len(ink), 2, 1, generator=generator)).sort(1).values.split(1, 1)
    within = (torch.arange(SIDE) >= start) & (torch.arange(SIDE) < end)
    within = (within ^ (_random(len(ink), 1, 1, generator=generator) < 0.5)).expand(ink.shape)
    upright = _random(len(ink), 1, 1, generator=generator) < 0.7
    return torch.where(torch.where(upright, within, within.transpose(1, 2)), 1 - ink, ink)


def _blurry(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Three times mixed with its eight neighbours, by weights that differ from image to image."""
    for _ in range(3):
        kernel = _random(len(ink), 1, 3, 3, generator=generator) ** 2
        ink = F.conv2d(ink[None], kernel / kernel.sum((2, 3), keepdim=True), padding=1, groups=len(ink))[0]
    return ink


def _hollow(ink: Tensor, generator: torch.Generator) -> Tensor:
    """What a wider stroke, or the stroke itself, has more than a thinner one."""
    thinner = -F.max_pool2d(-ink, 3, 1, 1)
    return torch.where(_random(len(ink), 1, 1, generator=generator) < 0.5, F.max_pool2d(ink, 3, 1, 1), ink) - thinner


def _spotted(ink: Tensor, generator: torch.Generator) -> Tensor:
    size, grey = _random(2, len(ink), 1, 1, generator=generator)
    return torch.where(_smooth(len(ink), 7, generator) > 0.65 + 0.3 * size, 0.4 * grey, ink)


def _bent(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Warped two and a half times as far as `warp_amounts` goes: 27°, four pixels."""
    return warp(ink, 2.5 * warp_amounts(len(ink), generator))


BLEMISHES: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (
    _uneven_paper, _bright, _noisy, _lined, _part_in_negative, _blurry, _hollow, _spotted, _bent)


def _random(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


def _smooth(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Fields (count, 28, 28) that go smoothly from one to the next of side × side random values from 0 to 1."""
    values = _random(count, 1, side, side, generator=generator)
    return F.interpolate(values, size=(SIDE, SIDE), mode="bicubic", align_corners=False)[:, 0].clip(0, 1)
