"""The scenes that judge a reader of numbers: they repeat, and they say where their digits are."""

import numpy as np
import pytest

from scenes import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_repeats_itself_and_states_its_digits(kind):
    one, again = (KINDS[kind](np.random.default_rng(3)) for _ in range(2))
    assert one.picture.tobytes() == again.picture.tobytes() and one.numbers == again.numbers
    assert one.picture.tobytes() != KINDS[kind](np.random.default_rng(4)).picture.tobytes()
    assert "".join(one.numbers) == "".join(name for name, _ in one.digits)
    assert bool(one.numbers) == (kind not in ("words", "nothing"))
    for _, (left, top, right, bottom) in one.digits:
        assert -1 <= left < right <= one.picture.width + 1 and -1 <= top < bottom <= one.picture.height + 1
        pixels = np.asarray(one.picture.convert("L").crop((left, top, right, bottom)), float)
        assert np.ptp(pixels) > 20  # something is written there
