"""Read a whole line of digits at once, to confirm or correct what the digit detector found one by one.

    found, readings = read_lines(detector, found)
    for place, reading in readings:
        print(reading.digits, reading.confidence)

A number's strip is cut out of the picture, turned level, so that its digits are 20 pixels high. The
detector's line reader slides along it and says at every second pixel which digit is there, or none.
Connectionist temporal classification (Graves et al. 2006) turns that into the probability of a text:
it adds up all the ways in which the text may stand on the line. Digits need no boundaries there, so
touching ones are no harder than others, and a missed one shows.

A digit that the line reader alone sees counts as found, with a small probability. The digits found give
a list of texts that the number may be; the detector and the line reader each give all of them a
probability, and a weighted product of both decides.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.special import logit, softmax
from torch import Tensor

from mnist.detect import MARGIN, PRESENT, Found, FoundDigit, View, missed_digit, probability
from mnist.networks import NONE, DigitDetector, local_contrast
from mnist.numbers import Strip, box_in, group, is_in, place_in, strip

ROWS, DIGIT = 32, 20  # pixels of a strip's height, and of the digits in it
ROUND = 8  # its width is a multiple
CHUNK = 16  # strips at once, in training
SEEN = 26.0  # pixels of a digit's height in the view from which a strip is cut, as nearly as there is one
UNLIKELY = 0.002  # a digit found with a smaller probability is none
CHOICES, TEXTS = 3, 40  # classes for each digit, and texts for each number, that are compared
MISSED = 0.03  # the probability of a digit that the line reader alone sees
NEAR, WIDTH = 0.35, 0.6  # in heights of a digit: from it to its candidate, at most; how wide it is, as no one knows
ABSENT = math.log(1e-5)  # the detector's probability of a text that has a digit for which there is no candidate
IMPOSSIBLE = -1000.0  # the least logarithm of a text's probability, of one that is too long for its strip
LEAST = 1e-6  # probabilities are clipped so near to 0 and 1 before their logit
# a text's logarithm is the sum of both probabilities' logarithms and its length, with these factors, fitted to scenes
# from validation images
DETECTOR_SHARE, LINE_SHARE, FOR_EACH = 0.45, 0.53, 0.85


# the logarithm of its probability, and which of the digits found it has, with their classes
_Guess = tuple[float, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Reading:
    """What a number is, by the detector and by the line reader."""

    kept: list[int]  # which of the digits found it has, from left to right
    digits: list[int]  # the class of each
    chances: np.ndarray  # (len(kept), 10): how probable each class is at this place, of those guessed
    confidence: float  # 0 to 1: the probability that all of it is right
    evidence: np.ndarray  # (LINE_EVIDENCE,): what this probability comes from, see `read_line`
    unclear: bool = False  # whether it may also be two numbers, or a part of a longer one


def straightened(grey: Tensor, pictures: Tensor, strips: Tensor) -> tuple[Tensor, Tensor]:
    """The strips as the line reader sees them (K, 1, ROWS, W), and the width of each one (K,) int64.

    Of pictures (N, 1, H, W), `pictures` (K,) says in which each strip is; `strips` (K, 5) are `Strip`s in pixels.
    A width is rounded up to a multiple of ROUND; what is narrower than W goes on as it ends.
    """
    x, y, angle, height, length = (part[:, None, None] for part in strips.unbind(1))
    cos, sin, pixel = angle.cos(), angle.sin(), height / DIGIT
    widths = (length / pixel / ROUND).ceil().clamp_min(1).long() * ROUND
    # twice as fine at first, so that strokes of large digits are averaged
    along = ((torch.arange(2 * int(widths.max()), device=grey.device) + 0.5) / 2).clamp(max=widths - 0.5) * pixel
    across = ((torch.arange(2 * ROWS, device=grey.device) + 0.5) / 2 - ROWS / 2)[:, None] * pixel
    places = torch.stack([x + along * cos - across * sin, y + along * sin + across * cos], -1)
    size = torch.tensor([grey.shape[3], grey.shape[2]], device=grey.device)
    fine = F.grid_sample(grey[pictures], 2 * places / size - 1, padding_mode="border", align_corners=False)
    return local_contrast(F.avg_pool2d(fine, 2)), widths.flatten()


def read_strips(detector: DigitDetector, strips: Tensor) -> Tensor:
    """For strips (K, 1, ROWS, W) the logarithms of probabilities (W / 2, K, 11): of the ten digits, and of none."""
    return detector.line(strips).float().squeeze(2).permute(2, 0, 1).log_softmax(2)


def nearest_view(views: list[View], place: Strip) -> View:
    """The view from which a strip is cut."""
    return min(views, key=lambda view: abs(math.log(place.height * view.scale[1] / SEEN)))


@torch.inference_mode()
def look_along(detector: DigitDetector, views: list[View], place: Strip) -> tuple[Tensor, Tensor]:
    """The local contrast of a strip (ROWS, W), which the line reader sees, and what `read_strips` gives (W / 2, 11)."""
    view = nearest_view(views, place)
    across, down = view.scale
    there = Strip(place.x * across + MARGIN, place.y * down + MARGIN, place.angle, place.height * down,
                  place.length * across)
    device = view.grey.device
    strips, _ = straightened(view.grey, torch.zeros(1, dtype=torch.long, device=device),
                             torch.tensor([there], dtype=torch.float32, device=device))
    return strips[0, 0].cpu(), read_strips(detector, strips)[:, 0].cpu()


def spell(chances: Tensor, texts: Sequence[str]) -> list[float]:
    """The log-likelihood of each text (connectionist temporal classification), by `read_strips`' logarithms (T, 11)."""
    labels = torch.tensor([int(digit) for text in texts for digit in text], dtype=torch.long)
    losses = F.ctc_loss(chances[:, None].expand(-1, len(texts), -1), labels, torch.full([len(texts)], len(chances)),
                        torch.tensor([len(text) for text in texts]), blank=NONE, reduction="none")
    return (-losses).tolist()


class Spelled(NamedTuple):
    """A digit that the line reader sees."""

    digit: int
    along: float  # where its middle is on the strip, in heights of a digit
    probabilities: np.ndarray  # (10,) of each digit, at this place


def decoded(chances: Tensor) -> list[Spelled]:
    """Best-path decoding: the digits on the likeliest path through the line reader's `chances` (T, 11)."""
    steps, read = np.exp(chances.numpy()), list[Spelled]()
    for digit, run in itertools.groupby(range(len(steps)), key=steps.argmax(1).__getitem__):
        places = list(run)
        if digit != NONE:
            here = steps[places, :NONE].sum(0)
            read.append(Spelled(int(digit), 2 * (places[0] + len(places) / 2) / DIGIT, here / here.sum()))
    return read


def line_loss(detector: DigitDetector, grey: Tensor, pictures: Tensor, strips: Tensor, labels: Tensor,
              lengths: Tensor) -> Tensor:
    """What training the line reader minimises: the mean of -log p of each run's digits, by its length and one."""
    total = grey.new_zeros(())
    if not len(strips):
        return total
    texts = labels.split(lengths.tolist())
    order = (strips[:, 4] / strips[:, 3]).argsort()
    for chunk in order.split(CHUNK):  # of about one width
        seen, widths = straightened(grey, pictures[chunk], strips[chunk])
        losses = F.ctc_loss(read_strips(detector, seen), torch.cat([texts[index] for index in chunk.tolist()]),
                            widths // 2, lengths[chunk], blank=NONE, reduction="none", zero_infinity=True)
        total = total + (losses / (lengths[chunk] + 1)).sum()
    return total / len(order)


def read_lines(detector: DigitDetector, found: Found) -> tuple[Found, list[tuple[Strip, Reading]]]:
    """The numbers in a picture, line by line, on their strips; and `found` with the digits that it may have missed."""
    digits = list(found.digits)
    likely = [index for index, one in enumerate(digits) if one.there > PRESENT]
    free = [index for index, one in enumerate(digits) if UNLIKELY < one.there <= PRESENT]
    numbers, unclear, angle = group([digits[index].box for index in likely])
    readings, taken = [], set(likely)
    for number, end in zip(numbers, unclear):
        own = [likely[index] for index in number]
        place = strip([digits[index].box for index in own], angle)
        _, along = look_along(detector, found.views, place)
        candidates = own + [index for index in free if is_in(place, digits[index].box)]
        there = [digits[index] for index in taken.union(candidates)]
        missed = _missed(found.views, place, along, there)
        candidates += range(len(digits), len(digits) + len(missed))
        digits += missed
        candidates.sort(key=lambda index: place_in(place, digits[index].box)[0])
        reading = replace(read_line(detector, digits, candidates, along), unclear=end)
        free = [index for index in free if index not in reading.kept]
        taken.update(reading.kept)
        readings.append((place, reading))
    return replace(found, digits=digits), readings


def _missed(views: list[View], place: Strip, along: Tensor, there: list[FoundDigit]) -> list[FoundDigit]:
    """The digits that the line reader sees on a strip, except those that are near one of their own that is there."""
    seen = decoded(along)
    places = [place_in(place, one.box)[0] / place.height for one in there if is_in(place, one.box)]
    apart = np.abs(np.subtract.outer([one.along for one in seen], places))
    near = {one for one, other in zip(*linear_sum_assignment(apart.clip(max=NEAR))) if apart[one, other] < NEAR}
    view, wide = nearest_view(views, place), WIDTH * place.height
    missed = [missed_digit(view, box_in(place, one.along * place.height, wide), MISSED, one.probabilities, there)
              for index, one in enumerate(seen) if index not in near]
    return [one for one in missed if one is not None]


def read_line(detector: DigitDetector, digits: list[FoundDigit], candidates: list[int], along: Tensor) -> Reading:
    """Decide which of the candidates, sorted from left to right, are the number, and which digit each is.

    `along` (T, 11) is what `look_along` gives for the strip. The number may end up without any digit. Its evidence are
    three logits of its text's probability among all guesses and the line reader's own text: by both, by the detector,
    and by the line reader. Then the logarithm of its probability on the whole strip by its length and one, and how many
    digits it has.
    """
    guesses = _guesses(digits, candidates)
    possible = ["".join(str(digit) for _, digit in parts) for _, parts in guesses]
    # what the line reader alone would read, also with a digit for which there is no candidate
    alone = [text for text in ["".join(str(one.digit) for one in decoded(along))] if text not in possible]
    texts = [*possible, *alone]
    distinct = list(dict.fromkeys(texts))
    known = {text: max(chance, IMPOSSIBLE) for text, chance in zip(distinct, spell(along, distinct))}
    by_digits = np.array([chance for chance, _ in guesses] + [ABSENT] * len(alone))
    by_line = np.array([known[text] for text in texts])
    logs = DETECTOR_SHARE * by_digits + LINE_SHARE * by_line + FOR_EACH * np.array([len(text) for text in texts])
    chances = softmax(logs)

    def total(chances: np.ndarray, text: str) -> float:
        return float(sum(chance for chance, other in zip(chances, texts) if other == text))

    text = max(possible, key=lambda text: total(chances, text))
    best = max((number for number, other in enumerate(texts) if other == text), key=lambda number: chances[number])
    kept = [index for index, _ in guesses[best][1]]
    classes = np.zeros((len(kept), 10))
    for chance, (_, parts) in zip(softmax(logs[:len(guesses)]), guesses):
        for index, digit in parts:
            if index in kept:
                classes[kept.index(index), digit] += chance
    evidence = np.array([*(logit(np.clip(total(one, text), LEAST, 1 - LEAST))
                           for one in (chances, softmax(by_digits), softmax(by_line))),
                         known[text] / (len(text) + 1), len(text)])
    return Reading(kept, [digit for _, digit in guesses[best][1]], classes,
                   float(probability(evidence, detector.sure)), evidence)


def _guesses(digits: list[FoundDigit], candidates: list[int]) -> list[_Guess]:
    """A beam search for the likeliest digits and classes, with the logarithms of the detector's probabilities."""
    guesses: list[_Guess] = [(0.0, ())]
    for index in candidates:
        one = digits[index]
        options: list[_Guess] = [(math.log(max(1e-9, 1 - one.there)), ())]
        for digit in one.probabilities.argsort()[-CHOICES:].tolist():
            options.append((math.log(max(1e-9, one.there * float(one.probabilities[digit]))), ((index, digit),)))
        guesses = nlargest(TEXTS, ((before + chance, parts + part) for before, parts in guesses
                                   for chance, part in options))
    return guesses
