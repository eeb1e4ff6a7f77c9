"""The predictor on people's kinds of pictures, all made from MNIST's test digits, and its word on what to trust."""

import concurrent.futures
import copy
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import handwriting
import run_model
import scenes
from mnist.calibrate import calibrate, non_digits
from mnist.evaluate import predict
from mnist.files import DETECTOR
from mnist.networks import MNIST_CNN
from mnist.picture import PictureError, crop, to_mnist
from mnist.predict import MNISTPredictor
from mnist.weights import WeightsError, load_weights, pack, save_weights
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")


@pytest.fixture(scope="module")
def predictor() -> MNISTPredictor:
    """With the committed weights: those that another processor trains differ by as much as the bounds here allow."""
    return MNISTPredictor(ROOT / "MNIST-MODEL.pth")


def accuracy(predictor: MNISTPredictor, draw, count: int, seed: int = 0) -> tuple[float, float]:
    """The share of right digits, and the share of wrong ones that are trusted, on so many test digits drawn anew."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(LABELS))[:count]
    results = [predictor.predict(draw(IMAGES[index], rng)) for index in chosen]
    right = np.array([result.digit == label for result, label in zip(results, LABELS[chosen])])
    trusted = np.array([result.trusted for result in results])
    return right.mean(), (trusted & ~right).mean()


# how well it reads

def test_mnist_s_own_images_are_read_as_by_the_network_alone(predictor):
    results = predictor.predict_many(IMAGES)
    scores = predict(predictor.model, IMAGES, mean=predictor.metadata["mean"], std=predictor.metadata["std"])
    assert [result.digit for result in results] == scores.argmax(1).tolist()
    assert np.mean([result.digit == label for result, label in zip(results, LABELS)]) > 0.992
    trusted = [index for index, result in enumerate(results) if result.trusted]
    assert len(trusted) > 9_700
    assert np.mean([results[index].digit == LABELS[index] for index in trusted]) > 0.998


@pytest.mark.parametrize("kind, count", [("plain", 50), ("shadow", 50), ("ruled", 50), ("tilted", 50), ("photo", 100)])
def test_digits_on_pages(predictor, kind, count):
    """The goal of 98 % is measured on more pages by `make bench`; with so few, the bound leaves room for luck."""
    right, misleading = accuracy(predictor, lambda digit, rng: handwriting.page(digit, rng, kind), count)
    assert right >= 0.96 and misleading <= 0.02


@pytest.mark.parametrize("brush", [1, 3, 10, 20, 40])
def test_digits_drawn_with_a_mouse(predictor, brush):
    right, _ = accuracy(predictor, lambda digit, rng: handwriting.stroked(digit, brush, rng), 200)
    assert right >= 0.95


def test_digits_off_the_centre(predictor):
    def moved(digit, rng):
        cropped = crop(digit)
        top, left = rng.integers(0, 29 - np.array(cropped.shape))
        return np.pad(cropped, [(top, 28 - top - cropped.shape[0]), (left, 28 - left - cropped.shape[1])])

    assert accuracy(predictor, moved, 500)[0] >= 0.985


def test_printed_digits(predictor):
    read = [predictor.predict(handwriting.printed(str(digit), font, size)).digit == digit
            for font in handwriting.FONTS for size in (30, 150) for digit in range(10)]
    assert np.mean(read) >= 0.95


# numbers

def test_several_digits_are_reported_and_read_in_order(predictor):
    right = count = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        lines = [list(rng.integers(0, 10_000, length)) for length in rng.integers(3, 9, 1 + seed % 2)]
        ink = handwriting.written([[IMAGES[index] for index in line] for line in lines], rng)
        photo = handwriting.photographed(ink, handwriting.ruling(ink.shape, rng), rng)
        assert predictor.predict(photo).digit is None
        assert "not one digit" in predictor.predict(photo).reason
        expected = [LABELS[index] for line in lines for index in line]
        results = predictor.read(photo)
        count += len(expected)
        right += sum(result.digit == label for result, label in zip(results, expected)) \
            if len(results) == len(expected) else 0
        for result in results:
            left, top, right_edge, bottom = result.box
            assert -5 <= left < right_edge <= photo.width + 5 and -5 <= top < bottom <= photo.height + 5
    assert right / count > 0.93


@pytest.mark.parametrize("kind", ["touching", "line", "form", "table", "note"])
def test_numbers_are_read_as_people_write_and_photograph_them(predictor, kind):
    """The share is measured on many pictures of each kind by `make bench`; this bound leaves room for luck."""
    rng, right, misleading = np.random.default_rng(3), 0, 0
    for _ in range(12):
        scene = scenes.KINDS[kind](rng)
        numbers = predictor.read_numbers(scene.picture)
        correct = "".join(number.text for number in numbers) == "".join(scene.numbers)
        right += correct
        misleading += not correct and any(number.trusted for number in numbers)
    assert right >= 6 and misleading <= 2


@pytest.mark.parametrize("kind", ["words", "nothing"])
def test_where_there_is_no_number_none_is_trusted(predictor, kind):
    rng, misleading = np.random.default_rng(3), 0
    for _ in range(12):
        misleading += any(number.trusted for number in predictor.read_numbers(scenes.KINDS[kind](rng).picture))
    assert misleading <= 1


def test_a_number_says_where_it_is_and_how_sure_it_is(predictor):
    scene = scenes.line(np.random.default_rng(1))
    number, = predictor.read_numbers(scene.picture)
    assert number.text == "".join(str(one.digit) for one in number.digits) == scene.numbers[0]
    assert 0.5 < number.confidence <= min(one.confidence for one in number.digits) <= 1
    assert number.trusted == (not number.reason)
    left, top, right, bottom = (np.array([box for _, box in scene.digits])[:, side] for side in range(4))
    expected = left.min(), top.min(), right.max(), bottom.max()
    assert number.box == pytest.approx(expected, abs=0.15 * (bottom - top).max())
    assert len(number.corners) == 4


def test_several_lines_give_several_numbers(predictor):
    """Two lines of four digits, ten times; a digit in a hundred may be misread, and then is not trusted."""
    right = 0
    for first in range(0, 80, 8):
        ink = handwriting.written([list(IMAGES[start:start + 4]) for start in (first, first + 4)],
                                  np.random.default_rng(first))
        numbers = predictor.read_numbers(255 - np.rint(255 * ink).astype(np.uint8))
        expected = ["".join(map(str, LABELS[start:start + 4])) for start in (first, first + 4)]
        assert len(numbers) == 2
        right += sum(number.text == line for number, line in zip(numbers, expected))
        assert {number.text for number in numbers if number.trusted} <= set(expected)
        assert [number.box[1] for number in numbers] == sorted(number.box[1] for number in numbers)
        if not first:
            assert [number.text for number in numbers] == ["7210", "4149"]
    assert right >= 18


def test_a_gap_that_may_separate_two_numbers_or_not_is_reported(predictor):
    """72 and 10 are written ever further apart: first they are one number, then two; in between nobody knows."""
    seven, two, one, zero = (255 - np.rint(255 * handwriting.enlarged(image, 60)).astype(np.uint8)
                             for image in IMAGES[:4])
    read = []
    for gap in range(10, 131, 10):
        row = np.full((120, 500), 255, np.uint8)
        left = 60
        for ink, after in ((seven, 10), (two, gap), (one, 10), (zero, 0)):
            row[30:30 + len(ink), left:left + ink.shape[1]] = ink
            left += ink.shape[1] + after
        read.append(predictor.read_numbers(row))
    texts = [[number.text for number in numbers] for numbers in read]
    assert texts == sorted(texts, key=len) and texts[0] == ["7210"] and texts[-1] == ["72", "10"]
    assert all(number.trusted for number in read[0] + read[-1])
    last = sum(len(numbers) == 1 for numbers in read) - 1
    for number in read[last] + read[last + 1]:
        assert number.reason == "a gap is so wide that it may separate two numbers, or not"


def test_small_marks_between_digits_are_left_out(predictor):
    rng = np.random.default_rng(0)
    page = 255 - np.rint(255 * handwriting.written([list(IMAGES[:4])], rng)).astype(np.uint8)
    page = np.pad(page, [(0, 0), (0, 100)], constant_values=255)
    page[110:118, 530:565] = 0  # a hyphen
    results = predictor.read(page)
    assert [result.digit for result in results] == LABELS[:4].tolist()
    assert results[0].notes == ("signs among the digits were left out",)


def test_a_single_digit_is_read_as_one(predictor):
    page = 255 - np.rint(255 * handwriting.placed(handwriting.enlarged(IMAGES[0], 90), (150, 200),
                                                  np.random.default_rng(0))).astype(np.uint8)
    one, = predictor.read(page)
    assert (one.digit, one.trusted) == (7, True)
    assert np.abs(one.picture.astype(int) - predictor.predict(page).picture).mean() < 20
    assert predictor.read(IMAGES[0])[0].digit == 7
    assert predictor.read(np.zeros((50, 50), np.uint8)) == []


def test_hundreds_of_marks_are_no_trusted_number(predictor):
    """A printed page, grass, and noise."""
    rng = np.random.default_rng(0)
    grass = np.full((900, 900), 255, np.uint8)
    for x, y in rng.integers(20, 860, (900, 2)):
        grass[y:y + 22, x:x + 3] = 0
    text = Image.new("L", (900, 900), 255)
    for line in range(30):
        ImageDraw.Draw(text).text((20, 30 * line), "the quick brown fox jumps over lazy dogs " * 2, 0, font_size=22)
    for picture in (grass, text, rng.integers(0, 256, (900, 900), dtype=np.uint8)):
        start = time.perf_counter()
        numbers = predictor.read_numbers(picture)
        assert time.perf_counter() - start < 20  # goal 2 s: see make bench; a loaded machine takes longer
        assert not any(number.trusted for number in numbers)


# what not to trust

def test_touching_digits_are_mostly_reported(predictor):
    rng, reported = np.random.default_rng(0), []
    for one, other in rng.integers(0, 10_000, (150, 2)):
        page = 1 - handwriting.touching(IMAGES[one], IMAGES[other], int(rng.integers(12, 26)))
        reported.append(not predictor.predict(page).trusted)
    assert np.mean(reported) > 0.8


def test_no_digits_are_told_from_digits(predictor):
    def believed(pictures) -> float:
        return np.mean([result.trusted for result in predictor.predict_many(pictures)])

    assert believed(non_digits(IMAGES, 300, np.random.default_rng(0))) < 0.1
    assert believed(handwriting.letters()) < 0.2


def test_paper_without_a_digit_gives_no_trusted_one(predictor):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        nothing = np.zeros((300, 300))
        photo = handwriting.photographed(nothing, nothing, rng, shadow=seed % 2 == 0)
        try:
            assert not predictor.predict(photo).trusted
        except PictureError as error:
            assert "separate strokes" in str(error)


@pytest.mark.parametrize("blank", [np.zeros((28, 28)), np.ones((100, 80)), Image.new("RGBA", (50, 50))])
def test_a_blank_picture_has_no_digit(predictor, blank):
    result = predictor.predict(blank)
    assert (result.digit, result.confidence, result.trusted) == (None, 0.0, False)
    assert "blank" in result.reason and not result.picture.any()


def test_a_doubtful_digit_names_the_other_one(predictor):
    unsure = [result for result in predictor.predict_many(IMAGES) if result.reason.startswith("low confidence")]
    assert unsure
    for result in unsure:
        second = int(result.probabilities.argsort()[-2])
        assert f"may be a {second} as well" in result.reason and result.confidence < 0.9


def test_calibration_brings_confidence_to_accuracy(predictor):
    """Measured on images that calibration has not seen."""
    temperature = predictor.metadata["temperature"]
    scores = predict(predictor.model, IMAGES, mean=predictor.metadata["mean"], std=predictor.metadata["std"])
    confidence = (scores / temperature).softmax(1).amax(1).mean().item()
    assert confidence == pytest.approx(np.mean(scores.argmax(1).numpy() == LABELS), abs=0.004)


def test_calibration_repeats_itself_and_rejects_few_digits(tmp_path):
    model, metadata = load_weights(ROOT / "MNIST-MODEL.pth")
    part, rest = (IMAGES[:3000], LABELS[:3000]), (IMAGES[3000:6000], LABELS[3000:6000])
    options = {"mean": metadata["mean"], "std": metadata["std"]}
    one, two = (calibrate(model, part, rest, **options) for _ in range(2))
    assert one["temperature"] == two["temperature"] and torch.equal(one["ood"]["weights"], two["ood"]["weights"])
    louder = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in louder.fc2.parameters():
            parameter *= 3
    assert calibrate(louder, part, rest, **options)["temperature"] == pytest.approx(3 * one["temperature"], rel=0.01)
    save_weights(tmp_path / "calibrated.pth", model, **options, **one)
    results = MNISTPredictor(tmp_path / "calibrated.pth").predict_many(IMAGES[6000:])
    assert 0.002 < np.mean(["out of distribution" in result.reason for result in results]) < 0.03


def test_any_data_set_can_be_calibrated():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (600, 28, 28), dtype=np.uint8)  # full frames, as Fashion-MNIST has some
    images[:50] = 0
    labels = rng.integers(0, 10, 600).astype(np.uint8)
    calibration = calibrate(MNIST_CNN().eval(), (images, labels), (images, labels), mean=0.5, std=0.3)
    assert calibration["ood"]["weights"].isfinite().all() and calibration["temperature"] > 0


@pytest.mark.parametrize("calibration", [
    {"temperature": 0.0}, {"temperature": float("nan")}, {"temperature": 1}, {"temperature": "warm"}, {"ood": {}},
    {"ood": {"weights": torch.ones(322)}}, {"ood": {"weights": torch.ones(322) / 0, "threshold": 0.0}},
    {"ood": {"weights": torch.ones(5), "threshold": 0.0}},
])
def test_an_unusable_calibration_is_refused(calibration, tmp_path):
    save_weights(tmp_path / "weights.pth", MNIST_CNN(), mean=0.13, std=0.31)
    content = torch.load(tmp_path / "weights.pth")
    del content["sha256"]
    (tmp_path / "weights.pth").write_bytes(pack(content | calibration))
    with pytest.raises(WeightsError, match=r"unusable|another network"):
        MNISTPredictor(tmp_path / "weights.pth")


# the predictor itself

def test_results_state_what_was_seen(predictor):
    page = handwriting.page(IMAGES[0], np.random.default_rng(3), "photo")
    result = predictor.predict(page)
    assert np.array_equal(result.picture, to_mnist(page))
    assert result.digit == result.probabilities.argmax() == 7 and result.trusted and result.reason == ""
    assert result.confidence == pytest.approx(result.probabilities[7])
    assert result.probabilities.sum() == pytest.approx(1)


def test_many_at_once_equal_each_alone(predictor):
    pictures = [*IMAGES[:20], handwriting.stroked(IMAGES[3], 8, np.random.default_rng(0)), np.zeros((30, 30))]
    for many, one in zip(predictor.predict_many(pictures), map(predictor.predict, pictures), strict=True):
        assert (many.digit, many.reason) == (one.digit, one.reason)
        np.testing.assert_allclose(many.probabilities, one.probabilities, atol=1e-5)
    assert predictor.predict_many([]) == []
    assert [result.digit for result in predictor.predict_many(torch.from_numpy(IMAGES[:5]))] == LABELS[:5].tolist()


def test_a_bad_picture_among_many_is_named(predictor):
    with pytest.raises(PictureError, match="picture 2: an array of 3 is no picture"):
        predictor.predict_many([IMAGES[0], np.zeros(3)])


def test_threads_share_a_predictor(predictor):
    rng = np.random.default_rng(0)
    pictures = [handwriting.stroked(digit, 10, rng) for digit in IMAGES[:100]]
    alone = [result.probabilities for result in map(predictor.predict, pictures)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        together = [result.probabilities for result in threads.map(predictor.predict, pictures)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_weights_without_calibration_serve_as_well(tmp_path):
    torch.manual_seed(0)
    save_weights(tmp_path / "plain.pth", MNIST_CNN(), mean=0.13, std=0.31)
    result = MNISTPredictor(tmp_path / "plain.pth").predict(IMAGES[0])
    assert 0 < result.confidence < 0.5 and result.reason.startswith("low confidence")


# on the command line

@pytest.fixture
def files(tmp_path) -> list[str]:
    rng = np.random.default_rng(0)
    handwriting.page(IMAGES[0], rng).save(tmp_path / "seven.jpg")
    (tmp_path / "letter.png").write_text("not a picture")
    ink = handwriting.written([list(IMAGES[:3])], rng)
    Image.fromarray(255 - np.rint(255 * ink).astype(np.uint8)).save(tmp_path / "three.png")
    return [str(tmp_path / name) for name in ("seven.jpg", "letter.png", "three.png")]


def test_files_are_read_and_a_bad_one_does_not_stop_the_rest(files, predictor, output, capsys):
    arguments = ["--mode", "predict", *files, "--model-path", str(output / "MNIST-MODEL.pth")]
    assert run_model.main(arguments) == 1
    printed = capsys.readouterr()
    seven, three = printed.out.splitlines()
    assert seven.startswith(f"{files[0]}\t7\t") and seven.endswith("%")
    assert three.startswith(f"{files[2]}\t721\t")
    assert printed.err == f"run_model.py: {files[1]} is not a supported image file: " \
                          "PNG, JPEG, GIF, BMP, TIFF, WEBP, PPM\n"
    assert run_model.main([*arguments, "--json"]) == 1
    answers = json.loads(capsys.readouterr().out)
    assert [[number["text"] for number in answer.get("numbers", [])] for answer in answers] == [["7"], [], ["721"]]
    assert "not a supported image" in answers[1]["error"]
    assert [digit["digit"] for digit in answers[2]["numbers"][0]["digits"]] == [7, 2, 1]
    assert answers[0]["numbers"][0]["digest"] == hashlib.sha256(DETECTOR.read_bytes()).hexdigest()
    assert run_model.main(["--mode", "predict", files[0], "--model-path", str(output / "MNIST-MODEL.pth")]) == 0


def test_a_picture_s_name_is_enough_to_read_it(files, output, capsys):
    assert run_model.main([files[0], "--model-path", str(output / "MNIST-MODEL.pth")]) == 0
    assert capsys.readouterr().out.startswith(f"{files[0]}\t7\t")


def test_files_and_the_mode_that_reads_them_go_together(capsys):
    for arguments in (["--mode", "predict"], ["--mode", "train", "seven.png"]):
        assert run_model.main(arguments) == 2
        assert "--mode predict needs at least one FILE" in capsys.readouterr().err
