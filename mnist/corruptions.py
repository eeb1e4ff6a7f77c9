"""The fifteen corruptions of MNIST-C (Mu & Gilmer 2019), to test a network with.

    >>> foggy = corrupt(images, "fog", seed=0)    # uint8 (N, 28, 28), as the images are

Each has the severity that MNIST-C published. The code is written anew from what their program
does, so the random numbers differ from the published files. Their motion blur runs ImageMagick;
here it is ImageMagick's one-sided Gaussian with steps of whole pixels. For the corruptions to
train with see `mnist.augment`.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy import ndimage
from skimage.feature import canny
from skimage.util import random_noise

from mnist_utils import IMAGE_SHAPE

SIDE, _ = IMAGE_SHAPE
CENTRE = (SIDE - 1) / 2
BATCH = 200  # images at a time: fog needs half a megabyte for each


def corrupt(images: np.ndarray, name: str, seed: int = 0) -> np.ndarray:
    """Images (N, 28, 28) uint8, each with its own random corruption of this kind; equal arguments give equal results.

    Raises ValueError for a name that is not in CORRUPTIONS.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"there is no corruption {name!r}: choose from {', '.join(CORRUPTIONS)}")
    rng, corrupted = np.random.default_rng(seed), np.empty_like(images)
    for start in range(0, len(images), BATCH):
        part = images[start:start + BATCH] / 255
        corrupted[start:start + BATCH] = np.rint(255 * np.clip(CORRUPTIONS[name](part, rng), 0, 1))
    return corrupted


# each of these takes and returns ink (N, 28, 28) from 0 to 1

def shot_noise(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Photon noise, where full ink is three photons per pixel."""
    return rng.poisson(3 * ink) / 3


def impulse_noise(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """17 % of the pixels black or white."""
    return random_noise(ink, "s&p", rng=rng, amount=0.17)


def glass_blur(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Blurred vertically, then in two passes half of the pixels swapped with a neighbour, then blurred again.

    The published files are blurred along one axis only: the original code takes the other for colour channels.
    """
    ink, every = ndimage.gaussian_filter(ink, (0, 0.7, 0), mode="nearest"), np.arange(len(ink))
    for row, column in [(row, column) for row in range(SIDE - 1, 1, -1) for column in range(SIDE - 1, 1, -1)] * 2:
        swapped = every[rng.random(len(ink)) < 0.5]
        there = swapped, row - rng.integers(2, size=len(swapped)), column - rng.integers(2, size=len(swapped))
        here = swapped, row, column
        ink[here], ink[there] = ink[there], ink[here]
    return ndimage.gaussian_filter(ink, (0, 0.7, 0), mode="nearest")


def motion_blur(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Smeared to one side, in a random direction between -45° and 45°."""
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
    """Sheared by 0.4 radians (23°) to either side, by the formula of scikit-image up to 0.19."""
    return _either_side(ink, rng, lambda angle: [[1, -np.sin(angle)], [0, np.cos(angle)]])


def scale(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Scaled down to seven tenths."""
    return _transformed(ink, np.eye(2) / 0.7)


def rotate(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Rotated by 0.4 radians (23°) to either side."""
    return _either_side(ink, rng, lambda angle: [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def brightness(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Half of full ink added everywhere."""
    return ink + 0.5


def translate(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Shifted by three pixels along both axes, towards one of the four corners."""
    moved, corners = np.empty_like(ink), rng.integers(4, size=len(ink))
    for corner in range(4):
        here = corners == corner
        moved[here] = ndimage.shift(ink[here], (0, 3 if corner & 1 else -3, 3 if corner & 2 else -3), order=1)
    return moved


def stripe(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """The left and the right quarter inverted."""
    striped = 1 - ink
    striped[:, :, 7:21] = ink[:, :, 7:21]
    return striped


def fog(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Under a fractal cloud three times as strong as full ink, then rescaled."""
    most = ink.max((1, 2), keepdims=True)
    return (ink + 3 * _clouds(len(ink), 1.4**2, rng)[:, :SIDE, :SIDE]) * most / (most + 3)


def spatter(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """Spattered with mud."""
    wet = _blurred(rng.normal(0.65, 0.3, ink.shape), 1) > 0.65
    mud = _blurred(wet.astype(float), 1.5)
    mud[mud < 0.8] = 0
    return ink * (1 - mud) + 63 / 255 * mud


def dotted_line(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """A dashed line across the image."""
    left, right = rng.integers(27, size=(2, len(ink)))
    line = _line(np.zeros(len(ink)), left, np.full(len(ink), 27), right)
    line[:, :, np.arange(SIDE) % 4 < 2] = 0
    return ink + line


def zigzag(ink: np.ndarray, rng: Generator) -> np.ndarray:
    """A zigzag line across the image, with an amplitude of two pixels."""
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
    """Canny edges: only outlines, one pixel wide."""
    return np.stack([canny(image) for image in ink]).astype(float)


CORRUPTIONS: dict[str, Callable[[np.ndarray, Generator], np.ndarray]] = {function.__name__: function for function in (
    shot_noise, impulse_noise, glass_blur, motion_blur, shear, scale, rotate, brightness, translate, stripe, fog,
    spatter, dotted_line, zigzag, canny_edges)}
# by what they do; occlusion is all that covers a part of the strokes, or takes it away
FAMILIES = {"noise": ("shot_noise", "impulse_noise"), "blur": ("glass_blur", "motion_blur"),
            "weather": ("brightness", "fog"), "geometry": ("shear", "scale", "rotate", "translate"),
            "occlusion": ("stripe", "spatter", "dotted_line", "zigzag", "canny_edges")}


def _blurred(ink: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(ink, (0, sigma, sigma), mode="nearest")


def _transformed(ink: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Resampled so that the result at (x, y) is the image at matrix @ (x, y), both relative to the centre."""
    whole = np.eye(3)
    whole[1:, 1:] = matrix[::-1, ::-1]  # from (x, y) to (row, column)
    centre = np.array([0, CENTRE, CENTRE])
    return ndimage.affine_transform(ink, whole, centre - whole @ centre, order=1)


def _either_side(ink: np.ndarray, rng: Generator, matrix: Callable[[float], list[list[float]]]) -> np.ndarray:
    """Each image transformed by the matrix for an angle of 0.4 or -0.4, at random."""
    turned, left = np.empty_like(ink), rng.random(len(ink)) < 0.5
    for here, angle in ((left, -0.4), (~left, 0.4)):
        turned[here] = _transformed(ink[here], np.array(matrix(angle)))
    return turned


def _line(x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> np.ndarray:
    """An antialiased line from (x0, y0) to (x1, y1) for each image (N,), as ink (N, 28, 28)."""
    x0, y0, x1, y1 = (np.asarray(place, float)[:, None, None] for place in (x0, y0, x1, y1))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    away = np.abs(rows - y0 - (y1 - y0) / (x1 - x0) * (columns - x0)).clip(max=2.29)
    return np.where((columns >= np.floor(x0)) & (columns < np.ceil(x1)), np.log(1 - away / 2.3) + 1, 0).clip(0, 1)


def _clouds(count: int, decay: float, rng: Generator) -> np.ndarray:
    """Fractal clouds (count, 256, 256) from 0 to 1 by the diamond-square algorithm (Fournier et al. 1982).

    At each level the point between four known ones gets their mean plus a random amount, which
    shrinks by `decay` from level to level. The map wraps around at its borders.
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
