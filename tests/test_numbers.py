"""Digits are grouped into numbers as a person reads them."""

import math

import pytest

from mnist.numbers import box_in, group, is_in, outline, place_in, strip


def boxes(*places: tuple[float, float], wide: float = 14, high: float = 20) -> list[tuple[float, float, float, float]]:
    return [(x - wide / 2, y - high / 2, x + wide / 2, y + high / 2) for x, y in places]


def turned(places: list[tuple[float, float]], degrees: float) -> list[tuple[float, float]]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(c * x - s * y, s * x + c * y) for x, y in places]


def test_no_digit_is_no_number():
    assert group([]) == ([], [], 0.0)


def test_a_line_is_one_number_from_left_to_right():
    assert group(boxes((50, 12), (10, 10), (30, 8))).numbers == [[1, 2, 0]]


def test_a_wide_gap_separates_two_numbers():
    assert group(boxes((10, 10), (30, 10), (50, 10), (110, 10), (130, 10))).numbers == [[0, 1, 2], [3, 4]]


def test_boxes_of_a_form_that_stand_apart_are_one_number():
    assert group(boxes(*[(10 + 40 * place, 10) for place in range(6)])).numbers == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("count", [2, 3])
def test_two_or_three_boxes_that_stand_apart_are_one_number_too(count):
    assert group(boxes(*[(10 + 38 * place, 10) for place in range(count)])).numbers == [list(range(count))]


def test_a_number_with_one_rather_wide_gap_is_one_number():
    assert group(boxes((10, 10), (28, 10), (59, 10), (77, 10))).numbers == [[0, 1, 2, 3]]


def test_a_gap_between_narrow_and_wide_is_unclear_for_the_numbers_beside_it():
    def unclear(gap: float) -> list[bool]:
        return group(boxes(*[(x, 10) for x in (10, 30, 50, 50 + gap, 70 + gap)])).unclear

    assert unclear(30) == [False] and unclear(33) == [True] and unclear(35) == [True, True]
    assert unclear(60) == [False, False]
    far = boxes(*[(x, 10) for x in (10, 30, 110, 130, 163, 183)])
    assert group(far).numbers == [[0, 1], [2, 3, 4, 5]] and group(far).unclear == [False, True]


def test_lines_come_from_top_to_bottom():
    assert group(boxes((10, 50), (30, 52), (10, 10), (30, 8))).numbers == [[2, 3], [0, 1]]


@pytest.mark.parametrize("degrees", [-15, -7, 7, 15])
def test_a_turned_page_keeps_its_lines(degrees):
    places = [(20.0 * column, 34.0 * row) for row in range(3) for column in range(7)]
    numbers, _, angle = group(boxes(*turned(places, degrees)))
    assert numbers == [list(range(7 * row, 7 * row + 7)) for row in range(3)]
    assert math.degrees(angle) == pytest.approx(degrees, abs=1)


def test_the_outline_of_a_turned_number_is_turned_with_it():
    row = boxes(*turned([(0, 0), (20, 0), (40, 0)], 10))
    corners = outline(row, math.radians(10))
    (left, top), (right, right_top), _, (bottom_left, bottom) = corners
    assert math.degrees(math.atan2(right_top - top, right - left)) == pytest.approx(10)
    assert math.hypot(right - left, right_top - top) == pytest.approx(40 + 14)
    assert math.hypot(bottom_left - left, bottom - top) == pytest.approx(20)


def test_what_is_in_a_strip():
    place = strip([(10, 10, 20, 30), (30, 12, 44, 32)], 0.0)
    assert (place.height, place.y) == (20, 21) and (place.x, place.length) == (10 - 16, 34 + 32)
    assert is_in(place, (22, 18, 26, 24)) and is_in(place, (50, 10, 60, 30))
    assert not is_in(place, (62, 10, 70, 30)) and not is_in(place, (22, 30, 26, 40))
    assert is_in(strip([(0, 0, 10, 20), (90, 90, 110, 110)], math.pi / 4), (45, 45, 55, 55))


def test_a_box_in_a_turned_strip_is_in_its_middle():
    place = strip(boxes(*turned([(0, 0), (30, 0)], 12)), math.radians(12))
    box = box_in(place, 17.0, 8.0)
    assert place_in(place, box) == (pytest.approx(17), pytest.approx(0, abs=1e-9)) and is_in(place, box)
    assert (box[2] - box[0], box[3] - box[1]) == (pytest.approx(8), pytest.approx(place.height))
