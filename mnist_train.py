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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
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

Split = tuple[np.ndarray, np.ndarray]  # images (N, 28, 28) uint8 and labels (N,), or probabilities of them (N, 10)
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
          augment: bool = True, hardest: float = 1.0, amp: bool | None = None, patience: int | None = None,
          checkpoint: str | os.PathLike | None = None, resume: bool = False,
          batch_bar: tqdm | None = None) -> Iterator[Epoch]:
    """Train `model` in place, one epoch for each step of the iterator.

    Adam under a one-cycle schedule (Smith & Topin 2018) that peaks at `learning_rate` after three
    tenths of the steps, on randomly warped images unless `augment` is false. `seed` fixes the order
    and the warps, so equal calls give equal weights on one machine; the network's first weights are
    the caller's to seed. `mean` and `std` normalise the images, as `mean_std` gives them. Where
    `train_set` has probabilities (N, 10) in place of labels, as a teacher gives them, the loss is
    the cross-entropy with those (Hinton et al. 2015). From the second epoch on only the share
    `hardest` of the images is learned from, those whose loss was highest when they were last seen
    (as in Loshchilov & Hutter 2015): less accurate in the end, but soon good. `amp` computes in
    bfloat16 where that is safe; by default, where the hardware multiplies it. Training ends early
    once `patience` epochs have passed without a better one (by validation accuracy, then loss). The
    model is left in training mode and in channels_last. `batch_bar` starts anew at each epoch and
    moves at each batch.

    Where `checkpoint` names a file, it holds all that a later call with `resume` needs to go on
    from the last whole epoch to the very weights of a run that was never stopped; the epochs
    already done are then yielded first, as they were. Only `patience` may differ then, and an
    `amp` that is not given is the checkpoint's; bit for bit holds for one kind of device, one
    number of threads, and one number of processes. `read_checkpoint` finds the best epoch's
    weights in it.

    As with any generator, nothing happens before the first step. Raises ValueError where there
    is nothing to train on, WeightsError for a checkpoint that is damaged or of another training,
    FileNotFoundError where there is none, OSError where one cannot be written, and
    FloatingPointError where the loss stops being finite: the weights are then of no use.
    """
    device = next(model.parameters()).device
    images, labels = (torch.as_tensor(array).to(device) for array in train_set)
    labels = labels.float() if labels.ndim == 2 else labels.long()
    if not len(images) or epochs < 1 or batch_size < 1 or not 0 < hardest <= 1:
        raise ValueError(f"there is nothing to train: {len(images)} images, {epochs} epochs, batches of {batch_size}, "
                         f"the hardest {hardest:.0%}")
    stored = from_first_process(lambda: read_checkpoint(checkpoint)) if resume else None
    if amp is None:
        amp = stored["recipe"].get("amp") if stored else from_first_process(lambda: bfloat16_is_fast(device))
    steps = [math.ceil(_count(len(images), hardest, number) / batch_size) for number in range(1, epochs + 1)]
    model.to(memory_format=torch.channels_last)  # about a quarter faster on two CPU cores
    optimizer = torch.optim.Adam(model.parameters(), fused=device.type != "mps")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=sum(steps))
    recipe = {"network": type(model).__name__, "epochs": epochs, "batch_size": batch_size,
              "learning_rate": learning_rate, "seed": seed, "augment": augment, "hardest": hardest, "amp": amp,
              "mean": mean, "std": std, "data": digest(*train_set, *val_set) if checkpoint else None}
    state = _State(model, optimizer, schedule, torch.Generator().manual_seed(seed), recipe,
                   losses=torch.full([len(images)], math.inf, device=device))
    if stored:
        state.restore(stored, checkpoint)
    elif checkpoint:
        state.save(checkpoint)

    yield from state.history
    while len(state.history) < epochs and not state.stalled(patience):
        start = time.perf_counter()
        if batch_bar is not None:
            batch_bar.reset(total=steps[len(state.history)])
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # dropout's state follows from the epoch and the process, so no checkpoint need hold it
            torch.manual_seed((seed << 32) + (len(state.history) << 16) + rank_and_world()[0])
            train_loss = _train_epoch(state, images, labels, batch_bar)
        val_loss, val_accuracy = from_first_process(lambda: evaluate(model, *val_set, mean=mean, std=std))
        for kind, loss in (("training", train_loss), ("validation", val_loss)):
            if not math.isfinite(loss):
                raise FloatingPointError(f"the {kind} loss became {loss} in epoch {len(state.history) + 1}: "
                                         f"try a learning rate below {learning_rate:g}")
        state.record(Epoch(len(state.history) + 1, train_loss, val_loss, val_accuracy, time.perf_counter() - start))
        if checkpoint:
            state.save(checkpoint)
        yield state.history[-1]


def from_first_process(compute: Callable[[], Any]) -> Any:
    """What `compute` gives or raises in the first process, in all of them: so they never part ways."""
    rank, world = rank_and_world()
    if world == 1:
        return compute()
    result: list[Any] = [None]
    if rank == 0:
        try:
            result = [compute()]
        except Exception as error:
            result = [error]
    dist.broadcast_object_list(result)
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def rank_and_world() -> tuple[int, int]:
    """Which process of how many this is: (0, 1) where it trains alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _count(images: int, hardest: float, epoch: int) -> int:
    """How many images are learned from in that epoch, counted from 1."""
    return images if epoch == 1 else math.ceil(hardest * images)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; elsewhere autocast would only slow it down."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def best_epoch(history: list[Epoch]) -> Epoch:
    """The one with the highest validation accuracy, and among equals the lowest validation loss."""
    return max(history, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))


class _State:
    """All that changes while a network trains, and all that a checkpoint holds."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer,
                 schedule: torch.optim.lr_scheduler.LRScheduler, generator: torch.Generator,
                 recipe: dict[str, Any], losses: Tensor) -> None:
        self.model, self.optimizer, self.schedule, self.generator = model, optimizer, schedule, generator
        self.recipe = recipe
        self.losses = losses  # of each training image (N,), when it was last seen
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}

    def record(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        if best_epoch(self.history) is epoch:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def stalled(self, patience: int | None) -> bool:
        return bool(patience and self.history) and len(self.history) - best_epoch(self.history).number >= patience

    def save(self, path: str | os.PathLike) -> None:
        if rank_and_world()[0]:
            return
        buffer = io.BytesIO()
        torch.save({"recipe": self.recipe, "history": [asdict(epoch) for epoch in self.history], "best": self.best,
                    "model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict(),
                    "schedule": self.schedule.state_dict(), "losses": self.losses,
                    "generator": self.generator.get_state()}, buffer)
        write_atomically(path, buffer.getvalue())

    def restore(self, content: dict[str, Any], path: str | os.PathLike) -> None:
        other = [f"{key} was {content['recipe'].get(key)!r} and is {value!r}" for key, value in self.recipe.items()
                 if content["recipe"].get(key) != value]
        if other:
            raise WeightsError(f"{path} belongs to another training: {', '.join(other)}; resume with what was, "
                               f"or start anew")
        try:
            if content["history"]:
                self.model.load_state_dict(content["best"])
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            self.losses.copy_(content["losses"])
            self.generator.set_state(content["generator"])
            self.history = [Epoch(**epoch) for epoch in content["history"]]
        except Exception as error:  # each part has its own way of not fitting
            raise WeightsError(f"{path} is damaged: what it holds does not fit together") from error
        self.best = content["best"]


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """What a checkpoint holds: "recipe", "history" (a list of Epoch's fields), "best" (weights), and the rest.

    Raises FileNotFoundError where there is none, WeightsError for a file that is no checkpoint.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: there is no training to resume")
    content = plain_values(Path(path).read_bytes(), path)
    keys = {"recipe", "history", "best", "model", "optimizer", "schedule", "losses", "generator"}
    if not isinstance(content, dict) or content.keys() != keys or not isinstance(content["recipe"], dict):
        raise WeightsError(f"{path} is not a checkpoint of this project's training")
    return content


def _train_epoch(state: _State, images: Tensor, labels: Tensor, batch_bar: tqdm | None) -> float:
    """Learn once from every image, or from the hardest; the mean loss over those."""
    device, recipe = images.device, state.recipe
    rank, world = rank_and_world()
    network = pool_first(state.model)
    network = DistributedDataParallel(network) if world > 1 else network
    network.train()
    count = _count(len(images), recipe["hardest"], len(state.history) + 1)
    chosen = torch.arange(len(images), device=device) if count == len(images) else state.losses.topk(count).indices
    # kept where the images are, so that a GPU need not wait for the host before the epoch's end
    losses = torch.zeros_like(state.losses)
    for index in batches(chosen, recipe["batch_size"], state.generator):
        share = index[rank::world]
        pixels = images[share]
        if recipe["augment"]:  # amounts are drawn for the whole batch, so that the process count changes nothing
            pixels = warp(pixels, warp_amounts(len(index), state.generator)[rank::world].to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe["amp"]):
            scores = network(normalize(pixels, recipe["mean"], recipe["std"]))
        loss = F.cross_entropy(scores.float(), labels[share], reduction="none")
        state.optimizer.zero_grad()
        (loss.sum() * world / len(index)).backward()  # DistributedDataParallel divides by the process count
        state.optimizer.step()
        state.schedule.step()
        losses[share] = loss.detach()
        if batch_bar is not None:
            batch_bar.update()
    if world > 1:
        dist.all_reduce(losses)
    state.losses[chosen] = losses[chosen]
    if batch_bar is not None:
        batch_bar.refresh()  # tqdm skips updates that come fast, and so perhaps the last one
    return losses[chosen].cpu().double().mean().item()


def pool_first(model: nn.Module) -> nn.Module:
    """The same layers, with each max pooling before the ReLU that it follows.

    The two commute exactly, and so do their gradients, but ReLU then has a quarter of the
    numbers to look at. A model that is no nn.Sequential comes back as it is.
    """
    if not isinstance(model, nn.Sequential):
        return model
    layers = list(model)
    for index, (layer, following) in enumerate(pairwise(layers)):
        if isinstance(layer, nn.ReLU) and isinstance(following, nn.MaxPool2d):
            layers[index:index + 2] = following, layer
    return nn.Sequential(*layers)


def warp_amounts(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Random amounts (count, 6) for `warp`, each uniform between -WARP_LIMITS and WARP_LIMITS."""
    return (2 * torch.rand(count, 6, generator=generator) - 1) * WARP_LIMITS


def warp(images: Tensor, amounts: Tensor) -> Tensor:
    """Turn, scale, shear and shift each image (N, 28, 28) by its own amounts (N, 6), to float32.

    The amounts are those of `warp_amounts`; a shift of 1 is 14 pixels, before turn and scale.
    Interpolated bilinearly, black outside; grey levels stay on the scale 0 to 255.
    """
    if not len(images):  # a process's share of a short last batch, which grid_sample refuses
        return images.float()
    angle, width, height, shear, x, y = amounts.unbind(1)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * (1 + width), shear - sin * (1 + height), x, sin * (1 + width), cos * (1 + height), y]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(images), 1, *images.shape[1:]],
                         align_corners=False)
    return F.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False).squeeze(1)


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray | Tensor, *, mean: float, std: float,
            batch_size: int = 250) -> Tensor:
    """The network's scores (N, 10), on the CPU, for uint8 images (N, 28, 28); softmax makes probabilities.

    The model is in evaluation mode meanwhile, and afterwards in the mode that it was in. Batches
    of 250 stay within a processor's cache: larger ones take twice as long there.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    network = pool_first(model)
    try:
        return torch.cat([network(normalize(batch.to(device), mean, std))
                          for batch in torch.as_tensor(images).split(batch_size)]).cpu()
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, images: np.ndarray | Tensor, labels: np.ndarray | Tensor, *,
             mean: float, std: float) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy from 0 to 1, over uint8 images (N, 28, 28) and labels (N,)."""
    scores, labels = predict(model, images, mean=mean, std=std), torch.as_tensor(labels).long()
    return F.cross_entropy(scores, labels).item(), (scores.argmax(1) == labels).double().mean().item()
