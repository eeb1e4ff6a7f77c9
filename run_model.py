"""Train, test, use and export the networks of this project from the command line.

    python run_model.py --mode both                 train, then test
    python run_model.py --mode train --resume       go on where a training was stopped
    python run_model.py --mode train --resume --data my  teach the trained network your own drawings
    torchrun --nproc-per-node=2 run_model.py --mode train
    python run_model.py --mode predict a.png b.jpg  read the digits in pictures
    python run_model.py --mode export --format onnx the trained network, for other runtimes

A training keeps three files: the weights of its best epoch under --model-path, those of its last
epoch beside it (.final.pth), and the checkpoint that --resume goes on from (.checkpoint; the one
of the training before it becomes .old.checkpoint). With --resume and --data of drawings that no
checkpoint there has been trained on, the weights are fine-tuned: they learn the drawings while MNIST
is rehearsed, and what they were is kept (.before.pth). An export is written once its own runtime has
given what the network gives for all test images (onnx-int8: nearly); torchscript is legacy,
PyTorch has deprecated it.
"""

import argparse
import contextlib
import copy
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.metrics import classification_report
from torch import nn
from tqdm import tqdm

from mnist_export import FORMATS, export
from mnist_model import NETWORKS, WeightsError, load_weights, save_weights, write_atomically
from mnist_picture import PictureError
from mnist_predict import MNISTPredictor, Prediction, calibrate
from mnist_train import (
    Epoch,
    Split,
    best_epoch,
    digest,
    evaluate,
    from_first_process,
    predict,
    rank_and_world,
    read_checkpoint,
    train,
)
from mnist_utils import load_classes, load_split, load_training

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OUTPUT = Path(os.environ.get("MNIST_OUTPUT", "."))
MNIST = "dataset"

# fine-tuning, as chosen on validation images: drawings gain, and MNIST loses next to nothing
FINE_TUNING = {"epochs": 3, "learning_rate": 1e-3}  # the options' defaults there
REHEARSED = 30_000  # of MNIST's training images
DRAWINGS_SHARE = 0.15  # of the images of an epoch
MOST_REPEATS = 50  # of one drawing in an epoch: more, and a single wrong label is learned at MNIST's expense
STEP = 0.75  # of the way from the old weights to the fine-tuned ones: MNIST then loses half as much
FEW_DRAWINGS = 25  # from here on, a fifth is held out


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage and line."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**31 - 1}, not {text}")
    return int(text)


def rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return number


def share(text: str) -> float:
    if rate(text) > 1:
        raise argparse.ArgumentTypeError(f"must be at most 1, not {text}")
    return rate(text)


def parser() -> Parser:
    options = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--mode", choices=["train", "test", "both", "predict", "export"], default="both",
        help="what to do; both is train and test (default: both)")
    add("files", nargs="*", metavar="FILE", help="pictures to read (with --mode predict)")
    add("--model-path", type=Path, default=OUTPUT / "MNIST-MODEL.pth", help="the weights file (default: %(default)s)")
    add("--data", default=MNIST, help="a folder with train/ and test/ (default: %(default)s)")
    add("--model", choices=sorted(NETWORKS), default="MNIST_CNN", help="the network to train (default: %(default)s)")
    add("--epochs", type=count, default=12,
        help=f"passes over the training images (default: %(default)s, fine-tuning: {FINE_TUNING['epochs']})")
    add("--batch-size", type=count, default=128, help="images per step, over all processes (default: %(default)s)")
    add("--learning-rate", type=rate, default=4e-3,
        help=f"the highest of the schedule (default: %(default)s, fine-tuning: {FINE_TUNING['learning_rate']})")
    add("--seed", type=seed, default=0, help="of weights, order and warps (default: %(default)s)")
    add("--early-stopping", type=count, metavar="N", help="stop after N epochs without a better one")
    add("--resume", action="store_true",
        help="go on from the checkpoint, to the very same weights; where --data is new to it, fine-tune the weights")
    add("--augment", action=argparse.BooleanOptionalAction, default=True, help="warp the training images at random")
    add("--hardest", type=share, default=1.0, metavar="SHARE",
        help="from the second epoch on, learn only from this share of the images, the hardest (default: all)")
    add("--amp", action=argparse.BooleanOptionalAction, help="compute in bfloat16 (default: where the hardware does)")
    add("--device", help="cpu, cuda, cuda:1, mps, ... (default: the best there is)")
    add("--no-cuda", action="store_true", help="the CPU, even where there is a GPU")
    add("--test-samples", type=count, default=20, metavar="N",
        help="test images in the picture, at most 500 (default: 20)")
    add("--ink", choices=["auto", "dark", "light"], default="auto",
        help="whether the pictures have dark ink or light (default: by their rim)")
    add("--json", action="store_true", help="print predictions as JSON")
    add("--format", choices=FORMATS, help="what to export as; torchscript is legacy")
    add("--output", type=Path, metavar="FILE", help="the export (default: beside the weights file)")
    add("--log-dir", type=Path, help="write TensorBoard's scalars, graph and images into this folder")
    return options


def main(arguments: list[str] | None = None) -> int:
    options, fine_tuning = parser().parse_args(arguments), False
    try:
        if bool(options.files) != (options.mode == "predict"):
            raise ValueError("--mode predict and the files that it reads go together")
        if options.mode == "predict":
            return predict_files(options)
        with process_group(options):
            if options.mode in ("train", "both"):
                refuse_path(options.model_path)
                fine_tuning = options.resume and from_first_process(lambda: is_new(options))
                if fine_tuning:
                    fine_tune(parser().parse_args(arguments, argparse.Namespace(**FINE_TUNING)))
                else:
                    train_model(options)
            if options.mode in ("test", "both") and is_first():
                test_model(options)
            if options.mode == "export" and is_first():
                export_model(options)
    except (OSError, ValueError, ArithmeticError) as error:
        print(f"run_model.py: {plain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        advice = "; --resume goes on from the last whole epoch" if options.mode in ("train", "both") else ""
        advice = "; the weights are as they were" if fine_tuning else advice
        print(f"run_model.py: interrupted{advice}", file=sys.stderr)
        return 130
    return 0


def plain(error: Exception) -> str:
    """What an exception says, without the system's number for it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename} cannot be used: {error.strerror.lower()}"
    return str(error)


@contextlib.contextmanager
def process_group(options: argparse.Namespace) -> Iterator[None]:
    """Join the processes that torchrun has started, if it has."""
    if not dist.is_torchelastic_launched():
        yield
        return
    device = pick_device(options)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    return rank_and_world()[0] == 0


def pick_device(options: argparse.Namespace) -> torch.device:
    """The device asked for, or the best one; each process of several takes a GPU of its own, or the CPU."""
    if options.no_cuda:
        return torch.device("cpu")
    best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    own = int(os.environ.get("LOCAL_RANK", 0))
    if "LOCAL_WORLD_SIZE" in os.environ and not options.device:
        enough = best.type == "cuda" and int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
        return torch.device("cuda", own) if enough else torch.device("cpu")
    try:
        device = torch.device(options.device or best)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", own)
        torch.empty(1, device=device)
    except Exception as error:  # each backend has its own
        raise ValueError(f"--device {options.device} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def beside(path: Path, ending: str) -> Path:
    """The file that belongs to a weights file: MNIST-MODEL.pth and .checkpoint make MNIST-MODEL.checkpoint."""
    return path.with_name(path.name.removesuffix(".pth") + ending)


def refuse_path(path: Path) -> None:
    """ValueError where no weights can be written, or where another file's would be overwritten one day."""
    if path.is_dir() or path.name.endswith((".checkpoint", ".final.pth", ".before.pth")):
        raise ValueError(f"--model-path {path} cannot name the weights file: choose NAME.pth")


def train_model(options: argparse.Namespace) -> None:
    """Train, save the best and the last epoch's weights, and print the test accuracy of both."""
    device = pick_device(options)
    train_set, val_set, mean, std = load_training(options.data, options.seed)
    test_set = load_split("test", options.data)  # missing files show before the training, not after
    torch.manual_seed(options.seed)
    model = NETWORKS[options.model]().to(device)
    run_epochs(options, model, train_set, val_set, mean, std, beside(options.model_path, ".checkpoint"))
    if is_first():
        keep_weights(options, train_set, val_set, test_set)


def run_epochs(options: argparse.Namespace, model: nn.Module, train_set: Split, val_set: Split, mean: float,
               std: float, checkpoint: Path | None = None) -> None:
    """Train as the options say, or resume, under bars that show how far it is, and log it where asked to."""
    quiet, resume = not is_first(), options.resume and checkpoint is not None
    bar = {"disable": quiet, "delay": 0.5}  # a training that cannot begin ends in one line, without bars
    with tqdm(total=options.epochs, desc="epochs", unit="epoch", **bar) as epoch_bar, \
            tqdm(desc="batches", unit="batch", leave=False, **bar) as batch_bar, logger(options, resume) as log:
        if checkpoint and is_first() and not resume:
            set_aside(checkpoint)
        for epoch in train(
                model, train_set, val_set, mean=mean, std=std, epochs=options.epochs, batch_size=options.batch_size,
                learning_rate=options.learning_rate, seed=options.seed, augment=options.augment,
                hardest=options.hardest, amp=options.amp, patience=options.early_stopping, checkpoint=checkpoint,
                resume=resume, batch_bar=None if quiet else batch_bar):
            epoch_bar.update()
            epoch_bar.set_postfix(loss=f"{epoch.train_loss:.4f}", val_loss=f"{epoch.val_loss:.4f}",
                                  val_accuracy=f"{epoch.val_accuracy:.2%}")
            if log:
                for name in ("train_loss", "val_loss", "val_accuracy"):
                    log.add_scalar(name, getattr(epoch, name), epoch.number)
        if log:
            log_pictures(log, NETWORKS[options.model](), train_set[0])


def set_aside(checkpoint: Path) -> None:
    """Keep the training before this one as .old.checkpoint, unless it never came through an epoch."""
    with contextlib.suppress(FileNotFoundError, WeightsError):  # none, or one that nobody can resume
        if read_checkpoint(checkpoint)["history"]:
            checkpoint.replace(checkpoint.with_suffix(".old.checkpoint"))


def keep_weights(options: argparse.Namespace, train_set: Split, val_set: Split, test_set: Split) -> None:
    """Save the weights of the best and of the last epoch, as the checkpoint has them, with their test accuracy."""
    stored = read_checkpoint(beside(options.model_path, ".checkpoint"))
    recipe, history = stored["recipe"], [Epoch(**epoch) for epoch in stored["history"]]
    mean, std = recipe.pop("mean"), recipe.pop("std")
    model = NETWORKS[recipe.pop("network")]()
    training = recipe | {"threads": torch.get_num_threads(), "torch": version("torch")}
    for path, weights, epoch in ((options.model_path, stored["best"], best_epoch(history)),
                                 (beside(options.model_path, ".final.pth"), stored["model"], history[-1])):
        model.load_state_dict(weights)
        _, accuracy = evaluate(model, *test_set, mean=mean, std=std)
        calibration = calibrate(model.eval(), train_set, val_set, mean=mean, std=std, seed=recipe["seed"])
        save_weights(path, model, mean=mean, std=std, **calibration, training=training | {"epoch": epoch.number},
                     val_accuracy=epoch.val_accuracy, test_accuracy=accuracy)
        print(f"test accuracy {accuracy:.2%} after epoch {epoch.number}, "
              f"{'the best in validation' if path == options.model_path else 'the last'}: {path}")


def is_new(options: argparse.Namespace) -> bool:
    """Whether --data is neither MNIST nor what the checkpoint has been trained on: then there is nothing to resume."""
    checkpoint = beside(options.model_path, ".checkpoint")
    if Path(options.data).resolve() == Path(MNIST).resolve():
        return False
    if not checkpoint.exists():
        return True
    recipe = read_checkpoint(checkpoint)["recipe"]
    with contextlib.suppress(ValueError):  # what cannot even be split has not been trained on
        train_set, val_set, *_ = load_training(options.data, recipe.get("seed"))
        return digest(*train_set, *val_set) != recipe.get("data")
    return True


def fine_tune(options: argparse.Namespace) -> None:
    """Teach the weights the drawings under --data while MNIST is rehearsed, and print what came of both."""
    if options.mode == "both":
        raise ValueError("fine-tuning prints its own test: choose --mode train")
    if rank_and_world()[1] > 1:
        raise ValueError("fine-tuning takes one process: start it without torchrun")
    device = pick_device(options)
    model, facts = load_weights(options.model_path)
    mean, std = facts["mean"], facts["std"]
    drawings, judged, name = load_drawings(options.data)
    mnist, val_set, *_ = load_training(MNIST, options.seed)
    train_set, repeats = mix(drawings, mnist)
    tests = {name: judged, "MNIST's test images": load_split("test", MNIST)}

    old, before = copy.deepcopy(model), [evaluate(model, *test, mean=mean, std=std)[1] for test in tests.values()]
    print(f"fine-tuning on {len(drawings[0]):,} drawings, each {repeats:,} times an epoch, "
          f"and {REHEARSED:,} of MNIST's training images", flush=True)
    run_epochs(options, model.to(device), train_set, val_set, mean, std)
    step_back(model, old)
    after = [evaluate(model, *test, mean=mean, std=std)[1] for test in tests.values()]

    recipe = {key: getattr(options, key) for key in (
        "epochs", "batch_size", "learning_rate", "seed", "augment", "hardest", "amp")}
    recipe |= {"threads": torch.get_num_threads(), "torch": version("torch"), "drawings": len(drawings[0]),
               "repeats": repeats, "rehearsed": REHEARSED, "step": STEP, "fine_tuned_from": facts.get("training")}
    some = np.random.default_rng(options.seed).permutation(len(train_set[1]))[:5_000]  # more calibrate no better
    calibration = calibrate(model.eval(), (train_set[0][some], train_set[1][some]), val_set, mean=mean, std=std,
                            seed=options.seed)
    previous = beside(options.model_path, ".before.pth")
    write_atomically(previous, options.model_path.read_bytes())
    save_weights(options.model_path, model, mean=mean, std=std, **calibration, training=recipe, test_accuracy=after[1])
    for (name, (_, labels)), was, now in zip(tests.items(), before, after):
        print(f"{name}: {was:.2%} of {len(labels):,} right before, {now:.2%} after")
    if after[0] < before[0]:
        print(f"the drawings are read worse than before: with more of them it helps; {previous} has the old weights")
    print(f"the weights: {options.model_path}; as they were before: {previous}")


def mix(drawings: Split, mnist: Split) -> tuple[Split, int]:
    """MNIST's images to rehearse and the drawings, and how often each of these is repeated for its share."""
    wanted = DRAWINGS_SHARE / (1 - DRAWINGS_SHARE) * REHEARSED / len(drawings[0])
    repeats = min(MOST_REPEATS, max(1, round(wanted)))
    images, labels = (np.concatenate([known[:REHEARSED], *[new] * repeats]) for known, new in zip(mnist, drawings))
    return (images, labels), repeats


@torch.no_grad()
def step_back(model: nn.Module, old: nn.Module) -> None:
    """Leave a network only as far from what it was as STEP says (as in Wortsman et al. 2022)."""
    for weights, before in zip(model.parameters(), old.parameters()):
        weights.lerp_(before.to(weights.device), 1 - STEP)


def load_drawings(folder: str) -> tuple[Split, Split, str]:
    """What to learn from, what to judge the learning by, and what to call that."""
    images, labels = load_some("train", folder)
    if Path(folder, "test").is_dir():
        return (images, labels), load_some("test", folder), "drawings in test/, not learned from"
    if len(images) < FEW_DRAWINGS:
        return (images, labels), (images, labels), "the drawings learned from, too few to hold some out"
    held = np.zeros(len(labels), bool)
    held[labels.argsort(kind="stable")[2::5]] = True  # a fifth of each digit's
    return (images[~held], labels[~held]), (images[held], labels[held]), "drawings held out"


def load_some(split: str, folder: str) -> Split:
    """As `load_split`, but ValueError where there are none."""
    images, labels = load_split(split, folder)
    if not len(images):
        raise ValueError(f"{Path(folder, split)} holds no drawings")
    return images, labels


@contextlib.contextmanager
def logger(options: argparse.Namespace, resume: bool) -> Iterator:
    """A TensorBoard writer, or None where none was asked for."""
    if not options.log_dir or not is_first():
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    # a resumed training logs its past again: what was there of it is hidden
    with SummaryWriter(options.log_dir, purge_step=1 if resume else None) as writer:
        yield writer


def log_pictures(log: "SummaryWriter", model: nn.Module, images: np.ndarray) -> None:
    """Add the network's graph and some training images to the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TensorBoard's graph still needs the old tracer
        log.add_graph(model, torch.zeros(1, 1, 28, 28))
        log.add_images("training images", images[:32, None])


def test_model(options: argparse.Namespace) -> None:
    """Print the accuracy and the per-class results, and save a picture of random predictions."""
    model, facts = load_weights(options.model_path)
    images, labels = load_split("test", options.data)
    scores = predict(model.to(pick_device(options)), images, mean=facts["mean"], std=facts["std"])
    probabilities = scores.softmax(dim=1).numpy()
    predicted = probabilities.argmax(axis=1)
    right = int((predicted == labels).sum())
    low, high = binomtest(right, len(labels)).proportion_ci(method="wilson")
    print(f"test accuracy {right / len(labels):.2%}: {len(labels) - right} of {len(labels):,} images wrong, "
          f"95 % interval {low:.2%} to {high:.2%}")
    classes = load_classes(options.data)
    print(classification_report(labels, predicted, labels=range(len(classes)), target_names=classes, digits=4,
                                zero_division=0))
    chosen = np.random.default_rng(options.seed).permutation(len(labels))[:min(options.test_samples, 500)]
    path = OUTPUT / "figures" / "test_predictions.png"
    draw_predictions(images[chosen], labels[chosen], probabilities[chosen], classes, path)
    print(f"{len(chosen)} random predictions: {path}")


def draw_predictions(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: list[str],
                     path: Path) -> None:
    """Save a picture of images (N, 28, 28), each with its predicted class, confidence and label."""
    columns = min(10, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.1 * columns + 0.4, 1.6 * rows), layout="constrained")
    for ax in (axes := figure.subplots(rows, columns, squeeze=False)).flat:
        ax.axis("off")
    for ax, image, label, scores in zip(axes.flat, images, labels, probabilities):
        answer = scores.argmax()
        ax.set_title(f"{classes[answer]} ({scores[answer]:.0%})\nlabel {classes[label]}", fontsize=10,
                     color="black" if answer == label else "#C85200")
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=255)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())


def predict_files(options: argparse.Namespace) -> int:
    """Print what each picture shows; 0 if all of them could be read, else 1."""
    predictor = MNISTPredictor(options.model_path, pick_device(options) if options.device else None)
    answers = []
    for file in options.files:
        try:
            whole = predictor.predict(file, options.ink)
            digits = predictor.read(file, options.ink) if whole.digit is None else [whole]
        except PictureError as error:
            message = str(error) if file in str(error) else f"{file}: {error}"
            answers.append({"file": file, "error": message})
            if not options.json:
                print(f"run_model.py: {message}", file=sys.stderr)
            continue
        answers.append({"file": file, **described(whole), "digits": [described(digit) for digit in digits]})
        if not options.json:
            print(line_for(file, digits or [whole]), flush=True)
    if options.json:
        print(json.dumps(answers, indent=2))
    return int(any("error" in answer for answer in answers))


def line_for(file: str, digits: list[Prediction]) -> str:
    """File, digits, the lowest confidence among them, and what speaks against them, with tabs between."""
    read = "".join("?" if digit.digit is None else str(digit.digit) for digit in digits)
    doubts = "; ".join(dict.fromkeys(digit.reason for digit in digits if not digit.trusted))
    remarks = [f"not trusted: {doubts}"] * bool(doubts) + list(digits[0].notes)
    return "\t".join([file, read, f"{min(digit.confidence for digit in digits):.1%}", *remarks])


def described(prediction: Prediction) -> dict:
    """A prediction in JSON's types, without the picture."""
    return {"digit": prediction.digit, "confidence": prediction.confidence,
            "probabilities": prediction.probabilities.tolist(), "trusted": prediction.trusted,
            "reason": prediction.reason, "notes": prediction.notes, "box": prediction.box}


def export_model(options: argparse.Namespace) -> None:
    """Write the network for another runtime, and print how the file is fed and how it compares."""
    if not options.format:
        raise ValueError(f"--format is missing: choose from {', '.join(FORMATS)}")
    path = options.output or beside(options.model_path, FORMATS[options.format].ending)
    report = export(options.model_path, path, options.format, options.data)
    print(f"{path}: {report.size:,} bytes; in: {report.metadata['input']}; out: {report.metadata['output']}")
    print(f"compared with the network on {report.images:,} test images: {report.different:,} digits differ, "
          f"probabilities by {report.deviation:.2g} at most; accuracy {report.accuracy:.2%}, "
          f"the network's {report.network_accuracy:.2%}")


if __name__ == "__main__":
    status = main()
    if dist.is_torchelastic_launched():
        sys.stdout.flush()
        os._exit(status)  # gloo's threads sometimes abort an interpreter's orderly end
    sys.exit(status)
