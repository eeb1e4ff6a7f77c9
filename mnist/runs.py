"""A training run and its files: the checkpoint, the weights of the best and of the last epoch, the log."""

import contextlib
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from mnist.calibrate import calibrate
from mnist.checkpoint import Epoch, best_epoch, read_checkpoint
from mnist.distributed import from_first_process, is_first
from mnist.evaluate import evaluate
from mnist.files import beside, checkpoint_path
from mnist.networks import NETWORKS
from mnist.train import train
from mnist.weights import WeightsError, save_weights
from mnist_utils import digest, hold_out, load_split, mean_std


@dataclass(frozen=True)
class SavedWeights:
    """A weights file that a training run wrote."""

    path: Path
    epoch: int  # the epoch of these weights
    is_best: bool  # the best epoch in validation; otherwise the last one
    test_accuracy: float  # 0 to 1


class TrainingRun:
    """Trains a network on a data set, and keeps its files beside `model_path`.

    `data_digest` is the SHA-256 of the training images and labels, which the weights file keeps as well.
    """

    def __init__(self, network: str, data: str | os.PathLike[str], model_path: Path, *, seed: int,
                 device: torch.device) -> None:
        """Load the data, and initialise the network from `seed`.

        Raises ValueError for a `model_path` that cannot name a weights file, and what `load_split` and
        `hold_out` raise.
        """
        check_model_path(model_path)
        self.model_path, self.seed = model_path, seed
        images, labels = load_split("train", data)
        self.data_digest, (self.mean, self.std) = digest(images, labels), mean_std(images)
        self.train_set, self.val_set = hold_out(images, labels, seed=seed)
        self.test_set = load_split("test", data)  # now, so that a missing file shows before the training
        torch.manual_seed(seed)
        self.model = NETWORKS[network]().to(device)

    def epochs(self, *, resume: bool, log_dir: Path | None = None, batch_bar: tqdm | None = None,
               **settings: Any) -> Iterator[Epoch]:
        """Train, epoch by epoch, with a checkpoint; `settings` are passed on to `mnist.train.train`."""
        def epochs() -> Iterator[Epoch]:
            checkpoint = checkpoint_path(self.model_path)
            if is_first() and not resume:
                set_aside(checkpoint)
            yield from train(self.model, self.train_set, self.val_set, mean=self.mean, std=self.std, seed=self.seed,
                             checkpoint=checkpoint, resume=resume, batch_bar=batch_bar, **settings)

        yield from log_to_tensorboard(epochs(), log_dir, type(self.model).__name__, self.train_set[0], resume)

    def save(self) -> list[SavedWeights]:
        """Save the weights of the best and of the last epoch, calibrated, with their test accuracy.

        Raises ValueError, and saves nothing, if the training learned nothing.
        """
        stored = read_checkpoint(checkpoint_path(self.model_path))
        settings, history = stored["recipe"], [Epoch(**epoch) for epoch in stored["history"]]
        mean, std = settings.pop("mean"), settings.pop("std")
        model = NETWORKS[settings.pop("network")]()
        best = best_epoch(history)
        validated = math.isfinite(best.val_accuracy)
        if not validated:
            model.load_state_dict(stored["best"])
            val_loss, val_accuracy = evaluate(model, *self.val_set, mean=mean, std=std)
            best = history[-1] = replace(best, val_loss=val_loss, val_accuracy=val_accuracy)
        chance = np.bincount(self.val_set[1]).max() / len(self.val_set[1])
        if best.val_accuracy <= chance < 1:
            raise ValueError(f"the network learned nothing: its validation accuracy of {best.val_accuracy:.1%} is not "
                             f"above {chance:.1%}, the share of the most frequent class; no weights were saved: "
                             f"train for more epochs, or with a learning rate below {settings['learning_rate']:g}")
        training = settings | {"data": self.data_digest, "threads": torch.get_num_threads(), "torch": version("torch")}
        saved, measured = [], dict[int, Any]()
        for path, weights, epoch in ((self.model_path, stored["best"], best),
                                     (beside(self.model_path, ".final.pth"), stored["model"], history[-1])):
            model.load_state_dict(weights)
            if epoch.number not in measured:  # often the last epoch is the best
                accuracy = evaluate(model, *self.test_set, mean=mean, std=std)[1]
                measured[epoch.number] = accuracy, calibrate(model.eval(), self.train_set, self.val_set, mean=mean,
                                                             std=std, seed=self.seed)
            accuracy, calibration = measured[epoch.number]
            save_weights(path, model, mean=mean, std=std, **calibration, training=training | {"epoch": epoch.number},
                         val_accuracy=epoch.val_accuracy, test_accuracy=accuracy)
            saved.append(SavedWeights(path, epoch.number, validated and path == self.model_path, accuracy))
        return saved


@contextlib.contextmanager
def sole_training(model_path: Path) -> Iterator[None]:
    """Keep other processes from training to the same weights file. Raises ValueError if one does already.

    The lock is a file NAME.lock, which is deleted at the end. A lock left by a killed process holds nobody up.
    """
    path = beside(model_path, ".lock")
    lock = FileLock(path, timeout=0)

    def acquire() -> None:
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(f"another process is training {model_path}: wait until it has ended, or choose another "
                             f"name for the weights file") from None
        except OSError:  # the folder cannot be written; the training says so of its own files
            pass

    from_first_process(acquire)
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # Windows deletes no open file
                path.unlink()
        lock.release()


def check_model_path(path: Path) -> None:
    """Raise ValueError if `path` is a folder, or is named like another file of a training run."""
    if path.is_dir() or path.name.endswith((".checkpoint", ".final.pth", ".before.pth")):
        raise ValueError(f"{path} cannot be a weights file's name: choose NAME.pth")


def was_trained_on(data: str | os.PathLike[str], model_path: Path) -> bool:
    """Whether the checkpoint beside a weights file belongs to a training run on this data.

    Raises what `load_split` raises for missing or damaged data, and WeightsError for a damaged checkpoint.
    """
    if not checkpoint_path(model_path).exists():
        return False
    settings = read_checkpoint(checkpoint_path(model_path))["recipe"]
    images, labels = load_split("train", data)
    try:
        train_set, val_set = hold_out(images, labels, seed=settings.get("seed"))
    except ValueError:  # too few images to split, so no training was on them
        return False
    return digest(*train_set, *val_set) == settings.get("data")


def log_to_tensorboard(epochs: Iterable[Epoch], log_dir: Path | None, network: str, images: np.ndarray,
           resume: bool = False) -> Iterator[Epoch]:
    """Pass the epochs on, and log them for TensorBoard in `log_dir`; at the end also the graph and some images."""
    if not log_dir or not is_first():
        yield from epochs
        return
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    # a resumed training logs its earlier epochs again: purge_step hides the former entries
    with SummaryWriter(log_dir, purge_step=1 if resume else None) as log:
        for epoch in epochs:
            for name in ("train_loss", "val_loss", "val_accuracy"):
                if math.isfinite(value := getattr(epoch, name)):
                    log.add_scalar(name, value, epoch.number)
            yield epoch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TensorBoard's graph needs PyTorch's deprecated tracer
            log.add_graph(NETWORKS[network](), torch.zeros(1, 1, 28, 28))
        log.add_images("training images", images[:32, None])


def set_aside(checkpoint: Path) -> None:
    """Rename the previous training's checkpoint to .old.checkpoint, if it finished an epoch."""
    with contextlib.suppress(FileNotFoundError, WeightsError):  # there is none, or nobody can resume it
        if read_checkpoint(checkpoint)["history"]:
            checkpoint.replace(checkpoint.with_suffix(".old.checkpoint"))
