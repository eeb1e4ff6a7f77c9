"""Train a network, with a checkpoint after each epoch.

    for epoch in train(model, train_set, val_set, mean=mean, std=std,
                       epochs=12, batch_size=128, learning_rate=4e-3, seed=0):
        print(epoch.number, epoch.val_accuracy)

Training runs on the device that the model is on: the CPU, a GPU, or Apple's MPS. In a process
group, such as torchrun starts, each process trains on its share of every batch.
"""

import math
import os
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from mnist.augment import warp, warp_amounts
from mnist.checkpoint import Epoch, TrainingState, read_checkpoint
from mnist.distributed import from_first_process, rank_and_world
from mnist.evaluate import evaluate
from mnist.muon import Muon
from mnist.networks import pool_first
from mnist.proxy import proxy_losses
from mnist_utils import Split, batches, digest, normalize


def train(model: nn.Module, train_set: Split, val_set: Split, *, mean: float, std: float,
          epochs: int, batch_size: int, learning_rate: float, seed: int,
          augment: bool = True, muon: float | None = None, label_smoothing: float = 0.0, proxy: float = 1.0,
          hard_examples: float = 1.0, amp: bool | None = None, validate: bool = True, patience: int | None = None,
          checkpoint: str | os.PathLike[str] | None = None, resume: bool = False,
          batch_bar: tqdm | None = None) -> Iterator[Epoch]:
    """Train `model` in place; each step of the iterator is one epoch.

    The optimizer is Adam, or Muon with Adam. The learning rate follows a one-cycle schedule (Smith & Topin 2018) that
    peaks at `learning_rate` after three tenths of the steps. `train_set` and `val_set` are images
    (N, 28, 28) uint8 and labels (N,). Where `train_set` has probabilities (N, 10) instead of labels,
    the loss is the cross-entropy with them, as in knowledge distillation (Hinton et al. 2015).

    mean, std      normalise the images; see `mean_std`
    seed           of the order, the warps and the proxy. The same arguments give the same weights on one machine;
                   seed the initial weights before you build the model
    augment        warp the training images at random
    muon           the peak of Muon's learning rate, which then trains the hidden layers: see `mnist.muon`.
                   `learning_rate` is Adam's, and the one that an epoch records
    label_smoothing  the share of the uniform distribution in the labels (Szegedy et al. 2016), 0 to 1
    proxy          selection via proxy: in the first epoch, train on this share of the images only, those
                   with the highest loss in a much cheaper network: see `mnist.proxy`
    hard_examples  hard example mining (Loshchilov & Hutter 2015): from the second epoch on, train on
                   this share of the images only, those with the highest loss when last trained on.
                   An image that was not trained on counts with its loss in the proxy. `proxy` and
                   `hard_examples` reach a good accuracy early, and a lower one in the end
    amp            compute in bfloat16. By default: if the hardware supports it natively
    validate       measure loss and accuracy on `val_set` after each epoch; otherwise they are NaN
    patience       stop after so many epochs without a better one (see `best_epoch`)
    checkpoint     a file to write before the first epoch and after each epoch
    resume         continue from the checkpoint's last epoch, and yield the earlier epochs first. The
                   final weights equal those of an uninterrupted training run bit for bit, on one kind of
                   device, with one number of threads and of processes. All settings but `patience`
                   and `validate` must be the same; `amp` may be left out
    batch_bar      a tqdm bar that restarts at each epoch and advances with each batch

    The model is left in training mode and in channels_last format. Nothing happens before the first
    step of the iterator. Raises ValueError if there is nothing to train on, WeightsError for a
    checkpoint that is damaged or of another training run, FileNotFoundError if it is missing, OSError
    if it cannot be written, and FloatingPointError if a loss is not finite.
    """
    device = next(model.parameters()).device
    images, labels = (torch.as_tensor(array).to(device) for array in train_set)
    labels = labels.float() if labels.ndim == 2 else labels.long()
    if not len(images) or epochs < 1 or batch_size < 1 or not 0 < hard_examples <= 1 or not 0 < proxy <= 1:
        raise ValueError(f"there is nothing to train: {len(images)} images, {epochs} epochs, batches of {batch_size}, "
                         f"{proxy:.0%} of the images by proxy, {hard_examples:.0%} as hard examples")
    if not 0 <= label_smoothing <= 1 or (muon is not None and muon <= 0):
        raise ValueError(f"label smoothing is 0 to 1, and Muon's learning rate above 0, "
                         f"not {label_smoothing} and {muon}")
    if patience and not validate:
        raise ValueError("without validation, training cannot stop early: leave out patience")
    if resume and checkpoint is None:
        raise ValueError("to resume, train needs the path of a checkpoint")
    stored = from_first_process(lambda: read_checkpoint(checkpoint)) if resume and checkpoint else None
    if amp is None:
        amp = stored["recipe"].get("amp") if stored else from_first_process(lambda: bfloat16_is_fast(device))
    counts = [math.ceil(len(images) * share) for share in (proxy, *[hard_examples] * (epochs - 1))]
    steps = [math.ceil(count / batch_size) for count in counts]
    model.to(memory_format=torch.channels_last)  # about a quarter faster on two CPU cores
    fused = device.type != "mps"
    optimizer = (Muon(model, muon, learning_rate, fused=fused) if muon is not None else
                 torch.optim.Adam(model.parameters(), learning_rate, fused=fused))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups],
                                                   total_steps=sum(steps))
    settings = {"network": type(model).__name__, "epochs": epochs, "batch_size": batch_size,
                "learning_rate": learning_rate, "seed": seed, "augment": augment, "muon": muon,
                "label_smoothing": label_smoothing, "proxy": proxy, "hard_examples": hard_examples, "amp": amp,
                "mean": mean, "std": std, "data": digest(*train_set, *val_set) if checkpoint else None}
    state = TrainingState(model, optimizer, schedule, torch.Generator().manual_seed(seed), settings,
                          losses=torch.full([len(images)], math.inf, device=device))
    if stored and checkpoint:
        state.restore(stored, checkpoint)
    elif checkpoint:
        state.save(checkpoint)

    yield from state.history
    while len(state.history) < epochs and not state.stalled(patience):
        start = time.perf_counter()
        if batch_bar is not None:
            batch_bar.reset(total=steps[len(state.history)])
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # dropout's seed follows from the epoch and the process, so no checkpoint need hold its state
            torch.manual_seed((seed << 32) + (len(state.history) << 16) + rank_and_world()[0])
            if proxy < 1 and not state.history:
                state.losses.copy_(from_first_process(lambda: proxy_losses(images, labels).cpu()))
            train_loss, learning_rates = _train_epoch(state, images, labels, counts[len(state.history)], batch_bar)
        losses, val_accuracy = {"training": train_loss}, math.nan
        if validate:
            losses["validation"], val_accuracy = from_first_process(
                lambda: evaluate(model, *val_set, mean=mean, std=std))
        for kind, loss in losses.items():
            if not math.isfinite(loss):
                raise FloatingPointError(f"the {kind} loss became {loss} in epoch {len(state.history) + 1}: "
                                         f"try a learning rate below {learning_rate:g}")
        state.record(Epoch(len(state.history) + 1, train_loss, losses.get("validation", math.nan), val_accuracy,
                           time.perf_counter() - start, learning_rates))
        if checkpoint:
            state.save(checkpoint)
        yield state.history[-1]


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the hardware supports bfloat16 natively; on other hardware autocast would only be slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _train_epoch(state: TrainingState, images: Tensor, labels: Tensor, count: int,
                 batch_bar: tqdm | None) -> tuple[float, tuple[float, ...]]:
    """Train once on the `count` images with the highest loss; their mean loss, and each step's learning rate."""
    device, settings = images.device, state.settings
    rank, world = rank_and_world()
    network = pool_first(state.model)
    network = DistributedDataParallel(network) if world > 1 else network
    network.train()
    chosen = torch.arange(len(images), device=device) if count == len(images) else state.losses.topk(count).indices
    learning_rates = []
    # losses stay on the images' device, so that a GPU does not wait for the CPU before the epoch's end
    losses = torch.zeros_like(state.losses)
    for index in batches(chosen, settings["batch_size"], state.generator):
        share = index[rank::world]
        pixels = images[share]
        if settings["augment"]:  # amounts are drawn for the whole batch, so they do not depend on the process count
            pixels = warp(pixels, warp_amounts(len(index), state.generator)[rank::world].to(device))
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["amp"]):
            logits = network(normalize(pixels, settings["mean"], settings["std"]))
        loss = F.cross_entropy(logits.float(), labels[share], reduction="none",
                               label_smoothing=settings["label_smoothing"])
        state.optimizer.zero_grad()
        (loss.sum() * world / len(index)).backward()  # DistributedDataParallel divides by the process count
        learning_rates.append(state.schedule.get_last_lr()[0])
        state.optimizer.step()
        state.schedule.step()
        losses[share] = loss.detach()
        if batch_bar is not None:
            batch_bar.update()
    if world > 1:
        dist.all_reduce(losses)
    state.losses[chosen] = losses[chosen]
    if batch_bar is not None:
        batch_bar.refresh()  # tqdm skips updates that follow each other quickly, perhaps the last one too
    return losses[chosen].cpu().double().mean().item(), tuple(map(float, learning_rates))
