"""Any picture becomes what MNIST would have made of it, or one sentence that says why not."""

import contextlib
import io
import itertools
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import handwriting
from mnist.picture import (
    MAX_PIXELS,
    PictureError,
    enlarge,
    find_ink,
    find_pieces,
    find_strokes,
    prepare,
    read_picture,
    to_mnist,
)
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")
EIGHT = IMAGES[61]


def drawn(digit: np.ndarray = EIGHT, side: int = 120) -> np.ndarray:
    """A digit in black on white, a little off the centre: uint8 (side, side)."""
    ink = handwriting.enlarged(digit, round(0.6 * side))
    page = np.zeros((side, side))
    page[side // 8:side // 8 + ink.shape[0], side // 8:side // 8 + ink.shape[1]] = ink
    return np.rint(255 * (1 - page)).astype(np.uint8)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


REFERENCE = to_mnist(drawn())


# what is in MNIST's form already

def test_mnist_s_own_images_come_back_as_they_are():
    assert all(np.array_equal(to_mnist(image), image) for image in IMAGES)


def test_inverted_shifted_and_float_images_lose_nothing():
    for image, shift in zip(IMAGES[:300], itertools.product((-2, 0, 3), (-3, 1))):
        assert np.array_equal(to_mnist(255 - image), image)
        assert np.array_equal(to_mnist(image / 255), image)
        moved = ndimage.shift(image, shift, order=0)
        assert moved.sum() < image.sum() or np.array_equal(to_mnist(moved), image)  # unless some of it is lost


def test_a_drawn_digit_has_mnist_s_frame_and_centre():
    rows, columns = np.flatnonzero(REFERENCE.any(1)), np.flatnonzero(REFERENCE.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20 and REFERENCE.max() == 255
    weights = REFERENCE / REFERENCE.sum()
    centre = weights.sum(1) @ np.arange(28), weights.sum(0) @ np.arange(28)
    assert np.abs(np.subtract(centre, 14)).max() <= 0.5
    assert np.abs(REFERENCE.astype(int) - EIGHT).mean() < 8  # of 255


# one picture in many forms

def forms() -> dict[str, object]:
    grey = drawn()
    picture = Image.fromarray(grey)
    colour = np.stack([grey] * 3, -1)
    ink = Image.fromarray(255 - grey)
    transparent = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    transparent.putalpha(ink)
    chalk = Image.new("RGBA", picture.size, (255, 255, 255, 0))
    chalk.putalpha(ink)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    return {
        "array": grey, "floats": grey / 255, "inverted": 255 - grey, "a channel": grey[..., None], "colour": colour,
        "opaque": np.dstack([colour, np.full_like(grey, 255)]), "16 bits": grey.astype(np.uint16) * 257,
        "rounded floats": grey / 255 * 1.0000001 - 1e-8,
        "small integers": grey.astype(np.int64), "zeros and ones": (grey > 127).astype(np.uint8), "truth": grey > 127,
        "tensor": torch.from_numpy(grey), "channels first": torch.from_numpy(colour).movedim(-1, 0),
        "batch of one": torch.from_numpy(grey)[None, None] / 255, "half": (torch.from_numpy(grey) / 255).bfloat16(),
        "faint ink": Image.merge("RGBA", [Image.new("L", picture.size)] * 3 + [ink.point(lambda level: level // 3)]),
        "on a device, with gradient": (torch.from_numpy(grey) / 255).requires_grad_(),
        "1": picture.convert("1", dither=Image.Dither.NONE),
        **{mode: picture.convert(mode) for mode in ("L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB",
                                                    "I", "F")},
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257), "transparent": transparent, "chalk": chalk,
        "PNG": encoded(picture, "PNG"), "JPEG": encoded(picture, "JPEG"),
        "palette": encoded(picture.convert("P"), "PNG"),
        "16-bit PNG": encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), "GIF": encoded(picture, "GIF"),
        "CMYK JPEG": encoded(picture.convert("CMYK"), "JPEG"), "WebP": encoded(picture.convert("RGB"), "WEBP"),
        "BMP": encoded(picture, "BMP"), "TIFF": encoded(picture, "TIFF"),
        "turned by EXIF": encoded(turned, "JPEG", exif=exif), "file": io.BytesIO(encoded(picture, "PNG")),
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_of_a_picture_gives_the_same_digit(form):
    assert np.abs(to_mnist(forms()[form]).astype(int) - REFERENCE).mean() < 5  # of 255; JPEG and two colours lose some


def test_paths_are_read(tmp_path):
    (tmp_path / "eight.png").write_bytes(encoded(Image.fromarray(drawn()), "PNG"))
    assert np.array_equal(to_mnist(tmp_path / "eight.png"), REFERENCE)
    assert np.array_equal(to_mnist(str(tmp_path / "eight.png")), REFERENCE)


@pytest.mark.parametrize("colours", [((250, 240, 210), (20, 30, 120)), ((255, 255, 255), (220, 40, 30)),
                                     ((30, 60, 40), (240, 240, 230)), ((0, 0, 0), (120, 120, 120))])
def test_colours_do_not_matter(colours):
    paper, pen = np.array(colours[0], float), np.array(colours[1], float)
    ink = (255 - drawn())[..., None] / 255
    picture = np.rint(paper + ink * (pen - paper)).astype(np.uint8)
    assert np.abs(to_mnist(picture).astype(int) - REFERENCE).mean() < 2


def test_the_polarity_can_be_said():
    frame = drawn()
    frame[:6], frame[-6:], frame[:, :6], frame[:, -6:] = 0, 0, 0, 0  # a black frame, as of a scan
    assert np.abs(to_mnist(frame, "dark").astype(int) - REFERENCE).mean() < 3
    with pytest.raises(ValueError, match="ink is dark, light or auto, not 'blue'"):
        to_mnist(drawn(), "blue")


def test_thin_and_thick_strokes_come_to_mnist_s_width():
    rng = np.random.default_rng(0)
    shares = [(to_mnist(handwriting.stroked(EIGHT, brush, rng)) / 255).sum() for brush in (1, 4, 16, 30)]
    usual = IMAGES[LABELS == 8].astype(float).sum((1, 2)) / 255
    assert np.quantile(usual, 0.02) < min(shares) and max(shares) < np.quantile(usual, 0.98)


def test_shadow_grain_and_ruling_are_removed():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ink = handwriting.placed(handwriting.enlarged(EIGHT, 200), (400, 500), rng, 0.1)
        photo = handwriting.photographed(ink, handwriting.ruling(ink.shape, rng), rng)
        grey = enlarge(read_picture(photo).grey)
        amount, photograph = find_ink(grey)
        strokes = find_strokes(amount)
        assert photograph and (strokes != (ink > 0.5)).mean() < 0.02
        pieces, missed = find_pieces(strokes, photograph)
        assert len(pieces) == 1 and not missed


# several digits

def test_pieces_come_in_reading_order_with_their_boxes():
    page = np.full((300, 400), 255, np.uint8)
    corners = [(20, 40), (90, 25), (200, 50), (30, 180), (150, 190)]
    for (left, top), digit in zip(corners, IMAGES[:5]):
        ink = np.rint(255 * handwriting.enlarged(digit, 80)).astype(np.uint8)
        page[top:top + ink.shape[0], left:left + ink.shape[1]] -= ink
    for factor in (1, 3):  # the second is worked on at a smaller size
        boxes = [piece.box for piece in prepare(Image.fromarray(page).resize((400 * factor, 300 * factor))).pieces]
        for (left, top), box in zip(corners, boxes, strict=True):
            assert np.abs(np.subtract(box[:2], (factor * left, factor * top))).max() <= 8 * factor
            assert box[3] - box[1] == pytest.approx(80 * factor, abs=5 * factor)


def test_a_detached_bar_belongs_to_its_digit():
    page = np.zeros((100, 100), bool)
    page[40:90, 30:36] = page[84:90, 30:60] = page[40:46, 30:60] = True
    page[30:36, 45:73] = True  # the bar of a 5, apart from it
    assert len(find_pieces(page)[0]) == 1
    page[40:90, 80:86] = True
    assert len(find_pieces(page)[0]) == 2


def test_a_digit_may_fill_its_picture():
    rows, columns = np.flatnonzero(drawn().min(1) < 200), np.flatnonzero(drawn().min(0) < 200)
    tight = drawn()[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    assert np.abs(to_mnist(tight).astype(int) - REFERENCE).mean() < 8


def test_digits_at_the_rim_of_a_drawing_count_and_in_a_photo_are_told():
    digit = handwriting.enlarged(EIGHT, 100)
    wide = np.zeros((160, 420))
    for left in (-30, 150, 420 - digit.shape[1] + 30):
        part = digit[:, max(0, -left):420 - left]
        wide[30:30 + digit.shape[0], max(0, left):max(0, left) + part.shape[1]] = part
    assert len(prepare(1 - wide).pieces) == 3
    photo = handwriting.photographed(wide, np.zeros_like(wide), np.random.default_rng(1))
    assert len(prepare(photo).pieces) == 1 and prepare(photo).cut_off


def test_small_marks_are_left_out_and_noted():
    page = np.pad(drawn(), [(0, 0), (0, 60)], constant_values=255)
    page[80:86, 150:164] = 0
    prepared = prepare(page)
    assert len(prepared.pieces) == 1 and prepared.notes == ("small marks left out: 1",)


# what is no picture

def bomb() -> bytes:
    return encoded(Image.new("1", (20_000, 20_000)), "PNG")


BAD = {
    "not there": ("nowhere.png", "does not exist"),
    "a folder": (".", "is a folder"),
    "a long name": ("data:" + "a" * 5000, "^data:a{95}… is (damaged|truncated)|does not exist"),
    "a deep folder": ("folder/" * 20 + "nowhere.png", "^(folder/){20}nowhere.png does not exist"),
    "much noise": (np.random.default_rng(0).random((1000, 1000)) > 0.9, "separate strokes"),
    "many dots": (np.kron(np.ones((60, 60)), np.pad(np.ones((6, 6)), 5)), "separate strokes"),
    "three arrays": (np.zeros((3, 28, 28)), "predict_many"),
    "text": (b"a letter to a friend", "not a supported image file"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a supported image file"),
    "nothing": (b"", "not a supported image file"),
    "half a JPEG": (encoded(Image.fromarray(drawn(side=600)), "JPEG")[:2000], "truncated or damaged"),
    "half a PNG": (encoded(Image.fromarray(drawn()), "PNG")[:300], "truncated or damaged"),
    "a bomb": (bomb(), "too large|at most"),
    "a large array": (np.zeros((20_000, 20_000), np.uint8), "too large"),
    "a large picture": (Image.new("1", (20_000, 20_000)), "at most"),
    "NaN": (np.full((28, 28), np.nan), "not finite"),
    "infinite": (np.where(np.eye(28) > 0, np.inf, 0), "not finite"),
    "negative": (np.linspace(-1, 1, 784).reshape(28, 28), "from -1 to 1"),
    "too high": (np.full((28, 28), 1000.0), "from 1000 to 1000"),
    "empty": (np.zeros((0, 28), np.uint8), "is empty"),
    "one pixel": (np.zeros((1, 1), np.uint8), "1 × 1 pixels: too few"),
    "a line": (np.zeros((1, 3000), np.uint8), "too few"),
    "one dimension": (np.zeros(784, np.uint8), "784 is no picture"),
    "no dimension": (np.float32(3), "no picture"),
    "two channels": (np.zeros((28, 28, 2), np.uint8), "28 × 28 × 2 is no picture"),
    "a batch": (torch.zeros(3, 1, 28, 28), "several pictures: predict_many"),
    "complex": (np.zeros((28, 28), complex), "must hold numbers"),
    "words": (np.full((28, 28), "ink"), "must hold numbers"),
    "dates": (np.zeros((28, 28), "datetime64[s]"), "must hold numbers"),
    "sparse": (torch.eye(28).to_sparse(), "make it dense"),
    "None": (None, "a NoneType is no picture"),
    "a list": ([[0, 1], [1, 0]], "a list is no picture"),
    "a text file": (io.StringIO("text"), "no picture|damaged"),
    "black": (np.zeros((50, 50), np.uint8), "blank"),
    "white": (np.full((50, 50), 255, np.uint8), "blank"),
    "grey": (Image.new("L", (28, 28), 128), "blank"),
    "transparent": (Image.new("RGBA", (100, 100), (0, 0, 0, 0)), "blank"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_in_one_sentence(name):
    picture, fault = BAD[name]
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(PictureError, match=fault) as caught:
        to_mnist(picture)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert seconds < 5 and peak < 50e6


def test_blank_paper_is_blank_however_it_is_lit():
    blank = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        photo = handwriting.photographed(np.zeros((300, 300)), np.zeros((300, 300)), rng, shadow=seed % 2 == 0)
        try:
            prepared = prepare(photo)
            blank.append(prepared.picture is None or prepared.cut_off)  # a shadow's corner runs out of the picture
        except PictureError as error:  # of grain alone
            blank.append("separate strokes" in str(error))
    assert np.mean(blank) > 0.7  # tests/test_predict.py sees to what a shadow leaves


@pytest.mark.parametrize("side", [28, 30, 31, 200, 1300])
def test_odd_patterns_neither_crash_nor_last(side):
    y, x = np.mgrid[:side, :side]
    for pattern in (y < side // 2, x < side // 2, (x + y) % 2 == 0, x == y, (y < side / 3) & (x < side / 3), x / side,
                    np.hypot(x - side / 2, y - side / 2) < side / 4, (x // 7 + y // 7) % 2 == 0):
        start = time.perf_counter()
        with contextlib.suppress(PictureError):
            prepare(pattern.astype(float))
        assert time.perf_counter() - start < 10


def test_a_file_that_holds_several_pictures_says_so():
    pictures = [Image.fromarray(drawn(digit)) for digit in IMAGES[:3]]
    data = encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:])
    assert prepare(data).notes == ("it holds several pictures, of which the first was read",)
    assert np.abs(to_mnist(data).astype(int) - to_mnist(pictures[0])).mean() < 2
    assert prepare(encoded(pictures[0], "GIF")).notes == ()


def test_a_large_photo_is_read_within_a_bounded_memory():
    photo = Image.fromarray(drawn(side=600)).resize((7000, 7000)).convert("RGB")
    assert photo.width * photo.height < MAX_PIXELS
    assert np.abs(to_mnist(encoded(photo, "JPEG")).astype(int) - REFERENCE).mean() < 4
