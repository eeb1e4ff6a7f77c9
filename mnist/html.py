"""The network in a browser: as one HTML file, and as what the files in mnist/web/ compute with."""

import base64
import contextlib
import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mnist.picture import (
    CROWDED,
    DIGIT_SIDE,
    MARGIN,
    MAX_PARTS,
    MIN_DIGIT,
    MIN_PART,
    MIN_STROKE,
    MIN_WORKING_SIDE,
    STROKE_WIDTHS,
)
from mnist.predict import (
    BLANK,
    LOW_CONFIDENCE,
    MAX_ASPECT_RATIO,
    MIN_CONFIDENCE,
    OUT_OF_DISTRIBUTION,
    SEVERAL,
    WIDE,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

WEB = Path(__file__).with_name("web")
BROWSERS = ["google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "chrome"]
PLACES = [Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
          Path("/Applications/Chromium.app/Contents/MacOS/Chromium"),
          *(Path(os.environ[folder], "Google", "Chrome", "Application", "chrome.exe")
            for folder in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA") if folder in os.environ)]


class NoBrowser(Exception):
    """There is no Chromium or Chrome on this machine."""


def script(network: dict[str, Any] | None) -> str:
    """The program of the drawing surface, the body of a function with `element` and `server`: see mnist/web/pad.js.

    `network` is what `network_of` returns, or None where the server reads.
    """
    return f"const NETWORK = {_json(network)};\n{text('reader.js', 'inside.js', 'examples.js', 'pad.js')}"


def html_file(network: dict[str, Any], metadata: dict[str, str], seal: str) -> str:
    """One file with the drawing surface and the network, which needs nothing else.

    It holds `metadata` as JSON, and `seal` once, for a checksum.
    """
    parts = {"seal": seal, "style": text("palette.css", "pad.css"), "body": text("pad.html"),
             "metadata": _json(metadata), "parameters": f"{network['parameters']:,}", "network": _json(network),
             "reader": text("reader.js"), "script": text("inside.js", "examples.js", "pad.js")}
    return re.sub(r"{{(\w+)}}", lambda place: parts[place[1]], text("file.html"))


def text(*names: str) -> str:
    """Files in mnist/web/, one after the other."""
    return "\n".join((WEB / name).read_text("utf-8") for name in names)


def _json(value: Any) -> str:
    return json.dumps(value).replace("<", "\\u003c")  # otherwise a value could end the script that it stands in


def network_of(model: nn.Sequential, metadata: dict[str, Any]) -> dict[str, Any]:
    """A trained network with its calibration, as mnist/web/reader.js takes it; all values fit into JSON.

    `metadata` are those of the weights file. The weights of all layers, float32, are in "values", as
    base64. Raises ValueError for a layer that the browser cannot compute as PyTorch does.
    """
    model = copy.deepcopy(model).cpu().requires_grad_(False)
    layers: list[dict[str, Any]] = []
    values: list[Tensor] = []
    for layer in model:
        settings, weights = _described(layer)
        layers.append({"kind": type(layer).__name__, **settings,
                       "lengths": {part: tensor.numel() for part, tensor in weights.items()}})
        values += weights.values()
    data = torch.cat([tensor.flatten().float() for tensor in values]).numpy().astype("<f4")
    ood = metadata.get("ood")
    return {
        "parameters": sum(one.numel() for one in model.parameters()), "mean": metadata["mean"], "std": metadata["std"],
        "temperature": metadata.get("temperature", 1.0), "minConfidence": MIN_CONFIDENCE,
        "ood": ood and {"weights": np.asarray(ood["weights"]).tolist(), "threshold": ood["threshold"]},
        "words": {"blank": BLANK, "several": SEVERAL, "wide": WIDE, "crowded": CROWDED,
                  "outOfDistribution": OUT_OF_DISTRIBUTION, "lowConfidence": LOW_CONFIDENCE},
        "rules": {"threshold": 255 * MIN_STROKE, "speck": MIN_PART, "minDigit": MIN_DIGIT, "digitSide": DIGIT_SIDE,
                  "strokeWidths": STROKE_WIDTHS, "maxAspectRatio": MAX_ASPECT_RATIO, "margin": MARGIN,
                  "minSide": MIN_WORKING_SIDE, "maxParts": MAX_PARTS},
        "layers": layers, "values": base64.b64encode(data.tobytes()).decode(),
    }


def _described(layer: nn.Module) -> tuple[dict[str, int], dict[str, Tensor]]:
    """A layer's settings and its weights, in the order in which they are stored."""
    match layer:
        case nn.Conv2d() if (layer.kernel_size[0] == layer.kernel_size[1] and layer.stride[0] == layer.stride[1]
                             and layer.padding[0] == layer.padding[1] and layer.dilation == (1, 1)
                             and layer.groups == 1 and layer.padding_mode == "zeros"):
            settings = {"outputs": layer.out_channels, "kernel": layer.kernel_size[0], "stride": layer.stride[0],
                        "padding": int(layer.padding[0])}
            return settings, {"weight": layer.weight} | ({} if layer.bias is None else {"bias": layer.bias})
        case nn.Linear() if layer.bias is not None:
            return {"outputs": layer.out_features}, {"weight": layer.weight, "bias": layer.bias}
        case nn.BatchNorm2d() if layer.running_mean is not None and layer.running_var is not None:
            scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
            return {}, {"scale": scale, "shift": layer.bias.double() - scale * layer.running_mean.double()}
        case nn.MaxPool2d(kernel_size=int(kernel), stride=int(stride), padding=0, dilation=1, ceil_mode=False):
            return {"kernel": kernel, "stride": stride}, {}
        case nn.AdaptiveAvgPool2d() if layer.output_size in (1, (1, 1)):
            return {}, {}
        case nn.ReLU() | nn.Flatten() | nn.Dropout() | nn.Dropout2d():
            return {}, {}
    raise ValueError(f"a browser cannot compute {layer} here")


# in a browser of this machine

@contextlib.contextmanager
def browsing() -> Iterator["Browser"]:
    """A headless Chromium or Chrome, until the block ends. Raises NoBrowser where this machine has none."""
    from playwright.sync_api import sync_playwright  # slow to import, and the page needs none

    as_root = os.name == "posix" and os.geteuid() == 0
    with sync_playwright() as playwright, playwright.chromium.launch(
            executable_path=find_browser(playwright), args=["--no-sandbox"] * as_root) as browser:
        yield browser


def find_browser(playwright: "Playwright") -> Path:
    """The Chromium or Chrome of this machine. Raises NoBrowser where it has none."""
    found = [*map(Path, filter(None, map(shutil.which, BROWSERS))), *PLACES, Path(playwright.chromium.executable_path)]
    path = next((path for path in found if path.exists()), None)
    if path is None:
        raise NoBrowser
    return path


def probabilities_in_browser(path: Path, images: np.ndarray) -> np.ndarray:
    """What the network in an HTML file computes: uint8 images (N, 28, 28) → probabilities (N, 10), float32.

    Raises NoBrowser where this machine has no Chromium, and playwright's Error for a damaged file.
    """
    program = """(encoded) => {
        const reader = new DigitReader(NETWORK), results = [];
        const levels = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
        for (let at = 0; at < levels.length; at += 784) {
            results.push(...reader.probabilities(levels.subarray(at, at + 784)));
        }
        return results;
    }"""

    def run() -> np.ndarray:
        with browsing() as browser:
            page = browser.new_page()
            page.set_content(path.read_text("utf-8"))  # whatever the file is called
            found = [page.evaluate(program, base64.b64encode(part.tobytes()).decode())
                     for part in np.array_split(images, max(1, len(images) // 500))]
        return np.concatenate(found).reshape(-1, 10).astype(np.float32)

    with ThreadPoolExecutor(1) as thread:  # in a notebook's own thread playwright refuses to run
        return thread.submit(run).result()
