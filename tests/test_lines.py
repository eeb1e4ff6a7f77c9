"""The line reader: strips are level, a text is as probable as all its alignments, and missed digits show."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

import scenes
from mnist.detect import find_digits
from mnist.files import DETECTOR
from mnist.ink import Digits, words
from mnist.lines import DIGIT, ROWS, line_loss, look_along, read_line, read_lines, read_strips, spell, straightened
from mnist.networks import LINE_EVIDENCE, NONE
from mnist.numbers import Strip, centred_in, strip
from mnist.picture import read_picture
from mnist.scenes import draw_scenes
from mnist.weights import load_detector
from mnist_utils import load_split

IMAGES, LABELS = load_split("test", scenes.DATASET)
DETECTOR_NETWORK, _ = load_detector(DETECTOR)


@pytest.mark.parametrize("degrees", [-12, 0, 12])
@pytest.mark.parametrize("height", [16.0, 40.0])
def test_a_turned_line_becomes_level(degrees, height):
    """Along a strip through the middle of a turned bar, the bar is level, and as high as the digits."""
    picture = np.ones((300, 300))
    picture[150 - round(height / 2):150 + round(height / 2), 50:250] = 0
    picture = ndimage.rotate(picture, -degrees, reshape=False, order=1, cval=1)
    angle = np.deg2rad(degrees)
    place = Strip(150 - 80 * np.cos(angle), 150 - 80 * np.sin(angle), angle, height, 160.0)
    seen, widths = straightened(torch.tensor(picture[None, None], dtype=torch.float32), torch.tensor([0]),
                                torch.tensor([place], dtype=torch.float32))
    width = int(widths)
    assert seen.shape == (1, 1, ROWS, width) and width == -(-160 / height * DIGIT // 8) * 8
    rows = seen[0, 0].numpy()
    assert rows.std(1)[[2, ROWS // 2, -3]].max() < 0.2  # each row is all bar or all paper
    dark = np.flatnonzero(rows.mean(1) < rows.mean())
    assert (dark.min(), dark.max()) == (pytest.approx(ROWS / 2 - DIGIT / 2, abs=1),
                                        pytest.approx(ROWS / 2 + DIGIT / 2 - 1, abs=1))


def test_a_text_is_as_probable_as_all_its_alignments():
    """Compared with the sum over every path, for a strip of four steps."""
    torch.manual_seed(0)
    grey, place = torch.rand(1, 1, 40, 40), Strip(5.0, 20.0, 0.0, 30.0, 12.0)
    seen, widths = straightened(grey, torch.tensor([0]), torch.tensor([place]))
    logs = read_strips(DETECTOR_NETWORK, seen)[:, 0].detach()
    chances = logs.double().exp().numpy()
    assert len(chances) == int(widths) // 2 == 4 and chances.sum(1) == pytest.approx(1)
    totals: dict[str, float] = {}
    for path in itertools.product(range(NONE + 1), repeat=4):
        text = "".join(str(digit) for digit, _ in itertools.groupby(path) if digit != NONE)
        totals[text] = totals.get(text, 0) + np.prod(chances[range(4), path])
    texts = ["", "7", "10", "88", "345", "1111"]  # the last needs more steps than there are
    assert np.exp(spell(logs, texts)) == pytest.approx([*(totals[text] for text in texts[:5]),
                                                                                 0.0])


def test_a_run_s_strip_shows_its_digits():
    bank = Digits(IMAGES[:300], LABELS[:300])
    pictures, _, runs = draw_scenes(bank, words(), 16, 0, 0)
    texts = ["".join(map(str, labels.tolist())) for labels in runs.labels.split(runs.lengths.tolist())]
    assert len(runs.pictures) == len(runs.strips) == len(texts) > 8 and {0, 1} <= set(runs.lengths.tolist())
    strips, widths = straightened(pictures, runs.pictures, runs.strips)
    chances, nearest = read_strips(DETECTOR_NETWORK, strips).detach(), []
    for number, (width, text) in enumerate(zip(widths.tolist(), texts)):
        others = [text[1:], text + "1", text[:-1], f"{9 - int(text[0])}{text[1:]}"] if text else ["1", "7"]
        own, *rest = spell(chances[:width // 2, number], [text, *others])
        nearest.append(own > max(rest))
    assert np.mean(nearest) > 0.75


def test_a_batch_without_runs_costs_nothing():
    nothing = torch.zeros(0, dtype=torch.long)
    assert line_loss(DETECTOR_NETWORK, torch.rand(2, 1, 64, 64), nothing, torch.zeros(0, 5), nothing, nothing) == 0


def test_a_text_that_is_too_long_for_its_strip_is_not_read():
    """Forty digits on the place of three."""
    found = find_digits(DETECTOR_NETWORK, read_picture(scenes.line(np.random.default_rng(1)).picture).grey)
    one = max(found.digits, key=lambda one: one.there)
    _, along = look_along(DETECTOR_NETWORK, found.views, strip([one.box], 0.0))
    reading = read_line(DETECTOR_NETWORK, [one] * 40, list(range(40)), along)
    assert np.isfinite(reading.evidence).all() and np.isfinite(reading.chances).all() and reading.confidence < 0.5


def certain_numbers(seed, least):
    """Numbers of lines that are read with at least this confidence: what was found, the strip, the reading."""
    rng = np.random.default_rng(seed)
    while True:
        found = find_digits(DETECTOR_NETWORK, read_picture(scenes.line(rng).picture).grey)
        found, readings = read_lines(DETECTOR_NETWORK, found)
        for place, whole in readings:
            if whole.confidence > least and len(whole.kept) > 2:
                yield found, place, whole


def test_a_digit_that_was_hardly_found_joins_the_number():
    """Between two that were found, it is read, and is nothing that was left unread."""
    for found, place, whole in itertools.islice(certain_numbers(6, 0.97), 5):
        middle = whole.kept[1]
        digits = list(found.digits)
        digits[middle] = replace(digits[middle], there=0.2)
        again = read_line(DETECTOR_NETWORK, digits, whole.kept, look_along(DETECTOR_NETWORK, found.views, place)[1])
        assert again.kept == whole.kept and again.digits == whole.digits


def test_a_digit_that_only_the_line_reader_sees_is_read():
    """Numbers of which all was certain, and then a digit between two others had not been found."""
    read = []
    for found, _, whole in itertools.islice(certain_numbers(7, 0.95), 20):
        missed = found.digits[whole.kept[1]]
        left = replace(found, digits=[one for one in found.digits if one is not missed])
        more, readings = read_lines(DETECTOR_NETWORK, left)
        read.append([digit for _, one in readings for digit in one.digits] == whole.digits)
        if read[-1]:
            again = more.digits[[index for _, one in readings for index in one.kept][1]]
            assert centred_in(again.box, [missed.box]) and again.strokes.any()
    assert np.mean(read) >= 0.7


def test_a_number_that_lacks_a_digit_is_doubted():
    """Numbers of which all was certain, and then one digit had not been found."""
    rng, certain, sure = np.random.default_rng(5), [], []
    while len(sure) < 30:
        found = find_digits(DETECTOR_NETWORK, read_picture(scenes.line(rng).picture).grey)
        found, readings = read_lines(DETECTOR_NETWORK, found)
        for place, whole in readings:
            assert whole.evidence.shape == (LINE_EVIDENCE,) and whole.chances.shape == (len(whole.kept), 10)
            _, along = look_along(DETECTOR_NETWORK, found.views, place)
            for missed in whole.kept[1:-1] if whole.confidence > 0.95 else ():
                rest = [index for index in whole.kept if index != missed]
                again = read_line(DETECTOR_NETWORK, found.digits, rest, along)
                certain.append(again.confidence > 0.95)
                sure.append(again.confidence > 0.5)
    assert np.mean(certain) < 0.05 and np.mean(sure) < 0.4
