"""Measures of a network, against scikit-learn, hand-made numbers, and finite differences."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from mnist.evaluate import (
    confidence_threshold,
    evaluate,
    expected_calibration_error,
    predict,
    reliability,
    saliency,
    selective_accuracy,
)
from mnist.networks import MNIST_CNN
from mnist.weights import load_weights
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")
MODEL, FACTS = load_weights(ROOT / "MNIST-MODEL.pth")
SCALE = {"mean": FACTS["mean"], "std": FACTS["std"]}


def test_evaluate_agrees_with_scikit_learn():
    loss, accuracy = evaluate(MODEL, IMAGES, LABELS, **SCALE)
    probabilities = predict(MODEL, IMAGES, **SCALE).double().softmax(dim=1).numpy()
    assert accuracy == accuracy_score(LABELS, probabilities.argmax(axis=1))
    assert loss == pytest.approx(log_loss(LABELS, probabilities), rel=1e-5)


def test_predict_does_not_depend_on_the_batch():
    logits = predict(MODEL, IMAGES[:100], **SCALE)
    assert logits.shape == (100, 10) and not logits.requires_grad
    torch.testing.assert_close(predict(MODEL, IMAGES[:100], **SCALE, batch_size=7), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_predict_evaluates_and_leaves_the_mode_alone(mode):
    model = torch.nn.Sequential(MNIST_CNN(), torch.nn.Dropout(0.5)).train(mode)
    assert torch.equal(predict(model, IMAGES[:10], **SCALE), predict(model, IMAGES[:10], **SCALE))
    assert model.training is mode
    with pytest.raises(RuntimeError):
        predict(model, IMAGES[:10, :5], **SCALE)
    assert model.training is mode


TWO = np.array([[0.95, 0.05], [0.05, 0.95], [0.85, 0.15], [0.25, 0.75], [0.65, 0.35], [0.55, 0.45]])
TRUTH = np.array([0, 1, 1, 1, 0, 1])


def test_reliability_and_its_error():
    table = reliability(TWO, TRUTH, bins=10)
    assert table[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2] and np.isnan(table[:5, 1:]).all()
    assert table[5:, 1:].tolist() == [[0.55, 0], [0.65, 1], [0.75, 1], [0.85, 0], [0.95, 1]]
    expected = (0.55 + 0.35 + 0.25 + 0.85 + 2 * 0.05) / 6
    assert expected_calibration_error(TWO, TRUTH, bins=10) == pytest.approx(expected)
    certain = np.eye(10)[LABELS]
    assert expected_calibration_error(certain, LABELS) == 0


def test_selective_accuracy_and_its_threshold():
    assert selective_accuracy(TWO, TRUTH).tolist() == [1, 1, 2 / 3, 3 / 4, 4 / 5, 4 / 6]
    for accuracy, threshold in ((1, 0.95), (0.8, 0.65), (0.6, 0.55), (0.7, 0.65)):
        assert confidence_threshold(TWO, TRUTH, accuracy) == threshold
    assert confidence_threshold(TWO, 1 - TWO.argmax(1), 0.5) > 1


def test_saliency_is_the_gradient():
    """On noise, because on blank paper all places of a pooling are equal, and there are two slopes."""
    noise = np.random.default_rng(0).integers(256, size=(28, 28), dtype=np.uint8)
    found = saliency(MODEL, noise, 7, **SCALE)
    steps = torch.tensor([-0.1, 0.1]).view(2, 1, 1, 1) * torch.eye(784).view(784, 28, 28)
    low, high = (predict(MODEL, part, **SCALE)[:, 7] for part in torch.from_numpy(noise.astype(np.float32)) + steps)
    numeric = (255 / 0.2 * (high - low)).abs().numpy()
    assert found.shape == (28, 28) and np.corrcoef(found.ravel(), numeric)[0, 1] > 0.99
    assert np.polyfit(numeric, found.ravel(), 1)[0] == pytest.approx(1, abs=0.03)
