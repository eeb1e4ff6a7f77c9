"""From a picture to a digit, with a fair confidence, and a word where it should not be trusted.

    predictor = MNISTPredictor("MNIST-MODEL.pth")
    result = predictor.predict("my-seven.jpg")
    print(result.digit, result.confidence, result.trusted, result.reason)
"""

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.optimize import minimize_scalar
from skimage.morphology import skeletonize
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from mnist_model import WeightsError, load_weights
from mnist_picture import AnyPicture, Box, PictureError, Prepared, crop, fit, frame, prepare
from mnist_train import Split, predict, warp, warp_amounts
from mnist_utils import normalize

SIGNS = "ACEFGHJKLMNPRTUVWXYacdefhkmnrtuvwxy+*#%&?=@"  # others resemble a digit
WIDEST = 2.0  # times as wide as high: no single digit of MNIST is wider
LEAST_CONFIDENCE = 0.9
REJECTED = 0.01  # share of validation digits that `calibrate` lets be taken for no digit


# calibration

def calibrate(model: nn.Sequential, train_set: Split, val_set: Split, *, mean: float, std: float,
              seed: int = 0) -> dict[str, Any]:
    """What `MNISTPredictor` needs beside the weights to know how sure it may be; `save_weights` keeps it.

    "temperature" divides the scores before softmax, so that confidence comes closest to the
    share of right answers on the validation images (Guo et al. 2017). "doubt" is a logistic
    regression on what enters the first linear layer, and on how strong the scores are, that
    tells digits from pictures made to be none (outlier exposure: Hendrycks et al. 2019); its
    "limit" is passed by one in a hundred of the validation images.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    features, scores = _features_and_scores(model, val_set[0], mean, std)
    labels = torch.as_tensor(val_set[1]).long()
    fitted = minimize_scalar(lambda log: F.cross_entropy(scores / math.exp(log), labels).item(),
                             bounds=(-2, 2), method="bounded")

    count = min(10_000, len(train_set[0]), 30_000_000 // features.shape[1])  # in a gigabyte, whatever the network
    images = torch.from_numpy(train_set[0][rng.permutation(len(train_set[0]))[:count]])
    digits = torch.cat([images.float(), warp(images, warp_amounts(len(images), generator))])
    evidence = _evidence(*_features_and_scores(model, torch.cat([digits, torch.from_numpy(
        no_digits(train_set[0], count, rng)).float()]), mean, std))
    centre, spread = evidence.mean(0), evidence.std(0) + 1e-3
    regression = LogisticRegression(C=0.1, max_iter=300).fit((evidence - centre) / spread,
                                                            np.arange(len(evidence)) >= len(digits))
    weights = torch.from_numpy(regression.coef_[0]).float() / spread
    doubts = _evidence(features, scores) @ weights
    return {"temperature": math.exp(fitted.x),
            "doubt": {"weights": weights, "limit": doubts.quantile(1 - REJECTED).item()}}


@torch.no_grad()
def _features_and_scores(model: nn.Sequential, images: np.ndarray | Tensor, mean: float,
                         std: float) -> tuple[Tensor, Tensor]:
    """What enters the first linear layer (N, F) and the scores (N, 10), on the CPU, of images (N, 28, 28)."""
    device, features, scores = next(model.parameters()).device, [], []
    for batch in torch.as_tensor(images).split(250):
        values, entering = normalize(batch.to(device), mean, std), None
        for layer in model:
            if entering is None and isinstance(layer, nn.Linear):
                entering = values
            values = layer(values)
        features.append(entering.cpu())
        scores.append(values.cpu())
    return torch.cat(features), torch.cat(scores)


def scores_and_doubts(model: nn.Sequential, images: np.ndarray | Tensor,
                      facts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The scores (N, 10) of images (N, 28, 28), and the doubts (N,) that they are digits at all, on the CPU.

    `facts` are those of the weights file, with what `calibrate` has found.
    """
    features, scores = _features_and_scores(model, images, facts["mean"], facts["std"])
    return scores, _evidence(features, scores) @ facts["doubt"]["weights"]


def _evidence(features: Tensor, scores: Tensor) -> Tensor:
    """What doubt is computed from: features, the scores' soft maximum, and the highest score."""
    return torch.cat([features, scores.logsumexp(1, keepdim=True), scores.amax(1, keepdim=True)], 1)


def no_digits(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Pictures like MNIST's that are no digits (count, 28, 28): two or three at once, letters, scribbles and the like.

    `images` are the digits (N, 28, 28) that some are put together from.
    """
    images = images[images.any((1, 2))]
    kinds = [lambda: _side_by_side(images, 2, rng), lambda: _letter(rng), lambda: _scribble(rng), lambda: _blot(rng),
             lambda: _side_by_side(images, 2, rng), lambda: _letter(rng), lambda: _side_by_side(images, 3, rng),
             lambda: _out_of_place(images, rng)]
    return np.stack([frame(crop(kinds[number % len(kinds)]())) for number in range(count)])


def _side_by_side(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Digits that overlap by some pixels: (24, W)."""
    canvas, left = np.zeros((24, 20 * count)), 0
    for image in images[rng.integers(len(images), size=count)]:
        digit = crop(frame(crop(image)))
        top = rng.integers(24 - len(digit) + 1)
        place = canvas[top:top + digit.shape[0], left:left + digit.shape[1]]
        np.maximum(place, digit / 255, out=place)
        left += max(1, digit.shape[1] - rng.integers(1, 5))
    return canvas


def _out_of_place(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A digit's four quarters in another order: (20, 20)."""
    image = frame(crop(images[rng.integers(len(images))]))[4:24, 4:24] / 255
    one, two, three, four = (image.reshape(2, 10, 2, 10).swapaxes(1, 2).reshape(4, 10, 10)[rng.permutation(4)])
    return np.block([[one, two], [three, four]])


def _blot(rng: np.random.Generator) -> np.ndarray:
    """Noise, fine or coarse, in black and white: (40, 40)."""
    noise = ndimage.gaussian_filter(rng.normal(size=(40, 40)), rng.uniform(0.5, 4))
    return (noise > np.quantile(noise, rng.uniform(0.4, 0.8))).astype(float)


def _scribble(rng: np.random.Generator) -> np.ndarray:
    """A line from place to place, smooth or jagged: (120, 120)."""
    stops = rng.uniform(10, 110, (rng.integers(3, 9), 2))
    along = np.linspace(0, len(stops) - 1, 300)
    path = np.stack([np.interp(along, np.arange(len(stops)), axis) for axis in stops.T], 1)
    return _penned(ndimage.gaussian_filter1d(path, rng.uniform(1, 15), axis=0), 120, rng)


def _letter(rng: np.random.Generator) -> np.ndarray:
    """A letter or sign that no digit looks like, printed, then bent and slanted as by hand: (200, 200)."""
    page = Image.new("L", (160, 160))
    ImageDraw.Draw(page).text((30, 20), rng.choice(list(SIGNS)), fill=255, font=ImageFont.load_default(100))
    line = np.argwhere(skeletonize(np.asarray(page) > 127)) - 80.0
    bend = rng.uniform(0, 6) * np.sin(line[:, ::-1] / rng.uniform(15, 40) + rng.uniform(0, 6, 2))
    return _penned((line + bend) @ (np.eye(2) + rng.normal(scale=0.15, size=(2, 2))) + 100, 200, rng)


def _penned(path: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Points (N, 2), dense enough for a line, drawn by a pen of some width: (side, side)."""
    away = np.ones((side, side))
    away[tuple(path.astype(int).clip(10, side - 11).T)] = 0
    return (ndimage.distance_transform_edt(away) < rng.uniform(4, 9)).astype(float)


# predicting

@dataclass(frozen=True)
class Prediction:
    """What the network makes of a picture."""

    digit: int | None  # None where there is not one digit to speak of
    confidence: float  # 0 to 1: the calibrated probability of that digit, 0 without one
    probabilities: np.ndarray  # (10,), of each digit
    picture: np.ndarray  # uint8 (28, 28): what the network saw
    reason: str = ""  # why not to trust it
    notes: tuple[str, ...] = ()  # what else to know of the picture
    box: Box | None = None  # where it stands in the picture, if it was looked for

    @property
    def trusted(self) -> bool:
        """Whether nothing speaks against the answer."""
        return not self.reason


class MNISTPredictor:
    """Reads digits in pictures with a trained network, which is loaded once; any number of threads may share it."""

    def __init__(self, model_path: str | os.PathLike = "MNIST-MODEL.pth",
                 device: str | torch.device | None = None) -> None:
        """Load the weights, to the CPU unless `device` names another: for single pictures it is the fastest.

        `digest` is the SHA-256 of the file. Raises what `load_weights` raises, and WeightsError for a
        calibration of another network.
        """
        self.model, self.facts = load_weights(model_path)
        self.digest = hashlib.sha256(Path(model_path).read_bytes()).hexdigest()
        self.model.to(device or "cpu")
        if "doubt" in self.facts:
            evidence = _evidence(*_features_and_scores(self.model, np.zeros((1, 28, 28), np.uint8), 0.0, 1.0))
            if self.facts["doubt"]["weights"].shape != evidence[0].shape:
                raise WeightsError(f"{model_path} holds the calibration of another network")

    def predict(self, image: AnyPicture, ink: str = "auto") -> Prediction:
        """Read the one digit in a picture; for arguments and errors see `read_picture` and `find_ink`."""
        return self._judge([prepare(image, ink)])[0]

    def predict_many(self, images: Iterable[AnyPicture], ink: str = "auto") -> list[Prediction]:
        """Read the one digit in each of several pictures, all in one batch.

        Raises PictureError, which says which one it is, where one cannot be read.
        """
        prepared = []
        for number, image in enumerate(images, 1):
            try:
                prepared.append(prepare(image, ink))
            except PictureError as error:
                raise PictureError(f"picture {number}: {error}") from error
        return self._judge(prepared)

    def read(self, image: AnyPicture, ink: str = "auto") -> list[Prediction]:
        """Read all the digits in a picture, in reading order, each with its box; none for a blank picture."""
        whole = prepare(image, ink)
        if whole.picture is not None and not whole.pieces:  # in MNIST's form
            return [replace(result, box=(0, 0, 28, 28)) for result in self._judge([whole])]
        judged = self._judge([replace(whole, picture=fit(piece.strokes), pieces=[piece]) for piece in whole.pieces])
        return [replace(result, box=piece.box) for result, piece in zip(judged, whole.pieces)]

    def _judge(self, prepared: list[Prepared]) -> list[Prediction]:
        if not prepared:
            return []
        blank = np.zeros((28, 28), np.uint8)
        pictures = np.stack([blank if one.picture is None else one.picture for one in prepared])
        if doubt := self.facts.get("doubt"):
            scores, doubts = scores_and_doubts(self.model, pictures, self.facts)
            strange = doubts > doubt["limit"]
        else:
            scores = predict(self.model, pictures, mean=self.facts["mean"], std=self.facts["std"])
            strange = [False] * len(prepared)
        probabilities = (scores / self.facts.get("temperature", 1.0)).softmax(1).numpy()
        return [self._result(*one) for one in zip(prepared, pictures, probabilities, strange)]

    def _result(self, prepared: Prepared, picture: np.ndarray, probabilities: np.ndarray, strange: bool) -> Prediction:
        pieces = prepared.pieces
        if prepared.picture is None:
            reason = "it is blank: there is no ink to be seen"
        elif len(pieces) > 1:
            reason = f"it is not one digit: there are {len(pieces)}"
        elif pieces and pieces[0].strokes.shape[1] > WIDEST * pieces[0].strokes.shape[0]:
            reason = "it is not one digit: it is wider than any is"
        else:
            digit, confidence = int(probabilities.argmax()), float(probabilities.max())
            reason = ""
            if prepared.cut_off:
                reason = "something runs out of the picture"
            elif strange:
                reason = "it looks like no single digit, or is written in a way that the network has not learned"
            elif confidence < LEAST_CONFIDENCE:
                reason = f"unsure: it may be a {probabilities.argsort()[-2]} as well"
            return Prediction(digit, confidence, probabilities, picture, reason, prepared.notes)
        return Prediction(None, 0.0, np.full(10, 0.1, np.float32), picture, reason, prepared.notes)
