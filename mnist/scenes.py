"""Scenes to train the digit detector on: MNIST's training digits, written on made-up paper.

    digits = Digits(images, labels)
    scene = draw_scenes(digits, words, count=32, seed=0, number=0)

A scene is a grey patch of 128 × 128 pixels: a part of a form, a list, a page on a table, a sign. Its
digits have a random pen and size, and may touch; words, ruling, boxes and table edges are beside and
below them. Number and seed decide what is drawn, so a training run can be repeated and resumed.
Lengths are in pixels, ink and grey levels run from 0 to 1.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from mnist.ink import TILE, Digits, Writing, draw_digits, draw_segment, paste
from mnist.networks import CELL, LARGEST, REFERENCE, SMALLEST
from mnist.numbers import Strip, strip
from mnist.photograph import Form, Layout, photograph

SIDE = 128  # of a patch
LINE_HEIGHTS = 14.0, 48.0  # of the digits that the line reader learns from
WHOLE = 0.85  # of a digit's box is visible, or it is not read
NEARLY = 1.5  # digits too small or too large by at most this factor may be found
Rng = np.random.Generator


class Placed(NamedTuple):
    """A digit that was written: its class, and its ink's box."""

    label: int
    left: int
    top: int
    right: int
    bottom: int
    visible: float  # share of its box inside the patch
    line: int  # the number of its line


class Targets(NamedTuple):
    """What the detector is to find in B patches; the grid (h, w) has a cell for each 4 × 4 pixels."""

    heat: Tensor  # (B, 1, h, w): 1 at a digit's centre, falling to 0 around it
    labels: Tensor  # (B, h, w): the digit whose centre this is
    sizes: Tensor  # (B, 2, h, w): logarithm of width and height, at the centres
    centres: Tensor  # (B, 2, h, w): from the middle of a cell with ink to its digit's centre, in units of REFERENCE
    strokes: Tensor  # (B, 1, H, W): ink, of digits and words
    centred: Tensor  # (B, h, w) bool: cells with a centre
    inked: Tensor  # (B, h, w) bool: cells with ink of one digit
    ignored: Tensor  # (B, h, w) bool: cells where finding a digit is neither right nor wrong


class Runs(NamedTuple):
    """K runs of digits in B patches, for the line reader to read."""

    pictures: Tensor  # (K,) int64: in which patch
    strips: Tensor  # (K, 5): where, as in `mnist.numbers.Strip`
    labels: Tensor  # (M,) int64: the digits of all runs, one run after the other
    lengths: Tensor  # (K,) int64: how many digits each run has; 0 where there are none


class Hand(NamedTuple):
    """How one person writes one line."""

    height: float
    pen: float
    growth: float
    slant: float
    stretch: float
    angle: float  # of the line, radians


def new_hand(rng: Rng, low: float, high: float) -> Hand:
    height = math.exp(rng.uniform(math.log(low), math.log(high)))
    own = rng.random() < 0.4
    return Hand(height, 0.0 if own else math.exp(rng.uniform(math.log(0.035), math.log(0.17))),
                rng.uniform(-0.025, 0.04) if own else 0.0, rng.normal(0, 0.13), math.exp(rng.normal(0, 0.13)),
                math.radians(rng.uniform(-17, 17) if rng.random() < 0.6 else rng.normal(0, 2)))


def writing(bank: Digits, hand: Hand, rng: Rng, widest: float = 1.5) -> Writing:
    """A random digit as this hand writes it, at most `widest` times as wide as the hand's height."""
    digit = int(rng.integers(len(bank.labels)))
    left, top, right, bottom = bank.boxes[digit].tolist()
    height, stretch = hand.height * math.exp(rng.normal(0, 0.07)), hand.stretch * math.exp(rng.normal(0, 0.06))
    wide = height * stretch * (right - left) / max(1.0, bottom - top)
    height *= min(1.0, widest * hand.height / max(wide, 1e-6))
    return Writing(digit, min(height, TILE - 10.0), stretch, hand.slant + rng.normal(0, 0.06),
                   hand.angle + rng.normal(0, 0.05), hand.pen, hand.growth)


class Line(NamedTuple):
    """A line to write: its digits, and where."""

    patch: int
    writings: list[Writing]
    gaps: list[float]  # before each digit: between its ink and that of the digit before; relative to the height
    drops: list[float]  # of each digit below the line
    x: float
    y: float  # of the line's middle at x
    hand: Hand
    pitch: float = 0.0  # in a form: the width of each digit's box


def _lines(bank: Digits, patch: int, rng: Rng) -> list[Line]:
    """The lines of a patch: numbers of 1 to 8 digits, with wider gaps between numbers."""
    usual = rng.random() < 0.8
    hand = new_hand(rng, 19, 46) if usual else new_hand(rng, 10, 72)
    tight, lines = rng.random(), []
    y = rng.uniform(0.2, 0.8) * SIDE if rng.random() < 0.35 else rng.uniform(-0.3, 0.7) * hand.height
    step = SIDE if rng.random() < 0.3 else hand.height * rng.uniform(1.15, 2.2)
    while y < SIDE + 0.3 * hand.height:
        x = rng.uniform(-0.9, 1.4) * hand.height
        writings: list[Writing] = []
        gaps, drops = [], []
        reach, left = x, int(rng.integers(1, 9))
        while reach < SIDE + 0.2 * hand.height and len(writings) < 20:
            touches = rng.random() < (0.85, 0.3, 0.05)[int(tight > 0.25) + int(tight > 0.6)]
            gap = rng.uniform(-0.13, 0.02) if touches else rng.uniform(0.03, 0.35) if rng.random() < 0.9 \
                else rng.uniform(0.3, 1.0)
            if left == 0:
                gap, left = rng.uniform(1, 3), int(rng.integers(1, 9))
            left -= 1
            writings.append(writing(bank, hand, rng))
            gaps.append(gap)
            drops.append(rng.normal(0, 0.06) * hand.height)
            reach += hand.height * (0.55 + gap)
        lines.append(Line(patch, writings, gaps, drops, x, y, hand))
        y += step
    return lines


def _form(bank: Digits, patch: int, rng: Rng, count: int = 0) -> tuple[Line, float, Form]:
    """A line of boxes with at most one digit in each: the line, the boxes' width, and where they are."""
    tall = math.exp(rng.uniform(math.log(28), math.log(75)))
    pitch = tall * rng.uniform(0.6, 1.15)
    hand = new_hand(rng, 0.5, 0.95)
    hand = hand._replace(height=hand.height * min(tall, 1.25 * pitch), angle=math.radians(rng.normal(0, 2)))
    if rng.random() < 0.3:
        hand = hand._replace(angle=math.radians(rng.uniform(-15, 15)))
    x, y = rng.uniform(-pitch, 0.5 * SIDE), rng.uniform(0.25, 0.75) * SIDE
    count = count or int((SIDE - x) / pitch) + 1
    writings = [writing(bank, hand, rng, widest=0.95 * pitch / hand.height) for _ in range(count)]
    shift = [rng.normal(0, 0.07) for _ in range(count)]
    drops = [rng.normal(0, 0.06) * tall for _ in range(count)]
    line = Line(patch, writings, shift, drops, x, y, hand, pitch)
    form = (hand.angle, x, y - tall / 2, tall, float(rng.choice([1.0, 1.0, rng.uniform(0.25, 0.8)])))
    return line, pitch, form


class _Tiles:
    """Digits in tiles, and where the ink of each begins and ends."""

    def __init__(self, bank: Digits, writings: list[Writing], generator: torch.Generator) -> None:
        self.ink = draw_digits(bank, writings, generator)
        self.labels = [int(bank.labels[one.digit]) for one in writings]
        self.dark: np.ndarray = self.ink > 0.35
        rows, columns = np.asarray(self.dark.any(2)), np.asarray(self.dark.any(1))
        self.blank = ~np.asarray(rows.any(1))
        self.tops, self.bottoms = rows.argmax(1).tolist(), (TILE - rows[:, ::-1].argmax(1)).tolist()
        self.lefts, self.rights = columns.argmax(1).tolist(), (TILE - columns[:, ::-1].argmax(1)).tolist()
        # in each row of a tile: the first dark pixel, and the one after the last
        self.firsts = np.where(rows, self.dark.argmax(2), 999)
        self.lasts = np.where(rows, TILE - self.dark[:, :, ::-1].argmax(2), -999)


class _Before(NamedTuple):
    """The digit before, on its line."""

    ends: np.ndarray  # (TILE,) where its ink ends, in each row
    y: int  # of its tile's top
    left: int  # of its ink


def write_lines(bank: Digits, lines: list[Line], layouts: list[Layout], rng: Rng,
                generator: torch.Generator) -> tuple[list[list[Placed]], list[np.ndarray]]:
    """Write the lines' digits on the layouts: for each layout what was placed, and which digit (H, W) owns the ink."""
    owners = [np.full(layout.shape, -1, np.int32) for layout in layouts]
    placed: list[list[Placed]] = [[] for _ in layouts]
    writings = [one for line in lines for one in line.writings]
    if not writings:
        return placed, owners
    tiles, number = _Tiles(bank, writings, generator), -1
    for which, line in enumerate(lines):
        before: _Before | None = None
        some_boxes_are_empty = rng.random() < 0.3
        for place, (gap, drop) in enumerate(zip(line.gaps, line.drops)):
            number += 1
            if tiles.blank[number] or (line.pitch and some_boxes_are_empty and rng.random() < 0.3):
                continue
            left, middle = tiles.lefts[number], (tiles.tops[number] + tiles.bottoms[number]) / 2
            if line.pitch:
                across = line.x + (place + 0.5 + gap) * line.pitch * math.cos(line.hand.angle)
                x = round(across - (left + tiles.rights[number]) / 2)
            else:
                x = round(line.x - left) if before is None else 0
            start = x if before is None else before.left
            y = round(line.y + drop + (start - line.x) * math.tan(line.hand.angle) - middle)
            if before is not None and not line.pitch:
                x = max(_touching(before, tiles.firsts[number], y) + round(gap * line.hand.height),
                        before.left - left + round(0.2 * line.hand.height))
            ends = tiles.lasts[number] + x
            # neighbouring rows count as well: strokes touch at corners
            before = _Before(ends if line.pitch else ndimage.maximum_filter1d(ends, 3), y, x + left)
            _place(tiles, number, x, y, layouts[line.patch], placed[line.patch], owners[line.patch], which)
    return placed, owners


def _touching(before: _Before, firsts: np.ndarray, y: int) -> int:
    """How far right a tile at this height must lie so that its ink touches that of the digit before."""
    low, high = max(0, before.y - y), min(TILE, TILE + before.y - y)
    reach = before.ends[low + y - before.y:high + y - before.y] - firsts[low:high]
    return int(reach.max(initial=-500))


def _place(tiles: _Tiles, number: int, x: int, y: int, layout: Layout, placed: list[Placed], owner: np.ndarray,
           line: int) -> None:
    """Put a tile on a layout, with its left upper corner at (x, y)."""
    height, width = layout.shape
    left, top = x + tiles.lefts[number], y + tiles.tops[number]
    right, bottom = x + tiles.rights[number], y + tiles.bottoms[number]
    seen_width, seen_height = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
    if seen_width <= 0 or seen_height <= 0:
        return
    paste(layout.ink, tiles.ink[number], x, y)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + TILE, width), min(y + TILE, height)
    owner[y0:y1, x0:x1][tiles.dark[number, y0 - y:y1 - y, x0 - x:x1 - x]] = len(placed)
    share = seen_width * seen_height / ((right - left) * (bottom - top))
    placed.append(Placed(tiles.labels[number], left, top, right, bottom, share, line))


def _add_signs(layout: Layout, line: Line, rng: Rng) -> None:
    """An underline, a crossed or boxed number, or strokes at random, in the same pen."""
    height, width = layout.shape
    pen = max(1.2, (line.hand.pen or 0.1) * line.hand.height)
    kind, high, tilt = rng.random(), line.hand.height, line.hand.angle
    target = layout.other
    if kind < 0.5:  # an underline
        x0, x1 = rng.uniform(-0.2, 0.5) * width, rng.uniform(0.5, 1.2) * width
        y = line.y + high * rng.uniform(0.62, 0.9)
        draw_segment(target, (x0, y + (x0 - line.x) * math.tan(tilt)),
                     (x1, y + (x1 - line.x) * math.tan(tilt) + rng.normal(0, 0.05) * high), pen)
    elif kind < 0.7:  # long strokes anywhere
        for _ in range(int(rng.integers(1, 4))):
            x, y, way = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * math.pi)
            long = rng.uniform(1.8, 4) * high
            draw_segment(target, (x, y), (x + long * math.cos(way), y + long * math.sin(way)), pen)
    else:  # a polygon around something, as by hand
        x, y, wide = rng.uniform(0, width), line.y, rng.uniform(1.5, 3) * high
        turn = np.linspace(0, 2 * math.pi, 25)
        xs, ys = x + wide * np.cos(turn), y + high * rng.uniform(0.75, 1.1) * np.sin(turn)
        for place in range(24):
            draw_segment(target, (xs[place], ys[place]), (xs[place + 1], ys[place + 1]), pen)


def _add_marks(layout: Layout, placed: list[Placed], line: Line, rng: Rng) -> None:
    """A minus, a point or a comma beside some digits."""
    pen = max(1.2, (line.hand.pen or 0.1) * line.hand.height)
    for one in placed:
        if rng.random() > 0.15:
            continue
        high = one.bottom - one.top
        x, kind = one.right + rng.uniform(0.12, 0.25) * high, rng.random()
        if kind < 0.4:
            y = (one.top + one.bottom) / 2 + rng.normal(0, 0.08) * high
            long, rise = rng.uniform(0.25, 0.6) * high, rng.normal(0, 0.05) * high
            ends = (x, y), (x + long, y + rise)
        elif kind < 0.7:
            y = one.bottom - pen / 2 + rng.normal(0, 0.03) * high
            ends = (x, y), (x + 0.3, y)
        else:
            y = one.bottom - pen / 2
            ends = (x, y), (x - rng.uniform(0.05, 0.15) * high, y + rng.uniform(0.12, 0.28) * high)
        around = (slice(max(0, int(min(ends[0][1], ends[1][1]) - pen)), int(max(ends[0][1], ends[1][1]) + pen)),
                  slice(max(0, int(min(ends[0][0], ends[1][0]) - pen)), int(max(ends[0][0], ends[1][0]) + pen)))
        if layout.ink[around].size and layout.ink[around].max() < 0.2:
            draw_segment(layout.other, *ends, pen * rng.uniform(1, 1.3))


def _add_words(layout: Layout, bank: list[np.ndarray], rng: Rng, low: float, high: float) -> None:
    """Up to six words where no digit is."""
    wanted, height, width = int(rng.integers(1, 7)), *layout.shape
    for _ in range(12):
        if not wanted:
            return
        word = bank[rng.integers(len(bank))]
        tall = math.exp(rng.uniform(math.log(low), math.log(high)))
        size = max(3, round(word.shape[1] * tall / len(word) * rng.uniform(0.8, 1.2))), max(4, round(tall))
        if size[0] > 2 * width:
            continue
        ink = np.asarray(Image.fromarray(word).resize(size, Image.Resampling.BILINEAR))
        left = int(rng.integers(-size[0] // 2, width - 4))
        top = int(rng.integers(-size[1] // 2, height - 4))
        near = layout.ink[max(0, top - 5):max(0, top + size[1] + 5), max(0, left - 6):max(0, left + size[0] + 6)]
        if not near.size or near.max() < 0.2:
            paste(layout.other, ink, left, top)
            wanted -= 1


def _add_paragraph(layout: Layout, bank: list[np.ndarray], rng: Rng) -> None:
    """Lines of small words, as in a book, where no digit is."""
    height, width = layout.shape
    tall = math.exp(rng.uniform(math.log(5), math.log(18)))
    pitch, y = tall * rng.uniform(1.3, 2.2), rng.uniform(0, height / 2)
    end = rng.uniform(y, 1.5 * height)
    while y < min(end, height):
        x = rng.uniform(-20, 10)
        while x < width:
            word = bank[rng.integers(len(bank))]
            size = max(3, round(word.shape[1] * tall / len(word))), max(4, round(tall * rng.uniform(0.9, 1.1)))
            near = layout.ink[max(0, round(y) - 3):round(y) + size[1] + 3,
                              max(0, round(x) - 4):max(0, round(x) + size[0] + 4)]
            if not near.size or near.max() < 0.2:
                ink = np.asarray(Image.fromarray(word).resize(size, Image.Resampling.BILINEAR))
                paste(layout.other, ink, round(x), round(y))
            x += size[0] + tall * rng.uniform(0.3, 0.7)
        y += pitch


def _add_clutter(layout: Layout, rng: Rng) -> None:
    """Grass, scratches, or the lines of a map: strokes at random that are no writing."""
    height, width = layout.shape
    if rng.random() < 0.5:
        wide, long = rng.uniform(1, 4), rng.uniform(8, 40)
        way = rng.uniform(0, math.pi)
        for _ in range(int(rng.integers(40, 200))):
            x, y, turn = rng.uniform(0, width), rng.uniform(0, height), way + rng.normal(0, 0.5)
            draw_segment(layout.other, (x, y), (x + long * math.cos(turn), y + long * math.sin(turn)), wide)
        return
    lumps = int(rng.integers(4, 14))
    noise = ndimage.zoom(rng.normal(0, 1, (lumps, lumps)), [height / lumps, width / lumps], order=3)
    layout.other[:] = (1.5 - np.abs(noise) * rng.uniform(4, 15)).clip(0, 1)


def _targets(layouts: list[Layout], placed: list[list[Placed]], owners: list[np.ndarray]) -> Targets:
    side = SIDE // CELL
    heat = np.zeros((len(layouts), 1, side, side), np.float32)
    labels = np.zeros((len(layouts), side, side), np.int64)
    sizes, centres = (np.zeros((len(layouts), 2, side, side), np.float32) for _ in range(2))
    centred, inked, ignored = (np.zeros((len(layouts), side, side), bool) for _ in range(3))
    for patch, digits in enumerate(placed):
        middles = np.zeros((len(digits) + 1, 2), np.float32)
        wanted = np.zeros(len(digits) + 1, bool)
        for number, one in enumerate(digits):
            wide, high = one.right - one.left, one.bottom - one.top
            x, y, long = (one.left + one.right) / 2, (one.top + one.bottom) / 2, max(wide, high)
            middles[number] = x, y
            column, row = int(x // CELL), int(y // CELL)
            inside = 0 <= column < side and 0 <= row < side
            if one.visible > WHOLE and inside and SMALLEST <= long <= LARGEST:
                spread = max(0.8, 0.085 * long / CELL)
                reach = int(3 * spread) + 1
                rows, columns = (slice(max(0, at - reach), min(side, at + reach + 1)) for at in (row, column))
                bump = np.exp(-((np.arange(side)[rows, None] - row) ** 2 + (np.arange(side)[columns] - column) ** 2)
                              / (2 * spread ** 2))
                place = heat[patch, 0, rows, columns]
                np.maximum(place, bump, out=place)
                heat[patch, 0, row, column] = 1
                labels[patch, row, column] = one.label
                sizes[patch, :, row, column] = math.log(wide / REFERENCE), math.log(high / REFERENCE)
                centred[patch, row, column] = wanted[number] = True
            elif one.visible > 0.4 and SMALLEST / NEARLY <= long <= LARGEST * NEARLY:
                reach = max(1, round(0.3 * long / CELL)) if one.visible > WHOLE else side
                rows = slice(max(0, row - reach, one.top // CELL), max(0, min(row + reach + 1, -(-one.bottom // CELL))))
                columns = slice(max(0, column - reach, one.left // CELL),
                                max(0, min(column + reach + 1, -(-one.right // CELL))))
                ignored[patch, rows, columns] = True
        cells = owners[patch].reshape(side, CELL, side, CELL).transpose(0, 2, 1, 3).reshape(side, side, -1)
        owner = cells.max(2)
        mixed = ((cells >= 0) & (cells != owner[..., None])).any(2)
        inked[patch] = (owner >= 0) & ~mixed & wanted[owner]
        grid = (np.arange(side) + 0.5) * CELL
        centres[patch, 0] = (middles[owner, 0] - grid[None, :]) / REFERENCE
        centres[patch, 1] = (middles[owner, 1] - grid[:, None]) / REFERENCE
    strokes = np.stack([np.maximum(layout.ink, layout.other * (not layout.table)) for layout in layouts])[:, None]
    return Targets(*map(torch.from_numpy, (heat, labels, sizes, centres, strokes, centred, inked,
                                           ignored & ~centred)))


def _runs(placed: list[list[Placed]], lines: list[Line], rng: Rng) -> Runs:
    """Each line's whole digits, in strips as inaccurate as those at the detector's boxes; and places without digits."""
    pictures, strips, labels, lengths = [], list[Strip](), list[int](), list[int]()
    for patch, digits in enumerate(placed):
        found = list[tuple[Strip, list[Placed]]]()
        if not digits:
            height = rng.uniform(*LINE_HEIGHTS)
            x, y = rng.uniform(0, 0.7 * SIDE, 2)
            found.append((Strip(x, y, rng.normal(0, 0.1), height, height * rng.uniform(1, 4)), []))
        for which in dict.fromkeys(one.line for one in digits):
            own = [one for one in digits if one.line == which]
            whole = [number for number, one in enumerate(own) if one.visible > WHOLE]
            if whole and len(whole) == whole[-1] - whole[0] + 1:
                found.append((_inexact(own, whole, lines[which].hand.angle, rng), own[whole[0]:whole[-1] + 1]))
        for place, run in found:
            if LINE_HEIGHTS[0] < place.height < LINE_HEIGHTS[1] and place.length > place.height:
                pictures.append(patch)
                strips.append(place)
                labels += [one.label for one in run]
                lengths.append(len(run))
    return Runs(torch.tensor(pictures, dtype=torch.long), torch.tensor(strips, dtype=torch.float32).reshape(-1, 5),
                torch.tensor(labels, dtype=torch.long), torch.tensor(lengths, dtype=torch.long))


def _inexact(own: list[Placed], whole: list[int], angle: float, rng: Rng) -> Strip:
    """The strip along the whole ones of a line's digits; it ends about where the others begin."""
    boxes = []
    for one in own[whole[0]:whole[-1] + 1]:
        edges = np.array([one.left, one.top, one.right, one.bottom], float)
        side = max(one.right - one.left, one.bottom - one.top)
        boxes.append(tuple((edges + 0.04 * side * (np.tile(rng.normal(0, 1, 2), 2) + rng.normal(0, 1, 4))).tolist()))
    angle = angle + rng.normal(0, 0.03) if len(boxes) > 1 else 0.0
    place = strip(boxes, angle)
    place = place._replace(height=place.height * math.exp(rng.normal(0, 0.06)))
    starts, ends = place.x, place.x + place.length * math.cos(angle)
    starts = max(starts + rng.uniform(-0.2, 0.6) * place.height, -0.1 * place.height)
    ends = min(ends - rng.uniform(-0.2, 0.6) * place.height, SIDE + 0.1 * place.height)
    if whole[0] > 0:
        starts = max(starts, own[whole[0] - 1].right)
    if whole[-1] < len(own) - 1:
        ends = min(ends, own[whole[-1] + 1].left)
    return place._replace(x=starts, y=place.y + (starts - place.x) * math.tan(angle),
                          length=(ends - starts) / math.cos(angle))


def draw_scenes(bank: Digits, texts: list[np.ndarray], count: int, seed: int,
                number: int) -> tuple[Tensor, Targets, Runs]:
    """A batch of scenes: grey patches (B, 1, 128, 128), what is to be found in them, and what is to be read."""
    rng = np.random.default_rng([seed, number])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    layouts, lines = [], []
    for patch in range(count):
        layout = Layout((SIDE, SIDE), np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32),
                        light=rng.random() < 0.15, page=rng.random() < 0.35)
        kind = rng.random()
        if kind < 0.05:
            layout.table = True
            if rng.random() < 0.6:
                _add_clutter(layout, rng)
        elif kind < 0.18:
            pass  # words at most
        elif kind < 0.4:
            line, layout.pitch, layout.form = _form(bank, patch, rng)
            lines.append(line)
        else:
            lines += _lines(bank, patch, rng)
        layouts.append(layout)
    placed, owners = write_lines(bank, lines, layouts, rng, generator)
    first = {line.patch: line for line in reversed(lines)}
    for patch, layout in enumerate(layouts):
        if layout.table:
            continue
        if patch in first and not layout.pitch:
            if rng.random() < 0.3:
                _add_marks(layout, placed[patch], first[patch], rng)
            if rng.random() < 0.12:
                _add_signs(layout, first[patch], rng)
        if rng.random() < (0.05 if patch in first else 0.25):
            _add_paragraph(layout, texts, rng)
        elif rng.random() < (0.45 if patch in first else 0.95):
            _add_words(layout, texts, rng, 8, 64)
    return photograph(layouts, generator)[:, None], _targets(layouts, placed, owners), _runs(placed, lines, rng)


def draw_page(bank: Digits, texts: list[np.ndarray], seed: int, number: int) -> tuple[np.ndarray, list[Placed]]:
    """A whole picture, grey (H, W) from 0 to 1, and its digits line by line; all of them are inside."""
    rng = np.random.default_rng([seed, number, 1])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    layout = Layout((900, 1400), np.zeros((900, 1400), np.float32), np.zeros((900, 1400), np.float32),
                    light=rng.random() < 0.12, page=rng.random() < 0.5)
    kind, lines = rng.random(), []
    if kind < 0.25:
        line, layout.pitch, layout.form = _form(bank, 0, rng, int(rng.integers(2, 10)))
        line = line._replace(x=350.0, y=450.0)
        layout.form = (layout.form[0], 350.0, 450.0 - layout.form[3] / 2, *layout.form[3:])
        lines.append(line)
    elif kind < 0.85:
        hand = new_hand(rng, 22, 56)
        y, tight = 300.0, rng.random()
        for _ in range(1 if rng.random() < 0.6 else int(rng.integers(2, 4))):
            count = int(rng.integers(1, 8))
            writings = [writing(bank, hand, rng) for _ in range(count)]
            gaps = [rng.uniform(-0.1, 0.02) if rng.random() < (0.7, 0.3, 0.03)[int(tight > 0.2) + int(tight > 0.6)]
                    else rng.uniform(0.03, 0.5) for _ in range(count)]
            drops = [rng.normal(0, 0.06) * hand.height for _ in range(count)]
            lines.append(Line(0, writings, gaps, drops, 350 + rng.uniform(0, 60), y, hand))
            y += hand.height * rng.uniform(1.3, 2)
    placed, _ = write_lines(bank, lines, [layout], rng, generator)
    high = lines[0].hand.height if lines else rng.uniform(25, 50)
    left, top, right, bottom = 350, 300, 350 + int(rng.integers(60, 300)), 300 + int(rng.integers(60, 300))
    if placed[0]:
        left, top = min(one.left for one in placed[0]), min(one.top for one in placed[0])
        right, bottom = max(one.right for one in placed[0]), max(one.bottom for one in placed[0])
    margin = high * rng.uniform(0.3, 3, 4)
    left, top = int(max(0, left - margin[0])), int(max(0, top - margin[1]))
    right, bottom = int(min(1400, right + margin[2])), int(min(900, bottom + margin[3]))
    part = (slice(top, bottom), slice(left, right))
    layout.ink, layout.other, layout.shape = layout.ink[part].copy(), layout.other[part].copy(), \
        (bottom - top, right - left)
    layout.form = (layout.form[0], layout.form[1] - left, layout.form[2] - top, *layout.form[3:])
    digits = [one._replace(left=one.left - left, right=one.right - left, top=one.top - top, bottom=one.bottom - top)
              for one in placed[0]]
    if lines and not layout.pitch:
        line = lines[0]._replace(x=lines[0].x - left, y=lines[0].y - top)
        if rng.random() < 0.2:
            _add_marks(layout, digits, line, rng)
        if rng.random() < 0.1:
            _add_signs(layout, line, rng)
    if rng.random() < (0.3 if lines else 0.95):
        _add_words(layout, texts, rng, 0.4 * high, 1.5 * high)
    grey = photograph([layout], generator)[0].numpy()
    factor = math.exp(rng.uniform(math.log(0.9), math.log(2.2)))
    size = round(factor * grey.shape[1]), round(factor * grey.shape[0])
    view = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    return view, [one._replace(**{side: round(factor * getattr(one, side)) for side in
                                  ("left", "top", "right", "bottom")}) for one in digits]
