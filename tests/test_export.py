"""Exports, loaded by their own runtimes without this project, give what the network gives."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from playwright.sync_api import sync_playwright

import mnist.export
import run_model
from mnist.evaluate import predict
from mnist.export import FORMATS, INT8, DetectorProgram, ExportError, Report, check_export, export, load_safetensors
from mnist.files import DETECTOR
from mnist.html import NoBrowser, find_browser
from mnist.networks import MNIST_CNN
from mnist.weights import WeightsError, load_detector, load_weights, save_weights
from mnist_utils import FILES, load_split, write_idx
from mutation import mutated

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "MNIST-MODEL.pth"
IMAGES, LABELS = load_split("test", ROOT / "dataset")
ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession(path)
metadata = session.get_modelmeta().custom_metadata_map
[given] = session.get_inputs()
[result] = session.get_outputs()
assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["N", 28, 28])
assert (result.name, result.type, result.shape) == ("probabilities", "tensor(float)", ["N", 10])
def run(images):
    return session.run(None, {"images": images})[0]
"""
TORCH = """
import torch
files = {{"metadata.json": ""}}
module = {load}
metadata = json.loads(files["metadata.json"])
def run(images):
    return module(torch.from_numpy(images)).numpy()
"""
READERS = {
    "onnx": ONNX,
    INT8: ONNX,
    "torchscript": TORCH.format(load="torch.jit.load(path, _extra_files=files)"),
    "pt2": TORCH.format(load="torch.export.load(path, extra_files=files).module()"),
    "safetensors": """
import torch
from safetensors import safe_open
from torch.nn.functional import conv2d, linear, max_pool2d
with safe_open(path, "pt") as file:
    metadata = file.metadata()
    weights = {name: file.get_tensor(name) for name in file.keys()}
mean, std, temperature = (float(metadata[name]) for name in ("mean", "std", "temperature"))
def apply(operation, name, x):
    return operation(x, weights[name + ".weight"], weights[name + ".bias"])
def run(images):
    x = (torch.from_numpy(images)[:, None] / 255 - mean) / std
    for name in ("conv1", "conv2"):
        x = max_pool2d(apply(conv2d, name, x).relu(), 2)
    scores = apply(linear, "fc2", apply(linear, "fc1", x.flatten(1)))
    return (scores / temperature).softmax(1).numpy()
""",
    "html": """
import atexit, base64, os
from playwright.sync_api import sync_playwright
playwright = sync_playwright().start()
atexit.register(playwright.stop)
browser = playwright.chromium.launch(executable_path=os.environ["BROWSER_PATH"],
                                     args=["--no-sandbox"] if os.name == "posix" else [])
page = browser.new_page()
page.set_content(open(path, encoding="utf-8").read())
metadata = json.loads(page.locator("#about").text_content())
page.evaluate("window.reader = new DigitReader(NETWORK); 0")
PROBABILITIES = '''(text) => {
    const levels = Uint8Array.from(atob(text), (one) => one.charCodeAt(0)), count = levels.length / 784;
    return Array.from({length: count}, (_, at) => Array.from(reader.probabilities(levels.subarray(784 * at))));
}'''
def run(images):
    parts = np.array_split(images, 1 + len(images) // 500)
    texts = [base64.b64encode(part.tobytes()).decode() for part in parts]
    return np.concatenate([page.evaluate(PROBABILITIES, text) for text in texts]).astype(np.float32)
""",
}
PROGRAM = """
import json, sys
import numpy as np
path, images, results = sys.argv[1:]
images = np.load(images)
{reader}
np.savez(results, *[run(images[:count]) for count in (1, 2, 7, len(images))])
assert not [name for name in sys.modules if name.startswith("mnist")]
assert ("torch" in sys.modules) == ({reader!r}.find("import torch") > 0)
print(json.dumps(metadata))
"""


def browser_path() -> Path | None:
    """The browser in which the html export runs; without one it is left out here, but not in continuous integration."""
    try:
        with sync_playwright() as playwright:
            return find_browser(playwright)
    except NoBrowser:
        assert "CI" not in os.environ, "there is no Chromium or Chrome on this machine"
        return None


BROWSER_PATH = browser_path()
HERE = [format for format in FORMATS if format != "html" or BROWSER_PATH]


def data_set(folder: Path, train: slice, test: slice) -> Path:
    for split, part in (("train", train), ("test", test)):
        for name, array in zip(FILES[split], (IMAGES[part], LABELS[part])):
            write_idx(folder / name, array)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small data set: 600 images to calibrate with, 300 to compare on."""
    return data_set(tmp_path_factory.mktemp("data"), slice(600), slice(5000, 5300))


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> tuple[Path, dict[str, Report]]:
    """The committed weights in every format: the folder that they were written to, and the reports."""
    folder = tmp_path_factory.mktemp("exports")
    return folder, {format: export(WEIGHTS, folder / format, format, ROOT / "dataset") for format in HERE}


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    model, facts = load_weights(WEIGHTS)
    scores = predict(model, IMAGES, mean=facts["mean"], std=facts["std"])
    return (scores / facts.get("temperature", 1.0)).softmax(1).numpy()


@pytest.mark.parametrize("format", HERE)
def test_an_export_alone_gives_what_the_network_gives(format, exports, expected, tmp_path):
    folder, reports = exports
    np.save(tmp_path / "images.npy", IMAGES)
    command = [sys.executable, "-I", "-W", "ignore", "-c", PROGRAM.format(reader=READERS[format])]
    done = subprocess.run([*command, folder / format, tmp_path / "images.npy", tmp_path / "results.npz"],
                          cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "BROWSER_PATH": str(BROWSER_PATH)})
    assert done.returncode == 0, done.stderr
    results = list(np.load(tmp_path / "results.npz").values())
    assert [len(found) for found in results] == [1, 2, 7, 10_000]
    for found in results:
        assert found.dtype == np.float32 and found.shape[1:] == (10,)
        assert np.abs(found.sum(1) - 1).max() < 1e-5
        if format != INT8:
            assert (found.argmax(1) == expected[:len(found)].argmax(1)).all()
            assert np.abs(found - expected[:len(found)]).max() < 1e-4
    accuracy = (results[-1].argmax(1) == LABELS).mean()
    assert accuracy >= (expected.argmax(1) == LABELS).mean() - 0.0005
    assert accuracy == reports[format].accuracy
    metadata = json.loads(done.stdout)
    metadata.pop("content", None)  # the checksum, where the format has it among these
    assert metadata == reports[format].metadata
    _, facts = load_weights(WEIGHTS)
    for name in ("mean", "std", "test_accuracy"):
        assert float(metadata[name]) == facts[name]
    assert metadata["architecture"] == "MNIST_CNN" and metadata["model"].startswith("MNIST-MODEL.pth, SHA-256 ")
    assert "uint8 (N, 28, 28)" in metadata["input"] or format in ("safetensors", "html")


def test_each_export_is_one_file_that_names_no_folder_of_this_machine(exports):
    folder, reports = exports
    assert sorted(path.name for path in folder.iterdir()) == sorted(HERE)
    for path in folder.iterdir():
        parts = [path.read_bytes()]
        assert len(parts[0]) == reports[path.name].size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts += map(archive.read, archive.namelist())
        for part in parts:
            assert not [name for name in (str(ROOT), sys.prefix, str(folder.parent)) if name.encode() in part]


def test_8_bits_are_8_bits(exports):
    folder, reports = exports
    assert reports[INT8].size < reports["onnx"].size / 2
    weights = {weight.name: weight.data_type for weight in onnx.load(folder / INT8).graph.initializer
               if len(weight.dims) > 1}
    kinds = list(weights.values())
    assert (kinds.count(onnx.TensorProto.UINT8), kinds.count(onnx.TensorProto.FLOAT)) == (3, 1)


def test_test_images_have_no_part_in_the_calibration(data, tmp_path):
    other = data_set(tmp_path / "other", slice(600), slice(7000, 7100))
    for name, source in (("a", data), ("b", other)):
        export(WEIGHTS, tmp_path / name, INT8, source)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("format", [format for format in HERE if format != INT8])
def test_a_temperature_divides_the_scores(format, data, tmp_path):
    torch.manual_seed(0)
    model = MNIST_CNN()
    save_weights(tmp_path / "weights.pth", model, mean=0.25, std=0.5, temperature=0.05)
    report = export(tmp_path / "weights.pth", tmp_path / "export", format, data)
    found = FORMATS[format].open(tmp_path / "export")(IMAGES[:50])
    scores = predict(model, IMAGES[:50], mean=0.25, std=0.5)
    np.testing.assert_allclose(found, (scores / 0.05).softmax(1), atol=1e-5)
    assert report.metadata["temperature"] == "0.05" and report.metadata["test_accuracy"] == "not measured"


def crash(*arguments):
    raise RuntimeError("first line\nsecond line")


def test_without_a_browser_the_page_is_written_unchecked(data, tmp_path, monkeypatch, capsys):
    def none(path, images):
        raise NoBrowser

    monkeypatch.setattr("mnist.export.probabilities_in_browser", none)
    path = tmp_path / "page.html"
    assert export(WEIGHTS, path, "html", data).images == 0
    assert "DigitReader" in path.read_text("utf-8") and len(check_export(path)) == 64
    words = ["--mode", "export", "--format", "html", "--data", str(data), "--output", str(path)]
    assert run_model.main([*words, "--model-path", str(WEIGHTS)]) == 0
    assert "not compared with the network, because there is no Chromium" in capsys.readouterr().out


@pytest.mark.parametrize("change, fault", [
    ({"save": crash}, "because safetensors failed: RuntimeError"),
    ({"open": crash}, "because safetensors failed: RuntimeError"),
    ({"open": lambda path: lambda images: np.full((len(images), 10), 0.1, np.float32)}, "another digit"),
    ({"open": lambda path: lambda images: np.full((len(images), 10), np.nan, np.float32)}, "nan off"),
    ({"open": lambda path: lambda images: mnist.export._open_safetensors(path)(images) + 2e-4},
     "another digit for 0 of 300 "),
])
@pytest.mark.parametrize("before", [None, b"the one before"])
def test_a_failing_export_leaves_what_was_there(before, change, fault, data, tmp_path, monkeypatch, capsys):
    path = tmp_path / "network.safetensors"
    if before:
        path.write_bytes(before)
    monkeypatch.setitem(FORMATS, "safetensors", replace(FORMATS["safetensors"], **change))
    assert run_model.main(["--mode", "export", "--format", "safetensors", "--model-path", str(WEIGHTS),
                           "--data", str(data), "--output", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{path} was not written" in line and fault in line
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])


def test_another_digit_is_refused_however_near(data, tmp_path, monkeypatch):
    model = MNIST_CNN()
    torch.nn.init.zeros_(model.fc2.weight)
    torch.nn.init.zeros_(model.fc2.bias)  # every digit is as probable as the others
    save_weights(tmp_path / "weights.pth", model, mean=0.25, std=0.5)
    near = np.eye(10, dtype=np.float32)[1] * 1e-5 + 0.1
    monkeypatch.setitem(FORMATS, "safetensors", replace(
        FORMATS["safetensors"], open=lambda path: lambda images: np.tile(near, (len(images), 1))))
    with pytest.raises(ExportError, match="gives another digit for 300 of 300 test images"):
        export(tmp_path / "weights.pth", tmp_path / "export", "safetensors", data)


@pytest.mark.parametrize("train, test, fault", [
    (slice(0), slice(5), "no training images to calibrate"),
    (slice(5), slice(0), "no test images to compare"),
])
def test_without_images_there_is_nothing_to_go_by(train, test, fault, tmp_path):
    with pytest.raises(ExportError, match=fault):
        export(WEIGHTS, tmp_path / "export", INT8, data_set(tmp_path / "data", train, test))


@pytest.mark.parametrize("content", [b"", b"no safetensors file", WEIGHTS.read_bytes()])
def test_another_file_is_no_safetensors_export(content, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="holds no checksum of its contents"):
        load_safetensors(tmp_path / "weights.safetensors")
    digest = hashlib.sha256(content + b"content-sha256:" + 64 * b"0").hexdigest().encode()
    (tmp_path / "weights.safetensors").write_bytes(content + b"content-sha256:" + digest)
    with pytest.raises(WeightsError, match="damaged, or not a safetensors export"):
        load_safetensors(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError):
        load_safetensors(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("format", HERE)
def test_a_mutated_export_is_refused(format, exports, tmp_path):
    data, rng, path = (exports[0] / format).read_bytes(), random.Random(0), tmp_path / "export"
    path.write_bytes(data)
    assert check_export(path).encode() in data
    for _ in range(100):
        path.write_bytes(mutated(data, rng))
        with pytest.raises(WeightsError, match=r"is damaged|holds no checksum"):
            check_export(path)


# the command line

@pytest.mark.parametrize("format, name", [
    ("onnx", "my.onnx"), (INT8, "my.int8.onnx"), ("torchscript", "my.torchscript"), ("pt2", "my.pt2"),
    ("safetensors", "my.safetensors")])
def test_the_command_line_says_what_it_wrote_and_nothing_else(format, name, data, tmp_path, capfd):
    weights = tmp_path / "my.pth"
    weights.write_bytes(WEIGHTS.read_bytes())
    with warnings.catch_warnings(action="error"):
        status = run_model.main(["--mode", "export", "--format", format, "--model-path", str(weights),
                                 "--data", str(data)])
    assert status == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    written, compared = printed.out.splitlines()
    path = tmp_path / name
    assert written.startswith(f"{path}: {path.stat().st_size:,} bytes; in: ") and "grey levels" in written
    assert re.fullmatch(r"compared with the network on 300 test images: \d digits differ, probabilities differ by at "
                        r"most \S+; accuracy \d+\.\d\d%, the network's \d+\.\d\d%", compared)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "my.pth"])


@pytest.mark.parametrize("arguments, fault", [
    ([], "--format is missing: choose from onnx, onnx-int8, "),
    (["--format", "tflite"], "--format: invalid choice"),
    (["--format", "onnx", "--output", "folder"], "folder is a directory"),
    (["--format", "onnx", "--output", "my.pth"], "my.pth is the weights file itself"),
    (["--format", "onnx", "--output", "folder/../my.pth"], "is the weights file itself"),
    pytest.param(["--format", "onnx", "--output", "link"], "is the weights file itself",
                 marks=pytest.mark.skipif(os.name == "nt", reason="links are for administrators there")),
    (["--format", "safetensors", "--output", "my.pth/export"], "cannot be used"),
    (["--format", "onnx", "--model-path", "other.pth"], "other.pth is missing"),
    (["--format", "onnx", "--data", "nowhere"], "there is no folder nowhere"),
])
def test_bad_requests_end_in_one_line_and_status_2(arguments, fault, data, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("my.pth").write_bytes(WEIGHTS.read_bytes())
    if os.name != "nt":
        Path("link").symlink_to("my.pth")
    before = sorted(Path().rglob("*"))
    try:
        status = run_model.main(["--mode", "export", "--model-path", "my.pth", "--data", str(data), *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert [fault in line for line in capfd.readouterr().err.splitlines()] == [True]
    assert sorted(Path().rglob("*")) == before and Path("my.pth").read_bytes() == WEIGHTS.read_bytes()


def test_the_digit_detector_is_exported_as_well(tmp_path, capsys):
    path = tmp_path / "detector.onnx"
    assert run_model.main(["--mode", "export", "--format", "onnx-detector", "--output", str(path)]) == 0
    assert "probabilities differ by at most" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(path)
    detector, _ = load_detector(DETECTOR)
    program, grey = DetectorProgram(detector), torch.rand(1, 1, 96, 160)
    digits, strip = torch.tensor([[30.0, 40.0, 25.0]]), torch.rand(1, 1, 32, 120)
    for found, expected in zip(session.run(None, {"grey": grey.numpy(), "digits": digits.numpy(),
                                                  "strip": strip.numpy()}),
                               program(grey, digits, strip), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert check_export(path)
