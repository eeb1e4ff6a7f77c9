"""What a checkpoint holds: everything that changes while a network trains."""

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist.distributed import is_first
from mnist.files import write_atomically
from mnist.weights import WeightsError, pack, unpack

# the settings that checkpoints from before December 2026 lack
BEFORE_MUON = {"muon": None, "label_smoothing": 0.0, "proxy": 1.0}


@dataclass(frozen=True)
class Epoch:
    """The outcome of one epoch. Losses are mean cross-entropies in nats; in training, with the smoothed labels."""

    number: int  # counted from 1
    train_loss: float  # over the epoch's augmented images, each computed when the image was trained on
    val_loss: float  # NaN without validation
    val_accuracy: float  # 0 to 1; NaN without validation
    seconds: float
    learning_rates: tuple[float, ...] = ()  # of each step; older checkpoints lack it


def best_epoch(history: list[Epoch]) -> Epoch:
    """The epoch with the highest validation accuracy; a lower validation loss breaks ties.

    Where no epoch was validated it is the last one.
    """
    validated = [epoch for epoch in history if math.isfinite(epoch.val_accuracy)]
    return max(validated or history[-1:], key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))


class TrainingState:
    """Everything that changes while a network trains, and that a checkpoint holds."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer,
                 schedule: torch.optim.lr_scheduler.LRScheduler, generator: torch.Generator,
                 settings: dict[str, Any], losses: Tensor) -> None:
        """`settings` describe the training; `losses` (N,) are each training image's, when last trained on."""
        self.model, self.optimizer, self.schedule, self.generator = model, optimizer, schedule, generator
        self.settings, self.losses = settings, losses
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}

    def record(self, epoch: Epoch) -> None:
        """Add an epoch to the history, and keep the weights if it is the best so far."""
        self.history.append(epoch)
        if best_epoch(self.history) is epoch:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def stalled(self, patience: int | None) -> bool:
        """Whether the best epoch is `patience` epochs old."""
        if not patience or not self.history:
            return False
        return len(self.history) - best_epoch(self.history).number >= patience

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the checkpoint, in the first process only. Raises OSError if it cannot be written."""
        if not is_first():
            return
        write_atomically(path, pack({
            "recipe": self.settings, "history": [asdict(epoch) for epoch in self.history], "best": self.best,
            "model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "losses": self.losses, "generator": self.generator.get_state()}))

    def restore(self, content: dict[str, Any], path: str | os.PathLike[str]) -> None:
        """Take over what `read_checkpoint` returned for `path`. Raises WeightsError if it does not fit."""
        stored = content["recipe"]
        changed = [f"{key} was {stored.get(key)!r} and is now {value!r}" for key, value in self.settings.items()
                   if stored.get(key) != value]
        if changed:
            raise WeightsError(f"{path} belongs to another training run ({', '.join(changed)}): resume with the former "
                               f"settings, or train without --resume")
        try:
            if content["history"]:
                self.model.load_state_dict(content["best"])
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            self.losses.copy_(content["losses"])
            self.generator.set_state(content["generator"])
            self.history = [Epoch(**epoch) for epoch in content["history"]]
        except Exception as error:  # each part raises its own type
            raise WeightsError(f"{path} is damaged: its parts do not fit together") from error
        self.best = content["best"]


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's content: "recipe" (the settings), "history" (a list of Epoch's fields), "best" (weights), ...

    Raises FileNotFoundError if there is none, WeightsError for a file that is no checkpoint.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: there is no training to resume")
    content = unpack(Path(path).read_bytes(), path)
    keys = {"recipe", "history", "best", "model", "optimizer", "schedule", "losses", "generator"}
    if not isinstance(content, dict) or content.keys() != keys or not isinstance(content["recipe"], dict):
        raise WeightsError(f"{path} is not a checkpoint of this project's training")
    if "hardest" in content["recipe"]:  # the name in checkpoints from before November 2026
        content["recipe"]["hard_examples"] = content["recipe"].pop("hardest")
    if "hard_examples" in content["recipe"]:
        content["recipe"] = BEFORE_MUON | content["recipe"]
    return content
