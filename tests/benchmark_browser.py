"""Compare two ways to compute the network in a browser: mnist/web/reader.js and onnxruntime-web.

    npm install --prefix output onnxruntime-web
    python tests/benchmark_browser.py output/node_modules/onnxruntime-web/dist

Both compute the probabilities of MNIST's test images, one at a time, in one Chromium, in turns. Printed
for each of two networks: the bytes that a visitor loads, the network's weights among them; the time
from a new page to the first answer, with everything from this machine; the median and the 95th
percentile of one image; and by how much the two differ. Two minutes.
"""

import argparse
import base64
import contextlib
import gzip
import json
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page

from mnist.export import export
from mnist.html import browsing, network_of, text
from mnist.weights import load_weights
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
NETWORKS = {"MNIST_CNN": "MNIST-MODEL.pth", "SixConv": "study/SixConv-0.pth"}
PROGRAM, BINARY = "ort.wasm.min.js", ["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]
IMAGES, ROUNDS, BLOCK = 500, 20, 10  # images; how often all are read; images for each reading of the clock
START = {
    "reader.js": """const reader = new DigitReader(NETWORK);
        window.read = async (image) => reader.probabilities(image);""",
    "onnxruntime-web": """ort.env.wasm.wasmPaths = location.href;
        ort.env.wasm.numThreads = 1;
        const session = await ort.InferenceSession.create("network.onnx");
        const [name] = session.inputNames;
        window.read = async (image) => {
            const results = await session.run({[name]: new ort.Tensor("uint8", image, [1, 28, 28])});
            return results.probabilities.data;
        };""",
}
MEASURE = """async ([encoded, block]) => {
    const levels = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
    const seconds = [], results = [];
    for (let at = 0; at < levels.length; at += 784 * block) {
        const begin = performance.now();
        for (let one = at; one < at + 784 * block; one += 784) results.push(await read(levels.slice(one, one + 784)));
        seconds.push((performance.now() - begin) / block);
    }
    return [seconds, results.flatMap((result) => [...result])];
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, and prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(files: dict[str, bytes]) -> Iterator[str]:
    """The address at which this machine serves the files, beside an empty page."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {"index.html": b"<!DOCTYPE html>", **files}.items():
            Path(folder, name).write_bytes(content)
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/"
            server.shutdown()


def opened(browser: Browser, address: str, name: str, files: dict[str, bytes]) -> tuple[Page, float]:
    """A page with one of the two ready to read, and the milliseconds from its scripts' start to the first answer."""
    page = browser.new_page()
    page.goto(address)
    scripts = "".join(f"await load('{file}');" for file in files if file.endswith(".js"))
    milliseconds = page.evaluate(f"""async () => {{
        const load = (source) => new Promise((done, failed) => document.head.append(Object.assign(
            document.createElement("script"), {{src: source, onload: done, onerror: failed}})));
        const begin = performance.now();
        {scripts}
        {START[name]}
        await read(new Uint8Array(784));
        return performance.now() - begin;
    }}""")
    return page, milliseconds


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder dist of the npm package onnxruntime-web")
    return parser


def main() -> None:
    folder = parser().parse_args().folder
    images, _ = load_split("test", ROOT / "dataset")
    blocks = [base64.b64encode(part.tobytes()).decode() for part in np.array_split(images[:IMAGES], 5)]
    for network, weights in NETWORKS.items():
        with tempfile.TemporaryDirectory() as temporary:
            exported = Path(temporary, "network.onnx")
            export(ROOT / weights, exported, "onnx", data=ROOT / "dataset")
            onnx = exported.read_bytes()
        described = json.dumps(network_of(*load_weights(ROOT / weights)))
        own = {"reader.js": f"const NETWORK = {described};\n{text('reader.js')}".encode()}
        theirs = {file: (folder / file).read_bytes() for file in (PROGRAM, *BINARY)} | {"network.onnx": onnx}
        both = {"reader.js": own, "onnxruntime-web": theirs}
        with contextlib.ExitStack() as stack:
            browser, pages, first = stack.enter_context(browsing()), {}, {}
            for name, files in both.items():
                pages[name], first[name] = opened(browser, stack.enter_context(served(files)), name, files)
            seconds = {name: [] for name in both}
            for _ in range(ROUNDS):
                found = {}
                for name, page in pages.items():
                    parts = [page.evaluate(MEASURE, [block, BLOCK]) for block in blocks]
                    seconds[name] += [value for part, _ in parts for value in part]
                    found[name] = np.array([value for _, part in parts for value in part])
        print(f"{network}: probabilities differ by at most {np.abs(np.subtract(*found.values())).max():.1e}")
        for name, files in both.items():
            sizes = sum(map(len, files.values())), sum(len(gzip.compress(file)) for file in files.values())
            median, slow = np.percentile(seconds[name], [50, 95])
            print(f"  {name:16} {sizes[0] / 1e6:6.2f} MB, {sizes[1] / 1e6:5.2f} MB compressed; first answer after "
                  f"{first[name]:4.0f} ms; an image {median:.2f} ms, 95th percentile {slow:.2f} ms")


if __name__ == "__main__":
    main()
