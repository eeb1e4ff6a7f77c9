"""Export a trained network to other runtimes, with its preprocessing inside the file.

    report = export("MNIST-MODEL.pth", "MNIST-MODEL.onnx", "onnx")
    print(report.accuracy, report.deviation)

onnx         one self-contained file, for onnxruntime and everything else that reads ONNX
onnx-int8    the same in 8-bit integers, calibrated on training images; a third of the size
pt2          for torch.export.load: PyTorch alone, without this project
torchscript  for torch.jit.load; PyTorch has deprecated it
safetensors  weights and constants without a program; `load_safetensors` makes a Program of them
html         a page to draw on, with the network in it; any browser opens it, without a server

The digit detector has an export of its own: `export_detector` writes ONNX, see `DetectorProgram`.

All but safetensors hold the whole computation of `Program`. Every file describes itself in its metadata:
`metadata_props` in ONNX, the extra file metadata.json in pt2 and torchscript, `metadata()` in safetensors,
the element "about" in html.
Every file also holds a SHA-256 of its own contents, which `check_export` compares.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mnist.detect import crops, in_pixels, layers
from mnist.evaluate import predict
from mnist.files import DETECTOR, EXPORT_ENDINGS, write_atomically
from mnist.html import NoBrowser, html_file, network_of, probabilities_in_browser
from mnist.ink import Digits, words
from mnist.lines import ROWS, read_strips
from mnist.networks import NETWORKS, DigitDetector, local_contrast
from mnist.scenes import draw_page
from mnist.weights import WeightsError, load_detector, load_weights
from mnist_utils import IMAGE_SHAPE, load_split, normalize

TOLERANCE = 1e-4  # largest difference of a probability between the network and its export
MAX_INT8_LOSS = 0.0005  # of accuracy
CALIBRATION_IMAGES = 500  # from the training set; more made no difference on validation images
BATCH = 250
PIXEL_TOLERANCE = 0.01  # largest difference of a size or a vote, in pixels
SCENES = 20  # pictures on which a detector's export is compared
INT8 = "onnx-int8"
HTML = "html"
METADATA = "metadata.json"
SEAL = re.compile(rb"content-sha256:([0-9a-f]{64})")  # of the file, in which the 64 digits are zeros
UNSEALED = f"content-sha256:{64 * '0'}"
PROGRAM = {
    "input": "images: uint8 (N, 28, 28), grey levels from 0 (paper) to 255 (ink)",
    "output": "probabilities: float32 (N, 10), of the digits 0 to 9",
    "preprocessing": "inside: (images / 255 - mean) / std",
}
PAGE = {
    "input": "a digit drawn on the page",
    "output": "the digit, the probabilities of the digits 0 to 9, and a reason not to trust them, on the page",
    "preprocessing": "inside, from strokes to (grey levels / 255 - mean) / std",
}
WEIGHTS = {
    "input": "float32 (N, 1, 28, 28): (grey levels / 255 - mean) / std, of grey levels from 0 (paper) to 255 (ink)",
    "output": "logits: float32 (N, 10); softmax(logits / temperature) are the probabilities of the digits 0 to 9",
    "preprocessing": "outside: mean, std and temperature are in the metadata",
}

Run = Callable[[np.ndarray], np.ndarray]  # uint8 images (N, 28, 28) → probabilities (N, 10), float32


class ExportError(ValueError):
    """A network was not exported; the message says why."""


class Program(nn.Module):
    """Grey levels (N, 28, 28), uint8, 0 paper to 255 ink → probabilities (N, 10): what an export computes.

    `weights_metadata` are those of the weights file; a temperature among them divides the logits.
    """

    def __init__(self, model: nn.Sequential, weights_metadata: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.weights_metadata = model, weights_metadata
        self.mean, self.std = weights_metadata["mean"], weights_metadata["std"]
        self.temperature = weights_metadata.get("temperature", 1.0)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        return (self.model(normalize(images, self.mean, self.std)) / self.temperature).softmax(1)


class DetectorProgram(nn.Module):
    """A picture, and places in it where a digit may be → where digits are, and which digits are at these places.

    `grey` is (1, 1, H, W) from 0 to 1, with H and W multiples of 8; digits are found where they are 20
    to 44 pixels long. `digits` (K, 3) are the x and y of a centre and the longer side. The results are
    `centres` (1, 1, H/4, W/4), 0 to 1, high where a digit's centre is; `sizes` (1, 2, H/4, W/4), width
    and height of the digit there; `votes` (1, 2, H, W), x and y of the centre that a pixel of ink belongs
    to; `ink` (1, 1, H, W), 0 to 1; `probabilities` (K, 11) of the ten digits and of no digit.

    `strip` (1, 1, 32, L) from 0 to 1 is a number cut out level, L a multiple of 8, its digits 20 pixels
    high in the middle; `line` (L/2, 11) are the probabilities at every second pixel of the ten digits and
    of none, to be decoded as in connectionist temporal classification.
    """

    def __init__(self, detector: DigitDetector) -> None:
        super().__init__()
        self.detector = detector
        self.requires_grad_(False).eval()

    def forward(self, grey: Tensor, digits: Tensor, strip: Tensor) -> tuple[Tensor, ...]:
        centres, sizes, votes, strokes = self.detector(grey)
        seen = layers(grey, votes, strokes)
        parts = crops(seen, torch.zeros_like(digits[:, 0]), digits[:, :2], digits[:, 2])
        return (centres.sigmoid(), in_pixels(sizes), seen[:, 2:], seen[:, 1:2],
                self.detector.reader(parts).softmax(1), read_strips(self.detector, local_contrast(strip))[:, 0].exp())


DETECTOR_OUTPUTS = ["centres", "sizes", "votes", "ink", "probabilities", "line"]


@dataclass(frozen=True)
class DetectorReport:
    """What was written, and how it compares with the detector on pictures with numbers."""

    size: int  # bytes
    pictures: int
    deviation: float  # the largest difference of any probability


@dataclass(frozen=True)
class Report:
    """What was written, and how it compares with the network on all test images."""

    size: int  # bytes
    metadata: dict[str, str]  # as in the file, without its checksum
    images: int  # that were compared; none where the format's runtime is not on this machine
    different: int  # images for which it predicts another digit
    deviation: float  # the largest difference of any probability
    accuracy: float  # 0 to 1
    network_accuracy: float


def export(model_path: str | os.PathLike[str], path: str | os.PathLike[str], format: str,
           data: str | os.PathLike[str] = "dataset") -> Report:
    """Export the network of a weights file in one of FORMATS, and check the export before it is written.

    The format's own runtime loads the export and predicts the test images of `data`, a folder laid out
    as `dataset/` is. Each digit must equal the network's, and each probability must be within
    TOLERANCE. Without a Chromium on this machine, html is written all the same, and the report counts no
    images. onnx-int8 is calibrated on the training images in `data`, and may lose MAX_INT8_LOSS of
    the accuracy. Raises ExportError if the check fails or `path` is unusable, and what `load_weights`,
    `load_split` and `write_atomically` raise. After an error the file at `path` is unchanged.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ExportError(f"there is no format {format!r}: choose from {', '.join(FORMATS)}")
    model, weights_metadata = load_weights(model_path)
    _check_path(path, model_path)
    program = Program(model, weights_metadata)
    metadata = _metadata(model_path, weights_metadata, program, format)
    images, labels = load_split("test", data)
    if not len(images):
        raise ExportError(f"{path} was not written: {data} holds no test images to compare it on")
    calibration = _calibration(data) if format == INT8 else None
    try:
        content, found = _make(program, metadata, format, calibration, images)
    except Exception as error:  # each exporter and each runtime raises its own type
        raise ExportError(f"{path} was not written, because {format} failed: {error!r:.200}") from error
    if not len(found):
        write_atomically(path, content)
        return Report(len(content), metadata, 0, 0, math.nan, math.nan, math.nan)
    expected = _network_probabilities(program, images)
    digits, expected_digits = found.argmax(1), expected.argmax(1)
    report = Report(len(content), metadata, len(images), int((digits != expected_digits).sum()),
                    float(np.abs(found - expected).max()), float((digits == labels).mean()),
                    float((expected_digits == labels).mean()))
    if format != INT8 and (report.different or not report.deviation <= TOLERANCE):  # also catches NaN
        raise ExportError(f"{path} was not written: as {format} it gives another digit for {report.different:,} of "
                          f"{report.images:,} test images, and its probabilities are up to "
                          f"{report.deviation:.1g} off")
    if format == INT8 and report.network_accuracy - report.accuracy > MAX_INT8_LOSS:
        raise ExportError(f"{path} was not written: in 8 bits the accuracy falls from {report.network_accuracy:.2%} "
                          f"to {report.accuracy:.2%}")
    write_atomically(path, content)
    return report


def _check_path(path: Path, model_path: str | os.PathLike[str]) -> None:
    """Raise ExportError if an export of this weights file cannot be written to `path`."""
    if path.is_dir():
        raise ExportError(f"{path} is a directory: name a file to write")
    if path.exists() and path.samefile(model_path):
        raise ExportError(f"{path} is the weights file itself: name another file to write")


def export_detector(path: str | os.PathLike[str], data: str | os.PathLike[str] = "dataset",
                    detector_path: str | os.PathLike[str] = DETECTOR) -> DetectorReport:
    """Export a digit detector to ONNX, and check the export before it is written.

    onnxruntime and the detector look at SCENES pictures of numbers drawn from the test images of
    `data`; each probability must be within TOLERANCE, each length within PIXEL_TOLERANCE. Raises
    ExportError if the check fails or `path` is unusable, and what `load_detector`, `load_split` and
    `write_atomically` raise. After an error the file is unchanged.
    """
    detector, _ = load_detector(detector_path)
    program = DetectorProgram(detector)
    _check_path(Path(path), detector_path)
    images, labels = load_split("test", data)
    if not len(images):
        raise ExportError(f"{path} was not written: {data} holds no test images to compare it on")
    metadata = {"model": f"{Path(detector_path).name}, SHA-256 {_sha256(Path(detector_path).read_bytes())}",
                "architecture": "DigitDetector", "description": " ".join(str(DetectorProgram.__doc__).split())}
    try:
        content = _make_detector(program, metadata)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        digits = Digits(images[:500], labels[:500])
        off, pixels_off = map(max, zip(*(_deviations(program, session, digits, number) for number in range(SCENES))))
    except Exception as error:  # the exporter and the runtime raise their own types
        raise ExportError(f"{path} was not written, because onnx failed: {error!r:.200}") from error
    if not (off <= TOLERANCE and pixels_off <= PIXEL_TOLERANCE):  # also catches NaN
        raise ExportError(f"{path} was not written: its probabilities are up to {off:.1g} off, its sizes and votes "
                          f"{pixels_off:.1g} pixels")
    write_atomically(path, content)
    return DetectorReport(len(content), SCENES, off)


def _make_detector(program: DetectorProgram, metadata: dict[str, str]) -> bytes:
    """The bytes of a detector's export, with their checksum."""
    import torchvision.ops  # noqa: F401  slow; the exporter knows roi_align only if it was imported before

    height, width, length = (8 * torch.export.Dim(name, min=2, max=500) for name in ("h", "w", "l"))
    shapes = {"grey": {2: height, 3: width}, "digits": {0: torch.export.Dim("K", min=1)}, "strip": {3: length}}
    example = (torch.zeros(1, 1, 64, 96), torch.tensor([[20.0, 20.0, 30.0], [40.0, 40.0, 30.0]]),
               torch.zeros(1, 1, ROWS, 48))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder, "detector.onnx")
        _write_onnx(program, example, shapes, DETECTOR_OUTPUTS, metadata, file)
        data = file.read_bytes()
        file.write_bytes(data.replace(UNSEALED.encode(), f"content-sha256:{_sha256(data)}".encode()))
        check_export(file)
        return file.read_bytes()


def _deviations(program: DetectorProgram, session: onnxruntime.InferenceSession, digits: Digits,
                number: int) -> tuple[float, float]:
    """How far an export's outputs for one picture are off: probabilities, and sizes and votes in pixels."""
    view, placed = draw_page(digits, words(), 0, number)
    grey = torch.from_numpy(view[:len(view) // 8 * 8, :view.shape[1] // 8 * 8].copy())[None, None]
    places = torch.tensor([[(one.left + one.right) / 2, (one.top + one.bottom) / 2,
                            max(one.right - one.left, one.bottom - one.top)] for one in placed] or [[16.0, 16.0, 30.0]])
    strip = F.interpolate(grey, size=(ROWS, grey.shape[3]))
    found = session.run(DETECTOR_OUTPUTS, {"grey": grey.numpy(), "digits": places.numpy(), "strip": strip.numpy()})
    off = dict.fromkeys(DETECTOR_OUTPUTS, 0.0)
    for name, own, expected in zip(DETECTOR_OUTPUTS, found, program(grey, places, strip)):
        off[name] = float(np.abs(own - expected.numpy()).max())
    return (max(off["centres"], off["ink"], off["probabilities"], off["line"]), max(off["sizes"], off["votes"]))


def _make(program: Program, metadata: dict[str, str], format: str, calibration: np.ndarray | None,
          images: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The export's bytes, and the probabilities (N, 10) that its own runtime gives with them.

    Without the runtime on this machine there are none: (0, 10).
    """
    chosen = FORMATS[format]
    # Windows cannot delete a file that is still mapped into memory
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "network" + EXPORT_ENDINGS[format])
        chosen.save(program, metadata, path)
        if calibration is not None:
            _quantize(path, calibration)
        data = path.read_bytes()
        path.write_bytes(data.replace(UNSEALED.encode(), f"content-sha256:{_sha256(data)}".encode()))
        check_export(path)
        run = chosen.open(path)
        try:
            found = [run(images[start:start + chosen.batch]) for start in range(0, len(images), chosen.batch)]
        except NoBrowser:
            found = [np.zeros((0, 10), np.float32)]
        return path.read_bytes(), np.concatenate(found)


def check_export(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of an export's contents, compared with the one that the file holds.

    Raises WeightsError for an export that is damaged or holds none, OSError if it cannot be read.
    """
    data = Path(path).read_bytes()
    seal = SEAL.search(data)
    if not seal:
        raise WeightsError(f"{path} holds no checksum of its contents: it is damaged, or not a present export of this "
                           f"project; export it again")
    digest = seal[1].decode()
    if _sha256(data.replace(seal[1], 64 * b"0")) != digest:
        raise WeightsError(f"{path} is damaged: it does not match its checksum; export it again")
    return digest


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _network_probabilities(program: Program, images: np.ndarray) -> np.ndarray:
    """Probabilities (N, 10) computed from the network without `Program`, to compare with."""
    logits = predict(program.model, images, mean=program.mean, std=program.std)
    return (logits / program.temperature).softmax(1).numpy()


def _metadata(model_path: str | os.PathLike[str], weights_metadata: dict[str, Any], program: Program,
              format: str) -> dict[str, str]:
    """What one needs to know to use the export; all values are strings."""
    digest = _sha256(Path(model_path).read_bytes())
    metadata = {"model": f"{Path(model_path).name}, SHA-256 {digest}", "architecture": weights_metadata["architecture"],
                **{"safetensors": WEIGHTS, HTML: PAGE}.get(format, PROGRAM),
                "mean": repr(program.mean), "std": repr(program.std), "temperature": repr(program.temperature),
                "test_accuracy": str(weights_metadata.get("test_accuracy", "not measured"))}
    if format == INT8:
        metadata["quantisation"] = "static, 8 bits, QDQ; test_accuracy was measured before it"
    return metadata


# saving

def _example() -> tuple[Tensor]:
    # two images: with one, exporters would freeze the batch size
    return (torch.zeros(2, *IMAGE_SHAPE, dtype=torch.uint8),)


def _any_count() -> dict[str, dict[int, Any]]:
    return {"images": {0: torch.export.Dim("N", min=1)}}


def _save_onnx(program: Program, metadata: dict[str, str], path: Path) -> None:
    _write_onnx(program, _example(), _any_count(), ["probabilities"], metadata, path)


def _write_onnx(program: nn.Module, example: tuple[Tensor, ...], shapes: dict[str, Any], outputs: list[str],
                metadata: dict[str, str], path: Path) -> None:
    exported = torch.onnx.export(program, example, dynamo=True, dynamic_shapes=shapes, input_names=list(shapes),
                                 output_names=outputs, verbose=False)
    assert exported is not None, "the dynamo exporter returns a program"
    model = exported.model_proto
    graph = model.graph
    # the exporter records paths of this machine as the origin of each node
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    onnx.helper.set_model_props(model, metadata | {"content": UNSEALED})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _calibration(data: str | os.PathLike[str]) -> np.ndarray:
    """Some training images, evenly spaced. Raises ExportError if there are none."""
    images, _ = load_split("train", data)
    if not len(images):
        raise ExportError(f"{data} holds no training images to calibrate {INT8} with")
    return images[np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).astype(int)]


class _Feed(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """One batch of images, as onnxruntime's quantisation wants it."""

    def __init__(self, images: np.ndarray) -> None:
        self.feeds = iter([{"images": images}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _quantize(path: Path, images: np.ndarray) -> None:
    """Quantise an ONNX file to 8-bit integers, calibrated on images (N, 28, 28).

    Weights are unsigned, with one scale per channel, because x86 processors without VNNI saturate when
    they add up products of signed weights. The first convolution and the logits stay in float32: there
    that is more accurate and no slower.
    """
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    prepared = path.with_name("prepared")
    quant_pre_process(model, prepared)
    convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
    quantize_static(prepared, path, _Feed(images), quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=["Conv", "Relu", "MaxPool", "Gemm"], nodes_to_exclude=convolutions[:1],
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8, per_channel=True,
                    extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]})
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def _save_pt2(program: Program, metadata: dict[str, str], path: Path) -> None:
    exported = torch.export.export(program, _example(), dynamic_shapes=_any_count())
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds paths of this machine
    torch.export.save(exported, path, extra_files={METADATA: json.dumps(metadata)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = UNSEALED.encode()


def _save_torchscript(program: Program, metadata: dict[str, str], path: Path) -> None:
    buffer = io.BytesIO()
    with _deprecated():
        torch.jit.save(torch.jit.trace(program, _example()), buffer, _extra_files={METADATA: json.dumps(metadata)})
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        target.comment = UNSEALED.encode()
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):  # they hold paths of this machine
                target.writestr(name, source.read(name))


def _save_safetensors(program: Program, metadata: dict[str, str], path: Path) -> None:
    save_file(program.model.state_dict(), path, metadata | {"content": UNSEALED})


def _save_html(program: Program, metadata: dict[str, str], path: Path) -> None:
    path.write_text(html_file(network_of(program.model, program.weights_metadata), metadata, UNSEALED), "utf-8")


@contextlib.contextmanager
def _deprecated() -> Iterator[None]:
    """Silence TorchScript's deprecation warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.* is deprecated", FutureWarning)
        yield


# loading again

def _open_onnx(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def _open_pt2(path: Path) -> Run:
    return _run(torch.export.load(path).module())


def _open_torchscript(path: Path) -> Run:
    with _deprecated():
        return _run(torch.jit.load(path))


def load_safetensors(path: str | os.PathLike[str]) -> Program:
    """Load a safetensors export as a Program, after a comparison of its checksum.

    Raises WeightsError for a file that is damaged or no such export, OSError if it cannot be read.
    """
    check_export(path)
    try:
        with safe_open(path, "pt") as file:
            weights_metadata: dict[str, Any] = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = NETWORKS[weights_metadata["architecture"]]()
        model.load_state_dict(weights)
        return Program(model, {name: float(weights_metadata[name]) for name in ("mean", "std", "temperature")})
    except OSError:
        raise
    except Exception as error:  # safetensors and each part raise their own types
        raise WeightsError(f"{path} is damaged, or not a safetensors export of this project") from error


def _open_safetensors(path: Path) -> Run:
    return _run(load_safetensors(path))


def _open_html(path: Path) -> Run:
    return lambda images: probabilities_in_browser(path, images)


def _run(module: nn.Module) -> Run:
    return lambda images: module(torch.from_numpy(images)).numpy()


@dataclass(frozen=True)
class Format:
    save: Callable[[Program, dict[str, str], Path], None]
    open: Callable[[Path], Run]  # with as many threads as torch uses
    batch: int = BATCH  # images at a time


FORMATS = {
    "onnx": Format(_save_onnx, _open_onnx),
    INT8: Format(_save_onnx, _open_onnx),
    "torchscript": Format(_save_torchscript, _open_torchscript),
    "pt2": Format(_save_pt2, _open_pt2),
    "safetensors": Format(_save_safetensors, _open_safetensors),
    HTML: Format(_save_html, _open_html, 1_000_000),  # each call starts a browser
}
