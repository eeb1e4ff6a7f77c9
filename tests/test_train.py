"""Training and evaluation: they learn, repeat, and agree with scikit-learn."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from tqdm import tqdm

from mnist_model import MNIST_CNN
from mnist_train import evaluate, predict, random_warp, train
from mnist_utils import load_split, mean_std

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")
MEAN, STD = mean_std(IMAGES)
SCALE = {"mean": MEAN, "std": STD}
TRAIN, VALIDATION = (IMAGES[:2050], LABELS[:2050]), (IMAGES[5000:6000], LABELS[5000:6000])


def trained(seed: int = 0, **options):
    torch.manual_seed(seed)
    model = MNIST_CNN()
    options = {"epochs": 3, "batch_size": 64, "seed": seed} | SCALE | options
    return model, list(train(model, TRAIN, VALIDATION, **options))


def test_training_learns_and_reports_what_evaluate_finds():
    model, history = trained()
    assert [epoch.number for epoch in history] == [1, 2, 3]
    assert history[-1].train_loss < history[0].train_loss / 2
    assert history[-1].val_accuracy > 0.9
    loss, accuracy = evaluate(model, *VALIDATION, **SCALE)
    assert (history[-1].val_loss, history[-1].val_accuracy) == (loss, accuracy)


def test_a_second_run_repeats_the_first_and_another_seed_does_not():
    (first, history), (again, repeated), (other, _) = trained(), trained(), trained(seed=1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert not torch.equal(tensor, other.state_dict()[name])
    assert [epoch.train_loss for epoch in history] == [epoch.train_loss for epoch in repeated]


def test_the_training_loss_is_a_mean_over_images_not_over_batches():
    """With a rate of almost 0 the weights stand still, so batches of any size give one mean."""
    losses = [trained(epochs=1, batch_size=size, learning_rate=1e-12)[1][0].train_loss for size in (2050, 2000)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0] == pytest.approx(np.log(10), abs=0.1)


def test_the_bar_counts_every_batch_of_an_epoch():
    with tqdm(file=io.StringIO()) as bar:
        trained(epochs=2, batch_bar=bar)
        assert (bar.n, bar.total) == (33, 33)


def test_a_loss_that_is_not_finite_stops_with_advice():
    with pytest.raises(FloatingPointError, match="epoch 1: try a learning rate below 1e"):
        trained(learning_rate=1e20)


def test_evaluate_agrees_with_scikit_learn():
    model, _ = trained(epochs=1)
    loss, accuracy = evaluate(model, IMAGES, LABELS, **SCALE)
    probabilities = predict(model, IMAGES, **SCALE).double().softmax(dim=1).numpy()
    assert accuracy == accuracy_score(LABELS, probabilities.argmax(axis=1))
    assert loss == pytest.approx(log_loss(LABELS, probabilities), rel=1e-5)


def test_predict_does_not_depend_on_the_batch_and_leaves_the_mode_alone():
    model, _ = trained(epochs=1)
    assert model.training
    scores = predict(model, IMAGES[:100], **SCALE)
    assert model.training and scores.shape == (100, 10)
    torch.testing.assert_close(predict(model, IMAGES[:100], **SCALE, batch_size=7), scores, rtol=1e-4, atol=1e-5)


def test_each_image_is_warped_by_its_own_small_amount():
    dot = torch.zeros(500, 28, 28, dtype=torch.uint8)
    dot[:, 13:15, 13:15] = 255
    warped = random_warp(dot, torch.Generator().manual_seed(0))
    assert warped.shape == dot.shape and warped.dtype == torch.float32
    assert warped.min() >= 0 and warped.max() < 255.01
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    shifts = torch.stack([(warped * axis).sum((1, 2)) / warped.sum((1, 2)) for axis in (x, y)])
    assert 1.2 < shifts.abs().max() < 2.0  # the centre moves by about 1.5 pixels at most
    assert len(shifts[0].round(decimals=4).unique()) > 450


def test_a_warped_digit_stays_one():
    warped = random_warp(torch.from_numpy(IMAGES), torch.Generator().manual_seed(0))
    ink = warped.sum((1, 2)) / torch.from_numpy(IMAGES).float().sum((1, 2))
    assert 0.6 < ink.min() and ink.max() < 1.5  # nothing is lost over the border, nothing doubled
