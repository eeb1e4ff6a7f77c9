"""Find the handwritten digits in a picture with the digit detector, also where they touch or stand in boxes.

    found = find_digits(detector, grey)
    for digit in found.digits:
        print(digit.digit, digit.there, digit.box)

The detector sees the picture at several sizes, because it knows digits of 20 to 44 pixels. At each
size it marks where a digit's centre is, and each pixel of ink votes for the centre of its own digit.
The votes separate digits that touch. Then each digit is cropped, and the detector's reader says which
one it is, or that it is none. A logistic regression turns all that, and how the digit's size agrees
with the others, into the probability that there is a digit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.special import expit, softmax
from torch import Tensor

from mnist.networks import CELL, EVIDENCE, LARGEST, NONE, REFERENCE, DigitDetector, local_contrast
from mnist.numbers import FloatBox, centred_in, written_height
from mnist.picture import MAX_WORKING_SIDE, MIN_WORKING_SIDE, crop

STEP = 1.35  # between the sizes at which the picture is seen; less than LARGEST / SMALLEST, so that no digit is missed
ENLARGED = 1.5  # a picture is enlarged at most so much, or to MIN_WORKING_SIDE
MARGIN = 16  # pixels around the picture, so that digits at its edge have a background
MIN_SCORE = 0.1  # of a centre
PRESENT = 0.5  # how probable a digit is that counts as read
MAX_CANDIDATES = 1500  # the strongest ones; a page of print has more
SAME_OVERLAP, SAME_INSIDE = 0.45, 0.75  # two boxes are one digit above either: intersection over union, over smaller
CROP, CROPPED = 32, 1.3  # pixels of a crop's side, and how much larger than the digit it is
# a digit's neighbours, in heights: how far across, nearer is another box of the digit itself; how far above or below
NEAREST, FARTHEST, OFFSET = 0.2, 2.5, 0.5
UNLIKE = 0.45  # the logarithms of neighbours' heights differ by less
OWN = 0.35  # of a digit's side: ink that votes for a place so far from its centre is hardly its own
EXPLAINED = 0.3  # of a digit's side: ink that votes for a place so near its centre belongs to it
PART = 0.4  # of a digit's side: smaller strokes within it are its own
SHARPER = 3  # a digit's strokes are cut out at three times the size at which the detector saw it


@dataclass(frozen=True)
class FoundDigit:
    """A digit that the detector has found."""

    there: float  # 0 to 1: the probability that there is a digit
    probabilities: np.ndarray  # (10,) of each digit, if there is one
    evidence: np.ndarray  # (EVIDENCE,): what this probability comes from, see `evidence`
    box: FloatBox  # in pixels of the picture
    strokes: np.ndarray  # (h, w) bool: its own strokes, without those of its neighbours

    @property
    def digit(self) -> int:
        """The likeliest digit."""
        return int(self.probabilities.argmax())


class View(NamedTuple):
    """What the detector sees at one size; (h, w) has a cell for each 4 × 4 pixels."""

    heat: np.ndarray  # (h, w): 0 to 1, high at the centre of a digit
    sizes: np.ndarray  # (2, h, w): width and height of the digit whose centre this is, in pixels
    layers: Tensor  # (1, 4, H, W): see `layers`
    grey: Tensor  # (1, 1, H, W): the picture, with a margin
    scale: tuple[float, float]  # pixels of the view for each pixel of the picture, across and down


@dataclass(frozen=True)
class Found:
    """What the detector has found in a picture."""

    digits: list[FoundDigit]  # also those that are there with a probability below PRESENT
    writing: list[FloatBox]  # other pen strokes: words, signs, and digits that were not recognised
    views: list[View]  # from the largest size to the smallest


@torch.inference_mode()
def views(detector: DigitDetector, grey: np.ndarray) -> list[View]:
    """What the detector sees in a picture (H, W) from 0 to 1, from the largest size to the smallest."""
    height, width = grey.shape
    longest = max(height, width)
    picture = torch.from_numpy(np.ascontiguousarray(grey, np.float32))[None, None]
    device = next(detector.parameters()).device
    scale = min(MAX_WORKING_SIDE / longest, max(ENLARGED, MIN_WORKING_SIDE / longest))
    results = []
    while longest * scale >= LARGEST:
        high, wide = max(8, round(height * scale)), max(8, round(width * scale))
        view = F.interpolate(picture, size=(high, wide), mode="bilinear", align_corners=False, antialias=scale < 1)
        view = F.pad(view, (MARGIN, MARGIN + -wide % 8, MARGIN, MARGIN + -high % 8), mode="replicate")
        view = view.to(device)
        heat, sizes, votes, strokes = detector(view)
        results.append(View(heat[0, 0].sigmoid().cpu().numpy(),
                            in_pixels(sizes[0]).cpu().numpy(),
                            layers(view, votes, strokes), view, (wide / width, high / height)))
        scale /= STEP
    return results


def in_pixels(sizes: Tensor) -> Tensor:
    """The detector's map of sizes in pixels, within the range that it can find."""
    return REFERENCE * sizes.clamp(-2.0, 1.5).exp()


def layers(grey: Tensor, votes: Tensor, strokes: Tensor) -> Tensor:
    """What crops are made of (N, 4, H, W): local contrast, ink from 0 to 1, x and y of the centre each pixel votes for.

    `votes` (N, 2, h, w) and `strokes` (N, 1, H, W) are the detector's for grey levels (N, 1, H, W).
    """
    rows, columns = ((torch.arange(n, device=votes.device) + 0.5) * CELL for n in votes.shape[2:])
    places = votes.float() * REFERENCE + torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
    places = F.interpolate(places.contiguous(), scale_factor=float(CELL), mode="bilinear", align_corners=False)
    return torch.cat([local_contrast(grey), strokes.float().sigmoid(), places], 1)


def crops(layers: Tensor, pictures: Tensor, middles: Tensor, sides: Tensor) -> Tensor:
    """Square crops (K, 3, CROP, CROP) for the reader, of digits with these middles (K, 2) and longer sides (K,).

    `layers` are (N, 4, H, W), and `pictures` (K,) says in which of the N each digit is.
    """
    from torchvision.ops import roi_align  # takes more than a second to import

    reach = CROPPED / 2 * sides[:, None]
    boxes = torch.cat([pictures[:, None].float(), middles - reach, middles + reach], 1)
    parts = roi_align(layers, boxes, CROP, sampling_ratio=1, aligned=True)
    away = (parts[:, 2:] - middles[:, :, None, None]).square().sum(1, keepdim=True)
    return torch.cat([parts[:, :2], (-away / (OWN * sides).square()[:, None, None, None]).exp()], 1)


def find_digits(detector: DigitDetector, grey: np.ndarray) -> Found:
    """The digits in a picture (H, W) from 0 to 1, and the other writing in it."""
    seen = views(detector, grey)
    candidates = sorted((one for number, view in enumerate(seen) for one in _peaks(view, number)), reverse=True,
                        key=lambda one: one.score)[:MAX_CANDIDATES]
    kept = _without_duplicates(candidates)
    logits = iter(_read(detector, seen, [one for digit, twins in kept for one in (digit, *twins)]))
    means = np.array([np.mean([next(logits) for _ in (one, *twins)], 0) for one, twins in kept]).reshape(-1, NONE + 1)
    known = evidence(np.array([one.box for one, _ in kept]).reshape(-1, 4), np.array([one.score for one, _ in kept]),
                     np.array([len(twins) for _, twins in kept]), means)
    there = probability(known, detector.there)
    read = [one for (one, _), chance in zip(kept, there) if chance > PRESENT]
    digits = []
    for number, (one, _) in enumerate(kept):
        strokes = _own_strokes(seen[one.view], one, read)
        if strokes.any():
            digits.append(FoundDigit(float(there[number]), softmax(means[number, :NONE]), known[number], one.box,
                                     crop(strokes)))
    return Found(digits, _other_writing(seen, read), seen)


def missed_digit(view: View, box: FloatBox, there: float, probabilities: np.ndarray,
                 others: list[FoundDigit]) -> FoundDigit | None:
    """A digit in this box that `find_digits` has missed, unless there is no ink.

    Its strokes are those in the box that do not vote for `others`, or all where all of them do.
    """
    one = _Candidate(there, box, 0)
    strokes = _own_strokes(view, one, [_Candidate(other.there, other.box, 0) for other in others])
    if not strokes.any():
        strokes = _own_strokes(view, one, [])
    return FoundDigit(there, probabilities, np.zeros(EVIDENCE), box, crop(strokes)) if strokes.any() else None


def evidence(boxes: np.ndarray, scores: np.ndarray, twins: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """What speaks for digits and against them: (K, EVIDENCE).

    Known are their boxes (K, 4), their scores (K,), how often other views show them (K,), and the reader's logits
    (K, 11). The columns are the logit of the score; how far the likeliest digit is above none, -12 to 12, and above
    the second, 0 to 8; how often other views show it; and the two of `_context`.
    """
    scores = scores.clip(1e-4, 1 - 1e-4)
    second, first = np.sort(logits[:, :NONE], 1)[:, -2:].T
    return np.column_stack([np.log(scores / (1 - scores)), (first - logits[:, NONE]).clip(-12, 12),
                            (first - second).clip(0, 8), twins, *_context(boxes, 1 - softmax(logits, 1)[:, NONE])])


def _context(boxes: np.ndarray, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many digits of about its height are beside each (K,), 0 to 4, and how unusual its own height is, 0 to 1.5.

    The number is a sum of `chances` (K,) that there is a digit. Unusual is the logarithm of the height's ratio to the
    median of likely digits.
    """
    left, top, right, bottom = boxes.T
    across, down = (np.abs(middles[:, None] - middles) for middles in ((left + right) / 2, (top + bottom) / 2))
    heights = written_height(right - left, bottom - top)
    logs, usual = np.log(heights), (heights[:, None] + heights) / 2
    beside = (across > NEAREST * usual) & (across < FARTHEST * usual) & (down < OFFSET * usual) \
        & (np.abs(logs[:, None] - logs) < UNLIKE)
    likely = chances > 0.5
    unusual = np.abs(logs - np.log(np.median(heights[likely]))) if likely.any() else np.zeros(len(heights))
    return (beside * chances).sum(1).clip(max=4), unusual.clip(max=1.5)


def probability(known: np.ndarray, regression: Tensor) -> np.ndarray:
    """The probabilities (K,) that a logistic regression gives to evidence (K, F), or one to (F,)."""
    *factors, constant = regression.double().tolist()
    return expit(known @ np.array(factors) + constant)


class _Candidate(NamedTuple):
    score: float
    box: FloatBox  # in pixels of the picture
    view: int

    @property
    def middle(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def side(self) -> float:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


def _peaks(view: View, number: int) -> list[_Candidate]:
    """The places where a digit is more likely than in the cells around."""
    score = view.heat
    rows, columns = np.nonzero((score > MIN_SCORE) & (score == ndimage.maximum_filter(score, 3, mode="nearest")))
    x, y = (columns + 0.5) * CELL - MARGIN, (rows + 0.5) * CELL - MARGIN
    wide, high = view.sizes[:, rows, columns]
    across, down = view.scale
    boxes = np.stack([(x - wide / 2) / across, (y - high / 2) / down, (x + wide / 2) / across, (y + high / 2) / down])
    inside = (x > 0) & (y > 0) & (x < (score.shape[1] * CELL - 2 * MARGIN)) & (y < (score.shape[0] * CELL - 2 * MARGIN))
    return [_Candidate(float(score[row, column]), tuple(box), number)
            for row, column, box, good in zip(rows, columns, boxes.T.tolist(), inside) if good]


@torch.inference_mode()
def _read(detector: DigitDetector, seen: list[View], candidates: list[_Candidate]) -> np.ndarray:
    """The reader's logits (K, 11) for each candidate."""
    logits = np.zeros((len(candidates), 11), np.float32)
    for number, view in enumerate(seen):
        own = [index for index, one in enumerate(candidates) if one.view == number]
        if not own:
            continue
        device = view.layers.device
        middles = torch.tensor([candidates[index].middle for index in own], device=device)
        middles = middles * torch.tensor(view.scale, device=device) + MARGIN
        sides = torch.tensor([candidates[index].side for index in own], device=device) * max(view.scale)
        parts = crops(view.layers, torch.zeros(len(own), device=device), middles, sides)
        logits[own] = torch.cat([detector.reader(part) for part in parts.split(250)]).cpu().numpy()
    return logits


def _without_duplicates(candidates: list[_Candidate]) -> list[tuple[_Candidate, list[_Candidate]]]:
    """Non-maximum suppression: the strongest candidate of each digit, and the same digit seen at other sizes."""
    boxes = np.array([one.box for one in candidates]).reshape(-1, 4)
    middles = np.array([one.middle for one in candidates]).reshape(-1, 2)
    sides = np.array([one.side for one in candidates])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = np.ones(len(candidates), bool), []
    for index, one in enumerate(candidates):
        if not left[index]:
            continue
        shared = (np.minimum(boxes[:, 2:], boxes[index, 2:]) - np.maximum(boxes[:, :2], boxes[index, :2])).clip(0)
        shared = shared[:, 0] * shared[:, 1]
        apart = np.hypot(*(middles - middles[index]).T) / np.minimum(sides, sides[index])
        twin = (apart < 0.25) & (np.maximum(sides, sides[index]) < 1.6 * np.minimum(sides, sides[index]))
        same = twin | (shared > SAME_OVERLAP * (areas + areas[index] - shared)) \
            | (shared > SAME_INSIDE * np.minimum(areas, areas[index]))
        twin &= left
        twin[index] = False
        kept.append((one, [candidates[other] for other in np.flatnonzero(twin) if candidates[other].view != one.view]))
        left &= ~same
    return kept


def _part(view: View, box: FloatBox, margin: float) -> tuple[slice, slice]:
    """The rows and columns of a view that show a box of the picture and a margin, in pixels of the view."""
    left, top = (max(0, int(edge * scale + MARGIN - margin)) for edge, scale in zip(box[:2], view.scale))
    right, bottom = (int(edge * scale + MARGIN + margin) + 1 for edge, scale in zip(box[2:], view.scale))
    return slice(top, bottom), slice(left, right)


def _away(view: View, part: tuple[slice, slice], digit: _Candidate) -> np.ndarray:
    """How far from a digit's centre the pixels in a part of a view vote, in pixels of the view."""
    x, y = view.layers[0, 2:, *part].cpu().numpy()
    across, down = view.scale
    return np.hypot(x - digit.middle[0] * across - MARGIN, y - digit.middle[1] * down - MARGIN)


def _own_strokes(view: View, one: _Candidate, others: list[_Candidate]) -> np.ndarray:
    """The ink that votes for this digit's centre, rather than for another's; bool, SHARPER times the view's size."""
    side = one.side * max(view.scale)
    part = _part(view, one.box, 0.15 * side + 2)
    ink = view.layers[0, 1, *part].cpu().numpy()
    if not ink.size:
        return np.zeros((1, 1), bool)
    own = _away(view, part, one)
    ink = ink * (own < 0.8 * side)
    for other in others:
        if other is not one and abs(other.middle[0] - one.middle[0]) < 3 * one.side \
                and abs(other.middle[1] - one.middle[1]) < 3 * one.side:
            ink = ink * (own < _away(view, part, other))
    larger = F.interpolate(torch.from_numpy(ink)[None, None], scale_factor=float(SHARPER), mode="bicubic",
                           align_corners=False)
    return larger[0, 0].numpy() > 0.5


def _other_writing(seen: list[View], digits: list[_Candidate]) -> list[FloatBox]:
    """Boxes of the strokes that vote for none of these digits, in the view in which most of them were found."""
    if not digits:
        return []
    view = seen[int(np.median([one.view for one in digits]))]
    across, down = view.scale
    ink = view.layers[0, 1].cpu().numpy() > 0.5
    for one in digits:
        side = one.side * max(view.scale)
        part = _part(view, one.box, side / 2)
        ink[part] &= _away(view, part, one) > EXPLAINED * side
    parts, _ = ndimage.label(ink, np.ones((3, 3)))
    boxes = [((columns.start - MARGIN) / across, (rows.start - MARGIN) / down,
              (columns.stop - MARGIN) / across, (rows.stop - MARGIN) / down)
             for rows, columns in ndimage.find_objects(parts)]
    return [box for box in boxes if not any(_is_part(box, one) for one in digits)]


def _is_part(box: FloatBox, digit: _Candidate) -> bool:
    """Whether this is a small part of a digit, whose votes went astray."""
    return max(box[2] - box[0], box[3] - box[1]) < PART * digit.side and centred_in(box, [digit.box])
