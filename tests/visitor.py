"""A simulated visitor: run the page in a separate process, open it in Chromium, and draw on it.

`python tests/visitor.py`, run in the top folder, makes the README's pictures of the page.
"""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import sqlalchemy as sa
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from handwriting import traced
from mnist.html import browsing
from mnist.predict import MNISTPredictor
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
Strokes = list[list[tuple[float, float]]]

expect.set_options(timeout=15_000)


class Site:
    """`python -m app` in a separate process, with its database file in `folder`."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder, self.database = folder, folder / "predictions.db"
        url = sa.URL.create("sqlite", database=str(self.database)).render_as_string()
        self.surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": url, "MODEL_PATH": str(weights),
                             "APP_USER": "", "APP_PASSWORD": ""}
        self.surroundings.pop("GRADIO_TEMP_DIR", None)  # app.page may have set it in this process

    def start(self, *options: str) -> None:
        """Start it, and wait until it has printed its address."""
        with open(self.folder / "errors", "w") as errors:
            self.process = subprocess.Popen([sys.executable, "-m", "app", *options], cwd=self.folder, text=True,
                                            env=self.surroundings, stdout=subprocess.PIPE, stderr=errors)
        line = self.process.stdout.readline()
        assert line.startswith("Draw at "), self.errors()
        self.address = line.split()[2]

    def errors(self) -> str:
        """All that it has printed to stderr."""
        return (self.folder / "errors").read_text("utf-8")

    def stop(self) -> int:
        """Stop it as Ctrl-C does, and return its exit status."""
        if self.process.poll() is None:  # Windows cannot send SIGINT to a single process
            self.process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.stdout.close()


@contextlib.contextmanager
def serving(weights: Path) -> Iterator[Site]:
    """Run the page with an empty database until the block ends."""
    with tempfile.TemporaryDirectory(prefix="mnist-page-", ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), weights)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]  # unlikely to be taken while the page is restarted
        try:
            site.start("--port", str(port))
            yield site
        finally:
            site.stop()


@contextlib.contextmanager
def opened(browser: Browser, site: Site, query: str = "", **options) -> Iterator[Page]:
    """Open the page in a new window until the block ends.

    Raises AssertionError at the end where a script failed or a request went to another machine.
    """
    with browser.new_context(**{"viewport": {"width": 1200, "height": 720}, **options}) as context:
        page, faults, asked = context.new_page(), [], set()
        page.on("pageerror", lambda error: faults.append(str(error)))
        context.on("request", lambda request: asked.add(urlsplit(request.url)[:2]))
        page.goto(site.address + query)
        page.locator(".labels button").last.wait_for()  # made by pad.js
        yield page
        assert faults == []
        assert {host for scheme, host in asked if scheme not in ("data", "blob")} == {urlsplit(site.address).netloc}


def on_paper(page: Page, strokes: Strokes) -> Strokes:
    """Convert strokes from shares of the paper, 0 to 1, to pixels of the window."""
    box = page.locator("canvas.ink").bounding_box()
    return [[(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke] for stroke in strokes]


def draw(page: Page, strokes: Strokes) -> int | None:
    """Draw with the mouse. Returns the digit that the page then shows, or None."""
    for start, *rest in on_paper(page, strokes):
        page.mouse.move(*start)
        page.mouse.down()
        for place in rest:
            page.mouse.move(*place)
        page.mouse.up()
    return answer(page)


def answer(page: Page) -> int | None:
    """Wait for the answer to the whole drawing. Returns the digit that the page shows, or None."""
    page.locator(".verdict[aria-busy=false]").wait_for()
    shown = page.locator(".digit").inner_text()
    return None if shown == "?" else int(shown)


def name(page: Page, digit: int) -> None:
    """Label the drawing with a click, and wait until the label is kept."""
    page.get_by_role("button", name=f"It was a {digit}").click()
    expect(page.locator(".kept")).to_contain_text(f", labelled {digit}: ")


def show(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def record(page: Page, strokes: Strokes, path: Path) -> None:
    """Draw, and write what the page shows meanwhile as an animation."""
    frames = []

    def look() -> None:
        with Image.open(io.BytesIO(page.locator("#pad").screenshot())) as frame:
            size = 720, round(720 * frame.height / frame.width)
            frames.append(frame.convert("RGB").resize(size, Image.Resampling.LANCZOS))

    look()
    for start, *rest in on_paper(page, strokes):
        page.mouse.move(*start)
        page.mouse.down()
        for place in rest:
            page.mouse.move(*place, steps=4)
            look()
        page.mouse.up()
    answer(page)
    probabilities = page.locator(".stage canvas").last
    for digit in (5, 3, 8):
        probabilities.hover(position={"x": 40, "y": (digit + 0.5) / 10 * probabilities.bounding_box()["height"]})
        look()
    durations = [800] + [90] * (len(frames) - 5) + [900, 1500, 1500, 1500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=60, method=6)


def main() -> None:
    images, labels = load_split("test")
    predictor = MNISTPredictor("MNIST-MODEL.pth")
    unsure = np.argsort([result.confidence for result in predictor.predict_many(images)])[:3]
    rng = np.random.default_rng(0)
    chosen = [*rng.permutation([*unsure, *rng.integers(0, len(images), 36)]), np.flatnonzero(labels == 3)[1]]
    with serving(Path("MNIST-MODEL.pth").resolve()) as site, browsing() as browser:
        with opened(browser, site) as page:
            for index in chosen:
                if draw(page, traced(images[index], 5)) is None:
                    page.keyboard.press("Escape")
                else:
                    name(page, labels[index])
            page.screenshot(path="figures/page.png", full_page=True)
            show(page, "Statistics")
            page.locator("#statistics .summary").wait_for()
            page.wait_for_timeout(500)  # it fades in
            page.screenshot(path="figures/page-statistics.png", full_page=True)
            show(page, "History")
            page.locator("#history img").first.wait_for()
            page.wait_for_timeout(500)
            page.screenshot(path="figures/page-history.png")
        with opened(browser, site, viewport={"width": 1160, "height": 800}) as page:
            record(page, traced(images[labels == 5][1], 5), Path("figures/page.webp"))
        with opened(browser, site, **PHONE) as page:
            draw(page, traced(images[labels == 5][1], 5))
            expect(page.locator(".kept")).to_contain_text("Kept")
            page.screenshot(path="figures/page-phone.png")


if __name__ == "__main__":
    main()
