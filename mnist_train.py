"""Train a network on MNIST, without ever losing the training, and measure it.

    for epoch in train(model, train_set, val_set, mean=mean, std=std,
                       epochs=12, batch_size=128, learning_rate=4e-3, seed=0):
        print(epoch.number, epoch.val_accuracy)

It trains where the model is: on the CPU, a GPU, or Apple's MPS. In a process group, as torchrun
makes one, every process trains on its share of every batch.
"""

import hashlib
import io
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from mnist_model import WeightsError, plain_values, write_atomically
from mnist_utils import batches, normalize

Split = tuple[np.ndarray, np.ndarray]  # images (N, 28, 28) uint8 and labels (N,)
# rotation in radians (11°), scale along each axis, shear, shift along each axis in halves of the picture
WARP_LIMITS = torch.tensor([0.19, 0.11, 0.11, 0.15, 1.5 / 14, 1.5 / 14])


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
          augment: bool = True, amp: bool | None = None, patience: int | None = None,
          checkpoint: str | os.PathLike | None = None, resume: bool = False,
          batch_bar: tqdm | None = None) -> Iterator[Epoch]:
    """Train `model` in place, one epoch for each step of the iterator.

    Adam under a one-cycle schedule (Smith & Topin 2018) that peaks at `learning_rate` after
    three tenths of the steps, on randomly warped images unless `augment` is false. `seed` fixes
    the order and the warps, so equal calls give equal weights on one machine; the network's
    first weights are the caller's to seed. `mean` and `std` normalise the images, as `mean_std`
    gives them. `amp` computes in bfloat16 where that is safe; by default, where the hardware
    multiplies it. Training ends early once `patience` epochs have passed without a better
    validation accuracy. The model is left in training mode and in channels_last. `batch_bar`
    starts anew at each epoch and moves at each batch.

    Where `checkpoint` names a file, it holds all that a later call with `resume` needs to go on
    from the last whole epoch to the very weights of a run that was never stopped; the epochs
    already done are then yielded first, as they were. `read_checkpoint` finds the best epoch's weights in it.

    As with any generator, nothing happens before the first step. Raises ValueError where there
    is nothing to train on, WeightsError for a checkpoint that is damaged or of another training,
    FileNotFoundError where there is none, OSError where one cannot be written, and
    FloatingPointError where the loss stops being finite: the weights are then of no use.
    """
    device = next(model.parameters()).device
    images, labels = (torch.as_tensor(array).to(device) for array in train_set)
    if not len(images) or epochs < 1 or batch_size < 1:
        raise ValueError(f"there is nothing to train: {len(images)} images, {epochs} epochs, batches of {batch_size}")
    amp = bfloat16_is_fast(device) if amp is None else amp
    steps = math.ceil(len(images) / batch_size)
    model.to(memory_format=torch.channels_last)  # about a quarter faster on two CPU cores
    optimizer = torch.optim.Adam(model.parameters(), fused=device.type != "mps")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    recipe = {"network": type(model).__name__, "epochs": epochs, "batch_size": batch_size,
              "learning_rate": learning_rate, "seed": seed, "augment": augment, "amp": amp,
              "mean": mean, "std": std, "data": _digest(*train_set, *val_set) if checkpoint else None}
    state = _State(model, optimizer, schedule, torch.Generator().manual_seed(seed), recipe)
    if resume:
        state.load(checkpoint)
    elif checkpoint:
        state.save(checkpoint)

    yield from state.history
    while len(state.history) < epochs and not state.stalled(patience):
        start = time.perf_counter()
        train_loss = _train_epoch(state, images, labels.long(), steps, batch_bar)
        if not math.isfinite(train_loss):
            raise FloatingPointError(f"the training loss became {train_loss} in epoch {len(state.history) + 1}: "
                                     f"try a learning rate below {learning_rate:g}")
        val_loss, val_accuracy = evaluate(model, *val_set, mean=mean, std=std)
        state.record(Epoch(len(state.history) + 1, train_loss, val_loss, val_accuracy, time.perf_counter() - start))
        if checkpoint:
            state.save(checkpoint)
        yield state.history[-1]


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; elsewhere autocast would only slow it down."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


class _State:
    """All that changes while a network trains, and all that a checkpoint holds."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer,
                 schedule: torch.optim.lr_scheduler.LRScheduler, generator: torch.Generator,
                 recipe: dict[str, Any]) -> None:
        self.model, self.optimizer, self.schedule, self.generator = model, optimizer, schedule, generator
        self.recipe = recipe
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}

    def record(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        if self._best_epoch() is epoch:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def _best_epoch(self) -> Epoch:
        return max(self.history, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))

    def stalled(self, patience: int | None) -> bool:
        return bool(patience and self.history) and len(self.history) - self._best_epoch().number >= patience

    def save(self, path: str | os.PathLike) -> None:
        if dist.is_initialized() and dist.get_rank():
            return
        buffer = io.BytesIO()
        torch.save({"recipe": self.recipe, "history": [asdict(epoch) for epoch in self.history], "best": self.best,
                    "model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict(),
                    "schedule": self.schedule.state_dict(), "generator": self.generator.get_state(),
                    "torch_rng": torch.get_rng_state()}, buffer)
        write_atomically(path, buffer.getvalue())

    def load(self, path: str | os.PathLike) -> None:
        content = read_checkpoint(path)
        other = [f"{key} was {content['recipe'].get(key)!r} and is {value!r}" for key, value in self.recipe.items()
                 if content["recipe"].get(key) != value]
        if other:
            raise WeightsError(f"{path} belongs to another training: {', '.join(other)}")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.generator.set_state(content["generator"])
        torch.set_rng_state(content["torch_rng"])
        self.history = [Epoch(**epoch) for epoch in content["history"]]
        self.best = content["best"]


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """What a checkpoint holds: "recipe", "history" (a list of Epoch's fields), "best" (weights), and the rest.

    Raises FileNotFoundError where there is none, WeightsError for a file that is no checkpoint.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: there is no training to resume")
    content = plain_values(Path(path).read_bytes(), path)
    keys = {"recipe", "history", "best", "model", "optimizer", "schedule", "generator", "torch_rng"}
    if not isinstance(content, dict) or content.keys() != keys:
        raise WeightsError(f"{path} is not a checkpoint of this project's training")
    return content


def _train_epoch(state: _State, images: Tensor, labels: Tensor, steps: int, batch_bar: tqdm | None) -> float:
    """Learn from every image once; the mean loss over all of them."""
    device, recipe = images.device, state.recipe
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    network = DistributedDataParallel(state.model) if world > 1 else state.model
    network.train()
    # summed where the losses are, so that a GPU need not wait for the host; MPS has no float64
    loss_sum = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    if batch_bar is not None:
        batch_bar.reset(total=steps)
    for batch, targets in batches(images, labels, recipe["batch_size"], state.generator):
        # drawn for the whole batch, so that the process count changes nothing
        amounts = warp_amounts(len(batch), state.generator).to(device, non_blocking=True)
        share = slice(rank, None, world)
        pixels = warp(batch[share], amounts[share]) if recipe["augment"] else batch[share]
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe["amp"]):
            scores = network(normalize(pixels, recipe["mean"], recipe["std"]))
        loss = F.cross_entropy(scores.float(), targets[share], reduction="sum") / len(batch)
        state.optimizer.zero_grad()
        (loss * world).backward()  # DistributedDataParallel divides by the process count
        state.optimizer.step()
        state.schedule.step()
        loss_sum += loss.detach() * len(batch)
        if batch_bar is not None:
            batch_bar.update()
    if world > 1:
        dist.all_reduce(loss_sum)
    if batch_bar is not None:
        batch_bar.refresh()  # tqdm skips updates that come fast, and so perhaps the last one
    return loss_sum.item() / len(images)


def warp_amounts(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Random amounts (count, 6) for `warp`, each uniform between -WARP_LIMITS and WARP_LIMITS."""
    return (2 * torch.rand(count, 6, generator=generator) - 1) * WARP_LIMITS


def warp(images: Tensor, amounts: Tensor) -> Tensor:
    """Turn, scale, shear and shift each image (N, 28, 28) by its own amounts (N, 6), to float32.

    The amounts are those of `warp_amounts`; a shift of 1 is 14 pixels, before turn and scale.
    Interpolated bilinearly, black outside; grey levels stay on the scale 0 to 255.
    """
    angle, width, height, shear, x, y = amounts.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * (1 + width), shear - sin * (1 + height), x, sin * (1 + width), cos * (1 + height), y]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(images), 1, *images.shape[1:]],
                         align_corners=False)
    return F.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray | Tensor, *, mean: float, std: float,
            batch_size: int = 1000) -> Tensor:
    """The network's scores (N, 10), on the CPU, for uint8 images (N, 28, 28); softmax makes probabilities.

    The model is in evaluation mode meanwhile, and afterwards in the mode that it was in.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        return torch.cat([model(normalize(batch.to(device), mean, std))
                          for batch in torch.as_tensor(images).split(batch_size)]).cpu()
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, images: np.ndarray | Tensor, labels: np.ndarray | Tensor, *,
             mean: float, std: float) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy from 0 to 1, over uint8 images (N, 28, 28) and labels (N,)."""
    scores, labels = predict(model, images, mean=mean, std=std), torch.as_tensor(labels).long()
    return F.cross_entropy(scores, labels).item(), (scores.argmax(1) == labels).double().mean().item()
