"""Data augmentation: random affine warps, and random corruptions of training images."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_utils import IMAGE_SHAPE

SIDE, _ = IMAGE_SHAPE
# rotation in radians (11°), scale along each axis, shear, shift along each axis as a share of half the image
WARP_LIMITS = torch.tensor([0.19, 0.11, 0.11, 0.15, 1.5 / 14, 1.5 / 14])


def warp_amounts(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Random amounts (count, 6) for `warp`, each uniform between -WARP_LIMITS and WARP_LIMITS."""
    return (2 * torch.rand(count, 6, generator=generator) - 1) * WARP_LIMITS


def warp(images: Tensor, amounts: Tensor) -> Tensor:
    """Rotate, scale, shear and shift each image (N, 28, 28) by its own amounts (N, 6); returns float32.

    The columns of `amounts` are those of `warp_amounts`; a shift of 1 is 14 pixels, applied before
    rotation and scale. Interpolation is bilinear, and black fills in from outside. Grey levels stay
    on the scale 0 to 255.
    """
    if not len(images):  # one process's share of a short last batch may be empty; grid_sample refuses that
        return images.float()
    angle, width, height, shear, x, y = amounts.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * (1 + width), shear - sin * (1 + height), x, sin * (1 + width), cos * (1 + height), y]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(images), 1, *images.shape[1:]],
                         align_corners=False)
    return F.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)


def corrupt_half(images: np.ndarray, seed: int, left_out: str | None = None) -> np.ndarray:
    """A copy of uint8 images (N, 28, 28) in which about half have one of nine random corruptions each.

    The nine are uneven grey paper, brightness, noise, lines, a part in negative, blur, outlines,
    spots, and a stronger warp. Each of MNIST-C's fifteen corruptions is similar to one of them, so
    MNIST-C then measures how well a network learned these, and not how it copes with unseen ones.
    For that, a family of TRAINING_CORRUPTIONS can be left out: "noise", "blur", "weather",
    "geometry" or "occlusion". Raises KeyError for another name.
    """
    dropped = FAMILIES[left_out] if left_out else ()
    functions = [function for function in TRAINING_CORRUPTIONS if function not in dropped]
    generator, corrupted = torch.Generator().manual_seed(seed), np.empty_like(images)
    for start in range(0, len(images), 5000):
        ink = torch.from_numpy(images[start:start + 5000]) / 255
        chosen = torch.randint(2 * len(functions), [len(ink)], generator=generator)
        for number, function in enumerate(functions):
            here = (chosen == number).nonzero()[:, 0]
            if len(here):
                ink[here] = function(ink[here], generator).clip(0, 1)
        corrupted[start:start + 5000] = (255 * ink).round().to(torch.uint8).numpy()
    return corrupted


# each of these takes and returns ink (N, 28, 28) from 0 to 1

def _uneven_paper(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Less contrast, on grey paper of uneven brightness."""
    share, level, roughness = _random(3, len(ink), 1, 1, generator=generator)
    share = 0.2 + 0.8 * share
    return share * ink + (1 - share) * (level + roughness * (_smooth(len(ink), 4, generator) - 0.5))


def _bright(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Up to 0.6 added everywhere."""
    return ink + 0.6 * _random(len(ink), 1, 1, generator=generator)


def _noisy(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Noisy strokes, and up to a quarter of all pixels black or white."""
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
    """Inverted between two columns (or, less often, two rows), or everywhere but between them."""
    start, end = (SIDE * _random(len(ink), 2, 1, generator=generator)).sort(1).values.split(1, 1)
    within = (torch.arange(SIDE) >= start) & (torch.arange(SIDE) < end)
    within = (within ^ (_random(len(ink), 1, 1, generator=generator) < 0.5)).expand(ink.shape)
    upright = _random(len(ink), 1, 1, generator=generator) < 0.7
    return torch.where(torch.where(upright, within, within.transpose(1, 2)), 1 - ink, ink)


def _blurry(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Blurred three times, each time with a random 3 × 3 kernel of its own for each image."""
    for _ in range(3):
        kernel = _random(len(ink), 1, 3, 3, generator=generator) ** 2
        ink = F.conv2d(ink[None], kernel / kernel.sum((2, 3), keepdim=True), padding=1, groups=len(ink))[0]
    return ink


def _hollow(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Outlines: the stroke, or a dilated one, less an eroded one."""
    thinner = -F.max_pool2d(-ink, 3, 1, 1)
    return torch.where(_random(len(ink), 1, 1, generator=generator) < 0.5, F.max_pool2d(ink, 3, 1, 1), ink) - thinner


def _spotted(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Covered in part by smooth grey spots."""
    size, grey = _random(2, len(ink), 1, 1, generator=generator)
    return torch.where(_smooth(len(ink), 7, generator) > 0.65 + 0.3 * size, 0.4 * grey, ink)


def _bent(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Warped by up to two and a half times WARP_LIMITS: 27°, four pixels."""
    return warp(ink, 2.5 * warp_amounts(len(ink), generator))


Corruption = Callable[[Tensor, torch.Generator], Tensor]
TRAINING_CORRUPTIONS: tuple[Corruption, ...] = (
    _uneven_paper, _bright, _noisy, _lined, _part_in_negative, _blurry, _hollow, _spotted, _bent)
# the same by what they do, as mnist.corruptions.FAMILIES groups MNIST-C's
FAMILIES: dict[str, tuple[Corruption, ...]] = {
    "noise": (_noisy,), "blur": (_blurry,), "weather": (_uneven_paper, _bright), "geometry": (_bent,),
    "occlusion": (_lined, _part_in_negative, _hollow, _spotted)}


def _random(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


def _smooth(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields (count, 28, 28) from 0 to 1, interpolated from side × side random values."""
    values = _random(count, 1, side, side, generator=generator)
    return F.interpolate(values, size=(SIDE, SIDE), mode="bicubic", align_corners=False)[:, 0].clip(0, 1)
