"""The study: how accurate the networks are over seeds, and how far their predictions can be trusted.

    python -m mnist.study                  train what is missing, measure everything: study/study.json
    python -m mnist.study --processes 4    the same results, sooner on a machine with more cores

Every network trains on the same 55,000 training images, in a process with one thread. The last
epoch is evaluated, so no epoch is selected. The other 5,000 training images are for validation. The
test images are used only after all training runs are done. The folder study/ keeps the runs: a
finished run is not repeated, and an interrupted one continues from its last epoch.
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
from dataclasses import asdict
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
from torch import nn
from torchinfo import summary
from tqdm import tqdm

from mnist.attacks import fgsm, pgd
from mnist.augment import corrupt_half, warp, warp_amounts
from mnist.calibrate import OOD_CHARACTERS, calibrate
from mnist.corruptions import CORRUPTIONS, corrupt
from mnist.evaluate import confidence_threshold, evaluate, expected_calibration_error, predict
from mnist.files import write_atomically
from mnist.networks import NETWORKS, fold_batch_norm, with_batch_norm
from mnist.ood import logits_and_ood_scores
from mnist.picture import crop, frame
from mnist.recipes import STUDY, StudyRecipe
from mnist.train import train
from mnist.weights import WeightsError, load_weights, save_weights
from mnist_utils import CLASSES, Split, find_idx, load_split, load_training, read_idx

FOLDER = Path("study")
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist has it
IMAGES_PER_PASS = 55_000  # the learning curve repeats fewer images to fill a pass

ROBUSTNESS_TESTED = ("MNIST_CNN", "SixConv", "MNIST_CNN distilled", "MNIST_CNN robust")  # corrupted, attacked, OOD
EPSILONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)  # of attacks; 1 is full ink


# other data

def uci_digits() -> Split:
    """scikit-learn's 1,797 digits of 8 × 8 pixels, written by other people, in MNIST's format (N, 28, 28)."""
    digits = load_digits()
    large = [Image.fromarray(image.astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC)
             for image in digits.images / 16]
    return (np.stack([frame(crop(np.asarray(image).clip(0, 1).round(1))) for image in large]),
            digits.target.astype(np.uint8))


def out_of_distribution(count: int = 1_000, seed: int = 0) -> dict[str, np.ndarray]:
    """Images (N, 28, 28) without a digit: "noise", "blank", "letters", and "clothes" where FASHION is installed.

    The letters are those that resemble no digit, printed in matplotlib's fonts. `calibrate` was fitted
    on the same letters, bent and in another font, and on other noise.
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
        for sign in OOD_CHARACTERS:
            page = Image.new("L", (160, 160))
            ImageDraw.Draw(page).text((40, 40), sign, fill=255, font=font)
            yield frame(crop(np.asarray(page) / 255))


# training

def train_one(name: str, recipe: StudyRecipe, seed: int, folder: Path, data: str) -> None:
    """Train one seed of a recipe and save its weights, unless they exist; resume where a checkpoint exists.

    Raises WeightsError if the existing weights or checkpoint belong to another recipe.
    """
    path = weights_path(name, seed, folder)
    if path.exists():
        _, metadata = load_weights(path)
        trained = metadata["training"]
        if any(trained.get(key, value) != value for key, value in asdict(recipe).items() if key != "seeds"):
            raise WeightsError(f"{path} belongs to another recipe: delete it, or undo the change of the recipe")
        return
    labelled, val_set, mean, std = load_training(data)
    train_set = labelled
    if recipe.images:
        chosen = np.random.default_rng(seed).permutation(len(labelled[0]))[:recipe.images]
        images, labels = (np.resize(array[chosen], (IMAGES_PER_PASS, *array.shape[1:])) for array in labelled)
        train_set = images, labels
    if recipe.teachers:
        train_set = read_transfer_set(recipe.copies, folder)
    if recipe.corrupted:
        train_set = corrupt_half(train_set[0], seed), train_set[1]
    torch.manual_seed(seed)
    model, checkpoint = NETWORKS[recipe.network](), path.with_suffix(".checkpoint")
    trained = with_batch_norm(model) if recipe.batch_norm else model
    with tqdm(total=recipe.epochs, desc=path.stem, unit="epoch", leave=False, position=_slot(), disable=None) as bar, \
            tqdm(desc="batches", unit="batch", leave=False, position=_slot() + 1, disable=None) as batch_bar:
        for epoch in train(trained, train_set, val_set, mean=mean, std=std, seed=seed, checkpoint=checkpoint,
                           resume=checkpoint.exists(), batch_bar=batch_bar, **recipe.settings()):
            bar.update()
            val_accuracy = epoch.val_accuracy
    if recipe.batch_norm:
        fold_batch_norm(trained, model)
    calibration = calibrate(model.eval(), labelled, val_set, mean=mean, std=std, seed=seed)
    training = asdict(recipe) | {"seed": seed, "threads": torch.get_num_threads(), "torch": version("torch")}
    save_weights(path, model, mean=mean, std=std, **calibration, training=training, val_accuracy=val_accuracy)


def weights_path(name: str, seed: int, folder: Path = FOLDER) -> Path:
    """The weights file of a finished training."""
    return folder / f"{name.replace(' ', '-')}-{seed}.pth"


def label_transfer_copy(number: int, teachers: str, seeds: int, folder: Path, data: str) -> None:
    """Write one copy of the transfer set, unless it exists: training images with the teachers' mean probabilities.

    Copy 0 holds the images as they are; each other copy holds them warped, with its number as the seed.
    """
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
    answers = torch.zeros(len(shown), CLASSES)
    for model in models:
        answers += predict(model, shown, mean=mean, std=std).softmax(1)
    answers /= len(models)
    buffer = io.BytesIO()
    np.savez(buffer, images=shown.numpy(), answers=answers.numpy())
    write_atomically(path, buffer.getvalue())


def read_transfer_set(copies: int, folder: Path) -> Split:
    """Images (N, 28, 28) and the teachers' probabilities (N, 10): all warped copies, and half as many unwarped ones."""
    numbers = list(range(1, copies + 1)) + [0] * (copies // 2)
    with contextlib.ExitStack() as stack:
        files = {number: stack.enter_context(np.load(folder / f"transfer-{number}.npz")) for number in set(numbers)}
        images, answers = (np.concatenate([files[number][part] for number in numbers])
                           for part in ("images", "answers"))
        return images, answers


def _slot() -> int:
    """The line of the terminal for this process's first bar."""
    return 2 * ((multiprocessing.current_process()._identity or (1,))[0] - 1) + 1


# measuring

def measure(name: str, seed: int, folder: Path, data: str) -> dict[str, Any]:
    """All measurements of one training run: a row of the results."""
    test_set = load_split("test", data)
    model, metadata = load_weights(weights_path(name, seed, folder))
    scale = {"mean": metadata["mean"], "std": metadata["std"]}
    row = {"seed": seed, "val_accuracy": metadata["val_accuracy"],
           **_accuracies(model, load_training(data)[1], test_set, metadata),
           "uci": evaluate(model, *uci_digits(), **scale)[1]}
    if name in ROBUSTNESS_TESTED:
        row["corruptions"] = {kind: evaluate(model, images, test_set[1], **scale)[1]
                              for kind, images in _corrupted(data).items()}
        row |= _attacked(model, test_set, scale)
        row["ood"] = _ood_detection(model, metadata, test_set[0])
    return row


@functools.cache
def _corrupted(data: str) -> dict[str, np.ndarray]:
    images, _ = load_split("test", data)
    return {kind: corrupt(images, kind) for kind in CORRUPTIONS}


def summarize(name: str, recipe: StudyRecipe, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A recipe's results: metadata on its network, statistics over the seeds, and the rows of `measure`."""
    model, accuracies, file = NETWORKS[recipe.network](), np.array([row["accuracy"] for row in rows]), io.BytesIO()
    torch.save(model.state_dict(), file)
    return {"recipe": asdict(recipe), "parameters": sum(weight.numel() for weight in model.parameters()),
            "mult_adds": summary(model, (1, 1, 28, 28), verbose=0).total_mult_adds,
            "bytes": len(file.getvalue()), "passes": recipe.passes, "accuracy": float(accuracies.mean()),
            "sd": float(accuracies.std(ddof=1)) if len(rows) > 1 else None,
            "interval": interval_of_mean(accuracies) if len(rows) > 1 else None, "seeds": rows}


def _accuracies(model: nn.Module, val_set: Split, test_set: Split, metadata: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, calibration before and after the temperature, and selective prediction at 99.9 %.

    "threshold" is the lowest confidence at or above which 99.9 % of the validation predictions are correct.
    "rejected" counts the test images below it, "selective_accuracy" is the accuracy on the others.
    """
    scale = {"mean": metadata["mean"], "std": metadata["std"]}
    logits, labels = predict(model, test_set[0], **scale), test_set[1]
    row: dict[str, Any] = {"accuracy": float((logits.argmax(1).numpy() == labels).mean()),
                           "temperature": metadata["temperature"]}
    for state, divisor in (("before", 1.0), ("after", metadata["temperature"])):
        probabilities = (logits / divisor).softmax(1).numpy()
        row[f"nll_{state}"] = F.cross_entropy(logits / divisor, torch.from_numpy(labels).long()).item()
        row[f"ece_{state}"] = expected_calibration_error(probabilities, labels)
    validated = (predict(model, val_set[0], **scale) / metadata["temperature"]).softmax(1).numpy()
    row["threshold"] = confidence_threshold(validated, val_set[1], 0.999)
    accepted = probabilities.max(1) >= row["threshold"]
    correct = probabilities.argmax(1) == labels
    return row | {"rejected": int((~accepted).sum()),
                  "selective_accuracy": float(correct[accepted].mean()) if accepted.any() else None}


def _attacked(model: nn.Module, test_set: Split, scale: dict[str, float]) -> dict[str, Any]:
    """Accuracy on every tenth test image under each attack, by epsilon."""
    images, labels = (array[::10] for array in test_set)
    return {attack.__name__: {str(epsilon): evaluate(model, 255 * attack(model, images, labels, epsilon, **scale),
                                                     labels, **scale)[1] for epsilon in EPSILONS}
            for attack in (fgsm, pgd)}


def _ood_detection(model: nn.Sequential, metadata: dict[str, Any], digits: np.ndarray) -> dict[str, dict[str, float]]:
    """For each kind of OOD images, the median confidence, and how well three scores tell it from digits (AUROC)."""
    def scored(images: np.ndarray) -> dict[str, np.ndarray]:
        logits, ood_scores = logits_and_ood_scores(model, images, metadata)
        return {"confidence": (logits / metadata["temperature"]).softmax(1).amax(1).numpy(),
                "energy": logits.logsumexp(1).numpy(), "ood_score": -ood_scores.numpy()}

    known, table = scored(digits), {}
    for kind, images in out_of_distribution().items():
        others = scored(images)
        table[kind] = {"median_confidence": float(np.median(others["confidence"]))} | {
            score: float(roc_auc_score(np.arange(len(digits) + len(images)) < len(digits),
                                       np.concatenate([known[score], others[score]]))) for score in known}
    return table


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """The 95 % confidence interval (Student's t) of the mean of normally distributed values (N,).

    For accuracies over seeds it covers the variation between seeds, on the same test images. It
    does not cover the variation between test sets.
    """
    half = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def epoch_seconds(recipe: StudyRecipe, folder: Path, data: str) -> float:
    """Seconds for one pass over 55,000 images on this machine, validation not counted, extrapolated from a tenth."""
    (images, labels), val_set, mean, std = load_training(data)
    part, little = (images[:IMAGES_PER_PASS // 10], labels[:IMAGES_PER_PASS // 10]), (val_set[0][:10], val_set[1][:10])
    model = NETWORKS[recipe.network]()
    epochs = train(with_batch_norm(model) if recipe.batch_norm else model, part, little, mean=mean, std=std, seed=0,
                   **recipe.settings() | {"epochs": 3})
    return IMAGES_PER_PASS / len(part[0]) * min(epoch.seconds for epoch in epochs)


# the whole study

def study(folder: Path = FOLDER, data: str = "dataset", recipes: dict[str, StudyRecipe] = STUDY,
          processes: int = 1) -> dict[str, Any]:
    """Train what is missing, measure everything, and write the results to study.json in the folder.

    The first error, or Ctrl-C, ends the study; interrupted training runs keep their last epoch. Raises what
    the training runs raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not FASHION.exists():
        print(f"{FASHION} is missing: no results for clothes (Debian: apt install dataset-fashion-mnist)",
              file=sys.stderr)
    jobs = [(name, recipe, seed) for name, recipe in recipes.items() for seed in range(recipe.seeds)]
    copies = {(number, recipe.teachers, recipes[recipe.teachers].seeds): None for recipe in recipes.values()
              if recipe.teachers for number in range(recipe.copies + 1)}
    context = multiprocessing.get_context("spawn")
    tqdm.set_lock(context.RLock())
    with ProcessPoolExecutor(processes, context, _begin, (tqdm.get_lock(),)) as pool:
        def run(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> list[Any]:
            """Call the function for each job in the pool, with the folder and the data as last arguments."""
            results, futures = [], [pool.submit(function, *job, folder, data) for job in jobs]
            for future in (bar := tqdm(futures, desc=function.__name__, disable=None)):
                results.append(future.result())
                if bar.disable:  # stderr is no terminal: a line instead of the bar
                    print(f"{function.__name__}: {len(results)} of {len(futures)}", file=sys.stderr, flush=True)
            return results

        try:
            run(train_one, [job for job in jobs if not job[1].teachers])
            run(label_transfer_copy, copies)
            run(train_one, [job for job in jobs if job[1].teachers])
            rows = run(measure, [(name, seed) for name, _, seed in jobs])
            named = [name for name, recipe in recipes.items() if not recipe.images]
            seconds = [pool.submit(epoch_seconds, recipes[name], folder, data).result() for name in named]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    results = {name: summarize(name, recipe, [row for job, row in zip(jobs, rows) if job[0] == name])
               for name, recipe in recipes.items()}
    machine = {"processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(), "threads": 1}
    machine |= {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "pillow")}
    content = {"machine": machine, "epoch_seconds": dict(zip(named, seconds)), "results": results}
    write_atomically(folder / "study.json", (json.dumps(content, indent=1) + "\n").encode())
    return content


def _begin(lock: Any) -> None:
    """Set up a process of the pool: one thread, and the terminal shared with the others."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    tqdm.set_lock(lock)


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m mnist.study", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--processes", type=int, default=1,
                         help="parallel training runs; each may need 4 GB of memory (default: %(default)s)")
    try:
        content = study(processes=options.parse_args(arguments).processes)
    except (OSError, ValueError, ArithmeticError, BrokenProcessPool) as error:
        print(f"mnist.study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mnist.study: interrupted; the same command continues from here", file=sys.stderr)
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
