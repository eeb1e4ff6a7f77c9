"""Networks, their graph, and a weights file that is whole or refused."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchinfo import summary

import mnist_model
from mnist_model import (
    MNIST_CNN,
    NETWORKS,
    WeightsError,
    draw_graph,
    fold_batch_norm,
    graph_source,
    load_weights,
    save_weights,
    with_batch_norm,
    write_atomically,
)

ROOT = Path(__file__).parents[1]
FACTS = {"training": {"epochs": 1, "rates": [0.1, None]}, "test_accuracy": 0.5}


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    save_weights(tmp_path / "weights.pth", MNIST_CNN(), mean=0.25, std=0.5, **FACTS)
    return tmp_path / "weights.pth"


# MNIST_CNN

def test_the_network_is_the_one_that_was_asked_for():
    layers = [str(layer) for layer in MNIST_CNN()]
    assert layers == [str(layer) for layer in (
        nn.Conv2d(1, 10, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(320, 50), nn.Linear(50, 10))]
    assert sum(parameter.numel() for parameter in MNIST_CNN().parameters()) == 21_840


def test_torchinfo_counts_as_stated():
    info = summary(MNIST_CNN(), input_size=(64, 1, 28, 28), device="cpu", verbose=0)
    assert [layer.num_params for layer in info.summary_list if layer.num_params and layer.is_leaf_layer] == [
        260, 5_020, 16_050, 510]
    assert info.total_params == info.trainable_params == 21_840
    table = str(info)
    for line in ("31.21", "Input size (MB): 0.20", "Forward/backward pass size (MB): 3.64", "Params size (MB): 0.09",
                 "Estimated Total Size (MB): 3.92"):
        assert line in table


@pytest.mark.parametrize("name, parameters, mult_adds", [
    ("MNIST_CNN", 21_840, 487_600), ("MNIST_CNN_Dropout", 21_840, 487_600), ("ThreeConv", 365_514, 28_864_576),
    ("MNISTNet", 421_642, 4_241_472), ("SixConv", 18_482, None)])
def test_every_network_has_its_size(name, parameters, mult_adds):
    model = NETWORKS[name]()
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    info = summary(model, input_size=(1, 1, 28, 28), device="cpu", verbose=0)
    assert info.summary_list[-1].output_size == [1, 10]
    assert mult_adds is None or abs(info.total_mult_adds - mult_adds) < 0.02 * mult_adds


def test_a_network_s_weights_come_back_whatever_its_name(tmp_path):
    for name, network in NETWORKS.items():
        torch.manual_seed(1)
        model = network()
        for _ in range(2):
            model(torch.randn(8, 1, 28, 28))  # moves what batch norm remembers
        save_weights(tmp_path / f"{name}.pth", model, mean=0.25, std=0.5)
        loaded, facts = load_weights(tmp_path / f"{name}.pth")
        image = torch.randn(3, 1, 28, 28)
        assert facts["architecture"] == name and torch.equal(loaded(image), model.eval()(image))


@pytest.mark.parametrize("name", ["MNIST_CNN", "MNISTNet"])
def test_batch_norm_folds_into_the_same_network(name):
    torch.manual_seed(0)
    normed, folded = with_batch_norm(NETWORKS[name]()), NETWORKS[name]()
    optimizer = torch.optim.SGD(normed.parameters(), 0.1)
    for _ in range(5):
        normed(2 + 3 * torch.randn(32, 1, 28, 28)).square().mean().backward()
        optimizer.step()
    fold_batch_norm(normed, folded)
    images = 2 + 3 * torch.randn(16, 1, 28, 28)
    assert sum(weight.numel() for weight in folded.parameters()) < sum(weight.numel() for weight in normed.parameters())
    torch.testing.assert_close(folded.eval()(images), normed.eval()(images), rtol=1e-4, atol=1e-5)


# the graph

def test_the_graph_speaks_in_plain_words():
    source = graph_source(MNIST_CNN())
    for word in ("image\n(1, 1, 28, 28)", "conv1.weight\n(10, 1, 5, 5)", "convolution", "ReLU", "max pool", "flatten",
                 "matrix product + bias", "scores\n(1, 10)"):
        assert word in source
    assert "Backward" not in source and "Accumulate" not in source


@pytest.mark.parametrize("dot", ["installed", "missing", "broken"])
def test_the_graph_is_drawn_whatever_dot_there_is(dot, tmp_path, monkeypatch):
    if dot == "installed" and not shutil.which("dot"):
        pytest.skip("no dot is installed here")
    if dot != "installed":
        found = {"missing": None, "broken": sys.executable}[dot]
        monkeypatch.setattr(mnist_model.shutil, "which", lambda name: found)
    draw_graph(MNIST_CNN(), tmp_path / "new" / "graph.png")
    picture = Image.open(tmp_path / "new" / "graph.png").convert("L")
    assert picture.width > 400 and picture.height > 600
    assert 0.01 < sum(picture.histogram()[:64]) / (picture.width * picture.height) < 0.2  # letters and lines


def test_a_failing_graphviz_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_model, "graph_source", lambda model: "no graph")
    with pytest.raises(RuntimeError, match="Graphviz drew no picture"):
        draw_graph(MNIST_CNN(), tmp_path / "graph.png")
    assert not (tmp_path / "graph.png").exists()


# the weights file

def test_weights_and_facts_come_back(weights):
    torch.manual_seed(0)
    original = MNIST_CNN()
    model, facts = load_weights(weights)
    assert facts == {"architecture": "MNIST_CNN", "mean": 0.25, "std": 0.5, **FACTS}
    assert not model.training
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


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
    _, facts = load_weights(weights)
    assert facts == {"architecture": "MNIST_CNN", "mean": 0.0, "std": 1.0}


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
    (changed(std=0.0), "unusable mean or deviation"),
    (changed(mean="0.13"), "unusable mean or deviation"),
])
def test_a_foreign_file_is_refused_and_nothing_in_it_runs(change, fault, weights, monkeypatch):
    monkeypatch.chdir(weights.parent)
    torch.save(change(torch.load(weights, weights_only=True)), weights)
    with pytest.raises(WeightsError, match=fault):
        load_weights(weights)
    assert not Path("attacked").exists()


def test_another_kind_of_file_is_refused(tmp_path):
    for data in (b"not weights", (ROOT / "README.md").read_bytes(), (ROOT / "figures/loss.png").read_bytes()):
        (tmp_path / "weights.pth").write_bytes(data)
        with pytest.raises(WeightsError, match="is truncated, damaged or no weights file"):
            load_weights(tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="is a directory"):
        load_weights(tmp_path)


# write_atomically

@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be replaced on Windows")
def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_the_bytes_are_on_the_disk_before_they_have_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))
    write_atomically(tmp_path / "file", b"new")
    assert calls == (["fsync", "replace", "fsync"] if os.name == "posix" else ["fsync", "replace"])


@pytest.mark.skipif(os.name == "nt", reason="links and permissions are otherwise on Windows")
def test_permissions_and_links_are_kept(weights):
    weights.chmod(0o640)
    link = weights.with_name("link.pth")
    link.symlink_to(weights)
    write_atomically(link, b"new")
    assert link.is_symlink() and weights.read_bytes() == b"new"
    assert stat.S_IMODE(weights.stat().st_mode) == 0o640


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


def test_old_temporaries_are_swept_away_and_young_ones_left_to_their_writer(tmp_path):
    old, young, other = (tmp_path / name for name in (".a[b].1.tmp", ".a[b].2.tmp", ".else.1.tmp"))
    for path in (old, young, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    write_atomically(tmp_path / "a[b]", b"whole")
    assert not old.exists() and young.exists() and other.exists()
