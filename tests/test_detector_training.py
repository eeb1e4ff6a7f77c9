"""The digit detector's training: it repeats itself, resumes after a stop, and its file loads."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import mnist.detector_training
import run_model
from mnist.detector_training import DetectorTraining, detection_loss, fit
from mnist.ink import Digits, words
from mnist.lines import line_loss
from mnist.networks import EVIDENCE, DigitDetector
from mnist.scenes import draw_page, draw_scenes
from mnist.weights import WeightsError, load_detector, load_weights
from mnist_utils import FILES, load_split, write_idx

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(IMAGES[:300], LABELS[:300])


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    for name, value in (("STEPS", 2), ("SCENES", 4), ("PAGES", 2), ("DIGIT_PAGES", 4), ("NUMBER_PAGES", 4)):
        monkeypatch.setattr(mnist.detector_training, name, value)
    for split in ("train", "test"):
        for array, name in zip((IMAGES[:400], LABELS[:400]), FILES[split]):
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            write_idx(tmp_path / "data" / name, array)
    return tmp_path / "data"


def test_scenes_repeat_themselves(digits):
    (one, targets, runs), (again, _, same), (other, *_) = (draw_scenes(digits, words(), 4, 0, n) for n in (7, 7, 8))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.shape == (4, 1, 128, 128) and 0 <= one.min() and one.max() <= 1
    assert targets.centred.sum() == (targets.heat == 1).sum() > 0
    assert torch.equal(runs.strips, same.strips) and torch.equal(runs.labels, same.labels)
    assert len(runs.labels) == runs.lengths.sum() and len(runs.strips) == len(runs.lengths) == len(runs.pictures)


def test_a_page_shows_its_digits_where_it_says(digits):
    for number in range(20):
        grey, placed = draw_page(digits, words(), 0, number)
        for one in placed:
            assert 0 <= one.left < one.right <= grey.shape[1] + 1 and 0 <= one.top < one.bottom <= grey.shape[0] + 1
            assert np.ptp(grey[max(0, one.top):one.bottom, max(0, one.left):one.right]) > 0.02


def test_the_detector_learns(digits):
    torch.manual_seed(0)
    detector = DigitDetector(batch_norm=True)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    scenes = [draw_scenes(digits, words(), 8, 0, number) for number in range(2)]
    losses = []
    for step in range(24):
        pictures, targets, runs = scenes[step % 2]
        loss = detection_loss(detector, pictures, targets) + line_loss(detector, pictures, *runs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])


def test_a_regression_is_fitted_to_what_was_right():
    """As scikit-learn does it."""
    rng, detector = np.random.default_rng(0), DigitDetector()
    known = rng.normal(0, 3, (2000, EVIDENCE))
    truth = known[:, 0] + rng.logistic(size=2000) > 1
    fit(detector.there, list(zip(known, truth.tolist())))
    expected = LogisticRegression().fit(known, truth)
    assert detector.there.tolist() == pytest.approx([*expected.coef_[0], *expected.intercept_], rel=1e-4, abs=1e-5)
    before = detector.there.clone()
    fit(detector.there, [(row, False) for row in known])  # nothing to tell apart
    assert torch.equal(detector.there, before)


def test_a_stopped_training_ends_like_one_that_was_not_stopped(data, tmp_path):
    whole = DetectorTraining(data, tmp_path / "whole.pth", seed=1)
    history = list(whole.epochs(resume=False, epochs=3))
    stopped = DetectorTraining(data, tmp_path / "stopped.pth", seed=1)
    next(epochs := stopped.epochs(resume=False, epochs=3))
    epochs.close()
    again = DetectorTraining(data, tmp_path / "stopped.pth", seed=1)
    resumed = list(again.epochs(resume=True, epochs=3))
    assert [epoch.train_loss for epoch in resumed] == [epoch.train_loss for epoch in history]
    for name, tensor in whole.detector.state_dict().items():
        assert torch.equal(tensor, again.detector.state_dict()[name]), name
    again.calibrate()
    again.save()
    detector, metadata = load_detector(tmp_path / "stopped.pth")
    assert metadata["training"]["seed"] == 1
    for name, tensor in detector.state_dict().items():
        torch.testing.assert_close(tensor, again.detector.folded().state_dict()[name], rtol=1e-3, atol=1e-6)
    with pytest.raises(WeightsError, match="belongs to another training run"):
        next(DetectorTraining(data, tmp_path / "stopped.pth", seed=2).epochs(resume=True, epochs=3))


def test_the_reader_sees_some_digits_of_a_batch_and_not_always_the_same(digits, monkeypatch):
    read, detector = [], DigitDetector()
    detector.reader.register_forward_hook(lambda reader, crops, logits: read.append(crops[0].detach().clone()))
    monkeypatch.setattr(mnist.detector_training, "CROPS", 5)
    monkeypatch.setattr(mnist.detector_training, "OTHERS", 0)
    scenes = draw_scenes(digits, words(), 8, 0, 0)
    assert scenes[1].centred.sum() > 10
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        detection_loss(detector, *scenes[:2])
    assert [len(crops) for crops in read] == [5, 5, 5]
    assert torch.equal(read[0], read[1]) and not torch.equal(read[0], read[2])


def test_a_detector_without_batch_norm_computes_the_same(digits):
    torch.manual_seed(0)
    detector, (pictures, targets, runs) = DigitDetector(batch_norm=True), draw_scenes(digits, words(), 8, 0, 0)
    (detection_loss(detector, pictures, targets) + line_loss(detector, pictures, *runs)).backward()  # moves the means
    plain = detector.eval().folded()
    with torch.no_grad():
        for found, expected in zip(plain(pictures), detector(pictures), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for part, shape in (("reader", (4, 3, 32, 32)), ("line", (4, 1, 32, 48))):
            given = torch.rand(shape)
            found, expected = (getattr(network, part)(given) for network in (plain, detector))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_has_as_many_parameters_as_it_says():
    count = sum(weight.numel() for weight in DigitDetector().parameters())
    assert f"{count:,} parameters" in DigitDetector.__doc__


def test_a_detector_is_no_network_and_a_network_no_detector():
    with pytest.raises(WeightsError, match="is for DigitDetector: here a file for MNIST_CNN or"):
        load_weights(ROOT / "mnist" / "detector.pth")
    with pytest.raises(WeightsError, match="is for MNIST_CNN: here a file for DigitDetector is needed"):
        load_detector(ROOT / "MNIST-MODEL.pth")
    with pytest.raises(FileNotFoundError, match="--mode train-detector makes it"):
        load_detector(ROOT / "missing.pth")


def test_the_command_line_trains_it(data, tmp_path, capsys):
    path = tmp_path / "detector.pth"
    arguments = ["--mode", "train-detector", "--data", str(data), "--detector", str(path), "--epochs", "1"]
    assert run_model.main(arguments) == 0
    assert capsys.readouterr().out == f"the digit detector: {path}\n"
    assert run_model.main([*arguments, "--resume"]) == 0
    assert (ROOT / "mnist" / "detector.pth").stat().st_size < 1_000_000
    load_detector(path)
