"""The command line, as its users type it, in one process and in several."""

import ast
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import run_model
from mnist.checkpoint import read_checkpoint
from mnist.evaluate import evaluate
from mnist.export import FORMATS
from mnist.networks import NETWORKS
from mnist.recipes import RECIPES
from mnist.study import FASHION
from mnist.weights import load_weights
from mnist_utils import FILES, digest, load_split, write_idx

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small data set: 3,000 images to train on, 1,000 to test on."""
    folder = tmp_path_factory.mktemp("data")
    for split, part in (("train", slice(0, 3000)), ("test", slice(5000, 6000))):
        for name, array in zip(FILES[split], (IMAGES[part], LABELS[part])):
            write_idx(folder / name, array)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the weights and figures go, in this process and in those that it starts."""
    monkeypatch.setattr(run_model, "OUTPUT", tmp_path)
    monkeypatch.setenv("MNIST_OUTPUT", str(tmp_path))
    return tmp_path


def weights_of(path: Path) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in load_weights(path)[0].parameters()])


def start(*arguments, launcher=(sys.executable,), terminal: int = subprocess.PIPE) -> subprocess.Popen:
    """The command line in a process of its own; its errors and its progress go to `terminal`, if there is one."""
    return subprocess.Popen([*launcher, "run_model.py", *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=terminal)


def torchrun(processes: int) -> tuple:
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")


# one process

def test_train_and_test_leave_weights_that_state_what_is_printed(data, folder, capsys):
    assert run_model.main(["--data", str(data), "--epochs", "3", "--test-samples", "7"]) == 0
    printed = capsys.readouterr()
    first, *epochs = printed.err.splitlines()
    digest_of_data = digest(*load_split("train", data))
    assert first == f"data: SHA-256 {digest_of_data} of the training images and labels, not the published MNIST"
    assert len(epochs) == 3  # no terminal here: plain lines, as a log file wants them
    for number, line in enumerate(epochs, 1):
        assert re.fullmatch(rf"epoch {number} of 3: training loss \S+, validation loss \S+, validation accuracy .+%, "
                            r".+ s", line)
    _, metadata = load_weights(folder / "MNIST-MODEL.pth")
    assert metadata["test_accuracy"] > 0.9 and metadata["training"]["epochs"] == 3
    assert metadata["training"]["data"] == digest_of_data
    lines = printed.out.splitlines()
    assert re.fullmatch(rf"trained in .+ s: 3 epochs, {torch.get_num_threads()} threads", lines[0])
    assert lines[1].startswith(f"test accuracy {metadata['test_accuracy']:.2%} after epoch ")
    assert lines[3].startswith(f"test accuracy {metadata['test_accuracy']:.2%}: ")
    assert re.search(r"accuracy +" + f"{metadata['test_accuracy']:.4f}", printed.out)
    picture = Image.open(folder / "figures" / "test_predictions.png")
    assert picture.width > 1000 and picture.height > 200
    assert {path.name for path in folder.iterdir()} == {
        "MNIST-MODEL.pth", "MNIST-MODEL.final.pth", "MNIST-MODEL.checkpoint", "figures"}
    assert load_weights(folder / "MNIST-MODEL.final.pth")[1]["training"]["epoch"] == 3


def test_classes_have_their_names(data, folder, tmp_path_factory, capsys):
    named = tmp_path_factory.mktemp("named")
    for split in FILES:  # all in one folder
        for name in FILES[split]:
            shutil.copy(data / name, named / Path(name).name)
    (named / "classes.txt").write_text("\n".join(f"class {letter}" for letter in "ABCDEFGHIJ"))
    assert run_model.main(["--data", str(named), "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(f"class {letter} " in printed for letter in "ABCDEFGHIJ")


@pytest.mark.skipif(not FASHION.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_learned_as_it_comes(folder):
    assert run_model.main(["--data", str(FASHION), "--epochs", "1", "--mode", "train", "--model", "MNIST_CNN"]) == 0
    _, metadata = load_weights(folder / "MNIST-MODEL.pth")
    assert metadata["test_accuracy"] > 0.75 and metadata["mean"] == pytest.approx(0.286, abs=0.001)


def test_the_best_epoch_is_the_one_with_the_highest_validation_accuracy(data, folder):
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "4", "--learning-rate", "0.03"]) == 0
    history = read_checkpoint(folder / "MNIST-MODEL.checkpoint")["history"]
    model, metadata = load_weights(folder / "MNIST-MODEL.pth")
    assert metadata["val_accuracy"] == max(epoch["val_accuracy"] for epoch in history)
    images, labels = load_split("train", data)
    _, val_images, _, val_labels = train_test_split(images, labels, test_size=500, stratify=labels, random_state=0)
    _, accuracy = evaluate(model, val_images, val_labels, mean=metadata["mean"], std=metadata["std"])
    assert accuracy == pytest.approx(metadata["val_accuracy"])


def test_every_switch_reaches_the_training(data, folder):
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "2", "--batch-size", "100",
                           "--learning-rate", "0.001", "--seed", "5", "--no-augment", "--no-amp", "--no-cuda",
                           "--hard-examples", "0.5", "--early-stopping", "1", "--model", "MNIST_CNN",
                           "--model-path", str(folder / "new" / "mine.pth")]) == 0
    recipe = read_checkpoint(folder / "new" / "mine.checkpoint")["recipe"]
    assert recipe | {"mean": 0, "std": 0, "data": 0} == {
        "network": "MNIST_CNN", "epochs": 2, "batch_size": 100, "learning_rate": 0.001, "seed": 5, "augment": False,
        "muon": None, "label_smoothing": 0.0, "proxy": 1.0, "hard_examples": 0.5, "amp": False, "mean": 0, "std": 0,
        "data": 0}


def test_the_defaults_are_the_notebook_s():
    notebook = nbformat.read(ROOT / "workspace.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    settings = {node.targets[0].id: node.value.value for node in ast.parse(cell.source).body
                if isinstance(node.value, ast.Constant)}
    defaults = run_model.parser().parse_args([])
    recipe = RECIPES[defaults.recipe or "notebook"]
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, defaults.seed, defaults.data) == (
        settings["EPOCHS"], settings["BATCH_SIZE"], settings["LEARNING_RATE"], settings["SEED"], settings["DATASET"])


def test_a_recipe_sets_what_no_option_does(data, folder, capfd):
    assert run_model.main(["--mode", "train", "--data", str(data), "--recipe", "fast", "--epochs", "10"]) == 0
    recipe, expected = read_checkpoint(folder / "MNIST-MODEL.checkpoint")["recipe"], RECIPES["fast"].settings()
    del expected["validate"]  # a checkpoint may be resumed with or without
    assert recipe.items() >= (expected | {"epochs": 10, "amp": recipe["amp"]}).items()
    printed = capfd.readouterr()
    assert "validation" not in printed.err and printed.out.count("after epoch 10, the last: ") == 2
    _, metadata = load_weights(folder / "MNIST-MODEL.pth")
    assert metadata["val_accuracy"] > 0.5
    assert run_model.main(["--mode", "train", "--data", str(data), "--recipe", "fast", "--epochs", "10",
                           "--early-stopping", "1"]) == 0
    assert "validation accuracy" in capfd.readouterr().err  # which stopping early needs


@pytest.mark.parametrize("arguments, fault", [
    (["--epochs", "0"], "--epochs: must be a whole number of at least 1, not 0"),
    (["--epochs", "many"], "--epochs: must be a whole number of at least 1, not many"),
    (["--batch-size", "-4"], "--batch-size"),
    (["--learning-rate", "0"], "--learning-rate: must be a number above 0, not 0"),
    (["--learning-rate", "nan"], "--learning-rate"),
    (["--hard-examples", "2"], "--hard-examples: must be at most 1, not 2"),
    (["--seed", "-1"], "--seed: must be a whole number from 0"),
    (["--model-path", "tests"], "tests cannot be a weights file's name"),
    (["--mode", "guess"], "--mode: invalid choice"),
    (["--model", "ResNet"], "--model: invalid choice"),
    (["--device", "quantum"], "the device quantum cannot be used here"),
    (["--data", "nowhere"], "there is no folder nowhere"),
    (["--resume"], "there is no training to resume"),
    (["--resume", "--model-path", "nowhere/one.pth"], "there is no training to resume"),
    (["--mode", "test"], "is missing: run workspace.ipynb"),
    (["--unknown"], "unrecognized arguments: --unknown"),
])
def test_bad_values_end_in_one_line_and_status_2(arguments, fault, folder, capfd):
    try:
        status = run_model.main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert [fault in line for line in capfd.readouterr().err.splitlines()] == [True]
    assert list(folder.iterdir()) == [] and not Path("nowhere").exists()


def test_a_training_that_fails_leaves_the_weights_as_they_were(data, folder, capsys):
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "1"]) == 0
    before = (folder / "MNIST-MODEL.pth").read_bytes()
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "1", "--learning-rate", "1e20"]) == 2
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "1", "--batch-size", "3000",
                           "--learning-rate", "1e20"]) == 2  # its only loss is still finite
    assert capsys.readouterr().err.count("try a learning rate below 1e+20") == 2
    assert (folder / "MNIST-MODEL.pth").read_bytes() == before
    assert len(read_checkpoint(folder / "MNIST-MODEL.old.checkpoint")["history"]) == 1


def test_a_training_that_learns_nothing_says_so_and_leaves_the_weights_as_they_were(data, folder, capsys):
    (folder / "MNIST-MODEL.pth").write_bytes(b"former weights")
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "1", "--learning-rate", "100"]) == 2
    assert re.search(r"the network learned nothing: its validation accuracy of .+% is not above .+%, the share of the "
                     r"most frequent class; no weights were saved: train for more epochs, or with a learning rate "
                     r"below 100\n", capsys.readouterr().err)
    assert (folder / "MNIST-MODEL.pth").read_bytes() == b"former weights"


def test_a_log_that_cannot_be_written_leaves_the_checkpoint_where_it_is(data, folder):
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "1"]) == 0
    before = (folder / "MNIST-MODEL.checkpoint").read_bytes()
    (folder / "log").write_text("a file where a folder should be")
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "1", "--log-dir",
                           str(folder / "log")]) == 2
    assert (folder / "MNIST-MODEL.checkpoint").read_bytes() == before
    assert not (folder / "MNIST-MODEL.old.checkpoint").exists()


def test_the_figure_of_a_test_is_beside_the_weights(data, folder, tmp_path_factory, capsys):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(ROOT / "MNIST-MODEL.pth", elsewhere)
    path = str(elsewhere / "MNIST-MODEL.pth")
    assert run_model.main(["--mode", "test", "--data", str(data), "--model-path", path]) == 0
    assert (elsewhere / "figures" / "test_predictions.png").exists() and not list(folder.iterdir())


def test_a_terminal_shows_bars(data, folder):
    pty, termios = (pytest.importorskip(name, reason="Windows has no pseudo-terminals") for name in ("pty", "termios"))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))  # a new one has no columns at all
    process, shown = start("--mode", "train", "--data", data, "--epochs", "4", terminal=theirs), b""
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # how Linux says that it is closed
        while part := terminal.read(65536):
            shown += part
    assert process.wait(60) == 0
    assert b"epochs: 100%" in shown and b"batches:" in shown and b"epoch 1 of" not in shown


def test_a_damaged_checkpoint_stops_no_new_training(data, folder):
    (folder / "MNIST-MODEL.checkpoint").write_bytes(b"half of it")
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "1"]) == 0
    assert len(read_checkpoint(folder / "MNIST-MODEL.checkpoint")["history"]) == 1


def test_a_folder_that_cannot_be_written_is_named(data, folder, capsys):
    (folder / "taken").write_text("a file where a folder should be")
    path = folder / "taken" / "mine.pth"
    assert run_model.main(["--mode", "train", "--data", str(data), "--model-path", str(path)]) == 2
    assert re.fullmatch(r"data: .+\nrun_model.py: \S+taken\S* cannot be used: .+\n", capsys.readouterr().err)


def test_the_log_holds_scalars_graph_and_images(data, folder):
    assert run_model.main(["--mode", "train", "--data", str(data), "--epochs", "2",
                           "--log-dir", str(folder / "log")]) == 0
    log = EventAccumulator(str(folder / "log"), {"images": 0}).Reload()
    assert log.Tags()["scalars"] == ["train_loss", "val_loss", "val_accuracy"] and log.Tags()["graph"]
    assert log.Tags()["images"]
    history = read_checkpoint(folder / "MNIST-MODEL.checkpoint")["history"]
    logged = [event.value for event in log.Scalars("val_accuracy")]
    assert logged == pytest.approx([epoch["val_accuracy"] for epoch in history])


def test_a_resumed_training_stands_in_the_log_once(data, folder):
    common = ["--mode", "train", "--data", str(data), "--epochs", "2", "--log-dir", str(folder / "log")]
    assert run_model.main(common) == run_model.main([*common, "--resume"]) == 0
    log = EventAccumulator(str(folder / "log")).Reload()
    assert [event.step for event in log.Scalars("val_accuracy")] == [1, 2]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_leaves_a_checkpoint_that_resumes_to_the_same_weights(data, folder):
    common = ["--mode", "train", "--data", str(data), "--epochs", "15", "--model-path"]  # enough to be interrupted
    assert run_model.main([*common, str(folder / "whole.pth")]) == 0
    process, checkpoint = start(*common, folder / "stopped.pth"), folder / "stopped.checkpoint"
    while not checkpoint.exists() or not read_checkpoint(checkpoint)["history"]:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "interrupted; --resume continues" in process.communicate(timeout=60)[1]
    assert process.returncode == 130 and not (folder / "stopped.pth").exists()
    assert run_model.main([*common, str(folder / "stopped.pth"), "--resume"]) == 0
    assert torch.equal(weights_of(folder / "stopped.final.pth"), weights_of(folder / "whole.final.pth"))


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGKILL")
def test_a_second_training_of_the_same_weights_is_refused_while_the_first_runs(data, folder, capsys):
    common = ["--mode", "train", "--data", str(data), "--epochs", "40", "--model-path", str(folder / "one.pth")]
    first, checkpoint = start(*common), folder / "one.checkpoint"
    while not checkpoint.exists() or not read_checkpoint(checkpoint)["history"]:
        assert first.poll() is None
        time.sleep(0.05)
    for second in (common, [*common, "--resume"]):
        assert run_model.main(second) == 2
        assert "another process is training" in capsys.readouterr().err
    first.kill()
    first.wait()
    assert len(read_checkpoint(checkpoint)["history"]) >= 1 and not (folder / "one.old.checkpoint").exists()
    assert run_model.main([*common[:5], "1", *common[6:]]) == 0  # the lock of a killed process holds nobody up
    assert not list(folder.glob("*.lock"))


def test_the_options_name_every_network_and_every_format():
    """They are listed without the slow imports of networks and exports."""
    offered = {action.dest: set(action.choices) for action in run_model.parser()._actions if action.choices}
    assert offered["network"] == set(NETWORKS)
    assert offered["format"] == {*FORMATS, run_model.ONNX_DETECTOR}


# several processes

def test_one_two_and_three_processes_come_to_the_same_accuracy(data, folder):
    accuracies = []
    for processes in (1, 2, 3):
        path = folder / f"{processes}.pth"
        process = start("--mode", "train", "--data", data, "--epochs", 3, "--no-amp", "--model-path", path,
                        launcher=torchrun(processes))
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
        assert out.count("test accuracy") == 2  # of the best and of the last epoch, from one process
        accuracies.append(load_weights(path)[1]["test_accuracy"])
    assert min(accuracies) > 0.9 and max(accuracies) - min(accuracies) < 0.01


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes through /proc")
def test_killing_one_process_ends_all_and_another_count_resumes(data, folder):
    path = folder / "shared.pth"
    common = ["--mode", "train", "--data", data, "--epochs", 20, "--batch-size", 250, "--no-amp", "--model-path", path]
    process = start(*common, launcher=torchrun(2))
    checkpoint = path.with_suffix(".checkpoint")
    while not checkpoint.exists() or not read_checkpoint(checkpoint)["history"]:
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "SIGKILL" in error
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    done = len(read_checkpoint(checkpoint)["history"])
    assert 0 < done < 20 and not path.exists()
    resumed = start(*common, "--resume", launcher=torchrun(3))
    error = resumed.communicate(timeout=240)[1]
    assert resumed.returncode == 0, error
    assert len(read_checkpoint(checkpoint)["history"]) == 20
    assert load_weights(path)[1]["test_accuracy"] > 0.9
