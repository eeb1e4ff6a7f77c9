"""MNIST-C's corruptions, against scikit-image and against what they are known to do."""

from pathlib import Path

import numpy as np
import pytest
from skimage.transform import AffineTransform, EuclideanTransform
from skimage.transform import warp as warp_image

from mnist.corruptions import CORRUPTIONS, corrupt
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")


def test_the_corruptions_have_their_published_names():
    assert list(CORRUPTIONS) == [
        "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate", "brightness",
        "translate", "stripe", "fog", "spatter", "dotted_line", "zigzag", "canny_edges"]
    with pytest.raises(ValueError, match="no corruption 'snow': choose from shot_noise, "):
        corrupt(IMAGES[:1], "snow")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_repeats_itself_and_changes_every_image(name):
    images = IMAGES[:210]
    corrupted = corrupt(images, name, seed=1)
    assert corrupted.shape == images.shape and corrupted.dtype == np.uint8
    assert (corrupted != images).any((1, 2)).all()
    assert np.array_equal(corrupted, corrupt(images, name, seed=1))
    random = name not in ("brightness", "scale", "stripe", "canny_edges")
    assert np.array_equal(corrupted, corrupt(images, name, seed=2)) is not random


@pytest.mark.parametrize("name, transforms", [
    ("rotate", [EuclideanTransform(rotation=angle) for angle in (-0.4, 0.4)]),
    ("scale", [AffineTransform(scale=1 / 0.7)]),
    ("shear", [AffineTransform(np.array([[1, -np.sin(a), 0], [0, np.cos(a), 0], [0, 0, 1]])) for a in (-0.4, 0.4)])])
def test_turned_ones_are_what_scikit_image_makes(name, transforms):
    to, back = (EuclideanTransform(translation=(side, side)) for side in (-13.5, 13.5))
    seen = set()
    for image, corrupted in zip(IMAGES[:20], corrupt(IMAGES[:20], name)):
        away = [np.abs(255 * warp_image(image / 255, to + transform + back, order=1) - corrupted).max()
                for transform in transforms]
        seen.add(int(np.argmin(away)))
        assert min(away) <= 0.51
    assert len(seen) == len(transforms)


def test_plain_corruptions():
    images = IMAGES[:100]
    assert np.abs(corrupt(images, "brightness") - np.minimum(images + 127.5, 255)).max() <= 0.5
    assert np.array_equal(corrupt(images, "stripe")[:, :, 7:21], images[:, :, 7:21])
    assert np.array_equal(corrupt(images, "stripe")[:, :, :7], 255 - images[:, :, :7])
    salted = corrupt(images, "impulse_noise") != images
    assert salted[images == 0].mean() == pytest.approx(0.085, abs=0.005)
    for image, moved in zip(images, corrupt(images, "translate")):
        assert any(np.array_equal(moved[4:-4, 4:-4], np.roll(image, (down, right), (0, 1))[4:-4, 4:-4])
                   for down in (-3, 3) for right in (-3, 3))
    assert set(np.unique(corrupt(images, "canny_edges"))) == {0, 255}
    grey = corrupt(images, "fog")
    assert grey.min((1, 2)).max() > 20 and (grey.astype(float) - images).std() > 30
    for name in ("dotted_line", "zigzag"):
        more = corrupt(images, name).astype(int) - images
        assert (more >= 0).all() and 15 < (more > 100).sum((1, 2)).mean() < 90
