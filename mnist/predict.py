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

import numpy as np
import torch
from torch import Tensor

from mnist.detect import PRESENT, Found, FoundDigit, find_digits
from mnist.evaluate import predict
from mnist.files import DETECTOR
from mnist.lines import read_lines
from mnist.networks import DigitDetector
from mnist.numbers import FloatBox, centred_in, outline
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
UNREAD = "something beside it was not read"
UNCLEAR_END = "a gap is so wide that it may separate two numbers, or not"
PATTERN = "the picture is full of marks that may be digits"
MANY_DIGITS = "low confidence: each digit is likely, but perhaps not all of them"
# of the digit detector, chosen on scenes from validation images
CLEAR, CLEAR_SHARE = 0.8, 0.5  # in a number, so many digits are there with this probability
POSSIBLE = 0.05  # writing beside a number is a digit with this probability, or it does not matter
MARKS = 20  # so many more doubtful digits than digits are a pattern, such as grass
TRUSTED = 0.95  # the least probability that a trusted number is right
# relative to a digit's height:
BESIDE = 0.6  # nearer writing may belong to the number
FURTHER = 1.5  # and so may a possible digit that is nearer than this, in the next box of a form
SPECK, WORD = 0.1, 0.4  # a sign is longer than a speck; so much longer is other writing


@dataclass(frozen=True)
class Prediction:
    """The prediction for a picture, or for one digit in it."""

    digit: int | None  # None where the picture does not hold exactly one digit
    confidence: float  # 0 to 1: the calibrated probability of `digit`; 0 where there is none
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
    confidence: float  # 0 to 1: how probable it is that all its digits are right, and none beside them was missed
    reason: str  # why not to trust it; empty if no check failed
    notes: tuple[str, ...]  # remarks on the picture, and on what beside the number was left out
    box: Box  # in pixels of the original picture
    corners: tuple[tuple[int, int], ...]  # of its outline, which is turned as the page is; clockwise
    digest: str  # the SHA-256 of the weights file that read it: the digit detector's, or the network's

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
        when `read` or `read_numbers` first needs it; then `detector_digest` is the SHA-256 of its file. Raises what
        `load_weights` raises, and WeightsError if the calibration in the file belongs to another network.
        """
        self.detector_path, self._loading = detector_path, threading.Lock()
        self._detector: DigitDetector | None = None
        self.detector_digest = ""
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
            return [_number([replace(one, box=(0, 0, 28, 28))], [(0.0, 0.0, 28.0, 28.0)], 0.0, one.confidence, "",
                            source.notes, self.digest)]
        return _numbers(self.detector, find_digits(self.detector, source.grey), source.scale, source.notes,
                        self.detector_digest)

    @property
    def detector(self) -> DigitDetector:
        """The digit detector, loaded when it is first needed. Raises what `load_detector` raises."""
        with self._loading:
            if self._detector is None:
                self.detector_digest = hashlib.sha256(Path(self.detector_path).read_bytes()).hexdigest()
                detector = load_detector(self.detector_path)[0].to(next(self.model.parameters()).device)
                self._detector = detector.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
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
                reason = _low_confidence(probabilities, digit)
            return Prediction(digit, confidence, probabilities, picture, reason, prepared.notes)
        return Prediction(None, 0.0, np.full(10, 0.1, np.float32), picture, reason, prepared.notes)


def _low_confidence(probabilities: np.ndarray, digit: int) -> str:
    """The reason not to trust a digit with these probabilities (10,): the likeliest other one."""
    others = np.where(np.arange(10) == digit, -1, probabilities)
    return LOW_CONFIDENCE.format(others.argmax())


def _numbers(detector: DigitDetector, found: Found, scale: float, notes: tuple[str, ...], digest: str) -> list[Number]:
    """The numbers in a picture; `scale` is how many of its pixels one here spans."""
    found, readings = read_lines(detector, found)
    readings = [(place, reading) for place, reading in readings if reading.kept]
    kept = {index for _, reading in readings for index in reading.kept}
    digits = sum(one.there > PRESENT for one in found.digits)
    doubtful = sum(POSSIBLE < one.there <= PRESENT for one in found.digits)
    added = [found.digits[index].box for index in kept if found.digits[index].there <= PRESENT]
    writing = [box for box in found.writing if not centred_in(box, added)]
    unread = [one.box for index, one in enumerate(found.digits) if one.there > POSSIBLE and index not in kept]
    results = []
    for place, reading in readings:
        own = [found.digits[index].box for index in reading.kept]
        if np.mean([found.digits[index].there > CLEAR for index in reading.kept]) < CLEAR_SHARE:  # a word, or a pattern
            continue
        possible = [box for box in unread if not centred_in(box, own)]
        remarks = notes + _remarks(own, writing + possible)
        predictions = [replace(_found_prediction(found.digits[index], digit, chances, scale), notes=remarks)
                       for index, digit, chances in zip(reading.kept, reading.digits, reading.chances)]
        confidence = min(reading.confidence, *(one.confidence for one in predictions))
        reason = ""
        if doubtful > MARKS + digits:
            reason = PATTERN
        elif any(_beside(box, own, place.angle, reach) and _as_high(box, own)
                 for boxes, reach in ((writing, BESIDE), (possible, FURTHER)) for box in boxes):
            reason = UNREAD
        elif reading.unclear:
            reason = UNCLEAR_END
        elif confidence < TRUSTED and all(one.trusted for one in predictions):
            reason = MANY_DIGITS
        results.append(_number(predictions, [_scaled(box, scale) for box in own], place.angle, confidence, reason,
                               remarks, digest))
    return results


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


def _found_prediction(found: FoundDigit, digit: int, chances: np.ndarray, scale: float) -> Prediction:
    """The prediction for a digit found, with the probability (10,) that each digit is here."""
    left, top, right, bottom = map(round, _scaled(found.box, scale))
    confidence, there = float(chances[digit]), float(chances.sum())
    reason = ""
    if confidence < TRUSTED:  # because it may be another digit, or none
        reason = _low_confidence(chances, digit) if there > TRUSTED else OUT_OF_DISTRIBUTION
    return Prediction(digit, confidence, (chances / there).astype(np.float32), fit(found.strokes), reason, (),
                      (left, top, right, bottom))


def _scaled(box: FloatBox, scale: float) -> FloatBox:
    left, top, right, bottom = box
    return scale * left, scale * top, scale * right, scale * bottom


def _as_high(box: FloatBox, digits: list[FloatBox]) -> bool:
    """Whether a box is about as high as the digits of a number."""
    height = np.median([bottom - top for _, top, _, bottom in digits])
    return bool(0.5 * height < box[3] - box[1] < 1.7 * height)


def _beside(box: FloatBox, digits: list[FloatBox], angle: float, reach: float) -> bool:
    """Whether a box lies beside one of the digits of a number, on its line, and at most `reach` heights away."""
    height, slope = np.median([bottom - top for _, top, _, bottom in digits]), math.tan(angle)
    left, top, right, bottom = box
    for own_left, own_top, own_right, own_bottom in digits:
        gap = max(own_left - right, left - own_right)
        drop = slope * ((left + right) - (own_left + own_right)) / 2
        shared = min(bottom, own_bottom + drop) - max(top, own_top + drop)
        if gap < reach * height and shared > 0.5 * min(bottom - top, own_bottom - own_top):
            return True
    return False


def _number(digits: list[Prediction], boxes: list[FloatBox], angle: float, confidence: float, reason: str,
            notes: tuple[str, ...], digest: str) -> Number:
    """The number of these digits; a reason not to trust one of them is the number's as well."""
    left, top = (round(min(box[side] for box in boxes)) for side in (0, 1))
    right, bottom = (round(max(box[side] for box in boxes)) for side in (2, 3))
    reasons = [f"{one.digit}: {one.reason}" for one in digits if one.reason]
    return Number("".join(str(one.digit) for one in digits), tuple(digits),
                  confidence, reason or "; ".join(dict.fromkeys(reasons)), notes,
                  (left, top, right, bottom), tuple((round(x), round(y)) for x, y in outline(boxes, angle)), digest)
