"""The study: a whole one on little data, and whether the committed results are those of the committed weights."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client
from distributed.comm.core import CommClosedError
from scipy import stats
from sklearn.metrics import accuracy_score

import mnist.cluster
import mnist.study
from mnist.checkpoint import read_checkpoint
from mnist.corruptions import CORRUPTIONS, corrupt
from mnist.evaluate import evaluate, predict
from mnist.files import read_json
from mnist.recipes import STUDY, StudyRecipe
from mnist.study import (
    Data,
    Job,
    interval_of_mean,
    is_trained,
    label_transfer_copy,
    study,
    train_one,
    uci_digits,
)
from mnist.train import train
from mnist.weights import WeightsError, load_weights, parse_weights
from mnist_utils import load_split, write_idx

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")


@pytest.fixture(scope="module")
def evidence() -> dict:
    return read_json(ROOT / "study" / "study.json")["results"]


def test_the_interval_of_a_mean():
    values = np.array([0.9939, 0.9946, 0.9951, 0.9942])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert interval_of_mean(values) == pytest.approx(expected)


def test_digits_of_other_people_look_like_mnist():
    model, metadata = load_weights(ROOT / "MNIST-MODEL.pth")
    scale = {"mean": metadata["mean"], "std": metadata["std"]}
    images, labels = uci_digits()
    assert images.shape == (1797, 28, 28) and images.dtype == np.uint8 and labels.shape == (1797,)
    assert (images.max((1, 2)) == 255).all() and images[:, [0, 1, -2, -1]].any((1, 2)).mean() < 0.05
    assert evaluate(model, images, labels, **scale)[1] > 0.9


@pytest.fixture(scope="module")
def little(tmp_path_factory) -> str:
    """A folder with 900 images to train on and 300 to test on."""
    return write_little(tmp_path_factory.mktemp("little"))


def write_little(folder: Path) -> str:
    train_images, train_labels = load_split("train", ROOT / "dataset")
    for split, images, labels in (("train/train", train_images[:900], train_labels[:900]),
                                  ("test/t10k", IMAGES[:300], LABELS[:300])):
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    return str(folder)


class Here:
    """A training's progress where there is no scheduler."""

    def __init__(self) -> None:
        self.steps, self.last = 0, b""

    def state(self) -> bytes:
        return self.last

    def write(self, steps: int, state: bytes) -> None:
        self.steps, self.last = steps, state


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As on the study's workers: then it comes to the same weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(one: bytes, other: bytes) -> bool:
    pairs = zip(*(parse_weights(data, "weights")[0].parameters() for data in (one, other)), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_a_whole_study_on_a_little_data(little, tmp_path, one_thread, capsys):
    recipes = {"SixConv": StudyRecipe("SixConv", 6, 1e-2, bfloat16=True, seeds=2),
               "few": StudyRecipe("MNIST_CNN", 1, 4e-3, images=50, seeds=2),
               "MNIST_CNN distilled": StudyRecipe("MNIST_CNN", 3, 1e-2, augment=False, teachers="SixConv", copies=2,
                                             batch_norm=True, corrupted=True, seeds=2)}
    first = study(tmp_path / "study", little, recipes, processes=2)
    written = read_json(tmp_path / "study" / "study.json")
    assert written == json.loads(json.dumps(first))
    for name, recipe in recipes.items():
        result = written["results"][name]
        accuracies = [row["accuracy"] for row in result["seeds"]]
        assert result["accuracy"] == pytest.approx(np.mean(accuracies)) and result["interval"][0] <= result["accuracy"]
        for seed, accuracy in enumerate(accuracies):
            model, metadata = load_weights(tmp_path / "study" / Job(name, recipe, seed).file)
            scores = predict(model, IMAGES[:300], mean=metadata["mean"], std=metadata["std"])
            assert accuracy == accuracy_score(LABELS[:300], scores.argmax(1))
            assert type(model).__name__ == recipe.network and "temperature" in metadata
    assert written["results"]["SixConv"]["accuracy"] > 0.5
    assert written["results"]["MNIST_CNN distilled"]["accuracy"] > 0.3
    row = written["results"]["MNIST_CNN distilled"]["seeds"][0]
    assert row["ood"].keys() >= {"noise", "blank", "letters"} and row["corruptions"].keys() == CORRUPTIONS.keys()
    assert row["pgd"]["0.3"] <= row["accuracy"] and row["rejected"] <= 300
    assert written["results"]["MNIST_CNN distilled"]["passes"] == 9 and written["results"]["few"]["passes"] == 1

    folder, job = tmp_path / "study", Job("MNIST_CNN distilled", recipes["MNIST_CNN distilled"], 1)
    teachers = [(folder / f"SixConv-{seed}.pth").read_bytes() for seed in range(2)]
    copies = [label_transfer_copy(number, teachers, Data.of(little), str(tmp_path)) for number in range(3)]
    assert same((folder / job.file).read_bytes(), train_one(job, Data.of(little), copies, Here()))

    for seed in range(2):  # known results are kept without weights, and not trained again
        (folder / f"few-{seed}.pth").unlink()
    again = study(folder, little, {"few": recipes["few"]})
    assert again["results"]["few"]["seeds"] == written["results"]["few"]["seeds"] and again["data"] == written["data"]
    assert "to train: 0 of 2 runs" in capsys.readouterr().err


def test_known_rows_are_of_the_same_recipe_and_teachers():
    recipes = {"teacher": StudyRecipe("MNIST_CNN", 1, 4e-3, seeds=2),
               "taught": StudyRecipe("MNIST_CNN", 1, 4e-3, teachers="teacher", copies=1, seeds=2)}
    results = {name: {"recipe": asdict(recipe), "seeds": [{"seed": 0}, {"seed": 1}]}
               for name, recipe in recipes.items()}
    conditions = {"machine": {"torch": "2"}, "data": {"training": "one"}}

    def known(name: str, **changes) -> list[str]:
        """The files whose rows are known if this recipe is now another one."""
        now = recipes | {name: replace(recipes[name], **changes)}
        jobs = [Job(name, recipe, seed) for name, recipe in now.items() for seed in range(recipe.seeds)]
        return [job.file for job in mnist.study._known_rows(conditions | {"results": results}, conditions, now, jobs)]

    taught, teachers = ["taught-0.pth", "taught-1.pth"], ["teacher-0.pth", "teacher-1.pth"]
    assert known("taught") == teachers + taught
    assert known("taught", learning_rate=5e-3) == []  # the teachers' weights are needed
    assert known("taught", seeds=3) == taught
    assert known("teacher", learning_rate=5e-3) == []
    assert known("teacher", seeds=3) == []  # others than taught these
    assert mnist.study._known_rows({}, conditions, recipes, [Job("taught", recipes["taught"], 0)]) == {}
    for other in ({"machine": {"torch": "3"}}, {"data": {"training": "another"}}):
        assert mnist.study._known_rows(conditions | {"results": results} | other, conditions, recipes,
                                       [Job("taught", recipes["taught"], 0)]) == {}
    for result in results.values():
        del result["recipe"]["label_smoothing"]  # an older study knows no such field
    assert known("taught") == teachers + taught and known("teacher", label_smoothing=0.1) == []


def test_the_committed_results_are_those_of_the_committed_data():
    data = Data.of(str(ROOT / "dataset"))._replace(clothes=True)
    assert read_json(ROOT / "study" / "study.json")["data"] == mnist.study._conditions({}, data)["data"]


def test_the_study_takes_the_committed_weights_for_trained():
    jobs = [Job(name, recipe, seed) for name, recipe in STUDY.items() for seed in range(recipe.seeds)]
    trained = {job.name for job in jobs if is_trained(job, ROOT / "study")}  # a WeightsError: of another recipe
    assert trained >= {"SixConv", "MNIST_CNN distilled", "MNIST_CNN robust", "MNIST_CNN without geometry",
                       "MNIST_CNN without occlusion"}


@pytest.mark.parametrize("name", ["SixConv", "MNIST_CNN distilled", "MNIST_CNN robust"])
def test_the_committed_weights_do_what_the_committed_evidence_says(name, evidence):
    result = evidence[name]
    for row in result["seeds"]:
        model, metadata = load_weights(ROOT / "study" / Job(name, STUDY[name], row["seed"]).file)
        assert sum(weight.numel() for weight in model.parameters()) == result["parameters"]
        accuracy = evaluate(model, IMAGES, LABELS, mean=metadata["mean"], std=metadata["std"])[1]
        assert accuracy == pytest.approx(row["accuracy"], abs=1e-4)  # one image, where another processor rounds
        scale = {"mean": metadata["mean"], "std": metadata["std"]}
        smaller = evaluate(model, corrupt(IMAGES[:1000], "scale"), LABELS[:1000], **scale)[1]
        assert smaller == pytest.approx(row["corruptions"]["scale"], abs=0.03)


def test_learning_goes_on_from_a_whole_epoch(little, tmp_path, monkeypatch):
    recipe, progress = StudyRecipe("MNIST_CNN", 3, 4e-3, images=40, batch_norm=True), Here()
    monkeypatch.setattr(mnist.study, "IMAGES_PER_PASS", 300)
    whole = train_one(Job("whole", recipe, 0), Data.of(little), [], Here())

    def stopped(*arguments, **options):
        for epoch in train(*arguments, **options):
            if epoch.number == 2:
                raise KeyboardInterrupt
            yield epoch

    monkeypatch.setattr(mnist.study, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_one(Job("stopped", recipe, 0), Data.of(little), [], progress)
    assert progress.steps == 1
    monkeypatch.setattr(mnist.study, "train", train)
    assert same(whole, train_one(Job("stopped", recipe, 0), Data.of(little), [], progress))

    (tmp_path / "whole-0.pth").write_bytes(whole)
    assert is_trained(Job("whole", recipe, 0), tmp_path) and not is_trained(Job("whole", recipe, 1), tmp_path)
    with pytest.raises(WeightsError, match=r"whole-0\.pth belongs to another recipe: delete it"):
        is_trained(Job("whole", replace(recipe, learning_rate=5e-3), 0), tmp_path)


class Cluster:
    """A scheduler and workers, each a process in a folder of its own: it sees no other's files of the study."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.address = folder, folder / "address.json", ""
        self.processes = [self._start("scheduler", "dask_scheduler", "--host", "127.0.0.1", "--port", "0")]

    def wait(self) -> None:
        """Until the scheduler has written its whole address."""
        while not self.address:
            assert self.processes[0].poll() is None
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                self.address = json.loads(self.file.read_text("utf-8"))["address"]
            time.sleep(0.1)

    def _start(self, name: str, program: str, *options: str) -> subprocess.Popen:
        (self.folder / name).mkdir()
        return subprocess.Popen([sys.executable, "-m", f"distributed.cli.{program}", "--scheduler-file", self.file,
                                 "--no-dashboard", *options], cwd=self.folder / name,
                                env=os.environ | {"PYTHONPATH": str(ROOT)})

    def add_worker(self, name: str, threads: int = 1) -> subprocess.Popen:
        self.processes.append(self._start(name, "dask_worker", "--nthreads", str(threads), "--no-nanny"))
        return self.processes[-1]

    def end(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        cluster.wait()
        yield cluster
    finally:
        cluster.end()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL, and does not replace a file that is read")
def test_a_killed_worker_s_training_is_taken_up_by_another(cluster, tmp_path, monkeypatch, one_thread):
    recipes = {"teacher": StudyRecipe("MNIST_CNN", 40, 4e-3, bfloat16=False, seeds=2),
               "taught": StudyRecipe("MNIST_CNN", 2, 4e-3, bfloat16=False, teachers="teacher", copies=2, seeds=1)}
    first = cluster.add_worker("one")
    cluster.add_worker("other")
    for name in ("one", "other", "client"):
        write_little(tmp_path / name / "little")
    monkeypatch.chdir(tmp_path / "client")
    monkeypatch.setattr(mnist.study, "POLL", 0.1)
    with Client(cluster.address) as client:
        client.wait_for_workers(2)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(study, Path("study"), "little", recipes, scheduler=cluster.address)
        checkpoints = [Path(f"study/teacher-{seed}.checkpoint").absolute() for seed in range(2)]
        while not all(path.exists() for path in checkpoints):
            assert not running.done() or running.result()
            time.sleep(0.05)
        before = [read_checkpoint(path)["history"] for path in checkpoints]
        assert max(map(len, before)) < 40
        first.send_signal(signal.SIGKILL)
        seen = 0
        while not running.done() and any(path.exists() for path in checkpoints):
            for path, history in zip(checkpoints, before):
                with contextlib.suppress(FileNotFoundError):  # the training is done
                    # also the seconds: no epoch is trained again
                    assert read_checkpoint(path)["history"][:len(history)] == history
                    seen += 1
            time.sleep(0.02)
        assert running.result()["results"].keys() == recipes.keys()
    assert seen and not list((tmp_path / "other").rglob("*.pth"))
    jobs = [Job(name, recipes[name], seed) for name, seed in (("teacher", 0), ("teacher", 1), ("taught", 0))]
    weights = [Path("study", job.file).read_bytes() for job in jobs]
    copies = [label_transfer_copy(number, weights[:2], Data.of("little"), str(tmp_path)) for number in range(3)]
    assert same(weights[0], train_one(jobs[0], Data.of("little"), [], Here()))
    assert same(weights[2], train_one(jobs[2], Data.of("little"), copies, Here()))


def test_what_a_cluster_cannot_do_is_said_in_a_sentence(cluster, tmp_path, monkeypatch):
    def run(address: str = cluster.address) -> None:
        study(tmp_path / "study", "dataset", {"one": StudyRecipe("MNIST_CNN", 2, 4e-3)}, scheduler=address)

    monkeypatch.chdir(ROOT)
    with monkeypatch.context() as patch:
        patch.setattr(mnist.cluster, "PATIENCE", 1)
        with pytest.raises(OSError, match=re.escape("Timed out trying to connect to tcp://127.0.0.1:9")):
            run("tcp://127.0.0.1:9")
    worker = cluster.add_worker("two", threads=2)
    with pytest.raises(ValueError, match=r"runs 2 tasks at once.+ --nthreads 1"):  # also where it joins late
        run()
    worker.kill()
    worker.wait()
    cluster.add_worker("one")
    write_little(tmp_path / "one" / "dataset")
    with pytest.raises(ValueError, match=r"the data in dataset on .+ are others than the study's"):
        run()
    (tmp_path / "study" / "one-0.checkpoint").write_bytes(b"not one")
    with pytest.raises(WeightsError, match=r"study/one-0\.checkpoint is truncated, damaged"):
        run()


def test_a_killed_scheduler_ends_the_study_and_leaves_the_checkpoints(cluster, tmp_path):
    with pytest.raises(CancelledError, match="the connection to the scheduler was lost"), \
            mnist.cluster.connected(scheduler=cluster.address):
        raise CommClosedError
    cluster.add_worker("one")
    for name in ("one", "client"):
        write_little(tmp_path / name / "dataset")
    program = f"import mnist.study as s; s.POLL = 0.1; raise SystemExit(s.main(['--scheduler', '{cluster.address}']))"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path / "client", stderr=subprocess.PIPE,
                               text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        while not list(tmp_path.glob("client/study/*.checkpoint")):
            assert process.poll() is None
            time.sleep(0.1)
        cluster.processes[0].kill()
        _, printed = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 2 and "Traceback" not in printed
    assert printed.splitlines()[-1] == ("mnist.study: the connection to the scheduler was lost: start it again; "
                                        "then the same command continues")
    left = [*tmp_path.glob("client/study/*.checkpoint"), *tmp_path.glob("client/study/*.pth")]
    assert left and all(read_checkpoint(path)["history"] for path in left if path.suffix == ".checkpoint")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a group of processes")
def test_ctrl_c_leaves_a_checkpoint_and_says_so_in_a_line(tmp_path):
    (tmp_path / "dataset").symlink_to(ROOT / "dataset")
    process = subprocess.Popen([sys.executable, "-m", "mnist.study"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        while not list(tmp_path.glob("study/*.checkpoint")):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and "Traceback" not in printed
    assert printed.splitlines()[-1] == "mnist.study: interrupted; the same command continues from here"


def test_the_first_failure_ends_the_study(little, tmp_path):
    begun = time.monotonic()
    recipes = {f"{number}": StudyRecipe("MNIST_CNN", 12, 1e30) for number in range(50)}
    with pytest.raises(FloatingPointError, match="loss became nan"):
        study(tmp_path / "study", little, recipes)
    assert time.monotonic() - begun < 60 and not list((tmp_path / "study").iterdir())


def test_the_goals(evidence):
    for name, parameters in (("MNIST_CNN", 21_840), ("MNIST_CNN_Dropout", 21_840), ("ThreeConv", 365_514),
                             ("MNISTNet", 421_642), ("SixConv", 18_482), ("MNIST_CNN distilled", 21_840)):
        assert evidence[name]["parameters"] == parameters
    assert evidence["SixConv"]["accuracy"] >= 0.996 and len(evidence["SixConv"]["seeds"]) == 5
    assert evidence["MNIST_CNN distilled"]["accuracy"] >= 0.995 and len(evidence["MNIST_CNN distilled"]["seeds"]) == 5
    robust = [np.mean(list(row["corruptions"].values())) for row in evidence["MNIST_CNN robust"]["seeds"]]
    assert np.mean(robust) > 0.92
