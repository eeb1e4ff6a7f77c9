"""The notebook's upload button, as the browser sets its value."""

import datetime
from pathlib import Path

import pytest

from mnist.predict import MNISTPredictor
from mnist.widgets import read_button

ROOT = Path(__file__).parents[1]
PREDICTOR = MNISTPredictor(ROOT / "MNIST-MODEL.pth")


def printed(name: str, content: bytes, capsys: pytest.CaptureFixture) -> str:
    """What the button prints once a person has chosen a file."""
    upload, _ = read_button(PREDICTOR).children
    upload.value = ({"name": name, "type": "image/png", "size": len(content), "content": memoryview(content),
                     "last_modified": datetime.datetime.now(datetime.UTC)},)
    return capsys.readouterr().out


def test_a_picture_of_several_digits_is_read_as_such(capsys):
    shown = printed("number.jpg", (ROOT / "figures" / "samples" / "number.jpg").read_bytes(), capsys)
    assert shown.splitlines()[0] == "number.jpg: 0 3 1 6 5 2 9 4 8"


def test_one_digit_and_one_that_is_not_to_be_trusted(capsys):
    assert printed("seven.jpg", (ROOT / "figures/samples/seven.jpg").read_bytes(), capsys).startswith("seven.jpg: 7\n")
    touching = printed("touching.png", (ROOT / "figures" / "samples" / "touching.png").read_bytes(), capsys)
    assert "do not trust the" in touching


def test_what_is_no_picture_is_one_line(capsys):
    assert printed("notes.txt", b"not a picture", capsys) == \
        "notes.txt: the picture is not a supported image file: PNG, JPEG, GIF, BMP, TIFF, WEBP, PPM\n"
