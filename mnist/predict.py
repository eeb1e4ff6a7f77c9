"""From a picture to digits and numbers, with their confidence, and a reason where they should not be trusted.

    predictor = MNISTPredictor("MNIST-MODEL.pth")
    prediction = predictor.predict("my-seven.jpg")
    print(prediction.digit, prediction.confidence, prediction.trusted, prediction.reason)
    for number in predictor.read_numbers("a-page.jpg"):
        print(number.text, number.confidence, number.trusted, number.reason)
"""

import hashlib
import math
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnist.detect import FoundDigit, find_digits
from mnist.evaluate import predict
from mnist.files import DETECTOR
from mnist.networks import NONE, DigitDetector
from mnist.numbers import FloatBox, group, outline
from mnist.ood import features_and_logits, logits_and_ood_scores, ood_inputs
from mnist.picture import AnyPicture, Box, PictureError, Prepared, fit, in_mnist_form, prepare, read_picture
from mnist.weights import WeightsError, load_detector, load_weights

MAX_ASPECT_RATIO = 2.0  # width by height: no single digit of MNIST is wider
MIN_CONFIDENCE = 0.9
# why there is no digit, or why not to trust it
BLANK = "the picture is blank"
SEVERAL = "not one digit, but {}"
WIDE = "not one digit: it is too wide"
OUT_OF_DISTRIBUTION = "it does not look like a single digit (out of distribution)"
LOW_CONFIDENCE = "low confidence: it may be a {} as well"
# of the digit detector, chosen on scenes from validation images
READ_SCORE, READ_MARGIN = 0.4, 2.0  # a digit has a higher score, and a logit at most so much below that of no digit
CLEAR_SCORE, CLEAR_SHARE = 0.5, 0.5  # in a number, so many digits have this score and are likelier than no digit
TRUSTED_SCORE = 0.5  # of each digit in a trusted number; its confidence, and how probable it may be that it is none:
CONFIRMED, UNCONFIRMED = (0.9, 0.05), (0.98, 0.01)  # where the network reads the same digit, and where it does not
# relative to a digit's height:
BESIDE = 0.6  # nearer writing may belong to the number
SPECK, WORD = 0.1, 0.4  # a sign is longer than a speck; so much longer is other writing


@dataclass(frozen=True)
class Prediction:
    """The prediction for a picture, or for one digit in it."""

    digit: int | None  # None where the picture does not hold exactly one digit
    confidence: float  # 0 to 1: the probability of `digit`; 0 where there is none; calibrated by `predict` only
    probabilities: np.ndarray  # (10,), of each digit
    picture: np.ndarray  # uint8 (28, 28): the digit's strokes in MNIST's format, the input of the network
    reason: str = ""  # why not to trust it; empty if no check failed
    notes: tuple[str, ...] = ()  # remarks on the picture
    box: Box | None = None  # of the digit, in pixels of the original picture; set by `read` only

    @property
    def trusted(self) -> bool:
        """Whether no check failed."""
        return not self.reason


@dataclass(frozen=True)
class Number:
    """A run of digits in a picture."""

    text: str  # its digits, from left to right
    digits: tuple[Prediction, ...]
    confidence: float  # 0 to 1: the product of its digits' confidences
    reason: str  # why not to trust it; empty if no check failed
    notes: tuple[str, ...]  # remarks on the picture, and on what beside the number was left out
    box: Box  # in pixels of the original picture
    corners: tuple[tuple[int, int], ...]  # of its outline, which is turned as the page is; clockwise

    @property
    def trusted(self) -> bool:
        """Whether no check failed."""
        return not self.reason


class MNISTPredictor:
    """Reads digits in pictures with a trained network. Threads may share one predictor."""

    def __init__(self, model_path: str | os.PathLike[str] = "MNIST-MODEL.pth",
                 device: str | torch.device = "cpu",
                 detector_path: str | os.PathLike[str] = DETECTOR) -> None:
        """Load the weights. For single pictures the CPU is the fastest device.

        The attributes `path` and `digest` are the file's name and its SHA-256. The digit detector is loaded
        when `read` or `read_numbers` first needs it. Raises what `load_weights` raises, and WeightsError if the
        calibration in the file belongs to another network.
        """
        self.detector_path, self._loading = detector_path, threading.Lock()
        self._detector: DigitDetector | None = None
        self.path = Path(model_path)
        self.model, self.metadata = load_weights(model_path)
        self.digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
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

    def read(self, image: AnyPicture) -> list[Prediction]:
        """Read all digits in a picture, in reading order, each with its box. Without digits the list is empty."""
        return [digit for number in self.read_numbers(image) for digit in number.digits]

    def read_numbers(self, image: AnyPicture) -> list[Number]:
        """Read all numbers in a picture, line by line. Without digits the list is empty.

        The digits may touch, and stand in the boxes of a form or on a page anywhere in the picture.
        For `image` and errors see `read_picture`; also raises what `load_detector` raises.
        """
        source = read_picture(image)
        ready = in_mnist_form(source.grey)
        if ready is not None:
            one, = self._judge([Prepared(ready, [], source.notes)])
            return [_number([replace(one, box=(0, 0, 28, 28))], [(0.0, 0.0, 28.0, 28.0)], 0.0, "", source.notes)]
        found = find_digits(self.detector, source.grey)
        possible = [one for one in found.digits if one.logits[:NONE].max() + READ_MARGIN > one.logits[NONE]]
        digits = [one for one in possible if one.score > READ_SCORE]
        unread = [one.box for one in possible if one.score <= READ_SCORE] + found.writing
        return _numbers(digits, self._second_opinions(digits), unread, source.scale, source.notes)

    def _second_opinions(self, digits: list[FoundDigit]) -> list["_Opinion"]:
        """What the network says of each digit that the detector has found."""
        if not digits:
            return []
        pictures = np.stack([fit(one.strokes) for one in digits])
        logits, rejected = self._logits(pictures)
        confidences, classes = logits.softmax(1).max(1)
        return [_Opinion(*one) for one in zip(pictures, classes.tolist(), confidences.tolist(), rejected)]

    @property
    def detector(self) -> DigitDetector:
        """The digit detector, loaded when it is first needed. Raises what `load_detector` raises."""
        with self._loading:
            if self._detector is None:
                self._detector = load_detector(self.detector_path)[0].to(next(self.model.parameters()).device)
            return self._detector

    def _judge(self, prepared: list[Prepared]) -> list[Prediction]:
        if not prepared:
            return []
        blank = np.zeros((28, 28), np.uint8)
        pictures = np.stack([blank if one.picture is None else one.picture for one in prepared])
        logits, rejected = self._logits(pictures)
        return [self._prediction(*one) for one in zip(prepared, pictures, logits.softmax(1).numpy(), rejected)]

    def _logits(self, pictures: np.ndarray) -> tuple[Tensor, list[bool]]:
        """The calibrated logits (N, 10), and for each picture whether it is out of distribution."""
        if self.metadata.get("ood") is not None:
            logits, scores = logits_and_ood_scores(self.model, pictures, self.metadata)
            rejected = (scores > self.metadata["ood"]["threshold"]).tolist()
        else:
            logits = predict(self.model, pictures, mean=self.metadata["mean"], std=self.metadata["std"])
            rejected = [False] * len(pictures)
        return logits / self.metadata.get("temperature", 1.0), rejected

    def _prediction(self, prepared: Prepared, picture: np.ndarray, probabilities: np.ndarray,
                    rejected: bool) -> Prediction:
        pieces = prepared.pieces
        if prepared.picture is None:
            reason = BLANK
        elif len(pieces) > 1:
            reason = SEVERAL.format(len(pieces))
        elif pieces and pieces[0].strokes.shape[1] > MAX_ASPECT_RATIO * pieces[0].strokes.shape[0]:
            reason = WIDE
        else:
            digit, confidence = int(probabilities.argmax()), float(probabilities.max())
            reason = ""
            if prepared.cut_off:
                reason = "something is cut off at the edge of the picture"
            elif rejected:
                reason = OUT_OF_DISTRIBUTION
            elif confidence < MIN_CONFIDENCE:
                reason = _low_confidence(probabilities)
            return Prediction(digit, confidence, probabilities, picture, reason, prepared.notes)
        return Prediction(None, 0.0, np.full(10, 0.1, np.float32), picture, reason, prepared.notes)


def _low_confidence(probabilities: np.ndarray) -> str:
    """The reason not to trust a digit with these probabilities (10,): the second most probable one."""
    return LOW_CONFIDENCE.format(probabilities.argsort()[-2])


class _Opinion(NamedTuple):
    """What the network says of a digit's strokes."""

    picture: np.ndarray  # uint8 (28, 28): the strokes in MNIST's format
    digit: int
    confidence: float
    rejected: bool  # as out of distribution


def _numbers(digits: list[FoundDigit], opinions: list[_Opinion], unread: list[FloatBox], scale: float,
             notes: tuple[str, ...]) -> list[Number]:
    """The numbers that these digits make; `unread` are the boxes of other writing in the picture."""
    predictions = [_found_prediction(*one, scale) for one in zip(digits, opinions)]
    boxes, results = [one.box for one in digits], []
    numbers, angle = group(boxes)
    for number in numbers:
        clear = [digits[index].score > CLEAR_SCORE and digits[index].logits.argmax() != NONE for index in number]
        if np.mean(clear) < CLEAR_SHARE:  # a word, or a pattern
            continue
        own = [boxes[index] for index in number]
        others = [box for box in unread if not _centred_in(box, own)]
        reason = "something beside it was not read" if _missed(own, angle, others) else ""
        remarks = notes + _remarks(own, others)
        results.append(_number([replace(predictions[index], notes=remarks) for index in number],
                               [_scaled(box, scale) for box in own], angle, reason, remarks))
    return results


def _centred_in(one: FloatBox, boxes: list[FloatBox]) -> bool:
    """Whether the middle of a box lies in one of the others: then it is ink of that digit."""
    x, y = (one[0] + one[2]) / 2, (one[1] + one[3]) / 2
    return any(left < x < right and top < y < bottom for left, top, right, bottom in boxes)


def _remarks(digits: list[FloatBox], writing: list[FloatBox]) -> tuple[str, ...]:
    """Notes on the writing that is not read: signs among the digits of a number, and words elsewhere."""
    left, top = (min(box[side] for box in digits) for side in (0, 1))
    right, bottom = (max(box[side] for box in digits) for side in (2, 3))
    height = float(np.median([box[3] - box[1] for box in digits]))
    sides = [max(box[2] - box[0], box[3] - box[1]) for box in writing]
    among = [left < (box[0] + box[2]) / 2 < right + BESIDE * height
             and top < (box[1] + box[3]) / 2 < bottom + 0.3 * height for box in writing]
    notes = []
    if any(inside and SPECK * height < side for inside, side in zip(among, sides)):
        notes.append("signs among the digits were left out")
    if any(not inside and WORD * height < side for inside, side in zip(among, sides)):
        notes.append("other writing was left out")
    return tuple(notes)


def _found_prediction(found: FoundDigit, opinion: _Opinion, scale: float) -> Prediction:
    """The prediction for a digit that the detector has found, and on which the network has an opinion."""
    probabilities = torch.from_numpy(found.logits).softmax(0).numpy()
    digit, confidence = int(probabilities[:NONE].argmax()), float(probabilities[:NONE].max())
    none, reason = float(probabilities[NONE]), ""
    confirmed = opinion.digit == digit and opinion.confidence > MIN_CONFIDENCE and not opinion.rejected
    least, most = (CONFIRMED if confirmed else UNCONFIRMED)
    if found.score < TRUSTED_SCORE or none > most:
        reason = OUT_OF_DISTRIBUTION
    elif confidence < least:
        reason = _low_confidence(probabilities[:NONE])
    left, top, right, bottom = map(round, _scaled(found.box, scale))
    return Prediction(digit, confidence, probabilities[:NONE] / probabilities[:NONE].sum(), opinion.picture, reason,
                      (), (left, top, right, bottom))


def _scaled(box: FloatBox, scale: float) -> FloatBox:
    left, top, right, bottom = box
    return scale * left, scale * top, scale * right, scale * bottom


def _missed(digits: list[FloatBox], angle: float, others: list[FloatBox]) -> bool:
    """Whether one of the other boxes may be a digit of the number with these digits: as high, and beside one."""
    height = np.median([bottom - top for _, top, _, bottom in digits])
    slope = math.tan(angle)
    for left, top, right, bottom in others:
        if not 0.5 * height < bottom - top < 1.7 * height:
            continue
        for own_left, own_top, own_right, own_bottom in digits:
            gap = max(own_left - right, left - own_right)
            drop = slope * ((left + right) - (own_left + own_right)) / 2
            shared = min(bottom, own_bottom + drop) - max(top, own_top + drop)
            if gap < BESIDE * height and shared > 0.5 * min(bottom - top, own_bottom - own_top):
                return True
    return False


def _number(digits: list[Prediction], boxes: list[FloatBox], angle: float, reason: str,
            notes: tuple[str, ...]) -> Number:
    """The number of these digits; a reason not to trust one of them is the number's as well."""
    left, top = (round(min(box[side] for box in boxes)) for side in (0, 1))
    right, bottom = (round(max(box[side] for box in boxes)) for side in (2, 3))
    reasons = [f"{one.digit}: {one.reason}" for one in digits if one.reason]
    return Number("".join(str(one.digit) for one in digits), tuple(digits),
                  math.prod(one.confidence for one in digits), reason or "; ".join(dict.fromkeys(reasons)), notes,
                  (left, top, right, bottom), tuple((round(x), round(y)) for x, y in outline(boxes, angle)))
