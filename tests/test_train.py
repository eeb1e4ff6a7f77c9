"""Training and evaluation: they learn, repeat, and agree with scikit-learn."""

import io
from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from tqdm import tqdm

import mnist_train
from mnist_model import MNIST_CNN
from mnist_train import evaluate, predict, train, warp, warp_amounts
from mnist_utils import load_split, mean_std

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")
MEAN, STD = mean_std(IMAGES)
SCALE = {"mean": MEAN, "std": STD}
RECIPE = SCALE | {"epochs": 3, "batch_size": 64, "learning_rate": 4e-3, "seed": 0}
TRAIN, VALIDATION = (IMAGES[:2050], LABELS[:2050]), (IMAGES[5000:6000], LABELS[5000:6000])


def trained(seed: int = 0, **options):
    torch.manual_seed(seed)
    model = MNIST_CNN()
    return model, list(train(model, TRAIN, VALIDATION, **RECIPE | {"seed": seed} | options))


def test_training_learns_and_reports_what_evaluate_finds():
    model, history = trained()
    assert [epoch.number for epoch in history] == [1, 2, 3]
    assert history[-1].train_loss < history[0].train_loss / 2
    assert history[-1].val_accuracy > 0.9
    loss, accuracy = evaluate(model, *VALIDATION, **SCALE)
    assert (history[-1].val_loss, history[-1].val_accuracy) == (loss, accuracy)


def weights_of(model: MNIST_CNN) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_second_run_repeats_the_first_bit_for_bit():
    (first, history), (again, repeated) = trained(), trained()
    assert torch.equal(weights_of(first), weights_of(again))
    assert [epoch.train_loss for epoch in history] == [epoch.train_loss for epoch in repeated]


def test_the_seed_alone_changes_order_and_warps():
    """From the same first weights, whatever the global random state is."""
    results = []
    for seed, state in ((1, 10), (1, 11), (2, 10)):
        torch.manual_seed(0)
        model = MNIST_CNN()
        torch.manual_seed(state)
        list(train(model, TRAIN, VALIDATION, **RECIPE | {"seed": seed, "epochs": 1}))
        results.append(weights_of(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_training_sees_warped_images(monkeypatch):
    seen = []
    monkeypatch.setattr(mnist_train, "warp", lambda images, amounts: seen.append(len(images)) or images)
    trained(epochs=1)
    assert sum(seen) == len(TRAIN[0])
    trained(epochs=1, augment=False)
    assert sum(seen) == len(TRAIN[0])


def test_the_training_loss_is_a_mean_over_images_not_over_batches():
    """Weights that stand still and a short last batch: only the mean over images equals evaluate's."""
    model, _ = trained()
    images, labels = TRAIN[0][:65], TRAIN[1][:65]
    still = {"epochs": 1, "learning_rate": 1e-12, "augment": False, "amp": False}
    history = list(train(model, (images, labels), VALIDATION, **RECIPE | still))
    loss, _ = evaluate(model, images, labels, **SCALE)
    assert history[0].train_loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("epochs, batch_size", [(1, 60), (1, 30), (1, 20), (1, 15), (2, 30), (4, 60), (5, 60), (8, 60)])
def test_a_schedule_of_any_length_works(epochs, batch_size):
    few = TRAIN[0][:60], TRAIN[1][:60]
    assert len(list(train(MNIST_CNN(), few, VALIDATION,
                          **RECIPE | {"epochs": epochs, "batch_size": batch_size}))) == epochs


def test_nothing_to_train_on_is_said():
    for images, options in ((IMAGES[:0], {}), (IMAGES[:10], {"epochs": 0}), (IMAGES[:10], {"batch_size": 0})):
        with pytest.raises(ValueError, match="nothing to train"):
            next(train(MNIST_CNN(), (images, LABELS[:len(images)]), VALIDATION, **RECIPE | options))


def test_the_bar_counts_every_batch_of_an_epoch():
    with tqdm(file=io.StringIO()) as bar:
        trained(epochs=2, batch_bar=bar)
        assert (bar.n, bar.total) == (33, 33)


def test_bfloat16_learns_as_well():
    _, plain = trained(amp=False)
    _, mixed = trained(amp=True)
    assert [epoch.train_loss for epoch in plain] != [epoch.train_loss for epoch in mixed]
    assert mixed[-1].val_accuracy == pytest.approx(plain[-1].val_accuracy, abs=0.02)


def test_the_hardest_images_are_those_with_the_highest_loss(monkeypatch):
    seen, counts = [], []
    real = mnist_train.batches
    monkeypatch.setattr(mnist_train, "batches", lambda indices, *rest: seen.append(indices) or real(indices, *rest))
    torch.manual_seed(0)
    model = MNIST_CNN()
    still = {"epochs": 2, "learning_rate": 1e-12, "augment": False, "amp": False, "hardest": 0.1}
    bar = tqdm(file=io.StringIO())
    for _ in train(model, TRAIN, VALIDATION, **RECIPE | still, batch_bar=bar):
        counts.append(bar.total)
    assert counts == [33, 4]  # 2,050 images, then 205, in batches of 64
    scores = predict(model, TRAIN[0], **SCALE)
    losses = torch.nn.functional.cross_entropy(scores, torch.from_numpy(TRAIN[1]).long(), reduction="none")
    expected = set(losses.topk(205).indices.tolist())
    assert len(seen[0]) == 2050 and len(seen[1]) == 205
    assert len(expected & set(seen[1].tolist())) > 200  # a few are level but for rounding


def test_patience_stops_once_the_best_epoch_is_long_past():
    _, history = trained(epochs=30, learning_rate=1e-12, patience=2)
    assert len(history) == 3  # nothing is learned, so the first epoch stays the best
    assert len(trained(epochs=3, patience=2)[1]) == 3


def test_a_loss_that_is_not_finite_stops_with_advice():
    with pytest.raises(FloatingPointError, match="epoch 1: try a learning rate below 1e"):
        trained(learning_rate=1e20)


def test_evaluate_agrees_with_scikit_learn():
    model, _ = trained(epochs=1)
    loss, accuracy = evaluate(model, IMAGES, LABELS, **SCALE)
    probabilities = predict(model, IMAGES, **SCALE).double().softmax(dim=1).numpy()
    assert accuracy == accuracy_score(LABELS, probabilities.argmax(axis=1))
    assert loss == pytest.approx(log_loss(LABELS, probabilities), rel=1e-5)


def test_predict_does_not_depend_on_the_batch():
    model, _ = trained(epochs=1)
    scores = predict(model, IMAGES[:100], **SCALE)
    assert scores.shape == (100, 10) and not scores.requires_grad
    torch.testing.assert_close(predict(model, IMAGES[:100], **SCALE, batch_size=7), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_predict_evaluates_and_leaves_the_mode_alone(mode):
    model = torch.nn.Sequential(MNIST_CNN(), torch.nn.Dropout(0.5)).train(mode)
    assert torch.equal(predict(model, IMAGES[:10], **SCALE), predict(model, IMAGES[:10], **SCALE))
    assert model.training is mode
    with pytest.raises(RuntimeError):
        predict(model, IMAGES[:10, :5], **SCALE)
    assert model.training is mode


# warp

def test_the_centre_moves_by_little_and_by_each_image_s_own_amount():
    dot = torch.zeros(500, 28, 28, dtype=torch.uint8)
    dot[:, 13:15, 13:15] = 255
    warped = warp(dot, warp_amounts(500, torch.Generator().manual_seed(0)))
    assert warped.shape == dot.shape and warped.dtype == torch.float32
    assert warped.min() >= 0 and warped.max() < 255.01
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    shifts = torch.stack([(warped * axis).sum((1, 2)) / warped.sum((1, 2)) for axis in (x, y)])
    assert 1.2 < shifts.abs().max() < 2.1  # 1.5 pixels, before the turn and the scale
    assert len(shifts[0].round(decimals=4).unique()) > 450


def test_lines_are_turned_sheared_and_scaled():
    upright, level = (torch.zeros(500, 28, 28, dtype=torch.uint8) for _ in range(2))
    upright[:, 6:22, 13:15] = 255
    level[:, 13:15, 6:22] = 255
    tilts, lengths = [], []
    for line, axis in ((upright, 1), (level, 2)):
        warped = warp(line, warp_amounts(500, torch.Generator().manual_seed(1)))
        y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
        total = warped.sum((1, 2))
        cx, cy = ((warped * grid).sum((1, 2)) / total for grid in (x, y))
        dx, dy = x - cx[:, None, None], y - cy[:, None, None]
        xx, yy, xy = ((warped * product).sum((1, 2)) / total for product in (dx * dx, dy * dy, dx * dy))
        along, across = (yy, xx) if axis == 1 else (xx, yy)
        tilts.append(torch.atan2(2 * xy, along - across) / 2)
        lengths.append(along.sqrt() / along.sqrt().median())
    for length in lengths:
        assert 0.03 < length.std() < 0.15  # 11 % at most each way, uniformly
    level_tilt, upright_tilt = tilts[1].abs().max().rad2deg(), tilts[0].abs().max().rad2deg()
    assert 9 < level_tilt < 13  # turned alone
    assert 14 < upright_tilt < 22  # turned and sheared
