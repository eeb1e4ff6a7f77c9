"""From the digits in a picture to numbers: which digits stand on one line, and where a number ends."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

STEEPEST = math.radians(25)  # of a line of digits
SAME_LINE = 0.7  # how far a digit may lie above or below the one before, relative to their height
# The room between two digits is the mean of the distance of their centres and the gap between their boxes, relative to
# the usual height on their line. A number ends where it is more than APART + USUAL times its median there, because a
# form's boxes may stand far apart; or more than PAIR, where a line has only two digits. Chosen on lines drawn from
# validation images.
APART, USUAL, PAIR = 0.8, 0.8, 1.6
UNCLEAR = 0.15  # so near to that limit, it is not clear whether a number ends
END = 0.8  # of a digit's height: the next number is further away, and a missed digit is not

FloatBox = tuple[float, float, float, float]  # left, top, right, bottom


class Strip(NamedTuple):
    """A turned rectangle around a number, with a margin at both ends."""

    x: float
    y: float  # of the middle of its left end
    angle: float  # of its length, in radians, clockwise
    height: float  # of the digits in it
    length: float


class Grouping(NamedTuple):
    """The digits of a picture in reading order."""

    numbers: list[list[int]]  # for each number the indices of its digits, from left to right
    unclear: list[bool]  # for each number, whether it may also be two, or a part of a longer one
    angle: float  # of the lines, in radians, clockwise


def group(boxes: list[FloatBox]) -> Grouping:
    """Group digits with these boxes into lines, from top to bottom, and each line into numbers."""
    if not boxes:
        return Grouping([], [], 0.0)
    edges = np.array(boxes)
    middles = (edges[:, :2] + edges[:, 2:]) / 2
    widths = edges[:, 2] - edges[:, 0]
    heights = written_height(widths, edges[:, 3] - edges[:, 1])
    angle = _angle(middles, heights)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    x, y = (middles @ turn).T
    lines: list[list[int]] = []
    for index in x.argsort(kind="stable").tolist():
        def off(line: list[int], index: int = index) -> float:
            last = line[-1]
            return abs(y[index] - y[last]) / (heights[index] + heights[last]) * 2

        best = min(lines, key=off, default=None)
        if best is not None and off(best) < SAME_LINE:
            best.append(index)
        else:
            lines.append([index])
    lines.sort(key=lambda line: float(y[line].mean()))
    numbers, unclear = list[list[int]](), list[bool]()
    for line in lines:
        room = (np.diff(x[line]) - (widths[line[1:]] + widths[line[:-1]]) / 4) / np.median(heights[line])
        beyond = room - (APART + USUAL * np.median(room) if len(room) > 1 else PAIR)
        ends = np.flatnonzero(beyond > 0) + 1
        numbers += [part.tolist() for part in np.split(np.array(line), ends)]
        near = np.concatenate([[False], np.abs(beyond) < UNCLEAR, [False]])  # before and after each digit
        unclear += [bool(near[start:stop + 1].any()) for start, stop in pairwise([0, *ends.tolist(), len(line)])]
    return Grouping(numbers, unclear, angle)


def written_height(widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """How high digits of these sizes are written: a flat one, such as a lying 1, is no smaller than its neighbours."""
    return np.maximum(heights, 0.8 * widths)


def centred_in(one: FloatBox, boxes: list[FloatBox]) -> bool:
    """Whether the middle of a box lies in one of the others: then it is ink of that digit."""
    x, y = (one[0] + one[2]) / 2, (one[1] + one[3]) / 2
    return any(left < x < right and top < y < bottom for left, top, right, bottom in boxes)


def outline(boxes: list[FloatBox], angle: float) -> list[tuple[float, float]]:
    """The corners of the rectangle around some boxes that is turned by `angle`, clockwise from the upper left."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    edges = np.array(boxes)
    middles, sides = (edges[:, :2] + edges[:, 2:]) / 2 @ turn, (edges[:, 2:] - edges[:, :2]) / 2
    low, high = (middles - sides).min(0), (middles + sides).max(0)
    corners = np.array([low, [high[0], low[1]], high, [low[0], high[1]]]) @ turn.T
    return [(x, y) for x, y in corners.tolist()]


def strip(boxes: list[FloatBox], angle: float) -> Strip:
    """The strip along digits with these boxes; it goes on for END of their height at both ends."""
    edges = np.array(boxes)
    wide, high = edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1]
    height = float(np.median(written_height(wide, high)))
    across, down = (edges[:, :2] + edges[:, 2:]).T / 2
    along = across * math.cos(angle) + down * math.sin(angle)
    off = float(np.median(down * math.cos(angle) - across * math.sin(angle)))
    start, stop = float((along - wide / 2).min()) - END * height, float((along + wide / 2).max()) + END * height
    return Strip(start * math.cos(angle) - off * math.sin(angle), start * math.sin(angle) + off * math.cos(angle),
                 angle, height, stop - start)


def place_in(place: Strip, box: FloatBox) -> tuple[float, float]:
    """How far along a strip the middle of a box is, and how far below the strip's middle."""
    x, y = (box[0] + box[2]) / 2 - place.x, (box[1] + box[3]) / 2 - place.y
    return (x * math.cos(place.angle) + y * math.sin(place.angle),
            y * math.cos(place.angle) - x * math.sin(place.angle))


def box_in(place: Strip, along: float, width: float) -> FloatBox:
    """The box of something in the middle of a strip, so far along it and so wide, and as high as the digits."""
    x, y = place.x + along * math.cos(place.angle), place.y + along * math.sin(place.angle)
    return x - width / 2, y - place.height / 2, x + width / 2, y + place.height / 2


def is_in(place: Strip, box: FloatBox) -> bool:
    """Whether the middle of a box is in a strip, and at most half a digit off its line."""
    along, off = place_in(place, box)
    return 0 <= along <= place.length and abs(off) < 0.5 * place.height


def _angle(middles: np.ndarray, heights: np.ndarray) -> float:
    """The median angle between each digit and the nearest one on its right."""
    across = middles[None, :, 0] - middles[:, None, 0]
    down = middles[None, :, 1] - middles[:, None, 1]
    usual = np.minimum(heights[None, :], heights[:, None])
    steep = np.abs(down) > math.tan(STEEPEST) * across + 0.2 * usual  # an offset of its own
    distance = np.where(steep | (across < 0.15 * usual), np.inf, np.hypot(across, 2 * down))
    nearest = distance.argmin(1)
    known = np.flatnonzero(np.isfinite(distance.min(1)))
    return float(np.median(np.arctan2(down, across)[known, nearest[known]])) if len(known) else 0.0
