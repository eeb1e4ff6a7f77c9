"""Training: it learns, and it repeats."""

import copy
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

import mnist.train
from mnist.checkpoint import best_epoch
from mnist.evaluate import evaluate, predict
from mnist.muon import Muon, orthogonal
from mnist.networks import MNIST_CNN
from mnist.train import train
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
    monkeypatch.setattr(mnist.train, "warp", lambda images, amounts: seen.append(len(images)) or images)
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


@pytest.mark.parametrize("wrong", [{"label_smoothing": -0.1}, {"label_smoothing": 1.5}, {"muon": 0.0}, {"muon": -1.0}])
def test_settings_out_of_range_are_said(wrong):
    with pytest.raises(ValueError, match="label smoothing is 0 to 1, and Muon's learning rate above 0, not"):
        trained(**wrong)


def test_nothing_to_train_on_is_said():
    for images, options in ((IMAGES[:0], {}), (IMAGES[:10], {"epochs": 0}), (IMAGES[:10], {"batch_size": 0}),
                            (IMAGES[:10], {"proxy": 0.0}), (IMAGES[:10], {"hard_examples": 1.5})):
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


def test_hard_examples_are_the_images_those_with_the_highest_loss(monkeypatch):
    seen, counts = [], []
    real = mnist.train.batches
    monkeypatch.setattr(mnist.train, "batches", lambda indices, *rest: seen.append(indices) or real(indices, *rest))
    torch.manual_seed(0)
    model = MNIST_CNN()
    still = {"epochs": 2, "learning_rate": 1e-12, "augment": False, "amp": False, "hard_examples": 0.1}
    bar = tqdm(file=io.StringIO())
    for _ in train(model, TRAIN, VALIDATION, **RECIPE | still, batch_bar=bar):
        counts.append(bar.total)
    assert counts == [33, 4]  # 2,050 images, then 205, in batches of 64
    logits = predict(model, TRAIN[0], **SCALE)
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(TRAIN[1]).long(), reduction="none")
    expected = set(losses.topk(205).indices.tolist())
    assert len(seen[0]) == 2050 and len(seen[1]) == 205
    assert len(expected & set(seen[1].tolist())) > 200  # a few are level but for rounding


@pytest.mark.parametrize("shape", [(20, 250), (50, 50), (64, 25)])
def test_muon_s_update_has_the_singular_vectors_of_the_momentum_and_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    in_its_vectors = left.T @ orthogonal(matrix) @ right.T
    found = in_its_vectors.diagonal()
    assert torch.allclose(in_its_vectors, found.diag(), atol=1e-4)
    assert 0.65 < found[values > values.max() / 100].min() and found.max() < 1.25


def test_muon_trains_the_hidden_weights_at_a_fixed_norm_and_adam_all_others():
    torch.manual_seed(0)
    model = MNIST_CNN()
    twin = copy.deepcopy(model)
    muon, adam = Muon(model, 0.1, 1e-2, fused=True), torch.optim.Adam(twin.parameters(), 1e-2, fused=True)
    for _ in range(2):
        muon.zero_grad()
        model(torch.randn(8, 1, 28, 28)).square().sum().backward()
        for own, other in zip(model.parameters(), twin.parameters()):
            other.grad = own.grad.clone()
        muon.step()
        adam.step()
    hidden = {"conv1.weight", "conv2.weight", "fc1.weight"}
    for (name, own), other in zip(model.named_parameters(), twin.parameters()):
        assert torch.equal(own, other) == (name not in hidden)
        if name in hidden:
            assert own.norm().item() == pytest.approx(len(own) ** 0.5, rel=0.1)


def test_the_proxy_finds_the_images_that_are_hard(monkeypatch):
    """Wrong labels are the hardest, and the first epoch trains on no other images than it names."""
    images, labels = TRAIN[0], TRAIN[1].copy()
    wrong = np.random.default_rng(0).permutation(len(labels))[:100]
    labels[wrong] = (labels[wrong] + 1) % 10
    seen, real = [], mnist.train.batches
    monkeypatch.setattr(mnist.train, "batches", lambda indices, *rest: seen.append(indices) or real(indices, *rest))
    losses, real_proxy = [], mnist.train.proxy_losses
    monkeypatch.setattr(mnist.train, "proxy_losses", lambda *data: losses.append(real_proxy(*data)) or losses[0])
    list(train(MNIST_CNN(), (images, labels), VALIDATION, **RECIPE | {"epochs": 1, "proxy": 0.2}))
    chosen = set(seen[0].tolist())
    assert chosen == set(losses[0].topk(410).indices.tolist())
    assert len(set(wrong) & chosen) > 70  # 20 by chance


def test_label_smoothing_is_that_of_torch():
    """Weights that stand still: the loss is torch's own."""
    model, _ = trained(epochs=1)
    still = {"epochs": 1, "learning_rate": 1e-12, "augment": False, "amp": False, "label_smoothing": 0.2}
    history = list(train(model, TRAIN, VALIDATION, **RECIPE | still))
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.2)(predict(model, TRAIN[0], **SCALE),
                                                              torch.from_numpy(TRAIN[1]).long())
    assert history[0].train_loss == pytest.approx(expected.item(), rel=1e-3)


def test_without_validation_the_last_epoch_is_the_best():
    _, history = trained(validate=False)
    assert all(math.isnan(epoch.val_loss) and math.isnan(epoch.val_accuracy) for epoch in history)
    assert best_epoch(history) is history[-1]
    with pytest.raises(ValueError, match="cannot stop early"):
        trained(validate=False, patience=2)


def test_patience_stops_once_the_best_epoch_is_long_past():
    _, history = trained(epochs=30, learning_rate=1e-12, patience=2)
    assert len(history) == 3  # nothing is learned, so the first epoch stays the best
    assert len(trained(epochs=3, patience=2)[1]) == 3


def test_a_loss_that_is_not_finite_stops_with_advice():
    with pytest.raises(FloatingPointError, match="epoch 1: try a learning rate below 1e"):
        trained(learning_rate=1e20)
