"""The study: how accurate the networks are over seeds, and how far their predictions can be trusted.

    python -m mnist.study                  train what is missing, measure everything: study/study.json
    python -m mnist.study --processes 4    the same results, sooner on a machine with more cores
    python -m mnist.study --scheduler tcp://192.168.0.10:8786    the same on the workers of a Dask cluster

Every network trains on the same 55,000 training images, in a process with one thread. The last
epoch is evaluated, so no epoch is selected. The other 5,000 training images are for validation. The
test images are used only after all training runs are done. The folder study/ keeps the runs: an
interrupted one continues from its last epoch, and a finished one is not repeated if its weights are
there, or its results in study.json. A worker needs the repository and its packages; weights,
checkpoints and results travel through Dask.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import io
import math
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from distributed import Client, Future, KilledWorker, as_completed, wait
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn
from torchinfo import summary
from tqdm import tqdm

from mnist.attacks import fgsm, pgd
from mnist.augment import corrupt_half, warp, warp_amounts
from mnist.calibrate import OOD_CHARACTERS, calibrate
from mnist.checkpoint import read_checkpoint
from mnist.cluster import Progress, connected, submit
from mnist.corruptions import CORRUPTIONS, corrupt
from mnist.evaluate import confidence_threshold, evaluate, expected_calibration_error, predict
from mnist.files import checkpoint_path, read_json, write_atomically, write_json
from mnist.networks import NETWORKS, fold_batch_norm, with_batch_norm
from mnist.ood import logits_and_ood_scores
from mnist.picture import crop, frame
from mnist.recipes import STUDY, StudyRecipe
from mnist.train import train
from mnist.weights import WeightsError, load_weights, parse_weights, save_weights
from mnist_utils import CLASSES, Split, digest, find_idx, load_split, load_training, read_idx

FOLDER = Path("study")
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist has it
IMAGES_PER_PASS = 55_000  # the learning curve repeats fewer images to fill a pass
POLL = 5  # seconds between two looks at the checkpoints of running trainings

ROBUSTNESS_TESTED = ("MNIST_CNN", "SixConv", "MNIST_CNN distilled", "MNIST_CNN robust")  # attacked, OOD
CORRUPTED = (*ROBUSTNESS_TESTED, *(name for name, recipe in STUDY.items() if recipe.left_out))
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

class Data(NamedTuple):
    """A data set that every worker has in a folder of its own; loading raises ValueError where it has others."""

    folder: str
    training: str  # the SHA-256 of the training images and labels
    test: str  # of the test images and labels
    clothes: bool  # whether FASHION is there

    @classmethod
    def of(cls, folder: str) -> "Data":
        """The data in a folder of this machine. Raises what `load_split` raises."""
        train_set, val_set, *_ = load_training(folder)
        return cls(folder, digest(*train_set, *val_set), digest(*load_split("test", folder)), FASHION.exists())

    def load_training(self) -> tuple[Split, Split, float, float]:
        """What `load_training` gives."""
        train_set, val_set, mean, std = load_training(self.folder)
        self._check(digest(*train_set, *val_set), self.training)
        return train_set, val_set, mean, std

    def load_test(self) -> Split:
        """The test images and labels."""
        if FASHION.exists() != self.clothes:
            raise ValueError(f"{FASHION} is on some machines of the study, and not on others")
        test_set = load_split("test", self.folder)
        self._check(digest(*test_set), self.test)
        return test_set

    def _check(self, found: str, expected: str) -> None:
        if found != expected:
            raise ValueError(f"the data in {self.folder} on {platform.node()} are others than the study's: copy them")


class Job(NamedTuple):
    """One training run of the study."""

    name: str  # of the recipe
    recipe: StudyRecipe
    seed: int

    @property
    def file(self) -> str:
        """What its weights file is called."""
        return f"{self.name.replace(' ', '-')}-{self.seed}.pth"

    @property
    def checkpoint(self) -> str:
        """What its checkpoint is called, while it is trained."""
        return checkpoint_path(Path(self.file)).name


def train_one(job: Job, data: Data, transfer: list[Split], progress: Progress) -> bytes:
    """Train one seed of a recipe: the bytes of its weights file. Goes on from the checkpoint in `progress`.

    Raises WeightsError for a checkpoint of another training run, and what `train` raises.
    """
    recipe, seed = job.recipe, job.seed
    labelled, val_set, mean, std = data.load_training()
    train_set = labelled
    if recipe.images:
        chosen = np.random.default_rng(seed).permutation(len(labelled[0]))[:recipe.images]
        images, labels = (np.resize(array[chosen], (IMAGES_PER_PASS, *array.shape[1:])) for array in labelled)
        train_set = images, labels
    if recipe.teachers:
        train_set = transfer_set(transfer)
    if recipe.corrupted:
        train_set = corrupt_half(train_set[0], seed, recipe.left_out), train_set[1]
    torch.manual_seed(seed)
    model = NETWORKS[recipe.network]()
    trained = with_batch_norm(model) if recipe.batch_norm else model
    with tempfile.TemporaryDirectory() as folder:
        path, checkpoint = Path(folder, job.file), Path(folder, "checkpoint")
        last = progress.state()
        if last:
            checkpoint.write_bytes(last)
        try:
            for epoch in train(trained, train_set, val_set, mean=mean, std=std, seed=seed, checkpoint=checkpoint,
                               resume=checkpoint.exists(), **recipe.settings()):
                if (state := checkpoint.read_bytes()) != last:  # earlier epochs come once more, with the same one
                    progress.write(epoch.number, last := state)
        except WeightsError as error:
            raise WeightsError(f"{job.checkpoint} belongs to another training run: delete it, or undo the change of "
                               "the recipe") from error
        if recipe.batch_norm:
            fold_batch_norm(trained, model)
        calibration = calibrate(model.eval(), labelled, val_set, mean=mean, std=std, seed=seed)
        training = asdict(recipe) | {"seed": seed, "threads": torch.get_num_threads(), "torch": version("torch")}
        save_weights(path, model, mean=mean, std=std, **calibration, training=training,
                     val_accuracy=epoch.val_accuracy)
        return path.read_bytes()


def is_trained(job: Job, folder: Path) -> bool:
    """Whether a training run's weights are there. Raises WeightsError if they belong to another recipe."""
    path = folder / job.file
    if not path.exists():
        return False
    trained = load_weights(path)[1]["training"]
    if not _same_run(trained, job.recipe):
        raise WeightsError(f"{path} belongs to another recipe: delete it, or undo the change of the recipe")
    return True


def label_transfer_copy(number: int, teachers: list[bytes], data: Data, folder: str) -> Split:
    """One copy of the transfer set: the training images (N, 28, 28), and the teachers' mean probabilities (N, 10).

    Copy 0 holds the images as they are; each other copy holds them warped, with its number as the seed.
    `teachers` are weights files. Keeps the copy in the worker's own folder, because it takes minutes.
    """
    kept = Path(folder) / f"transfer-{number}-{hashlib.sha256(b''.join(teachers)).hexdigest()[:16]}.npz"
    if kept.exists():
        with np.load(kept) as file:
            return file["images"], file["answers"]
    (images, _), _, mean, std = data.load_training()
    generator = torch.Generator().manual_seed(number)
    shown = torch.from_numpy(images)
    if number:
        shown = torch.cat([warp(part, warp_amounts(len(part), generator)).round().to(torch.uint8)
                           for part in shown.split(1000)])
    answers = torch.zeros(len(shown), CLASSES)
    for teacher in teachers:
        model = parse_weights(teacher, "a teacher")[0].to(memory_format=torch.channels_last)
        answers += predict(model, shown, mean=mean, std=std).softmax(1)
    answers /= len(teachers)
    buffer = io.BytesIO()
    np.savez(buffer, images=shown.numpy(), answers=answers.numpy())
    write_atomically(kept, buffer.getvalue())
    return shown.numpy(), answers.numpy()


def transfer_set(copies: list[Split]) -> Split:
    """Images (N, 28, 28) and the teachers' probabilities (N, 10): all warped copies, and half as many unwarped ones.

    The first copy is the unwarped one.
    """
    chosen = copies[1:] + copies[:1] * ((len(copies) - 1) // 2)
    images, answers = (np.concatenate(part) for part in zip(*chosen))
    return images, answers


# measuring

def measure(name: str, seed: int, weights: bytes, data: Data) -> dict[str, Any]:
    """All measurements of one training run, of which this is the weights file: a row of the results."""
    test_set = data.load_test()
    model, metadata = parse_weights(weights, f"{name}, seed {seed}")
    scale = {"mean": metadata["mean"], "std": metadata["std"]}
    row = {"seed": seed, "val_accuracy": metadata["val_accuracy"],
           **_accuracies(model, data.load_training()[1], test_set, metadata),
           "uci": evaluate(model, *uci_digits(), **scale)[1]}
    if name in CORRUPTED:
        row["corruptions"] = {kind: evaluate(model, images, test_set[1], **scale)[1]
                              for kind, images in _corrupted(data.folder).items()}
    if name in ROBUSTNESS_TESTED:
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


def epoch_seconds(recipe: StudyRecipe, data: Data) -> float:
    """Seconds for one pass over 55,000 images on this worker, validation not counted, extrapolated from a tenth."""
    (images, labels), val_set, mean, std = data.load_training()
    part, little = (images[:IMAGES_PER_PASS // 10], labels[:IMAGES_PER_PASS // 10]), (val_set[0][:10], val_set[1][:10])
    model = NETWORKS[recipe.network]()
    epochs = train(with_batch_norm(model) if recipe.batch_norm else model, part, little, mean=mean, std=std, seed=0,
                   **recipe.settings() | {"epochs": 3})
    return IMAGES_PER_PASS / len(part[0]) * min(epoch.seconds for epoch in epochs)


def this_machine() -> dict[str, Any]:
    """The processor of a worker, its threads, and the versions of the libraries that compute."""
    return {"processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(), "threads": 1} | {
        name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "pillow")}


# the whole study

def study(folder: Path = FOLDER, data: str = "dataset", recipes: dict[str, StudyRecipe] = STUDY,
          processes: int = 1, scheduler: str | None = None) -> dict[str, Any]:
    """Train what is missing, measure everything, and write the results to study.json in the folder.

    A run whose weights are missing is not repeated if study.json has its results, for the same recipe and data,
    the same versions and the same kind of processor. Delete study.json after a change of what trains or measures.

    The workers are so many processes of this machine, or those of the Dask scheduler at this address.
    The first error, or Ctrl-C, ends the study; interrupted training runs keep their last epoch. Raises
    what the training runs raise, DamagedError for a damaged study.json, OSError where no scheduler answers,
    KilledWorker where a training run has cost four workers, and CancelledError where the scheduler ends.
    """
    if not FASHION.exists():
        print(f"{FASHION} is missing: no results for clothes (Debian: apt install dataset-fashion-mnist)",
              file=sys.stderr)
    everyones = Data.of(data)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [Job(name, recipe, seed) for name, recipe in recipes.items() for seed in range(recipe.seeds)]
    untrained = [job for job in jobs if not is_trained(job, folder)]
    earlier = read_json(folder / "study.json") if untrained and (folder / "study.json").exists() else {}
    with connected(processes, scheduler) as client:
        workers = len(client.nthreads())
        print(f"{workers or 'no'} workers{'' if workers else ' yet: the study waits'}; Dask's dashboard: "
              f"{client.dashboard_link}", file=sys.stderr)
        known = _known_rows(earlier, _conditions(submit(client, this_machine).result(), everyones), recipes, untrained)
        missing = [job for job in untrained if job not in known]
        print(f"to train: {len(missing)} of {len(jobs)} runs, {sum(job.recipe.epochs for job in missing)} epochs "
              f"({', '.join(dict.fromkeys(job.name for job in missing)) or 'nothing'})", file=sys.stderr)
        _train_all(client, [job for job in missing if not job.recipe.teachers], {}, folder, everyones)
        taught = [job for job in missing if job.recipe.teachers]
        copies = _label_copies(client, {job.recipe for job in taught}, recipes, folder, everyones)
        _train_all(client, taught, copies, folder, everyones)
        del copies  # gigabytes, in the workers' memory
        measured = [job for job in jobs if job not in known]
        rows = known | dict(zip(measured, _run(client, measure, [
            (job.name, job.seed, (folder / job.file).read_bytes(), everyones) for job in measured])))
        named = [name for name, recipe in recipes.items() if not recipe.images]
        one = min(client.nthreads())  # the worker that is timed
        seconds = [submit(client, epoch_seconds, recipes[name], everyones, worker=one).result() for name in named]
        conditions = _conditions(submit(client, this_machine, worker=one).result(), everyones)
    results = {name: summarize(name, recipe, [rows[job] for job in jobs if job.name == name])
               for name, recipe in recipes.items()}
    content = conditions | {"epoch_seconds": dict(zip(named, seconds)), "results": results}
    write_json(folder / "study.json", content)
    return content


def _conditions(machine: dict[str, Any], data: Data) -> dict[str, Any]:
    """On what results depend besides the recipes."""
    return {"machine": machine,
            "data": {"training": data.training, "test": data.test, "clothes": data.clothes}}


def _known_rows(earlier: dict[str, Any], conditions: dict[str, Any], recipes: dict[str, StudyRecipe],
                untrained: list[Job]) -> dict[Job, dict[str, Any]]:
    """What an earlier study.json holds of these runs: rows of the same recipe, teachers and conditions."""
    if any(earlier.get(key) != value for key, value in conditions.items()):
        return {}
    results = earlier["results"]

    def same(name: str) -> bool:
        recipe, teachers = recipes[name], recipes[name].teachers
        return name in results and _same_run(results[name]["recipe"], recipe) and (
            not teachers or (same(teachers) and results[teachers]["recipe"]["seeds"] == recipes[teachers].seeds))

    known = {job: row for job in untrained if same(job.name) for row in results[job.name]["seeds"]
             if row["seed"] == job.seed}
    needed = {job.recipe.teachers for job in untrained if job not in known}  # as weights: they are to teach
    return {job: row for job, row in known.items() if job.name not in needed}


def _same_run(stored: dict[str, Any], recipe: StudyRecipe) -> bool:
    """Whether a training run had this recipe; how many seeds there are makes no difference to one of them."""
    defaults = {field.name: field.default for field in fields(recipe)}
    return all(stored.get(key, defaults[key]) == value for key, value in asdict(recipe).items() if key != "seeds")


def _train_all(client: Client, jobs: list[Job], copies: dict[str, list[Future[Split]]], folder: Path,
               data: Data) -> None:
    """Train all of these, and write each weights file as it comes, and the checkpoints meanwhile."""
    running: dict[Future[bytes], tuple[Job, Progress]] = {}
    with tqdm(desc="train_one", unit="epoch", total=sum(job.recipe.epochs for job in jobs), disable=None) as bar:
        epochs = dict.fromkeys(jobs, 0)

        def keep_checkpoints() -> None:
            for job, progress in running.values():
                if (steps := progress.steps(client)) > epochs[job]:
                    write_atomically(folder / job.checkpoint, progress.state(client))
                    epochs[job] = steps
            bar.update(sum(epochs.values()) - bar.n)

        try:
            for job in jobs:
                begun = b""
                if (checkpoint := folder / job.checkpoint).exists():
                    read_checkpoint(checkpoint)  # so that a damaged one is named here
                    begun = checkpoint.read_bytes()
                progress = Progress(client, begun)
                transfer = copies[job.recipe.teachers][:job.recipe.copies + 1] if job.recipe.teachers else []
                running[submit(client, train_one, job, data, transfer, progress)] = job, progress
            while running:
                with contextlib.suppress(TimeoutError):
                    wait(list(running), timeout=POLL, return_when="FIRST_COMPLETED")
                # those that failed come last: the others' weights are kept
                for future in sorted((future for future in running if future.done()),
                                     key=lambda future: future.status != "finished"):
                    job, progress = running[future]
                    write_atomically(folder / job.file, future.result())
                    del running[future]
                    progress.forget(client)
                    (folder / job.checkpoint).unlink(missing_ok=True)
                    epochs[job] = job.recipe.epochs
                    _say(bar, "train_one", len(jobs) - len(running), len(jobs))
                keep_checkpoints()
        finally:
            if running:
                with contextlib.suppress(Exception):  # what ends the study says why
                    keep_checkpoints()
                    for _, progress in running.values():
                        progress.forget(client)


def _label_copies(client: Client, taught: set[StudyRecipe], recipes: dict[str, StudyRecipe], folder: Path,
                  data: Data) -> dict[str, list[Future[Split]]]:
    """For each recipe that teaches one of these: its copies of the training images, which stay with the workers."""
    copies = {}
    for teachers in {recipe.teachers for recipe in taught if recipe.teachers}:
        weights = [(folder / Job(teachers, recipes[teachers], seed).file).read_bytes()
                   for seed in range(recipes[teachers].seeds)]
        most = max(recipe.copies for recipe in taught if recipe.teachers == teachers)
        copies[teachers] = [submit(client, label_transfer_copy, number, weights, data, str(folder))
                            for number in range(most + 1)]
        _follow(copies[teachers], label_transfer_copy.__name__)
    return copies


def _run(client: Client, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call the function on the workers, once for each tuple of arguments."""
    futures = [submit(client, function, *job) for job in jobs]
    _follow(futures, function.__name__)
    return client.gather(futures)


def _follow(futures: list[Future[Any]], name: str) -> None:
    """Show how many are done. Raises what the first that fails raises."""
    bar = tqdm(as_completed(futures), desc=name, total=len(futures), disable=None)
    for number, future in enumerate(bar, 1):
        if future.status != "finished":
            future.result()  # only then: results may be large, and some stay with the workers
        _say(bar, name, number, len(futures))


def _say(bar: tqdm, name: str, done: int, total: int) -> None:
    if bar.disable:  # stderr is no terminal: a line instead of the bar
        print(f"{name}: {done} of {total}", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m mnist.study", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--processes", type=int, default=1,
                         help="parallel training runs; each may need 4 GB of memory (default: %(default)s)")
    options.add_argument("--scheduler", metavar="ADDRESS",
                         help="of a Dask cluster, as tcp://192.168.0.10:8786; otherwise, this machine alone computes")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        content = study(processes=options.processes, scheduler=options.scheduler)
    except CancelledError:
        print("mnist.study: the connection to the scheduler was lost: start it again; then the same command continues",
              file=sys.stderr)
        return 2
    except (OSError, ValueError, ArithmeticError, KilledWorker, RuntimeError) as error:
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
    # workers look for these functions in mnist.study, and not in a module __main__
    sys.exit(importlib.import_module("mnist.study").main())
