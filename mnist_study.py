"""The evidence: how accurate the networks are over seeds, and how far their answers can be trusted.

    python mnist_study.py                  train what is missing, measure everything: study/study.json
    python mnist_study.py --processes 4    the same numbers, sooner where there are cores for it

Every network learns from the same 55,000 training images, never from the 5,000 of `load_training`
that are held out, in a process with one thread. Its last epoch counts: nothing is picked, and the
test images are read when all has been trained. The trainings are kept in study/: what is there is
not made again, and one that was stopped goes on from its last epoch.
"""

import argparse
import functools
import io
import json
import math
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torchinfo import summary
from tqdm import tqdm

from mnist_corruptions import CORRUPTIONS, blemish, corrupt
from mnist_model import (
    NETWORKS,
    fold_batch_norm,
    load_weights,
    save_weights,
    with_batch_norm,
    write_atomically,
)
from mnist_picture import crop, frame
from mnist_predict import SIGNS, calibrate, scores_and_doubts
from mnist_train import Split, evaluate, predict, train, warp, warp_amounts
from mnist_utils import find_idx, load_split, load_training, normalize, read_idx

FOLDER = Path("study")
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist has it
BATCH_SIZE = 128
COPIES = 20  # of each training image, each warped in its own way, in what the teachers label
CURVE_IMAGES = 33_000  # in an epoch of the learning curve, however few are different

TRIED = ("MNIST_CNN", "SixConv", "MNIST_CNN taught", "MNIST_CNN robust")  # with worse pictures than MNIST's
EPSILONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of the ink that there can be

# test images whose label most people who looked at them reject
DISPUTED = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, with everything that is not alike for all of them."""

    network: str
    epochs: int
    learning_rate: float
    images: int | None = None  # so many of the training images alone
    teachers: str | None = None  # the recipe of those whose answers it learns: see `label_copy`
    batch_norm: bool = False  # while it trains; folded into the same network afterwards
    blemished: bool = False  # half of what it sees has a blemish, which the teachers did not see
    bfloat16: bool = False
    seeds: int = 5  # 0, 1, ...

RECIPES = {
    # the networks that people bring, with the settings of workspace.ipynb
    "MNIST_CNN": Recipe("MNIST_CNN", 12, 4e-3),
    "MNIST_CNN_Dropout": Recipe("MNIST_CNN_Dropout", 12, 4e-3),
    "MNISTNet": Recipe("MNISTNet", 12, 4e-3, bfloat16=True, seeds=3),
    "ThreeConv": Recipe("ThreeConv", 4, 4e-3, bfloat16=True, seeds=3),
    # the sibling, longer; it teaches the next two
    "SixConv": Recipe("SixConv", 30, 1e-2, bfloat16=True),
    "MNIST_CNN taught": Recipe("MNIST_CNN", 2, 1e-2, teachers="SixConv", batch_norm=True),
    "MNIST_CNN robust": Recipe("MNIST_CNN", 2, 1e-2, teachers="SixConv", batch_norm=True, blemished=True,
                               seeds=3),
    # the learning curve
    **{f"MNIST_CNN {count}": Recipe("MNIST_CNN", 10, 4e-3, images=count, seeds=3)
       for count in (600, 2_000, 6_000, 20_000, 55_000)},
}



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
    large = [Image.fromarray(image.astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC)
             for image in digits.images / 16]
    return (np.stack([frame(crop(np.asarray(image).clip(0, 1).round(1))) for image in large]),
            digits.target.astype(np.uint8))


def strangers(count: int = 1_000, seed: int = 0) -> dict[str, np.ndarray]:
    """Pictures (N, 28, 28) that show no digit: "noise", "blank", "letters", and "clothes" where FASHION is installed.

    The letters are printed in matplotlib's fonts, which `calibrate` does not know.
    """
    rng = np.random.default_rng(seed)
    others = {"noise": rng.integers(256, size=(count, 28, 28), dtype=np.uint8),
              "blank": np.zeros((count, 28, 28), np.uint8), "letters": np.stack(list(_letters()))}
    if FASHION.exists():
        others["clothes"] = read_idx(find_idx(FASHION, "t10k-images-idx3-ubyte"))[:count]
    return others


def _letters() -> Iterator[np.ndarray]:
    for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVuSans*.ttf")):
        if "Display" in path.name:  # has digits alone
            continue
        font = ImageFont.truetype(path, 60)
        for sign in SIGNS:
            page = Image.new("L", (160, 160))
            ImageDraw.Draw(page).text((40, 40), sign, fill=255, font=font)
            yield frame(crop(np.asarray(page) / 255))


# training

def fit(name: str, recipe: Recipe, seed: int, folder: Path, data: str) -> None:
    """Train by a recipe and save the weights, unless they are there; go on where a training was stopped."""
    path = weights_path(name, seed, folder)
    if path.exists():
        return
    labelled, val_set, mean, std = load_training(data)
    train_set = labelled
    if recipe.images:
        chosen = np.random.default_rng(seed).permutation(len(labelled[0]))[:recipe.images]
        train_set = tuple(np.resize(array[chosen], (CURVE_IMAGES, *array.shape[1:])) for array in labelled)
    if recipe.teachers:
        train_set = read_transfer_set(folder)
    if recipe.blemished:
        train_set = blemish(train_set[0], seed), train_set[1]
    torch.manual_seed(seed)
    model, checkpoint = NETWORKS[recipe.network](), path.with_suffix(".checkpoint")
    trained = with_batch_norm(model) if recipe.batch_norm else model
    with tqdm(total=recipe.epochs, desc=path.stem, unit="epoch", leave=False, position=_slot()) as bar, \
            tqdm(desc="batches", unit="batch", leave=False, position=_slot() + 1) as batch_bar:
        for epoch in train(trained, train_set, val_set, mean=mean, std=std, epochs=recipe.epochs, batch_size=BATCH_SIZE,
                           learning_rate=recipe.learning_rate, seed=seed, augment=recipe.teachers is None,
                           amp=recipe.bfloat16, checkpoint=checkpoint, resume=checkpoint.exists(), batch_bar=batch_bar):
            bar.update()
            val_accuracy = epoch.val_accuracy
    if recipe.batch_norm:
        fold_batch_norm(trained, model)
    calibration = calibrate(model.eval(), labelled, val_set, mean=mean, std=std, seed=seed)
    training = asdict(recipe) | {"seed": seed, "batch_size": BATCH_SIZE, "threads": torch.get_num_threads(),
                                 "torch": version("torch")}
    save_weights(path, model, mean=mean, std=std, **calibration, training=training, val_accuracy=val_accuracy)


def weights_path(name: str, seed: int, folder: Path = FOLDER) -> Path:
    """Where the weights of a finished training are."""
    return folder / f"{name.replace(' ', '-')}-{seed}.pth"


def label_copy(number: int, teachers: str, seeds: int, folder: Path, data: str) -> None:
    """Let the teachers say what every training image shows, unless that is done: as it is (0), or warped once more."""
    path = folder / f"transfer-{number}.npz"
    if path.exists():
        return
    (images, _), _, mean, std = load_training(data)
    generator = torch.Generator().manual_seed(number)
    shown = torch.from_numpy(images)
    if number:
        shown = torch.cat([warp(part, warp_amounts(len(part), generator)).round().to(torch.uint8)
                           for part in shown.split(1000)])
    models = [load_weights(weights_path(teachers, seed, folder))[0].to(memory_format=torch.channels_last)
              for seed in range(seeds)]
    answers = sum(predict(model, shown, mean=mean, std=std).softmax(1) for model in models) / len(models)
    buffer = io.BytesIO()
    np.savez(buffer, images=shown.numpy(), answers=answers.numpy())
    write_atomically(path, buffer.getvalue())


def read_transfer_set(folder: Path) -> Split:
    """All warped training images and half as many unwarped ones (N, 28, 28), and the teachers' answers (N, 10)."""
    files = [np.load(folder / f"transfer-{number}.npz") for number in range(len(list(folder.glob("transfer-*.npz"))))]
    parts = files[1:] + files[:1] * (len(files) // 2)
    return np.concatenate([part["images"] for part in parts]), np.concatenate([part["answers"] for part in parts])


def _slot() -> int:
    """Which lines of the terminal are this process's."""
    return 2 * ((multiprocessing.current_process()._identity or (1,))[0] - 1) + 1


# measuring

def measure(name: str, recipe: Recipe, seed: int, folder: Path, data: str) -> dict[str, Any]:
    """What the weights of one training do: a row of the results."""
    test_set = load_split("test", data)
    model, facts = load_weights(weights_path(name, seed, folder))
    scale = {"mean": facts["mean"], "std": facts["std"]}
    row = {"seed": seed, "val_accuracy": facts["val_accuracy"], **_accuracies(model, test_set, facts),
           "uci": evaluate(model, *uci_digits(), **scale)[1]}
    if name in TRIED:
        row["corruptions"] = {kind: evaluate(model, images, test_set[1], **scale)[1]
                              for kind, images in _corrupted(data).items()}
        row |= _attacked(model, test_set, scale)
        row["strangers"] = _told_apart(model, facts, test_set[0])
    return row


@functools.cache
def _corrupted(data: str) -> dict[str, np.ndarray]:
    images, _ = load_split("test", data)
    return {kind: corrupt(images, kind) for kind in CORRUPTIONS}


def summarised(name: str, recipe: Recipe, rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """A recipe's results: its network, and the mean over the seeds."""
    model, accuracies = NETWORKS[recipe.network](), np.array([row["accuracy"] for row in rows])
    return {"recipe": asdict(recipe), "parameters": sum(weight.numel() for weight in model.parameters()),
            "mult_adds": summary(model, (1, 1, 28, 28), verbose=0).total_mult_adds,
            "bytes": weights_path(name, rows[0]["seed"], folder).stat().st_size, "accuracy": float(accuracies.mean()),
            "sd": float(accuracies.std(ddof=1)), "interval": interval_of_mean(accuracies), "seeds": rows}


def _accuracies(model: nn.Module, test_set: Split, facts: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, and how honest the confidence is with and without the temperature."""
    scores, labels = predict(model, test_set[0], mean=facts["mean"], std=facts["std"]), torch.from_numpy(test_set[1])
    row: dict[str, Any] = {"accuracy": (scores.argmax(1) == labels).double().mean().item(),
                           "temperature": facts["temperature"]}
    for state, divisor in (("before", 1.0), ("after", facts["temperature"])):
        probabilities = (scores / divisor).softmax(1).numpy()
        row[f"nll_{state}"] = F.cross_entropy(scores / divisor, labels.long()).item()
        row[f"ece_{state}"] = expected_calibration_error(probabilities, test_set[1])
    return row | {"handed_over": handed_over(probabilities, test_set[1], 0.999)}


def _attacked(model: nn.Module, test_set: Split, scale: dict[str, float]) -> dict[str, Any]:
    """Accuracy on the first 1,000 test images after each attack, by epsilon."""
    images, labels = (array[:1000] for array in test_set)
    return {attack.__name__: {str(epsilon): evaluate(model, 255 * attack(model, images, labels, epsilon, **scale),
                                                     labels, **scale)[1] for epsilon in EPSILONS}
            for attack in (fgsm, pgd)}


def _told_apart(model: nn.Module, facts: dict[str, Any], digits: np.ndarray) -> dict[str, dict[str, float]]:
    """For each kind of stranger the median confidence in it, and how well three scores tell it from digits (AUROC)."""
    def judged(images: np.ndarray) -> dict[str, np.ndarray]:
        scores, doubts = scores_and_doubts(model, images, facts)
        return {"confidence": (scores / facts["temperature"]).softmax(1).amax(1).numpy(),
                "energy": scores.logsumexp(1).numpy(), "doubt": -doubts.numpy()}

    known, table = judged(digits), {}
    for kind, images in strangers().items():
        strange = judged(images)
        table[kind] = {"median_confidence": float(np.median(strange["confidence"]))} | {
            score: float(roc_auc_score(np.arange(len(digits) + len(images)) < len(digits),
                                       np.concatenate([known[score], strange[score]]))) for score in known}
    return table


def epoch_seconds(network: str, data: str) -> float:
    """How long an epoch over 55,000 warped images takes here in bfloat16 or not, from a tenth of it."""
    (images, labels), val_set, mean, std = load_training(data)
    part, little = (images[:5_500], labels[:5_500]), (val_set[0][:100], val_set[1][:100])
    epochs = train(NETWORKS[network](), part, little, mean=mean, std=std, epochs=3, batch_size=BATCH_SIZE,
                   learning_rate=1e-3, seed=0)
    return 10 * min(epoch.seconds for epoch in epochs)


# all of it

def study(folder: Path = FOLDER, data: str = "dataset", recipes: dict[str, Recipe] = RECIPES, copies: int = COPIES,
          processes: int = 1) -> dict[str, Any]:
    """Train what is missing, measure everything, and write it to study.json in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    untaught = {name: recipe for name, recipe in recipes.items() if not recipe.teachers}
    taught = {name: recipe for name, recipe in recipes.items() if recipe.teachers}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        def run(function: Callable, jobs: list[tuple]) -> list:
            """The function's results for each of these arguments, followed by the folder and the data."""
            futures = [pool.submit(function, *job, folder, data) for job in jobs]
            return [future.result() for future in tqdm(futures, desc=function.__name__)]

        run(fit, [(name, recipe, seed) for name, recipe in untaught.items() for seed in range(recipe.seeds)])
        if taught:
            teachers, = {recipe.teachers for recipe in taught.values()}
            run(label_copy, [(number, teachers, recipes[teachers].seeds) for number in range(copies + 1)])
        run(fit, [(name, recipe, seed) for name, recipe in taught.items() for seed in range(recipe.seeds)])
        jobs = [(name, recipe, seed) for name, recipe in recipes.items() for seed in range(recipe.seeds)]
        rows = list(zip(jobs, run(measure, jobs)))
        seconds = {name: pool.submit(epoch_seconds, name, data).result() for name in NETWORKS}
    results = {name: summarised(name, recipe, [row for job, row in rows if job[0] == name], folder)
               for name, recipe in recipes.items()}
    machine = {"processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(), "threads": 1}
    machine |= {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "pillow")}
    content = {"machine": machine, "epoch_seconds": seconds, "results": results}
    write_atomically(folder / "study.json", (json.dumps(content, indent=1) + "\n").encode())
    return content


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--processes", type=int, default=1, help="trainings at a time (default: %(default)s)")
    try:
        content = study(processes=options.parse_args(arguments).processes)
    except KeyboardInterrupt:
        print("mnist_study.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    for name, result in content["results"].items():
        low, high = result["interval"]
        print(f"{name:20} {result['parameters']:7,} parameters: {result['accuracy']:.3%} ± {result['sd']:.3%} "
              f"({len(result['seeds'])} seeds; 95 % interval of the mean {low:.3%} to {high:.3%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
