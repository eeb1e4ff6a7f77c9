"""A training is never lost: whatever stops it, it resumes to the very weights of one that was never stopped."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch

from mnist.checkpoint import read_checkpoint
from mnist.networks import MNIST_CNN
from mnist.train import train
from mnist.weights import WeightsError, checksums, pack
from mnist_utils import load_split
from mutation import mutated

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")
TRAIN, VALIDATION = (IMAGES[:300], LABELS[:300]), (IMAGES[300:400], LABELS[300:400])
RECIPE = {"mean": 0.13, "std": 0.31, "epochs": 80, "batch_size": 50, "learning_rate": 4e-3, "seed": 3}


class Noisy(MNIST_CNN):
    """With dropout, whose random state must be kept as well."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("dropout", torch.nn.Dropout(0.1))


def run(checkpoint: Path | None = None, resume: bool = False, **options):
    torch.manual_seed(99 if resume else 5)  # a resumed run owes nothing to how its process began
    model = Noisy()
    return model, train(model, TRAIN, VALIDATION, **RECIPE | {"checkpoint": checkpoint, "resume": resume} | options)


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def outcome(history) -> list[str]:
    """As text, in which NaN equals NaN, and equal floats alone are equal."""
    return [repr((epoch.number, epoch.train_loss, epoch.val_loss, epoch.val_accuracy)) for epoch in history]


def process(checkpoint: Path, resume: bool, slow_disk: bool, done: Path, epochs: int) -> None:
    """What is killed: a training that reports its weights and history once it is through."""
    torch.set_num_threads(1)
    if slow_disk:  # so that a kill comes inside the write
        fsync = os.fsync
        os.fsync = lambda descriptor: (time.sleep(0.05), fsync(descriptor))
    model, trained = run(checkpoint, resume, epochs=epochs)
    history = list(trained)
    torch.save(weights_of(model), done / "weights")
    (done / "history").write_text(json.dumps(outcome(history)))


def kill_again_and_again(folder: Path, count: int, epochs: int) -> int:
    """Kill a training that often, at random moments, and resume it; it must end as if it had never been stopped.

    Returns how many kills came inside the write of a checkpoint.
    """
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    if os.name != "nt":
        # else each of the processes would import them
        context.set_forkserver_preload(["mnist.train", "mnist_utils", "pytest", "torch._dynamo"])
    never_stopped, stopped = folder / "whole", folder / "killed"
    for part in (never_stopped, stopped):
        part.mkdir()
    whole = context.Process(target=process, args=(never_stopped / "checkpoint", False, False, never_stopped, epochs))
    whole.start()
    whole.join(120)

    checkpoint, chance, kills, inside = stopped / "checkpoint", random.Random(0), 0, 0
    while not (stopped / "history").exists():
        child = context.Process(target=process, args=(checkpoint, checkpoint.exists(), kills % 2 == 0, stopped, epochs))
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        child.start()
        if kills < count:
            while child.is_alive() and (checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0) == before:
                time.sleep(0.002)  # one epoch further at least, then at any moment, or every other time within a write
            while child.is_alive() and kills % 2 == 0 and not list(stopped.glob(".checkpoint.*.tmp")):
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.03))
            assert child.is_alive()
            os.kill(child.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
            kills += 1
        child.join(60)
        inside += len(list(stopped.glob(".checkpoint.*.tmp")))
        for left in stopped.glob(".checkpoint.*.tmp"):
            left.unlink()
        read_checkpoint(checkpoint)  # whole after every kill
    assert kills == count
    assert torch.equal(torch.load(stopped / "weights"), torch.load(never_stopped / "weights"))
    assert (stopped / "history").read_text() == (never_stopped / "history").read_text()
    return inside


def test_killed_twenty_times_it_ends_with_the_same_weights(tmp_path):
    assert kill_again_and_again(tmp_path, 20, RECIPE["epochs"]) >= 8


def test_a_clock_that_is_set_back_does_not_matter(tmp_path):
    whole, epochs = run(epochs=4)
    list(epochs)
    next(run(tmp_path / "checkpoint", epochs=4)[1])
    left = tmp_path / ".checkpoint.0.tmp"  # of a killed writer
    left.write_bytes(b"half")
    for path in (tmp_path / "checkpoint", left):
        os.utime(path, (time.time() + 86_400,) * 2)  # what it was when the clock was a day ahead
    resumed, epochs = run(tmp_path / "checkpoint", resume=True, epochs=4)
    list(epochs)
    assert torch.equal(weights_of(resumed), weights_of(whole))


@pytest.mark.parametrize("options", [
    {"hard_examples": 0.4},
    {"muon": 0.1, "label_smoothing": 0.1, "proxy": 0.5, "hard_examples": 0.4, "validate": False}])
def test_a_resumed_run_repeats_its_past_and_equals_the_whole_one(options, tmp_path):
    options = options | {"epochs": 6}
    whole, epochs = run(**options)
    history = outcome(epochs)
    _, epochs = run(tmp_path / "checkpoint", **options)
    assert outcome(itertools.islice(epochs, 4)) == history[:4]
    resumed, epochs = run(tmp_path / "checkpoint", resume=True, **options)
    assert outcome(epochs) == history
    assert torch.equal(weights_of(resumed), weights_of(whole))


def test_the_best_epoch_s_weights_are_kept(tmp_path):
    model, epochs = run(tmp_path / "checkpoint", epochs=6)
    kept = []
    for epoch in epochs:
        kept.append((epoch.val_accuracy, -epoch.val_loss, weights_of(model).clone()))
    best = max(kept, key=lambda entry: entry[:2])[2]
    stored = read_checkpoint(tmp_path / "checkpoint")["best"]
    assert torch.equal(torch.cat([stored[name].flatten() for name, _ in model.named_parameters()]), best)


def test_a_finished_training_resumes_to_its_end_at_once(tmp_path):
    model, epochs = run(tmp_path / "checkpoint", epochs=3)
    history = outcome(epochs)
    again, epochs = run(tmp_path / "checkpoint", resume=True, epochs=3)
    assert outcome(epochs) == history
    assert torch.equal(weights_of(again), weights_of(model))


@pytest.mark.parametrize("change, fault", [
    ({"learning_rate": 0.1}, "learning_rate was 0.004 and is now 0.1"),
    ({"seed": 4}, "seed was 3 and is now 4"),
    ({"epochs": 26}, "epochs was 80 and is now 26"),
])
def test_a_checkpoint_of_another_training_is_refused(change, fault, tmp_path):
    next(run(tmp_path / "checkpoint")[1])
    before = (tmp_path / "checkpoint").read_bytes()
    with pytest.raises(WeightsError, match=f"belongs to another training run \\({fault}"):
        next(run(tmp_path / "checkpoint", resume=True, **change)[1])
    assert (tmp_path / "checkpoint").read_bytes() == before


def test_a_former_checkpoint_still_resumes(tmp_path):
    options = {"epochs": 4, "hard_examples": 0.4}
    whole, epochs = run(**options)
    history = outcome(epochs)
    _, epochs = run(tmp_path / "checkpoint", **options)
    next(epochs)
    content = read_checkpoint(tmp_path / "checkpoint")
    content["recipe"]["hardest"] = content["recipe"].pop("hard_examples")
    for name in ("muon", "label_smoothing", "proxy"):  # which former checkpoints lack as well
        del content["recipe"][name]
    for epoch in content["history"]:
        del epoch["learning_rates"]
    torch.save(content, tmp_path / "checkpoint")
    resumed, epochs = run(tmp_path / "checkpoint", resume=True, **options)
    with pytest.warns(UserWarning, match="saved by an older version, without checksums"):
        assert outcome(epochs) == history
    assert torch.equal(weights_of(resumed), weights_of(whole))


def test_no_mutated_checkpoint_comes_back_as_something_else(tmp_path):
    path = tmp_path / "checkpoint"
    next(run(path)[1])
    data, expected, rng, refused = path.read_bytes(), checksums(read_checkpoint(path)), random.Random(0), 0
    for _ in range(400):
        path.write_bytes(mutated(data, rng))
        try:
            with warnings.catch_warnings(action="error"):
                content = read_checkpoint(path)
        except WeightsError:
            refused += 1
            continue
        assert checksums(content) == expected
    assert refused > 200


def test_other_data_is_another_training(tmp_path):
    next(run(tmp_path / "checkpoint")[1])
    with pytest.raises(WeightsError, match="data was"):
        next(train(Noisy(), (TRAIN[0][::-1].copy(), TRAIN[1]), VALIDATION,
                   **RECIPE | {"checkpoint": tmp_path / "checkpoint", "resume": True}))


def test_a_missing_truncated_or_foreign_checkpoint_is_an_error(tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(FileNotFoundError, match="no training to resume"):
        next(run(path, resume=True)[1])
    next(run(path)[1])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated, damaged"):
        next(run(path, resume=True)[1])
    path.write_bytes(pack({"weights": torch.zeros(3)}))
    with pytest.raises(WeightsError, match="not a checkpoint"):
        next(run(path, resume=True)[1])


@pytest.mark.parametrize("key, value", [
    ("recipe", None), ("history", [{"number": 1}]), ("model", {}), ("optimizer", {}), ("schedule", 3),
    ("losses", torch.zeros(7)), ("generator", torch.zeros(2)),
])
def test_a_checkpoint_whose_parts_do_not_fit_is_an_error(key, value, tmp_path):
    next(run(tmp_path / "checkpoint")[1])
    (tmp_path / "checkpoint").write_bytes(pack(read_checkpoint(tmp_path / "checkpoint") | {key: value}))
    with pytest.raises(WeightsError, match=r"do not fit together|not a checkpoint"):
        next(run(tmp_path / "checkpoint", resume=True)[1])


def test_a_full_disk_stops_with_an_error_and_the_last_checkpoint_stays(tmp_path):
    resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX's")
    _, epochs = run(tmp_path / "checkpoint")
    next(epochs)
    before, limits = (tmp_path / "checkpoint").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large.*/checkpoint'$"):  # not the temporary file's name
            next(epochs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "checkpoint").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
