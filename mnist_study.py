"""The evidence: how accurate the networks are over seeds, and how far their answers can be trusted.

    python mnist_study.py                  train what is missing, measure all of it: study/study.json
    python mnist_study.py --processes 4    the same numbers, sooner where there are cores for it

Every network learns from the same 55,000 training images, never from the 5,000 of `load_training`
that are held out, in a process with one thread. Its last epoch counts: nothing is picked, and the
test images are read when all has been trained. The trainings are kept in study/: what is there is
not made again, and one that was stopped goes on from its last epoch.
"""

import argparse
import io
import json
import math
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torchinfo import summary
from tqdm import tqdm

from mnist_corruptions import CORRUPTIONS, blemish, corrupt
from mnist_model import NETWORKS, load_weights, save_weights, write_atomically
from mnist_picture import crop, frame
from mnist_train import Split, evaluate, predict, train, warp, warp_amounts
from mnist_utils import load_split, load_training, normalize

FOLDER = Path(os.environ.get("MNIST_OUTPUT", "."), "study")
SEEDS = range(5)
BATCH_SIZE = 128
COPIES = 20  # of each training image in what the teachers label
CURVE_IMAGES = 33_000  # in an epoch of the learning curve, however few are different

# test images whose label most people who looked at them reject
DISPUTED = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, with everything that is not alike for all of them."""

    network: str
    epochs: int
    learning_rate: float
    images: int | None = None  # so many of the training images alone
    teachers: str | None = None  # the recipe of those whose answers it learns, on COPIES of the training images
    blemished: bool = False  # half of what it sees has a blemish, which the teachers did not see
    bfloat16: bool = False


# what can be said of a network's answers: probabilities (N, 10) and labels (N,), as NumPy arrays

def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> np.ndarray:
    """For each bin of equal width in confidence: how many answers, their mean confidence, their accuracy (bins, 3).

    Empty bins have neither: nan.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore"):
        return np.stack([counts, *(np.bincount(bin_of, values, bins) / counts for values in (confidence, right))], 1)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """How far confidence and accuracy are apart on average over the answers (Guo et al. 2017), 0 to 1."""
    counts, confidence, accuracy = reliability(probabilities, labels, bins).T
    return float(np.nansum(counts * np.abs(confidence - accuracy)) / counts.sum())


def selective_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The accuracy on the surest 1, 2, ... N answers (N,)."""
    right = (probabilities.argmax(1) == labels)[np.argsort(-probabilities.max(1), kind="stable")]
    return right.cumsum() / np.arange(1, len(right) + 1)


def handed_over(probabilities: np.ndarray, labels: np.ndarray, accuracy: float) -> int:
    """How many of the answers, the least sure ones, a person must give to bring the others to this accuracy."""
    enough = np.flatnonzero(selective_accuracy(probabilities, labels) >= accuracy)
    return len(labels) - (int(enough[-1]) + 1 if len(enough) else 0)


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values (N,) that are spread normally (Student)."""
    half = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


# attacks: images (N, 28, 28) uint8 → ink (N, 28, 28) from 0 to 1

def fgsm(model: nn.Module, images: np.ndarray, labels: np.ndarray, epsilon: float, *, mean: float,
         std: float) -> Tensor:
    """Every pixel moved by epsilon, on the scale 0 to 1, to where the loss grows (Goodfellow et al. 2015)."""
    return _ascended(model, _ink(images), labels, epsilon, mean, std)


def pgd(model: nn.Module, images: np.ndarray, labels: np.ndarray, epsilon: float, *, mean: float, std: float,
        steps: int = 20, seed: int = 0) -> Tensor:
    """The same in small steps of epsilon / 8 from a random start, never further than epsilon (Madry et al. 2018)."""
    clean = _ink(images)
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed))
    attacked = (clean + epsilon * (2 * noise - 1)).clip(0, 1)
    for _ in range(steps):
        attacked = _ascended(model, attacked, labels, epsilon / 8, mean, std)
        attacked = attacked.clip(clean - epsilon, clean + epsilon).clip(0, 1)
    return attacked


def _ink(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).float() / 255


def _ascended(model: nn.Module, ink: Tensor, labels: np.ndarray, step: float, mean: float, std: float) -> Tensor:
    moved = []
    for part, truth in zip(ink.split(1000), torch.as_tensor(labels).long().split(1000)):
        part = part.clone().requires_grad_()
        loss = F.cross_entropy(model(normalize(255 * part, mean, std)), truth, reduction="sum")
        gradient, = torch.autograd.grad(loss, part)
        moved.append((part + step * gradient.sign()).clip(0, 1).detach())
    return torch.cat(moved)


def saliency(model: nn.Module, image: np.ndarray, digit: int, *, mean: float, std: float) -> np.ndarray:
    """How much each pixel (28, 28) moves the score of a digit: the absolute gradient (Simonyan et al. 2014)."""
    ink = _ink(image[None]).requires_grad_()
    gradient, = torch.autograd.grad(model(normalize(255 * ink, mean, std))[0, digit], ink)
    return gradient[0].abs().numpy()


# other data

def uci_digits() -> Split:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, written by other people, in MNIST's form."""
    digits = load_digits()
    return np.stack([frame(crop(image / 16)) for image in digits.images]), digits.target.astype(np.uint8)


# training

RECIPES = {
    # every network that people bring, trained as workspace.ipynb trains
    "MNIST_CNN": Recipe("MNIST_CNN", 12, 4e-3),
    "MNIST_CNN_Dropout": Recipe("MNIST_CNN_Dropout", 12, 4e-3),
    "MNISTNet": Recipe("MNISTNet", 12, 4e-3),
    "ThreeConv": Recipe("ThreeConv", 3, 4e-3),
    "SixConv": Recipe("SixConv", 30, 1e-2, bfloat16=True),
    # taught by the five SixConv
    "MNIST_CNN taught": Recipe("MNIST_CNN", 4, 6e-3, teachers="SixConv"),
    "SixConv taught": Recipe("SixConv", 2, 1e-2, teachers="SixConv", bfloat16=True),
    "MNIST_CNN robust": Recipe("MNIST_CNN", 4, 6e-3, teachers="SixConv", blemished=True),
    # the learning curve
    **{f"MNIST_CNN {count}": Recipe("MNIST_CNN", 10, 4e-3, images=count) for count in (600, 2_000, 6_000, 20_000, 55_000)},
}


def weights_path(name: str, seed: int) -> Path:
    """Where a finished training's weights are."""
    return FOLDER / f"{name.replace(' ', '-')}-{seed}.pth"


def fit(name: str, seed: int) -> None:
    """Train by a recipe and save the weights, unless they are there; go on where a training was stopped."""
    path, recipe = weights_path(name, seed), RECIPES[name]
    if path.exists():
        return
    train_set, val_set, mean, std = load_training(seed=0)
    if recipe.images:
        chosen = np.random.default_rng(seed).permutation(len(train_set[0]))[:recipe.images]
        train_set = tuple(np.resize(array[chosen], (CURVE_IMAGES, *array.shape[1:])) for array in train_set)
    if recipe.teachers:
        train_set = read_transfer_set()
    if recipe.blemished:
        train_set = blemish(train_set[0], seed), train_set[1]
    torch.manual_seed(seed)
    model, checkpoint = NETWORKS[recipe.network](), path.with_suffix(".checkpoint")
    epochs = train(model, train_set, val_set, mean=mean, std=std, epochs=recipe.epochs, batch_size=BATCH_SIZE,
                   learning_rate=recipe.learning_rate, seed=seed, augment=recipe.teachers is None,
                   amp=recipe.bfloat16, checkpoint=checkpoint, resume=checkpoint.exists())
    history = list(epochs)
    images = len(train_set[0])
    save_weights(path, model, mean=mean, std=std, training=asdict(recipe) | {
        "seed": seed, "batch_size": BATCH_SIZE, "threads": torch.get_num_threads(), "torch": version("torch"),
        "images": images, "seconds": [epoch.seconds for epoch in history]}, val_accuracy=history[-1].val_accuracy)


def label_copy(number: int) -> None:
    """Warp every training image once more, and let the teachers say what it shows, unless that is done."""
    path = FOLDER / f"transfer-{number}.npz"
    if path.exists():
        return
    (images, _), _, mean, std = load_training(seed=0)
    generator = torch.Generator().manual_seed(number)
    warped = torch.cat([warp(part, warp_amounts(len(part), generator)).round().to(torch.uint8)
                        for part in torch.from_numpy(images).split(1000)])
    teachers = [load_weights(weights_path("SixConv", seed))[0] for seed in SEEDS]
    for teacher in teachers:
        teacher.to(memory_format=torch.channels_last)
    answers = sum(predict(teacher, warped, mean=mean, std=std).softmax(1) for teacher in teachers) / len(teachers)
    buffer = io.BytesIO()
    np.savez(buffer, images=warped.numpy(), answers=answers.numpy())
    write_atomically(path, buffer.getvalue())


def read_transfer_set() -> Split:
    """Warped training images (COPIES · N, 28, 28), and the mean of the teachers' probabilities of the digits (…, 10)."""
    parts = [np.load(FOLDER / f"transfer-{number}.npz") for number in range(COPIES)]
    return np.concatenate([part["images"] for part in parts]), np.concatenate([part["answers"] for part in parts])
