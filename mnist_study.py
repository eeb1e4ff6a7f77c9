"""The evidence: how accurate the networks are over seeds, and how far their answers can be trusted.

    python mnist_study.py                  train what is missing, measure everything: study/study.json
    python mnist_study.py --processes 4    the same numbers, sooner where there are cores for it

Every network learns from the same 55,000 training images, never from the 5,000 of `load_training`
that are held out, in a process with one thread. Its last epoch counts: nothing is picked, and the
test images are read when all has been trained. The trainings are kept in study/: what is there is
not made again, and one that was stopped goes on from its last epoch.
"""

import argparse
import contextlib
import functools
import io
import json
import math
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
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
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torchinfo import summary
from tqdm import tqdm

from mnist_corruptions import CORRUPTIONS, blemish, corrupt
from mnist_model import (
    NETWORKS,
    WeightsError,
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
EPOCH = 55_000  # images: one pass over the training images, and in the learning curve as often as it takes

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
    teachers: str | None = None  # the recipe of those whose answers it learns, see `label_copy`
    copies: int = 0  # of each training image, each warped in its own way, in what the teachers label
    batch_norm: bool = False  # while it trains; folded into the same network afterwards
    blemished: bool = False  # half of what it sees has a blemish, which the teachers did not see
    bfloat16: bool = False
    seeds: int = 5  # 0, 1, ...

    @property
    def passes(self) -> float:
        """How often it learns from as many images as there are to train on."""
        return self.epochs * (1.5 * self.copies if self.teachers else 1)


TAUGHT = Recipe("MNIST_CNN", 2, 1e-2, teachers="SixConv", copies=20, batch_norm=True)
RECIPES = {
    # the networks that people bring, with the settings of workspace.ipynb
    "MNIST_CNN": Recipe("MNIST_CNN", 12, 4e-3),
    "MNIST_CNN_Dropout": Recipe("MNIST_CNN_Dropout", 12, 4e-3),
    "MNISTNet": Recipe("MNISTNet", 12, 4e-3, bfloat16=True, seeds=3),
    "ThreeConv": Recipe("ThreeConv", 4, 4e-3, bfloat16=True, seeds=3),
    # the sibling, longer; it teaches the next two
    "SixConv": Recipe("SixConv", 30, 1e-2, bfloat16=True),
    "MNIST_CNN taught": TAUGHT,
    "MNIST_CNN robust": replace(TAUGHT, blemished=True, seeds=1),
    # the learning curve
    **{f"MNIST_CNN {count}": Recipe("MNIST_CNN", 6, 4e-3, images=count, seeds=3)
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


def sure_enough(probabilities: np.ndarray, labels: np.ndarray, accuracy: float) -> float:
    """The lowest confidence from which on the answers are right this often; above 1 where none is."""
    enough = np.flatnonzero(selective_accuracy(probabilities, labels) >= accuracy)
    return float(np.sort(probabilities.max(1))[::-1][enough[-1]]) if len(enough) else 1.1


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values (N,) that are spread normally (Student).

    Of accuracies over seeds it tells what other seeds would give on the same test images; how far
    other images would move all of them, it does not.
    """
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

    The letters are those that no digit resembles, printed in matplotlib's fonts: `calibrate` has
    learned from the same ones in another font and bent, and from other noise.
    """
    rng = np.random.default_rng(seed)
    others = {"noise": rng.integers(256, size=(count, 28, 28), dtype=np.uint8),
              "blank": np.zeros((1, 28, 28), np.uint8), "letters": np.stack(list(_letters()))}
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
    """Train by a recipe and save the weights, unless they are there; go on where a training was stopped.

    Raises WeightsError where the weights, or the training that was stopped, are those of another recipe.
    """
    path = weights_path(name, seed, folder)
    if path.exists():
        _, facts = load_weights(path)
        if any(facts["training"].get(key, value) != value for key, value in asdict(recipe).items() if key != "seeds"):
            raise WeightsError(f"{path} is of another recipe: delete it, or undo the change of the recipe")
        return
    labelled, val_set, mean, std = load_training(data)
    train_set = labelled
    if recipe.images:
        chosen = np.random.default_rng(seed).permutation(len(labelled[0]))[:recipe.images]
        train_set = tuple(np.resize(array[chosen], (EPOCH, *array.shape[1:])) for array in labelled)
    if recipe.teachers:
        train_set = read_transfer_set(recipe.copies, folder)
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


def read_transfer_set(copies: int, folder: Path) -> Split:
    """All warped training images and half as many unwarped ones (N, 28, 28), and the teachers' answers (N, 10)."""
    numbers = list(range(1, copies + 1)) + [0] * (copies // 2)
    with contextlib.ExitStack() as stack:
        files = {number: stack.enter_context(np.load(folder / f"transfer-{number}.npz")) for number in set(numbers)}
        return tuple(np.concatenate([files[number][part] for number in numbers]) for part in ("images", "answers"))


def _slot() -> int:
    """Which lines of the terminal are this process's."""
    return 2 * ((multiprocessing.current_process()._identity or (1,))[0] - 1) + 1


# measuring

def measure(name: str, seed: int, folder: Path, data: str) -> dict[str, Any]:
    """What the weights of one training do: a row of the results."""
    test_set = load_split("test", data)
    model, facts = load_weights(weights_path(name, seed, folder))
    scale = {"mean": facts["mean"], "std": facts["std"]}
    row = {"seed": seed, "val_accuracy": facts["val_accuracy"],
           **_accuracies(model, load_training(data)[1], test_set, facts),
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


def summarised(name: str, recipe: Recipe, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A recipe's results: its network, and the mean over the seeds."""
    model, accuracies, file = NETWORKS[recipe.network](), np.array([row["accuracy"] for row in rows]), io.BytesIO()
    torch.save(model.state_dict(), file)
    return {"recipe": asdict(recipe), "parameters": sum(weight.numel() for weight in model.parameters()),
            "mult_adds": summary(model, (1, 1, 28, 28), verbose=0).total_mult_adds,
            "bytes": len(file.getvalue()), "passes": recipe.passes, "accuracy": float(accuracies.mean()),
            "sd": float(accuracies.std(ddof=1)) if len(rows) > 1 else None,
            "interval": interval_of_mean(accuracies) if len(rows) > 1 else None, "seeds": rows}


def _accuracies(model: nn.Module, val_set: Split, test_set: Split, facts: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, how honest the confidence is with and without the temperature, and what being sure is worth.

    "limit" is the confidence from which on 99.9 % of the validation answers are right, "handed_over"
    how many of the test images stay below it, and "accuracy_of_sure" that on the others.
    """
    scale = {"mean": facts["mean"], "std": facts["std"]}
    scores, labels = predict(model, test_set[0], **scale), test_set[1]
    row: dict[str, Any] = {"accuracy": float((scores.argmax(1).numpy() == labels).mean()),
                           "temperature": facts["temperature"]}
    for state, divisor in (("before", 1.0), ("after", facts["temperature"])):
        probabilities = (scores / divisor).softmax(1).numpy()
        row[f"nll_{state}"] = F.cross_entropy(scores / divisor, torch.from_numpy(labels).long()).item()
        row[f"ece_{state}"] = expected_calibration_error(probabilities, labels)
    validated = (predict(model, val_set[0], **scale) / facts["temperature"]).softmax(1).numpy()
    row["limit"] = sure_enough(validated, val_set[1], 0.999)
    sure = probabilities.max(1) >= row["limit"]
    return row | {"handed_over": int((~sure).sum()),
                  "accuracy_of_sure": float((probabilities.argmax(1) == labels)[sure].mean()) if sure.any() else None}


def _attacked(model: nn.Module, test_set: Split, scale: dict[str, float]) -> dict[str, Any]:
    """Accuracy on each tenth test image after each attack, by epsilon."""
    images, labels = (array[::10] for array in test_set)
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


def epoch_seconds(recipe: Recipe, folder: Path, data: str) -> float:
    """How long it takes here to learn once from 55,000 warped images, without validation, from a tenth of it."""
    (images, labels), val_set, mean, std = load_training(data)
    part, little = (images[:EPOCH // 10], labels[:EPOCH // 10]), (val_set[0][:10], val_set[1][:10])
    model = NETWORKS[recipe.network]()
    epochs = train(with_batch_norm(model) if recipe.batch_norm else model, part, little, mean=mean, std=std, epochs=3,
                   batch_size=BATCH_SIZE, learning_rate=1e-3, seed=0, amp=recipe.bfloat16)
    return EPOCH / len(part[0]) * min(epoch.seconds for epoch in epochs)


# all of it

def study(folder: Path = FOLDER, data: str = "dataset", recipes: dict[str, Recipe] = RECIPES,
          processes: int = 1) -> dict[str, Any]:
    """Train what is missing, measure everything, and write it to study.json in the folder.

    The first failure, or Ctrl-C, ends it; trainings keep their last whole epoch. Raises what the
    trainings raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(name, recipe, seed) for name, recipe in recipes.items() for seed in range(recipe.seeds)]
    copies = {(number, recipe.teachers, recipes[recipe.teachers].seeds): None for recipe in recipes.values()
              if recipe.teachers for number in range(recipe.copies + 1)}
    context = multiprocessing.get_context("spawn")
    tqdm.set_lock(context.RLock())
    with ProcessPoolExecutor(processes, context, _begin, (tqdm.get_lock(),)) as pool:
        def run(function: Callable, jobs: Iterable[tuple]) -> list:
            """The function's results for each of these arguments, followed by the folder and the data."""
            futures = [pool.submit(function, *job, folder, data) for job in jobs]
            return [future.result() for future in tqdm(futures, desc=function.__name__)]

        try:
            run(fit, [job for job in jobs if not job[1].teachers])
            run(label_copy, copies)
            run(fit, [job for job in jobs if job[1].teachers])
            rows = run(measure, [(name, seed) for name, _, seed in jobs])
            named = [name for name, recipe in recipes.items() if not recipe.images]
            seconds = [pool.submit(epoch_seconds, recipes[name], folder, data).result() for name in named]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = {name: summarised(name, recipe, [row for job, row in zip(jobs, rows) if job[0] == name])
               for name, recipe in recipes.items()}
    machine = {"processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(), "threads": 1}
    machine |= {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "pillow")}
    content = {"machine": machine, "epoch_seconds": dict(zip(named, seconds)), "results": results}
    write_atomically(folder / "study.json", (json.dumps(content, indent=1) + "\n").encode())
    return content


def _begin(lock: Any) -> None:
    """One thread for each process, and one terminal for all of them."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    tqdm.set_lock(lock)


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--processes", type=int, default=1,
                         help="trainings at a time; each may take four gigabytes (default: %(default)s)")
    try:
        content = study(processes=options.parse_args(arguments).processes)
    except (OSError, ValueError, ArithmeticError, BrokenProcessPool) as error:
        print(f"mnist_study.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mnist_study.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    for name, result in content["results"].items():
        spread = ""
        if result["interval"]:
            low, high = result["interval"]
            spread = f" ± {result['sd']:.3%}; 95 % interval of the mean {low:.3%} to {high:.3%}"
        print(f"{name:20} {result['parameters']:7,} parameters, seeds {len(result['seeds'])}: "
              f"{result['accuracy']:.3%}{spread}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
