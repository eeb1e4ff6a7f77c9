"""A weights file is loaded with what was saved in it, or refused."""

import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mnist.networks import MNIST_CNN, NETWORKS
from mnist.weights import WeightsError, load_weights, save_weights
from mutation import mutated

ROOT = Path(__file__).parents[1]
FACTS = {"training": {"epochs": 1, "rates": [0.1, None]}, "test_accuracy": 0.5}


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    save_weights(tmp_path / "weights.pth", MNIST_CNN(), mean=0.25, std=0.5, **FACTS)
    return tmp_path / "weights.pth"


def test_weights_and_facts_come_back(weights):
    torch.manual_seed(0)
    original = MNIST_CNN()
    model, metadata = load_weights(weights)
    assert metadata == {"architecture": "MNIST_CNN", "mean": 0.25, "std": 0.5, **FACTS}
    assert not model.training
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_network_s_weights_come_back_whatever_its_name(tmp_path):
    for name, network in NETWORKS.items():
        torch.manual_seed(1)
        model = network()
        for _ in range(2):
            model(torch.randn(8, 1, 28, 28))  # moves what batch norm remembers
        save_weights(tmp_path / f"{name}.pth", model, mean=0.25, std=0.5)
        loaded, metadata = load_weights(tmp_path / f"{name}.pth")
        image = torch.randn(3, 1, 28, 28)
        assert metadata["architecture"] == name and torch.equal(loaded(image), model.eval()(image))


def test_the_file_opens_without_this_project(weights):
    program = f"import torch; print(len(torch.load({str(weights)!r}, weights_only=True)['weights']))"
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=weights.parent, capture_output=True, text=True)
    assert done.stdout == "8\n", done.stderr


class Unknown(nn.Linear):
    pass


@pytest.mark.parametrize("model, options, fault", [
    (MNIST_CNN(), {"model": MNIST_CNN()}, "plain values"),
    (MNIST_CNN(), {"callback": lambda: None}, "cannot be saved"),
    (MNIST_CNN(), {"std": 0}, "unusable"),
    (MNIST_CNN(), {"mean": float("nan")}, "unusable"),
    (Unknown(2, 2), {}, "unknown network 'Unknown'"),
])
def test_what_could_not_be_loaded_is_not_saved_and_the_old_file_stays(model, options, fault, weights):
    before = weights.read_bytes()
    with pytest.raises(ValueError, match=fault):
        save_weights(weights, model, **{"mean": 0.25, "std": 0.5} | options)
    assert weights.read_bytes() == before


def test_facts_cannot_replace_the_weights(weights):
    save_weights(weights, MNIST_CNN(), mean=0, std=1, weights={}, architecture="other")
    _, metadata = load_weights(weights)
    assert metadata == {"architecture": "MNIST_CNN", "mean": 0.0, "std": 1.0}


def test_loading_draws_no_random_numbers(weights):
    state = torch.get_rng_state()
    load_weights(weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth is missing: run workspace\.ipynb"):
        load_weights(tmp_path / "nothing.pth")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, weights):
    data = weights.read_bytes()
    weights.write_bytes(data[:int(share * len(data))])
    with pytest.raises(WeightsError, match="is truncated, damaged or no weights file") as caught:
        load_weights(weights)
    assert str(weights) in str(caught.value)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def changed(**changes):
    return lambda content: content | changes


def bias(tensor):
    return lambda content: content | {"weights": content["weights"] | {"fc2.bias": tensor}}


@pytest.mark.parametrize("change, fault", [
    (lambda content: MNIST_CNN(), "more than tensors and plain values"),
    (lambda content: content | {"extra": Attack()}, "more than tensors and plain values"),
    (lambda content: [1, 2], "not one of this project's"),
    (lambda content: content["weights"], "not one of this project's"),
    (changed(architecture="ResNet"), "unknown network 'ResNet': known are MNIST_CNN"),
    (changed(architecture=["MNIST_CNN"]), "unknown network"),
    (changed(weights={}), "does not fit MNIST_CNN"),
    (changed(weights=[1]), "holds no tensors"),
    (changed(weights={"conv1.weight": 1.0}), "holds no tensors"),
    (bias(torch.zeros(11)), "does not fit MNIST_CNN: fc2.bias"),
    (bias(torch.zeros(10, dtype=torch.float64)), "does not fit MNIST_CNN: fc2.bias"),
    (bias(torch.zeros(10, dtype=torch.complex64)), "does not fit MNIST_CNN: fc2.bias"),
    pytest.param(bias(torch.zeros(10).to_sparse()), "no weights file|does not fit",
                 marks=pytest.mark.filterwarnings("ignore:Validating sparse tensor")),
    (bias(torch.zeros(10, device="meta")), "not finite"),
    (bias(torch.full((10,), torch.nan)), "not finite"),
    (changed(std=0.0), "unusable mean or standard deviation"),
    (changed(mean="0.13"), "unusable mean or standard deviation"),
])
def test_a_foreign_file_is_refused_and_nothing_in_it_runs(change, fault, weights, monkeypatch):
    monkeypatch.chdir(weights.parent)
    content = torch.load(weights, weights_only=True)
    del content["sha256"]  # as an older version would have saved it
    torch.save(change(content), weights)
    with pytest.raises(WeightsError, match=fault), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        load_weights(weights)
    assert not Path("attacked").exists()


def test_another_kind_of_file_is_refused(tmp_path):
    for data in (b"not weights", (ROOT / "README.md").read_bytes(), (ROOT / "figures/loss.png").read_bytes()):
        (tmp_path / "weights.pth").write_bytes(data)
        with pytest.raises(WeightsError, match="is truncated, damaged or no weights file"):
            load_weights(tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="is a directory"):
        load_weights(tmp_path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(weights):
    resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX's")
    before, limits = weights.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            save_weights(weights, MNIST_CNN(), mean=0.1, std=0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]
    assert weights.read_bytes() == before


def test_a_file_with_the_former_names_still_loads(weights):
    content, calibration = torch.load(weights, weights_only=True), {"weights": torch.arange(3.0), "limit": 1.5}
    del content["sha256"]
    torch.save(content | {"doubt": calibration}, weights)
    with pytest.warns(UserWarning, match=r"weights\.pth was saved by an older version, without checksums"):
        _, metadata = load_weights(weights)
    assert metadata["ood"]["threshold"] == 1.5 and torch.equal(metadata["ood"]["weights"], calibration["weights"])
    assert "doubt" not in metadata


# damage

def test_no_mutated_file_comes_back_as_something_else(weights):
    original, metadata = load_weights(weights)
    data, rng, refused = weights.read_bytes(), random.Random(0), 0
    for _ in range(1_500):
        weights.write_bytes(mutated(data, rng))
        try:
            with warnings.catch_warnings(action="error"):  # nor is it taken for a file of an older version
                model, found = load_weights(weights)
        except WeightsError:
            refused += 1
            continue
        assert found == metadata
        assert all(map(torch.equal, model.state_dict().values(), original.state_dict().values()))
    assert refused > 1_400  # the others have changed bytes between the archive's parts, which mean nothing


def test_a_message_has_one_line_whatever_a_damaged_part_is_called(weights):
    data = weights.read_bytes().replace(b"data.pkl", b"data\npkl")
    weights.write_bytes(data.replace(b"conv1.weight", b"conv1.Weight"))
    with pytest.raises(WeightsError, match=r"its part '.+data\\npkl' does not match its checksum") as raised:
        load_weights(weights)
    assert "\n" not in str(raised.value)


def test_bytes_after_its_end_are_damage(weights):
    with open(weights, "ab") as file:
        file.write(b"\n")
    with pytest.raises(WeightsError, match=r"weights\.pth is damaged: other bytes follow the end of its archive"):
        load_weights(weights)


@pytest.mark.parametrize("name, change", [
    ("conv1.weight", lambda content: content["weights"]["conv1.weight"][3].neg_()),
    ("mean", lambda content: content.update(mean=0.26)),
    ("training.epochs", lambda content: content["training"].update(epochs=2)),
    ("extra", lambda content: content.update(extra=1)),
    ("test_accuracy", lambda content: content.pop("test_accuracy")),
])
def test_a_rewritten_archive_is_refused_and_the_entry_named(name, change, weights):
    content = torch.load(weights, weights_only=True)
    change(content)
    torch.save(content, weights)
    with pytest.raises(WeightsError, match=rf"weights\.pth is damaged: {name} does not match its checksum"):
        load_weights(weights)
