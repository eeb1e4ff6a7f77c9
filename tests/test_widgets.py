"""The notebook's upload button, as the browser sets its value."""

import datetime
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scenes
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
    assert shown.splitlines()[0] == "number.jpg: 0316 52948"


def test_one_digit_two_that_touch_and_a_blank_picture(capsys):
    assert printed("seven.jpg", (ROOT / "figures/samples/seven.jpg").read_bytes(), capsys).startswith("seven.jpg: 7\n")
    touching = printed("touching.png", (ROOT / "figures" / "samples" / "touching.png").read_bytes(), capsys)
    assert touching.startswith("touching.png: 25\n")
    Image.new("L", (80, 80), 255).save(blank := io.BytesIO(), "PNG")
    assert printed("blank.png", blank.getvalue(), capsys) == "blank.png: no digit was found\n"


def test_a_number_that_is_not_to_be_trusted(capsys):
    rng = np.random.default_rng(0)
    pictures = (scenes.line(rng).picture for _ in range(50))
    picture, doubtful = next((picture, number) for picture in pictures for number in PREDICTOR.read_numbers(picture)
                             if not number.trusted)
    picture.save(file := io.BytesIO(), "PNG")
    assert f"do not trust {doubtful.text} (" in printed("line.png", file.getvalue(), capsys)


def test_what_is_no_picture_is_one_line(capsys):
    assert printed("notes.txt", b"not a picture", capsys) == \
        "notes.txt: the picture is not a supported image file: PNG, JPEG, GIF, BMP, TIFF, WEBP, PPM\n"
