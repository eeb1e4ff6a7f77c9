"""Calibrate a trained network: fit its temperature and its OOD score."""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.optimize import minimize_scalar
from skimage.morphology import skeletonize
from torch import nn

from mnist.augment import warp, warp_amounts
from mnist.ood import features_and_logits, ood_inputs
from mnist.picture import crop, frame
from mnist_utils import Split

OOD_CHARACTERS = "ACEFGHJKLMNPRTUVWXYacdefhkmnrtuvwxy+*#%&?=@"  # the other letters look like a digit
FALSE_REJECTION_RATE = 0.01  # share of the validation images, all of them digits, that the OOD score rejects


def calibrate(model: nn.Sequential, train_set: Split, val_set: Split, *, mean: float, std: float,
              seed: int = 0) -> dict[str, Any]:
    """Fit what `MNISTPredictor` needs beside the weights; `save_weights` takes the result as metadata.

    "temperature" divides the logits before softmax. It is fitted on the validation images, so that
    confidence comes as close as it can to accuracy (Guo et al. 2017). "ood" holds the "weights" and
    the "threshold" of the OOD score: a logistic regression on `ood_inputs` that separates digits
    from made-up non-digits (outlier exposure: Hendrycks et al. 2019). The threshold is the
    score that a share FALSE_REJECTION_RATE of the validation images exceeds.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import

    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    features, logits = features_and_logits(model, val_set[0], mean=mean, std=std)
    labels = torch.as_tensor(val_set[1]).long()
    fitted = minimize_scalar(lambda log: F.cross_entropy(logits / math.exp(log), labels).item(),
                             bounds=(-2, 2), method="bounded")

    count = min(10_000, len(train_set[0]), 30_000_000 // features.shape[1])  # at most a gigabyte for any network
    images = torch.from_numpy(train_set[0][rng.permutation(len(train_set[0]))[:count]])
    digits = torch.cat([images.float(), warp(images, warp_amounts(len(images), generator))])
    others = torch.from_numpy(non_digits(train_set[0], count, rng)).float()
    inputs = ood_inputs(*features_and_logits(model, torch.cat([digits, others]), mean=mean, std=std))
    centre, spread = inputs.mean(0), inputs.std(0) + 1e-3
    regression = LogisticRegression(C=0.1, max_iter=300).fit((inputs - centre) / spread,
                                                            np.arange(len(inputs)) >= len(digits))
    weights = torch.from_numpy(regression.coef_[0]).float() / spread
    scores = ood_inputs(features, logits) @ weights
    return {"temperature": math.exp(fitted.x),
            "ood": {"weights": weights, "threshold": scores.quantile(1 - FALSE_REJECTION_RATE).item()}}


def non_digits(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Images in MNIST's format (count, 28, 28) that show no single digit.

    They are two or three digits that overlap, letters, scribbles, blots, and digits cut into shuffled
    quarters. `images` are the digits (N, 28, 28) that the composed ones are made of.
    """
    images = images[images.any((1, 2))]
    kinds = [lambda: _side_by_side(images, 2, rng), lambda: _letter(rng), lambda: _scribble(rng), lambda: _blot(rng),
             lambda: _side_by_side(images, 2, rng), lambda: _letter(rng), lambda: _side_by_side(images, 3, rng),
             lambda: _shuffled_quarters(images, rng)]
    return np.stack([frame(crop(kinds[number % len(kinds)]())) for number in range(count)])


def _side_by_side(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Digits in a row (24, W), each overlapping the next by some pixels."""
    canvas, left = np.zeros((24, 20 * count)), 0
    for image in images[rng.integers(len(images), size=count)]:
        digit = crop(frame(crop(image)))
        top = rng.integers(24 - len(digit) + 1)
        place = canvas[top:top + digit.shape[0], left:left + digit.shape[1]]
        np.maximum(place, digit / 255, out=place)
        left += max(1, digit.shape[1] - rng.integers(1, 5))
    return canvas


def _shuffled_quarters(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A digit (20, 20) whose four quarters are shuffled."""
    image = frame(crop(images[rng.integers(len(images))]))[4:24, 4:24] / 255
    one, two, three, four = (image.reshape(2, 10, 2, 10).swapaxes(1, 2).reshape(4, 10, 10)[rng.permutation(4)])
    return np.block([[one, two], [three, four]])


def _blot(rng: np.random.Generator) -> np.ndarray:
    """Black and white noise (40, 40), fine or coarse."""
    noise = ndimage.gaussian_filter(rng.normal(size=(40, 40)), rng.uniform(0.5, 4))
    return (noise > np.quantile(noise, rng.uniform(0.4, 0.8))).astype(float)


def _scribble(rng: np.random.Generator) -> np.ndarray:
    """A random line (120, 120), smooth or jagged."""
    stops = rng.uniform(10, 110, (rng.integers(3, 9), 2))
    along = np.linspace(0, len(stops) - 1, 300)
    path = np.stack([np.interp(along, np.arange(len(stops)), axis) for axis in stops.T], 1)
    return _drawn(ndimage.gaussian_filter1d(path, rng.uniform(1, 15), axis=0), 120, rng)


def _letter(rng: np.random.Generator) -> np.ndarray:
    """A printed letter or sign (200, 200) that resembles no digit, bent and slanted as by hand."""
    line = _centre_line(rng.choice(list(OOD_CHARACTERS)))
    bend = rng.uniform(0, 6) * np.sin(line[:, ::-1] / rng.uniform(15, 40) + rng.uniform(0, 6, 2))
    return _drawn((line + bend) @ (np.eye(2) + rng.normal(scale=0.15, size=(2, 2))) + 100, 200, rng)


@cache
def _centre_line(character: str) -> np.ndarray:
    """The points (N, 2) on the centre line of a printed character; its page's middle is (0, 0)."""
    page = Image.new("L", (160, 160))
    ImageDraw.Draw(page).text((30, 20), character, fill=255, font=ImageFont.load_default(100))
    return np.argwhere(skeletonize(np.asarray(page) > 127)) - 80.0


def _drawn(path: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A dense path of points (N, 2) drawn (side, side) with a pen of random width."""
    away = np.ones((side, side))
    away[tuple(path.astype(int).clip(10, side - 11).T)] = 0
    return (ndimage.distance_transform_edt(away) < rng.uniform(4, 9)).astype(float)
