"""Attacks stay within epsilon, and do more harm than noise."""

from pathlib import Path

import pytest
import torch

from mnist.attacks import fgsm, pgd
from mnist.evaluate import evaluate
from mnist.weights import load_weights
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")
MODEL, FACTS = load_weights(ROOT / "MNIST-MODEL.pth")
SCALE = {"mean": FACTS["mean"], "std": FACTS["std"]}


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_attacks_stay_near_and_do_harm(attack):
    images, labels = IMAGES[:200], LABELS[:200]
    attacked = attack(MODEL, images, labels, 0.1, **SCALE)
    assert attacked.shape == images.shape and 0 <= attacked.min() and attacked.max() <= 1
    assert (attacked - torch.from_numpy(images) / 255).abs().max() <= 0.1 + 1e-6
    loss, _ = evaluate(MODEL, 255 * attacked, labels, **SCALE)
    assert loss > 10 * evaluate(MODEL, images, labels, **SCALE)[0]
    noise = torch.from_numpy(images) / 255 + 0.1 * torch.randn(images.shape, generator=torch.manual_seed(0)).sign()
    assert loss > 5 * evaluate(MODEL, 255 * noise.clip(0, 1), labels, **SCALE)[0]
    assert torch.equal(attacked, attack(MODEL, images, labels, 0.1, **SCALE))


def test_many_small_steps_do_more_harm_than_one():
    losses = [evaluate(MODEL, 255 * attack(MODEL, IMAGES[:200], LABELS[:200], 0.15, **SCALE), LABELS[:200], **SCALE)[0]
              for attack in (fgsm, pgd)]
    assert losses[1] > losses[0]
