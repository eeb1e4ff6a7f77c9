"""Train a network on MNIST and measure it.

    for epoch in train(model, train_set, val_set, mean=mean, std=std,
                       epochs=12, batch_size=128, learning_rate=4e-3, seed=0):
        print(epoch.number, epoch.val_accuracy)
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from mnist_utils import batches, normalize

Split = tuple[np.ndarray, np.ndarray]  # images (N, 28, 28) uint8 and labels (N,)


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images came to. Losses are mean cross-entropies in nats."""

    number: int  # counted from 1
    train_loss: float  # over the epoch's augmented images, each at the moment it was learned from
    val_loss: float
    val_accuracy: float  # 0 to 1
    seconds: float


def train(model: nn.Module, train_set: Split, val_set: Split, *, mean: float, std: float,
          epochs: int, batch_size: int, learning_rate: float, seed: int,
          batch_bar: tqdm | None = None) -> Iterator[Epoch]:
    """Train `model` in place, one epoch for each step of the iterator.

    Adam under a one-cycle schedule (Smith & Topin 2018) that peaks at `learning_rate` after
    three tenths of the steps, on randomly warped images. `seed` fixes the order and the warps,
    so equal calls give equal weights on one machine; the network's first weights are the
    caller's to seed. `mean` and `std` normalise the images, as `mean_std` gives them. The model
    is left in training mode and in channels_last. `batch_bar` starts anew at each epoch and
    moves at each batch.

    As with any generator, nothing happens before the first step. Raises ValueError where there
    is nothing to train on, and FloatingPointError where the loss stops being finite: the weights
    are then of no use.
    """
    images, labels = torch.as_tensor(train_set[0]), torch.as_tensor(train_set[1]).long()
    if not len(images) or epochs < 1 or batch_size < 1:
        raise ValueError(f"there is nothing to train: {len(images)} images, {epochs} epochs, batches of {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(images) / batch_size)
    model.to(memory_format=torch.channels_last)  # about a quarter faster on two CPU cores
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)

    for number in range(1, epochs + 1):
        start, loss_sum = time.perf_counter(), torch.zeros((), dtype=torch.float64)
        if batch_bar is not None:
            batch_bar.reset(total=steps)
        model.train()
        for batch, targets in batches(images, labels, batch_size, generator):
            inputs = normalize(random_warp(batch, generator), mean, std)
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.detach() * len(targets)
            if batch_bar is not None:
                batch_bar.update()
        if batch_bar is not None:
            batch_bar.refresh()  # tqdm skips updates that come fast, and so perhaps the last one
        train_loss = loss_sum.item() / len(images)
        if not math.isfinite(train_loss):
            raise FloatingPointError(f"the training loss became {train_loss} in epoch {number}: "
                                     f"try a learning rate below {learning_rate:g}")
        val_loss, val_accuracy = evaluate(model, *val_set, mean=mean, std=std)
        yield Epoch(number, train_loss, val_loss, val_accuracy, time.perf_counter() - start)


def random_warp(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn, scale, shear and shift each image (N, 28, 28) by its own random amounts, to float32.

    Uniformly up to 11° of rotation, 11 % of scale along each axis, 15 % of shear and 1.5 pixels
    of shift before the rest. Interpolated bilinearly, black outside; grey levels stay on the
    scale 0 to 255.
    """
    limits = torch.tensor([0.19, 0.11, 0.11, 0.15, 1.5 / 14, 1.5 / 14])
    amounts = (2 * torch.rand(len(images), 6, generator=generator) - 1) * limits
    angle, width, height, shear, x, y = amounts.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * (1 + width), shear - sin * (1 + height), x, sin * (1 + width), cos * (1 + height), y]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(images), 1, *images.shape[1:]],
                         align_corners=False)
    return F.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray | Tensor, *, mean: float, std: float,
            batch_size: int = 1000) -> Tensor:
    """The network's scores (N, 10) for uint8 images (N, 28, 28); softmax makes probabilities.

    The model is in evaluation mode meanwhile, and afterwards in the mode that it was in.
    """
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model(normalize(batch, mean, std)) for batch in torch.as_tensor(images).split(batch_size)])
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, images: np.ndarray | Tensor, labels: np.ndarray | Tensor, *,
             mean: float, std: float) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy from 0 to 1, over uint8 images (N, 28, 28) and labels (N,)."""
    scores, labels = predict(model, images, mean=mean, std=std), torch.as_tensor(labels).long()
    return F.cross_entropy(scores, labels).item(), (scores.argmax(1) == labels).double().mean().item()
