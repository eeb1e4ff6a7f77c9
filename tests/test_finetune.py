"""Fine-tuning: the network learns a person's drawings, keeps MNIST, and nothing that was there is lost."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import run_model
from mnist.augment import warp
from mnist.evaluate import evaluate
from mnist.finetune import load_drawings
from mnist.networks import MNIST_CNN
from mnist.train import train
from mnist.weights import load_weights
from mnist_utils import FILES, Split, load_split, write_idx

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")
WEIGHTS = (ROOT / "MNIST-MODEL.pth").read_bytes()


def leaning(part: slice) -> Split:
    """Some of MNIST's test digits, as a hand would write them that turns and leans far over."""
    images = torch.from_numpy(IMAGES[part])
    amounts = torch.tensor([[0.4, 0, 0, -0.7, 0, 0]]).expand(len(images), 6)
    return warp(images, amounts).round().byte().numpy(), LABELS[part]


def export(folder: Path, **splits: Split) -> Path:
    for split, arrays in splits.items():
        for name, array in zip(FILES[split], arrays):
            write_idx(folder / name, array)
    return folder


def fine_tune(folder: Path, drawings: Path, *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of the command that is proved here, for the weights in that folder."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        status = run_model.main(["--resume", "--data", str(drawings),
                                 "--model-path", str(folder / "mine.pth"), *arguments])
    return status, out.getvalue(), errors.getvalue()


def start(folder: Path, drawings: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *launcher, "run_model.py", "--mode", "train", "--resume", "--data",
                             drawings, "--model-path", folder / "mine.pth", *arguments],
                            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where trained weights lie that have not seen a drawing."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mine.pth").write_bytes(WEIGHTS)
    return tmp_path / "weights"


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("drawings"), train=leaning(slice(0, 24)), test=leaning(slice(5000, 5500)))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, drawings) -> tuple[Path, bytes, str, str]:
    """The folder after a fine-tuning beside an earlier training's checkpoint; that checkpoint, output and errors."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "mine.pth").write_bytes(WEIGHTS)
    part = IMAGES[:100], LABELS[:100]
    next(train(MNIST_CNN(), part, part, mean=0.13, std=0.31, epochs=2, batch_size=50, learning_rate=1e-3, seed=0,
               checkpoint=folder / "mine.checkpoint"))
    checkpoint = (folder / "mine.checkpoint").read_bytes()
    status, out, errors = fine_tune(folder, drawings, "--epochs", "1")
    assert status == 0, errors
    return folder, checkpoint, out, errors


def accuracy(path: Path, split: Split) -> float:
    model, metadata = load_weights(path)
    return evaluate(model, *split, mean=metadata["mean"], std=metadata["std"])[1]


def test_another_hand_is_learned_and_mnist_is_kept_as_it_is_printed(tuned, drawings):
    folder, _, out, errors = tuned
    (hand_before, mnist_before), (hand_after, mnist_after) = (
        [accuracy(folder / name, split) for split in (load_split("test", drawings), (IMAGES, LABELS))]
        for name in ("mine.before.pth", "mine.pth"))
    assert hand_after > hand_before + 0.03 and mnist_after > mnist_before - 0.003
    assert out.splitlines() == [
        "fine-tuning on 24 drawings, each 50 times an epoch, and 30,000 of MNIST's training images",
        f"drawings not trained on: {hand_before:.2%} of 500 right before, {hand_after:.2%} after",
        f"MNIST's test images: {mnist_before:.2%} of 10,000 right before, {mnist_after:.2%} after",
        f"the weights: {folder / 'mine.pth'}; the former weights: {folder / 'mine.before.pth'}"]
    assert re.fullmatch(r"epoch 1 of 1: training loss .+\n", errors)


def test_what_was_there_is_kept(tuned):
    folder, checkpoint, *_ = tuned
    assert (folder / "mine.before.pth").read_bytes() == WEIGHTS
    assert (folder / "mine.checkpoint").read_bytes() == checkpoint
    assert {path.name for path in folder.iterdir()} == {"mine.pth", "mine.before.pth", "mine.checkpoint"}


def test_the_weights_say_how_they_were_fine_tuned(tuned):
    folder, *_ = tuned
    (_, before), (_, after) = (load_weights(folder / name) for name in ("mine.before.pth", "mine.pth"))
    assert after["training"].items() >= {"drawings": 24, "repeats": 50, "rehearsed": 30_000, "epochs": 1, "seed": 0,
                                         "learning_rate": 1e-3, "fine_tuned_from": before["training"]}.items()
    assert (after["mean"], after["std"]) == (before["mean"], before["std"])
    assert after["temperature"] != before["temperature"]


def test_again_it_gives_the_same_bytes_and_says_what_too_few_drawings_are_judged_by(tuned, folder, tmp_path, drawings):
    """A test/ only measures: without one, the weights are the same."""
    export(tmp_path / "few", train=load_split("train", drawings))
    status, out, errors = fine_tune(folder, tmp_path / "few", "--epochs", "1")
    assert status == 0, errors
    assert re.search(r"\nthe drawings trained on, too few to hold some out: \S+% of 24 right before, ", out)
    assert (folder / "mine.pth").read_bytes() == (tuned[0] / "mine.pth").read_bytes()


def test_of_enough_drawings_a_fifth_of_each_digit_s_is_held_out(tmp_path):
    split = IMAGES[:200], LABELS[:200]
    learned, held, _ = load_drawings(export(tmp_path, train=split))
    assert (len(learned[0]), len(held[0])) == (160, 40)
    assert (np.abs(np.bincount(held[1], minlength=10) - np.bincount(split[1]) / 5) < 1).all()
    assert (np.sort(np.concatenate([learned[0], held[0]]), 0) == np.sort(split[0], 0)).all()


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_leaves_the_weights_as_they_were(folder, drawings):
    process = start(folder, drawings, "--epochs", "100")
    assert any("epoch 1 of 100" in line for line in process.stderr)  # it is learning
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].endswith("run_model.py: interrupted; the weights are unchanged\n")
    assert process.returncode == 130
    assert [path.name for path in folder.iterdir()] == ["mine.pth"] and (folder / "mine.pth").read_bytes() == WEIGHTS


def test_several_processes_are_refused(folder, drawings):
    process = start(folder, drawings, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"))
    assert "fine-tuning takes one process: start it without torchrun" in process.communicate(timeout=60)[1]
    assert process.returncode != 0 and (folder / "mine.pth").read_bytes() == WEIGHTS


NOTHING = np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8)


@pytest.mark.parametrize("splits, arguments, fault", [
    ({"train": NOTHING}, [], "train holds no drawings"),
    ({"train": (IMAGES[:3], LABELS[:3]), "test": NOTHING}, [], "test holds no drawings"),
    ({"train": (IMAGES[:3], LABELS[:3] + 10)}, [], "has the label 17 at index 0: labels run from 0 to 9"),
    ({"train": (IMAGES[:3, :20], LABELS[:3])}, [], "not uint8 images of 28 x 28 pixels"),
    ({"train": (IMAGES[:3], LABELS[:2])}, [], "holds 3 images, but"),
    ({}, [], "there is no folder"),
    ({"train": (IMAGES[:3], LABELS[:3])}, ["--model-path", "nowhere/mine.pth"], "nowhere/mine.pth is missing"),
    ({"train": (IMAGES[:3], LABELS[:3])}, ["--model-path", "my.before.pth"], "cannot be a weights file's name"),
    ({"train": (IMAGES[:3], LABELS[:3])}, ["--recipe", "fast"], "leave out --recipe and --model"),
    ({"train": (IMAGES[:3], LABELS[:3])}, ["--device", "quantum"], "the device quantum cannot be used here"),
])
def test_what_cannot_be_learned_from_is_one_line_and_changes_nothing(splits, arguments, fault, folder, tmp_path):
    export(tmp_path / "faulty", **splits)
    status, out, errors = fine_tune(folder, tmp_path / "faulty", *arguments)
    assert (status, out) == (2, "")
    assert [fault in line for line in errors.splitlines()] == [True]
    assert [path.name for path in folder.iterdir()] == ["mine.pth"] and (folder / "mine.pth").read_bytes() == WEIGHTS
