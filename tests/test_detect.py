"""The digit detector finds digits where they are, and cuts touching ones apart."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

import scenes
from mnist.detect import PRESENT, evidence, find_digits, missed_digit, probability
from mnist.detector_training import judged, judged_numbers
from mnist.files import DETECTOR
from mnist.ink import Digits, words
from mnist.networks import EVIDENCE, NONE
from mnist.picture import read_picture
from mnist.scenes import draw_page
from mnist.weights import load_detector
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")
DETECTOR_NETWORK, _ = load_detector(DETECTOR)


def score(found) -> float:
    """How sure the detector is of a digit's centre, 0 to 1."""
    return expit(found.evidence[0])


def overlap(one, other) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


@pytest.mark.parametrize("kind", ["touching", "line", "form", "table", "note"])
def test_nearly_every_digit_is_found_where_it_is(kind):
    rng, found, right, boxes = np.random.default_rng(2), 0, 0, 0
    for _ in range(8):
        scene = scenes.KINDS[kind](rng)
        source = read_picture(scene.picture)
        digits = [one for one in find_digits(DETECTOR_NETWORK, source.grey).digits if score(one) > 0.3]
        for name, box in scene.digits:
            best = max(digits, key=lambda one: overlap([edge * source.scale for edge in one.box], box), default=None)
            boxes += 1
            if best is not None and overlap([edge * source.scale for edge in best.box], box) > 0.4:
                found += 1
                right += best.digit == int(name)
    assert found / boxes > 0.93 and right / boxes > 0.8


def test_touching_digits_are_cut_apart():
    """Each has strokes of its own, of about its own shape."""
    rng, alike = np.random.default_rng(0), []
    for _ in range(10):
        found = find_digits(DETECTOR_NETWORK, read_picture(scenes.touching(rng).picture).grey).digits
        digits = [one for one in found if score(one) > 0.4]
        alike.append(len(digits) == 2 and all(
            one.strokes.shape[1] / one.strokes.shape[0]
            == pytest.approx((one.box[2] - one.box[0]) / (one.box[3] - one.box[1]), rel=0.35) for one in digits))
    assert np.mean(alike) >= 0.7


def test_digits_of_the_training_generator_are_found_as_well():
    bank, right = Digits(IMAGES[:500], LABELS[:500]), []
    for number in range(20):
        grey, placed = draw_page(bank, words(), 3, number)
        digits = [one for one in find_digits(DETECTOR_NETWORK, grey).digits if one.there > PRESENT]
        right.append(len(digits) == len(placed))
    assert np.mean(right) > 0.6


def test_evidence_tells_a_digit_of_a_line_from_one_that_stands_alone():
    """Two digits of one height beside each other, and for each reason one that is not beside them."""
    boxes = np.array([(0, 0, 10, 20), (15, 1, 25, 21),  # the two
                      (0, 30, 10, 50),                  # on another line
                      (30, 0, 40, 35),                  # of another height
                      (90, 0, 100, 20),                 # too far away
                      (1, 0, 11, 20)])                  # another box of the first, and no digit
    logits = np.zeros((6, 11))
    logits[:, 7], logits[:, 2] = 9, 4
    logits[5, NONE] = 30
    known = evidence(boxes, np.full(6, 0.5), np.full(6, 2), logits)
    assert known.shape == (6, EVIDENCE) and set(known[:, 2]) == {5} and set(known[:, 3]) == {2}
    assert known[:, 0] == pytest.approx(np.zeros(6)) and known[:, 1].tolist() == [9, 9, 9, 9, 9, -12]
    assert known[:, 4] == pytest.approx([1, 1, 0, 0, 0, 1], abs=0.01)
    assert known[:, 5] == pytest.approx([0, 0, 0, np.log(35 / 20), 0, 0])

    logits[:, NONE] = 30  # nothing is likely, and so nothing unusual
    assert evidence(boxes, np.full(6, 0.5), np.full(6, 2), logits)[:, 4:].max() < 0.01
    crowd = np.array([(30 * number, 0, 30 * number + 100, 200) for number in range(12)] + [(0, 0, 5, 10)])
    known = evidence(crowd, np.full(13, 0.5), np.full(13, 2), np.eye(11)[[0] * 13] * 9)
    assert known[:, 4].max() == 4 and known[12, 5] == 1.5  # at most
    none = evidence(np.zeros((0, 4)), np.zeros(0), np.zeros(0), np.zeros((0, 11)))
    assert none.shape == (0, EVIDENCE)


def test_its_probabilities_mean_what_they_say():
    """Of what it has not seen, as many digits are there and numbers are right as the probabilities add up to."""
    bank, digits, numbers = Digits(IMAGES[:2000], LABELS[:2000]), [], []
    for number in range(60):
        grey, placed = draw_page(bank, words(), 4, number)
        found = find_digits(DETECTOR_NETWORK, grey)
        digits += judged(found.digits, placed)
        numbers += judged_numbers(DETECTOR_NETWORK, found, placed)
    for rows, regression, high in ((digits, DETECTOR_NETWORK.there, 0.98), (numbers, DETECTOR_NETWORK.sure, 0.95)):
        known, truth = map(np.array, zip(*rows))
        chances = probability(known, regression)
        assert abs(truth.sum() - chances.sum()) < 3 * np.sqrt((chances * (1 - chances)).sum())
        sure = chances > high
        assert truth[sure].mean() > 0.97 and sure.mean() > 0.3


@pytest.mark.parametrize("shape", [(5, 5), (28, 28), (30, 900), (900, 30), (1000, 1000)])
def test_a_picture_of_any_shape_without_digits_has_none(shape):
    for grey in (np.zeros(shape), np.ones(shape), np.linspace(0, 1, shape[0])[:, None] * np.ones(shape)):
        assert [one for one in find_digits(DETECTOR_NETWORK, grey).digits if score(one) > 0.3] == []


def test_a_missed_digit_needs_ink():
    """Its strokes are those in its box; on blank paper there is none."""
    grey = np.full((100, 200), 0.9)
    grey[30:70, 60:64] = 0.1
    view = find_digits(DETECTOR_NETWORK, grey).views[-1]
    stroke = missed_digit(view, (50, 25, 74, 75), 0.03, np.full(10, 0.1), [])
    assert stroke is not None and stroke.strokes.any() and stroke.box == (50, 25, 74, 75)
    assert stroke.strokes.shape[0] > 2 * stroke.strokes.shape[1]
    assert missed_digit(view, (140, 25, 164, 75), 0.03, np.full(10, 0.1), []) is None
