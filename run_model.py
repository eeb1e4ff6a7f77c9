"""Train, test, use and export the networks of this project from the command line.

    python run_model.py                             train, then test; replaces MNIST-MODEL.pth
    python run_model.py a.png b.jpg                 recognise the digits in pictures
    python run_model.py --mode train --recipe fast  99 % in a few seconds
    python run_model.py --mode train --resume       continue an interrupted training run
    python run_model.py --resume --data FOLDER      fine-tune the weights on your own drawings
    torchrun --nproc-per-node=2 run_model.py --mode train    train in two processes
    python run_model.py --mode export --format onnx export the network to other runtimes
    python run_model.py --mode train-detector       train what finds and reads the digits in pictures: one to two hours

Training writes NAME.pth (the weights of the best epoch in validation), NAME.final.pth (the last epoch) and
NAME.checkpoint (for --resume). The previous checkpoint becomes NAME.old.checkpoint.
With --data that the checkpoint was not trained on, --resume fine-tunes the weights on it, mixed with
MNIST's training images.
NAME.before.pth keeps the previous weights.
An export is written only after its own runtime has predicted the same digits for all test images
(onnx-int8: with nearly the same accuracy; onnx-detector: after it has found the same in 20 pictures).
"""

import argparse
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mnist.files import DETECTOR, EXPORT_ENDINGS, beside, checkpoint_path, write_atomically
from mnist.recipes import FINE_TUNING, RECIPES, STUDY

if TYPE_CHECKING:  # each mode imports what it needs, so that the others and --help need not wait for it
    import torch

    from mnist.checkpoint import Epoch
    from mnist.predict import Number

OUTPUT = Path(os.environ.get("MNIST_OUTPUT", "."))
MNIST = "dataset"
ONNX_DETECTOR = "onnx-detector"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage and line."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def seed_number(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**31 - 1}, not {text}")
    return int(text)


def positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return number


def fraction(text: str) -> float:
    if positive_float(text) > 1:
        raise argparse.ArgumentTypeError(f"must be at most 1, not {text}")
    return positive_float(text)


def parser() -> Parser:
    options = Parser(prog="run_model.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--mode", choices=["train", "test", "both", "predict", "export", "train-detector"],
        help="what to do; both is train and test (default: both, or predict where files are named)")
    add("files", nargs="*", metavar="FILE", help="pictures to read")
    add("--model-path", type=Path, default=OUTPUT / "MNIST-MODEL.pth", help="the weights file (default: %(default)s)")
    add("--detector", type=Path, default=DETECTOR, metavar="FILE",
        help="the digit detector's weights file (default: mnist/detector.pth)")
    add("--data", default=MNIST, help="a folder with train/ and test/ (default: %(default)s)")
    add("--seed", type=seed_number, default=0,
        help="seed of the initial weights, the order of the images and their augmentation (default: %(default)s)")
    add("--device", help="cpu, cuda, cuda:1, mps, ... (default: the best one there is)")
    add("--no-cuda", action="store_true", help="use the CPU even where there is a GPU")

    add = options.add_argument_group("training").add_argument
    add("--recipe", choices=sorted(RECIPES),
        help="settings to start from; the options below change them (default: notebook)")
    add("--model", choices=sorted({recipe.network for recipe in STUDY.values()}), dest="network",
        help="the network (notebook: MNIST_CNN)")
    add("--epochs", type=positive_int, help=f"passes over the training images (notebook: {RECIPES['notebook'].epochs}, "
                                     f"fine-tuning: {FINE_TUNING.epochs})")
    add("--batch-size", type=positive_int, help=f"images per step, over all processes "
                                         f"(notebook: {RECIPES['notebook'].batch_size})")
    add("--learning-rate", type=positive_float,
        help=f"the peak of the schedule (notebook: {RECIPES['notebook'].learning_rate}, "
             f"fine-tuning: {FINE_TUNING.learning_rate})")
    add("--augment", action=argparse.BooleanOptionalAction, help="warp the training images at random (notebook: yes)")
    add("--hard-examples", type=fraction, metavar="SHARE",
        help="hard example mining: from the second epoch on, train on this share of the images only, those with the "
             "highest loss (notebook: 1)")
    add("--amp", action=argparse.BooleanOptionalAction,
        help="compute in bfloat16 (default: if the hardware supports it natively)")
    add("--early-stopping", type=positive_int, metavar="N", help="stop if validation has not improved for N epochs")
    add("--resume", action="store_true",
        help="continue from the checkpoint and end with identical weights; with --data that it was not trained on, "
             "fine-tune the weights")
    add("--log-dir", type=Path, help="write TensorBoard's scalars, graph and images into this folder")

    add = options.add_argument_group("testing").add_argument
    add("--test-samples", type=positive_int, default=20, metavar="N",
        help="test images in the figure, at most 500 (default: 20)")

    add = options.add_argument_group("reading pictures").add_argument
    add("--json", action="store_true", help="print the numbers as JSON")

    add = options.add_argument_group("exporting").add_argument
    add("--format", choices=[*EXPORT_ENDINGS, ONNX_DETECTOR],
        help="what to export to; PyTorch has deprecated torchscript; onnx-detector is the digit detector")
    add("--output", type=Path, metavar="FILE", help="the export (default: beside the weights file)")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.mode = options.mode or ("predict" if options.files else "both")
    fine_tuning, trains = False, options.mode in ("train", "both", "train-detector")
    try:
        if bool(options.files) != (options.mode == "predict"):
            raise ValueError("--mode predict needs at least one FILE, and only --mode predict takes any")
        if options.mode == "predict":
            return predict_files(options)
        from mnist.distributed import from_first_process, is_first, pick_device, process_group

        exports = options.mode == "export"
        if options.mode == "train-detector":
            train_detector(options)
            return 0
        device = pick_device(options.device, cpu_only=options.no_cuda or exports)
        with process_group(device):
            if trains:
                fine_tuning = options.resume and from_first_process(lambda: needs_fine_tuning(options))
                (fine_tune if fine_tuning else train_model)(options, device)
            if options.mode in ("test", "both") and is_first() and not fine_tuning:
                test_model(options, device)
            if exports and is_first():
                export_model(options)
    except (OSError, ValueError, ArithmeticError) as error:
        print(f"run_model.py: {error_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        advice = "; --resume continues from the last finished epoch" if trains else ""
        advice = "; the weights are unchanged" if fine_tuning else advice
        print(f"run_model.py: interrupted{advice}", file=sys.stderr)
        return 130
    return 0


def error_message(error: Exception) -> str:
    """An exception's message, without the number of a system error."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename} cannot be used: {error.strerror.lower()}"
    return str(error)


def training_settings(options: argparse.Namespace, defaults: dict[str, Any]) -> dict[str, Any]:
    """The training settings: the recipe's, changed by the options that were given."""
    given = {name: getattr(options, name, None) for name in defaults}
    return defaults | {name: value for name, value in given.items() if value is not None}


def needs_fine_tuning(options: argparse.Namespace) -> bool:
    """Whether --data is neither MNIST nor what the checkpoint was trained on."""
    from mnist.runs import was_trained_on

    if Path(options.data).resolve() == Path(MNIST).resolve():
        return False
    return not was_trained_on(options.data, options.model_path)


def train_model(options: argparse.Namespace, device: "torch.device") -> None:
    """Train, save the best and the last epoch's weights, and print the test accuracy of both."""
    import torch

    from mnist.checkpoint import read_checkpoint
    from mnist.distributed import from_first_process, is_first
    from mnist.runs import TrainingRun, sole_training

    recipe = RECIPES[options.recipe or "notebook"]
    chosen = training_settings(options, recipe.settings())
    chosen["validate"] |= bool(options.early_stopping)
    run = TrainingRun(options.network or recipe.network, options.data, options.model_path, seed=options.seed,
                      device=device)
    if is_first():
        if options.resume:
            read_checkpoint(checkpoint_path(options.model_path))  # a missing one is the only thing to say then
        print(f"data: {data_in_words(options.data, run.data_digest)}", file=sys.stderr, flush=True)
    with sole_training(options.model_path):
        with ProgressBars(chosen["epochs"]) as bars:
            history = bars.follow(run.epochs(resume=options.resume, log_dir=options.log_dir,
                                             patience=options.early_stopping, batch_bar=bars.batches, **chosen))
        results = from_first_process(run.save)
    if is_first():
        print(f"trained in {sum(epoch.seconds for epoch in history):.1f} s: {len(history)} epochs, "
              f"{torch.get_num_threads()} threads")
        for saved in results:
            print(f"test accuracy {saved.test_accuracy:.2%} after epoch {saved.epoch}, "
                  f"{'the best in validation' if saved.is_best else 'the last'}: {saved.path}")


def train_detector(options: argparse.Namespace) -> None:
    """Train the digit detector, and save its weights."""
    from torch.distributed import is_torchelastic_launched

    from mnist.detector_training import EPOCHS, DetectorTraining
    from mnist.runs import sole_training

    if is_torchelastic_launched():
        raise ValueError("the digit detector is trained in one process: start it without torchrun")
    changed = [name for name in ("recipe", "network", "batch_size", "learning_rate", "augment", "hard_examples", "amp",
                                 "early_stopping", "log_dir") if getattr(options, name) is not None]
    if changed:
        raise ValueError(f"the digit detector has a recipe of its own: leave out --{changed[0].replace('_', '-')}")
    training = DetectorTraining(options.data, options.detector, seed=options.seed)
    epochs = options.epochs or EPOCHS
    with sole_training(options.detector):
        with ProgressBars(epochs) as bars:
            bars.follow(training.epochs(resume=options.resume, epochs=epochs, batch_bar=bars.batches))
            training.calibrate(bars.batches)
        training.save()
    print(f"the digit detector: {training.path}")


def data_in_words(folder: str, digest: str) -> str:
    """Whether a folder holds the published MNIST, or else the digest of its training data."""
    from mnist_utils import is_published

    if is_published(folder):
        return "the published files of MNIST"
    return f"SHA-256 {digest} of the training images and labels, not the published MNIST"


def fine_tune(options: argparse.Namespace, device: "torch.device") -> None:
    """Fine-tune the weights on the drawings in --data, and print how well both are read before and after."""
    from mnist.distributed import rank_and_world
    from mnist.finetune import REHEARSAL_IMAGES, FineTuning
    from mnist.runs import sole_training

    if rank_and_world()[1] > 1:
        raise ValueError("fine-tuning takes one process: start it without torchrun")
    if options.recipe or options.network:
        raise ValueError("fine-tuning has a recipe and a network of its own: leave out --recipe and --model")
    chosen = training_settings(options, FINE_TUNING.settings())
    run = FineTuning(options.model_path, options.data, MNIST, seed=options.seed, device=device)
    print(f"fine-tuning on {run.drawings:,} drawings, each {run.repeats:,} times an epoch, "
          f"and {REHEARSAL_IMAGES:,} of MNIST's training images", flush=True)
    with sole_training(options.model_path):
        with ProgressBars(chosen["epochs"]) as bars:
            bars.follow(run.epochs(log_dir=options.log_dir, batch_bar=bars.batches, patience=options.early_stopping,
                                   **chosen))
        results = run.save()
    for result in results:
        print(f"{result.name}: {result.before:.2%} of {result.count:,} right before, {result.after:.2%} after")
    if results[0].after < results[0].before:
        print(f"the accuracy on the drawings fell: label more drawings, or go back to the former weights, "
              f"{run.previous}")
    print(f"the weights: {options.model_path}; the former weights: {run.previous}")


# an epoch's results: their short names on a bar, and in words
RESULTS = {"loss": "training loss", "val_loss": "validation loss", "val_accuracy": "validation accuracy"}


class ProgressBars:
    """A training run's progress on stderr: two bars on a terminal, a line for each epoch elsewhere."""

    def __init__(self, epochs: int) -> None:
        from tqdm import tqdm

        from mnist.distributed import is_first

        self.prints = is_first()
        on_terminal = self.prints and sys.stderr.isatty()
        bar = {"disable": not on_terminal, "delay": 0.5}  # a training run that cannot begin ends without bars
        self.total = epochs
        self.epochs = tqdm(total=epochs, desc="epochs", unit="epoch", **bar)
        self.batches = tqdm(desc="batches", unit="batch", leave=False, **bar)

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *error: object) -> None:
        self.batches.close()
        self.epochs.close()

    def follow(self, epochs: "Iterable[Epoch]") -> "list[Epoch]":
        """Run through the epochs, show each, and return them."""
        history = []
        for epoch in epochs:
            history.append(epoch)
            results = {"loss": f"{epoch.train_loss:.4f}"}
            if math.isfinite(epoch.val_loss):
                results |= {"val_loss": f"{epoch.val_loss:.4f}", "val_accuracy": f"{epoch.val_accuracy:.2%}"}
            if not self.epochs.disable:
                self.epochs.update()
                self.epochs.set_postfix(results)
            elif self.prints:
                words = ", ".join(f"{RESULTS[name]} {value}" for name, value in results.items())
                print(f"epoch {epoch.number} of {self.total}: {words}, {epoch.seconds:.1f} s", file=sys.stderr,
                      flush=True)
        return history


def test_model(options: argparse.Namespace, device: "torch.device") -> None:
    """Print the accuracy and the per-class results, and save a figure of random predictions beside the weights."""
    import numpy as np
    from scipy.stats import binomtest
    from sklearn.metrics import classification_report

    from mnist.evaluate import predict
    from mnist.figures import draw_predictions
    from mnist.weights import load_weights
    from mnist_utils import load_classes, load_split

    model, metadata = load_weights(options.model_path)
    images, labels = load_split("test", options.data)
    logits = predict(model.to(device), images, mean=metadata["mean"], std=metadata["std"])
    probabilities = logits.softmax(dim=1).numpy()
    predicted = probabilities.argmax(axis=1)
    right = int((predicted == labels).sum())
    low, high = binomtest(right, len(labels)).proportion_ci(method="wilson")
    print(f"test accuracy {right / len(labels):.2%}: {len(labels) - right} of {len(labels):,} images wrong, "
          f"95 % interval {low:.2%} to {high:.2%}")
    classes = load_classes(options.data)
    print(classification_report(labels, predicted, labels=range(len(classes)), target_names=classes, digits=4,
                                zero_division=0))
    chosen = np.random.default_rng(options.seed).permutation(len(labels))[:min(options.test_samples, 500)]
    path = options.model_path.parent / "figures" / "test_predictions.png"
    figure, png = draw_predictions(images[chosen], labels[chosen], probabilities[chosen], classes), io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    write_atomically(path, png.getvalue())
    print(f"{len(chosen)} random predictions: {path}")


def predict_files(options: argparse.Namespace) -> int:
    """Print the numbers in each picture; returns 0 if all pictures could be read, else 1."""
    from mnist.distributed import pick_device
    from mnist.picture import PictureError
    from mnist.predict import MNISTPredictor

    device = pick_device(options.device, options.no_cuda) if options.device else "cpu"
    predictor = MNISTPredictor(options.model_path, device, options.detector)
    answers: list[dict[str, Any]] = []
    for file in options.files:
        try:
            numbers = predictor.read_numbers(file)
        except PictureError as error:
            message = str(error) if file in str(error) else f"{file}: {error}"
            answers.append({"file": file, "error": message})
            if not options.json:
                print(f"run_model.py: {message}", file=sys.stderr)
            continue
        answers.append({"file": file, "numbers": [as_json(number) for number in numbers]})
        if not options.json:
            for line in [as_line(file, number) for number in numbers] or [f"{file}\t\t\tno digit was found"]:
                print(line, flush=True)
    if options.json:
        print(json.dumps(answers, indent=2))
    return int(any("error" in answer for answer in answers))


def as_line(file: str, number: "Number") -> str:
    """File, digits, confidence, the reason not to trust the number, and the notes, separated by tabs."""
    doubt = [f"not trusted: {number.reason}"] if number.reason else []
    return "\t".join([file, number.text, f"{number.confidence:.1%}", *doubt, *number.notes])


def as_json(number: "Number") -> dict[str, Any]:
    """A number in JSON's types, without the pictures of its digits."""
    digits = [{"digit": one.digit, "confidence": one.confidence, "probabilities": one.probabilities.tolist(),
               "trusted": one.trusted, "reason": one.reason, "box": one.box} for one in number.digits]
    return {"text": number.text, "confidence": number.confidence, "trusted": number.trusted, "reason": number.reason,
            "notes": number.notes, "box": number.box, "corners": number.corners, "digits": digits,
            "digest": number.digest}


def export_model(options: argparse.Namespace) -> None:
    """Export the network, and print what the file takes and returns, and how it compares with the network."""
    from mnist.export import export, export_detector

    if not options.format:
        raise ValueError(f"--format is missing: choose from {', '.join([*EXPORT_ENDINGS, ONNX_DETECTOR])}")
    if options.format == ONNX_DETECTOR:
        path = options.output or beside(options.detector, ".onnx")
        compared = export_detector(path, options.data, options.detector)
        print(f"{path}: {compared.size:,} bytes; compared with the detector on {compared.pictures} pictures: "
              f"probabilities differ by at most {compared.deviation:.2g}")
        return
    path = options.output or beside(options.model_path, EXPORT_ENDINGS[options.format])
    report = export(options.model_path, path, options.format, options.data)
    print(f"{path}: {report.size:,} bytes; in: {report.metadata['input']}; out: {report.metadata['output']}")
    if not report.images:
        print("not compared with the network, because there is no Chromium or Chrome on this machine: install one, and "
              "export again")
        return
    print(f"compared with the network on {report.images:,} test images: {report.different:,} digits differ, "
          f"probabilities differ by at most {report.deviation:.2g}; accuracy {report.accuracy:.2%}, "
          f"the network's {report.network_accuracy:.2%}")


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *rest, **more: f"run_model.py: {message}\n"  # without lines of code
    status = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # one of several processes
        sys.stdout.flush()
        os._exit(status)  # gloo's threads sometimes abort an interpreter's orderly end
    sys.exit(status)
