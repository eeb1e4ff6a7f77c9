"""Fine-tune trained weights on a user's drawings, mixed with MNIST's training images (rehearsal).

The constants here and the recipe FINE_TUNING were chosen on validation images: the drawings gain, and
MNIST loses next to nothing.
"""

import copy
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from mnist.calibrate import calibrate
from mnist.checkpoint import Epoch
from mnist.evaluate import evaluate
from mnist.files import beside, write_atomically
from mnist.runs import check_model_path, log_to_tensorboard
from mnist.train import train
from mnist.weights import load_weights, save_weights
from mnist_utils import Split, load_split, load_training

REHEARSAL_IMAGES = 30_000  # of MNIST's training images
DRAWINGS_SHARE = 0.15  # of the images of an epoch
MAX_REPEATS = 50  # of one drawing in an epoch; with more, one wrong label would hurt the accuracy on MNIST
INTERPOLATION = 0.75  # share of the fine-tuned weights, the rest is the old ones; halves the loss on MNIST
MIN_TO_HOLD_OUT = 25  # drawings; from this number on a fifth is held out


@dataclass(frozen=True)
class Comparison:
    """How well one set of images is read before and after fine-tuning."""

    name: str
    count: int
    before: float  # accuracy, 0 to 1
    after: float


def former_path(model_path: Path) -> Path:
    """The file that keeps the weights from before fine-tuning."""
    return beside(model_path, ".before.pth")


def can_go_back(model_path: Path) -> bool:
    """Whether the weights from before fine-tuning are there, and these ones come from them."""
    former = former_path(model_path)
    if not (former.exists() and model_path.exists()):
        return False
    training = load_weights(model_path)[1].get("training") or {}
    return bool(training.get("former") == hashlib.sha256(former.read_bytes()).hexdigest())


class FineTuning:
    """Trains the weights in `model_path` on the drawings in `data`, mixed with MNIST's training images.

    `drawings` and `repeats` count the drawings to train on, and how often an epoch repeats each.
    """

    def __init__(self, model_path: Path, data: str | os.PathLike[str], mnist: str | os.PathLike[str], *, seed: int,
                 device: torch.device) -> None:
        """Load the weights, the drawings, and MNIST from the folder `mnist`.

        Raises ValueError if there are no drawings, and what `load_weights` and `load_split` raise.
        """
        check_model_path(model_path)
        self.model_path, self.previous, self.seed = model_path, former_path(model_path), seed
        self.model, self.metadata = load_weights(model_path)
        self.scale = {"mean": self.metadata["mean"], "std": self.metadata["std"]}
        drawings, judged, name = load_drawings(data)
        rehearsal, self.val_set, *_ = load_training(mnist, seed)
        self.drawings = len(drawings[0])
        self.train_set, self.repeats = mix(drawings, rehearsal)
        self.tests = {name: judged, "MNIST's test images": load_split("test", mnist)}
        self.old = copy.deepcopy(self.model)
        self.settings: dict[str, Any] = {}
        self.model.to(device)

    def epochs(self, *, log_dir: Path | None = None, batch_bar: tqdm | None = None, patience: int | None = None,
               **settings: Any) -> Iterator[Epoch]:
        """Train, epoch by epoch; `settings` are passed on to `mnist.train.train`."""
        self.settings = settings
        epochs = train(self.model, self.train_set, self.val_set, **self.scale, seed=self.seed, patience=patience,
                       batch_bar=batch_bar, **settings)
        yield from log_to_tensorboard(epochs, log_dir, type(self.model).__name__, self.train_set[0])

    def save(self) -> list[Comparison]:
        """Interpolate the weights, save them, and keep the former ones as .before.pth; returns the test accuracies."""
        interpolate_weights(self.old, self.model)
        before, after = ([evaluate(model, *test, **self.scale)[1] for test in self.tests.values()]
                         for model in (self.old, self.model))
        training = self.settings | {
            "seed": self.seed, "threads": torch.get_num_threads(), "torch": version("torch"),
            "drawings": self.drawings, "repeats": self.repeats, "rehearsed": REHEARSAL_IMAGES,
            "interpolation": INTERPOLATION, "fine_tuned_from": self.metadata.get("training")}
        some = np.random.default_rng(self.seed).permutation(len(self.train_set[1]))[:5_000]  # more calibrate no better
        calibration = calibrate(self.model, (self.train_set[0][some], self.train_set[1][some]), self.val_set,
                                **self.scale, seed=self.seed)
        former = self.model_path.read_bytes()
        training["former"] = hashlib.sha256(former).hexdigest()
        write_atomically(self.previous, former)
        save_weights(self.model_path, self.model, **self.scale, **calibration, training=training,
                     test_accuracy=after[1])
        return [Comparison(name, len(labels), *accuracies)
                for (name, (_, labels)), *accuracies in zip(self.tests.items(), before, after)]


def restore_weights(model_path: Path) -> None:
    """Go back to the weights from before fine-tuning. Raises ValueError if there are none for these."""
    if not can_go_back(model_path):
        raise ValueError(f"there are no former weights of {model_path.name} to go back to")
    former = former_path(model_path)
    write_atomically(model_path, former.read_bytes())
    former.unlink()


def mix(drawings: Split, mnist: Split) -> tuple[Split, int]:
    """REHEARSAL_IMAGES of MNIST's images and the drawings, each repeated to fill DRAWINGS_SHARE; and how often."""
    wanted = DRAWINGS_SHARE / (1 - DRAWINGS_SHARE) * REHEARSAL_IMAGES / len(drawings[0])
    repeats = min(MAX_REPEATS, max(1, round(wanted)))
    images, labels = (np.concatenate([known[:REHEARSAL_IMAGES], *[new] * repeats])
                      for known, new in zip(mnist, drawings))
    return (images, labels), repeats


@torch.no_grad()
def interpolate_weights(old: nn.Module, model: nn.Module) -> None:
    """Mix INTERPOLATION of the weights of `model` with the rest of the old ones (Wortsman et al. 2022)."""
    for weights, before in zip(model.parameters(), old.parameters()):
        weights.lerp_(before.to(weights.device), 1 - INTERPOLATION)
    model.eval()


def load_drawings(folder: str | os.PathLike[str]) -> tuple[Split, Split, str]:
    """The drawings to train on, those to test on, and a name for the latter."""
    images, labels = _load_some("train", folder)
    if Path(folder, "test").is_dir():
        return (images, labels), _load_some("test", folder), "drawings not trained on"
    if len(images) < MIN_TO_HOLD_OUT:
        return (images, labels), (images, labels), "the drawings trained on, too few to hold some out"
    held_out = np.zeros(len(labels), bool)
    held_out[labels.argsort(kind="stable")[2::5]] = True  # a fifth of each digit's
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out]), "drawings held out"


def _load_some(split: str, folder: str | os.PathLike[str]) -> Split:
    """As `load_split`, but raises ValueError if there are no images."""
    images, labels = load_split(split, folder)
    if not len(images):
        raise ValueError(f"{Path(folder, split)} holds no drawings")
    return images, labels
