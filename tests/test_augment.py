"""Augmentation: warps do what their amounts say, and half of the images get a corruption."""

from pathlib import Path

import numpy as np
import pytest
import torch

import mnist.corruptions
from mnist.augment import FAMILIES, TRAINING_CORRUPTIONS, corrupt_half, warp, warp_amounts
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
IMAGES, _ = load_split("test", ROOT / "dataset")


def test_the_centre_moves_by_little_and_by_each_image_s_own_amount():
    dot = torch.zeros(500, 28, 28, dtype=torch.uint8)
    dot[:, 13:15, 13:15] = 255
    warped = warp(dot, warp_amounts(500, torch.Generator().manual_seed(0)))
    assert warped.shape == dot.shape and warped.dtype == torch.float32
    assert warped.min() >= 0 and warped.max() < 255.01
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    shifts = torch.stack([(warped * axis).sum((1, 2)) / warped.sum((1, 2)) for axis in (x, y)])
    assert 1.2 < shifts.abs().max() < 2.1  # 1.5 pixels, before the turn and the scale
    assert len(shifts[0].round(decimals=4).unique()) > 450


def test_lines_are_turned_sheared_and_scaled():
    upright, level = (torch.zeros(500, 28, 28, dtype=torch.uint8) for _ in range(2))
    upright[:, 6:22, 13:15] = 255
    level[:, 13:15, 6:22] = 255
    tilts, lengths = [], []
    for line, axis in ((upright, 1), (level, 2)):
        warped = warp(line, warp_amounts(500, torch.Generator().manual_seed(1)))
        y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
        total = warped.sum((1, 2))
        cx, cy = ((warped * grid).sum((1, 2)) / total for grid in (x, y))
        dx, dy = x - cx[:, None, None], y - cy[:, None, None]
        xx, yy, xy = ((warped * product).sum((1, 2)) / total for product in (dx * dx, dy * dy, dx * dy))
        along, across = (yy, xx) if axis == 1 else (xx, yy)
        tilts.append(torch.atan2(2 * xy, along - across) / 2)
        lengths.append(along.sqrt() / along.sqrt().median())
    for length in lengths:
        assert 0.03 < length.std() < 0.15  # 11 % at most each way, uniformly
    level_tilt, upright_tilt = tilts[1].abs().max().rad2deg(), tilts[0].abs().max().rad2deg()
    assert 9 < level_tilt < 13  # turned alone
    assert 14 < upright_tilt < 22  # turned and sheared


def test_half_of_the_images_are_corrupted():
    images = IMAGES[:6000]
    spoiled = corrupt_half(images, seed=3)
    assert spoiled.shape == images.shape and spoiled.dtype == np.uint8
    assert (spoiled == images).all((1, 2)).mean() == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(spoiled, corrupt_half(images, seed=3))
    assert not np.array_equal(spoiled, corrupt_half(images, seed=4))
    ink, generator = torch.from_numpy(images[:50]) / 255, torch.Generator().manual_seed(0)
    for function in TRAINING_CORRUPTIONS:
        changed = function(ink.clone(), generator)
        assert changed.shape == ink.shape and (changed != ink).any(2).any(1).float().mean() > 0.8, function


def test_a_family_of_corruptions_is_left_out():
    assert sorted(map(repr, sum(FAMILIES.values(), ()))) == sorted(map(repr, TRAINING_CORRUPTIONS))
    assert FAMILIES.keys() == mnist.corruptions.FAMILIES.keys()
    assert sorted(sum(mnist.corruptions.FAMILIES.values(), ())) == sorted(mnist.corruptions.CORRUPTIONS)
    blank = np.zeros((6000, 28, 28), np.uint8)  # which brightness and paper make grey all over
    grey = {family: (corrupt_half(blank, 0, family) > 0).all((1, 2)).mean() for family in FAMILIES}
    assert grey.pop("weather") < 0.005 and min(grey.values()) > 0.05
    with pytest.raises(KeyError, match="snow"):
        corrupt_half(blank, 0, "snow")
