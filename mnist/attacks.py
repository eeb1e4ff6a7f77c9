"""Adversarial attacks on a network: images (N, 28, 28) uint8 → attacked ink (N, 28, 28), float32 from 0 to 1.

The network must be on the CPU and in evaluation mode. Epsilon is on the scale of ink, 0 to 1.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_utils import normalize


def fgsm(model: nn.Module, images: np.ndarray, labels: np.ndarray, epsilon: float, *, mean: float,
         std: float) -> Tensor:
    """Fast gradient sign method: each pixel moves by epsilon where the loss grows (Goodfellow et al. 2015)."""
    return _step(model, _ink(images), labels, epsilon, mean, std)


def pgd(model: nn.Module, images: np.ndarray, labels: np.ndarray, epsilon: float, *, mean: float, std: float,
        steps: int = 20, seed: int = 0) -> Tensor:
    """Projected gradient descent (Madry et al. 2018), from a random start.

    Each step is a step of `fgsm` by epsilon / 8, projected back to within epsilon of the image.
    """
    clean = _ink(images)
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed))
    attacked = (clean + epsilon * (2 * noise - 1)).clip(0, 1)
    for _ in range(steps):
        attacked = _step(model, attacked, labels, epsilon / 8, mean, std)
        attacked = attacked.clip(clean - epsilon, clean + epsilon).clip(0, 1)
    return attacked


def _ink(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).float() / 255


def _step(model: nn.Module, ink: Tensor, labels: np.ndarray, size: float, mean: float, std: float) -> Tensor:
    """Ink moved by `size` along the sign of the loss's gradient."""
    moved = []
    for part, truth in zip(ink.split(1000), torch.as_tensor(labels).long().split(1000)):
        part = part.clone().requires_grad_()
        loss = F.cross_entropy(model(normalize(255 * part, mean, std)), truth, reduction="sum")
        gradient, = torch.autograd.grad(loss, part)
        moved.append((part + size * gradient.sign()).clip(0, 1).detach())
    return torch.cat(moved)
