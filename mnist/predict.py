"""From a picture to a digit, with its confidence, and a reason where the digit should not be trusted.

    predictor = MNISTPredictor("MNIST-MODEL.pth")
    prediction = predictor.predict("my-seven.jpg")
    print(prediction.digit, prediction.confidence, prediction.trusted, prediction.reason)
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mnist.evaluate import predict
from mnist.ood import features_and_logits, logits_and_ood_scores, ood_inputs
from mnist.picture import AnyPicture, Box, PictureError, Prepared, fit, prepare
from mnist.weights import WeightsError, load_weights

MAX_ASPECT_RATIO = 2.0  # width by height: no single digit of MNIST is wider
MIN_CONFIDENCE = 0.9


@dataclass(frozen=True)
class Prediction:
    """The prediction for a picture, or for one digit in it."""

    digit: int | None  # None where the picture does not hold exactly one digit
    confidence: float  # 0 to 1: the calibrated probability of `digit`; 0 where there is none
    probabilities: np.ndarray  # (10,), of each digit
    picture: np.ndarray  # uint8 (28, 28): the input of the network
    reason: str = ""  # why not to trust it; empty if no check failed
    notes: tuple[str, ...] = ()  # remarks on the picture
    box: Box | None = None  # of the digit, in pixels of the original picture; set by `read` only

    @property
    def trusted(self) -> bool:
        """Whether no check failed."""
        return not self.reason


class MNISTPredictor:
    """Reads digits in pictures with a trained network. Threads may share one predictor."""

    def __init__(self, model_path: str | os.PathLike[str] = "MNIST-MODEL.pth",
                 device: str | torch.device = "cpu") -> None:
        """Load the weights. For single pictures the CPU is the fastest device.

        The attribute `digest` is the SHA-256 of the file. Raises what `load_weights` raises, and
        WeightsError if the calibration in the file belongs to another network.
        """
        self.model, self.metadata = load_weights(model_path)
        self.digest = hashlib.sha256(Path(model_path).read_bytes()).hexdigest()
        self.model.to(device)
        if self.metadata.get("ood") is not None:
            inputs = ood_inputs(*features_and_logits(self.model, np.zeros((1, 28, 28), np.uint8), mean=0.0, std=1.0))
            if self.metadata["ood"]["weights"].shape != inputs[0].shape:
                raise WeightsError(f"{model_path} holds the calibration of another network")

    def predict(self, image: AnyPicture, ink: str = "auto") -> Prediction:
        """Read the one digit in a picture. For arguments and errors see `read_picture` and `find_ink`."""
        return self._judge([prepare(image, ink)])[0]

    def predict_many(self, images: Iterable[AnyPicture], ink: str = "auto") -> list[Prediction]:
        """Read the one digit in each of several pictures, as one batch.

        Raises PictureError, which gives the number of the picture, if one cannot be read.
        """
        prepared = []
        for number, image in enumerate(images, 1):
            try:
                prepared.append(prepare(image, ink))
            except PictureError as error:
                raise PictureError(f"picture {number}: {error}") from error
        return self._judge(prepared)

    def read(self, image: AnyPicture, ink: str = "auto") -> list[Prediction]:
        """Read all digits in a picture, in reading order, each with its box. A blank picture gives an empty list."""
        whole = prepare(image, ink)
        if whole.picture is not None and not whole.pieces:  # already in MNIST's format
            return [replace(result, box=(0, 0, 28, 28)) for result in self._judge([whole])]
        judged = self._judge([replace(whole, picture=fit(piece.strokes), pieces=[piece]) for piece in whole.pieces])
        return [replace(result, box=piece.box) for result, piece in zip(judged, whole.pieces)]

    def _judge(self, prepared: list[Prepared]) -> list[Prediction]:
        if not prepared:
            return []
        blank = np.zeros((28, 28), np.uint8)
        pictures = np.stack([blank if one.picture is None else one.picture for one in prepared])
        if self.metadata.get("ood") is not None:
            logits, scores = logits_and_ood_scores(self.model, pictures, self.metadata)
            rejected = (scores > self.metadata["ood"]["threshold"]).tolist()
        else:
            logits = predict(self.model, pictures, mean=self.metadata["mean"], std=self.metadata["std"])
            rejected = [False] * len(prepared)
        probabilities = (logits / self.metadata.get("temperature", 1.0)).softmax(1).numpy()
        return [self._prediction(*one) for one in zip(prepared, pictures, probabilities, rejected)]

    def _prediction(self, prepared: Prepared, picture: np.ndarray, probabilities: np.ndarray,
                    rejected: bool) -> Prediction:
        pieces = prepared.pieces
        if prepared.picture is None:
            reason = "the picture is blank"
        elif len(pieces) > 1:
            reason = f"not one digit, but {len(pieces)}"
        elif pieces and pieces[0].strokes.shape[1] > MAX_ASPECT_RATIO * pieces[0].strokes.shape[0]:
            reason = "not one digit: it is too wide"
        else:
            digit, confidence = int(probabilities.argmax()), float(probabilities.max())
            reason = ""
            if prepared.cut_off:
                reason = "something is cut off at the edge of the picture"
            elif rejected:
                reason = "it does not look like a single digit (out of distribution)"
            elif confidence < MIN_CONFIDENCE:
                reason = f"low confidence: it may be a {probabilities.argsort()[-2]} as well"
            return Prediction(digit, confidence, probabilities, picture, reason, prepared.notes)
        return Prediction(None, 0.0, np.full(10, 0.1, np.float32), picture, reason, prepared.notes)
