"""Measure how soon the page answers: python tests/benchmark_page.py, also in `make bench`. Takes two minutes.

Simulated people draw MNIST's test digits as pad.js does: the pen moves 60 times a second, and one
question at a time goes to the page, with all that is drawn by then. When the pen pauses, the page
keeps the drawing, and the next one begins. The latencies, in milliseconds, are:

- "stroke", from pen movement to the answer that takes it into account;
- "answer", from a question to its answer;
- "keep", from the request to keep a drawing to the confirmation;
- "shown", from pen movement to displayed answer, for one person who draws without a pause in a real
  Chromium, while ten simulated people draw as well.

The simulated people share one process, and each has a connection that stays open. That process,
Chromium and the page share the cores of one machine, so the latencies include the work of all three.
The results go to figures/bench_page.json.
"""

import concurrent.futures
import http.client
import io
import itertools
import json
import multiprocessing
import os
import platform
import tempfile
import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import sqlalchemy as sa
import torch
from PIL import Image, ImageDraw

from handwriting import traced
from mnist.html import browsing
from mnist_utils import load_split
from visitor import Site, on_paper

ROOT = Path(__file__).parents[1]
RATE = 60  # pen movements a second: as often as a usual screen is redrawn
SPEED = 1.5  # of the pen, in sides of the paper a second
SIDE, BRUSH, PAUSE = 280, 20, 0.7  # pixels and seconds, as in pad.js
DIGITS = 30  # different drawings
WATCH = """
    const heard = window.heard = {strokes: [], asked: [], shown: []};
    let painted = 0, answers = 0;
    for (const kind of ["pointerdown", "pointermove"]) {
      addEventListener(kind, (event) => event.buttons && heard.strokes.push(event.timeStamp), {capture: true});
    }
    const {toDataURL} = HTMLCanvasElement.prototype, {fetch} = window;
    HTMLCanvasElement.prototype.toDataURL = function (...words) {
      painted = performance.now();
      return toDataURL.apply(this, words);
    };
    window.fetch = (...words) => {
      if (String(words[1]?.body).includes('"recognise"')) heard.asked.push(painted);
      return fetch(...words);
    };
    new MutationObserver((changes) => {
      if (!changes.some((change) => change.target.tagName === "CANVAS") || answers === heard.asked.length) return;
      answers += 1;
      requestAnimationFrame(() => {  // the message arrives after the screen has been painted
        const channel = new MessageChannel();
        channel.port1.onmessage = () => heard.shown.push(performance.now());
        channel.port2.postMessage(null);
      });
    }).observe(document, {subtree: true, attributeFilter: ["data-answered"]});
"""


# what people draw

def walked(strokes: list) -> list[list[tuple[float, float]]]:
    """The points of a pen that draws these strokes at a constant speed, RATE points a second."""
    paths = []
    for stroke in strokes:
        corners = np.array(stroke)
        along = np.concatenate([[0], np.hypot(*np.diff(corners, axis=0).T).cumsum()])
        moments = np.append(np.arange(0, along[-1], SPEED / RATE), along[-1])
        paths.append([tuple(place) for place in np.stack([np.interp(moments, along, axis) for axis in corners.T], 1)])
    return paths


def pictures(paths: list) -> list[str]:
    """The drawing after each point, as pad.js sends it: base64 of a PNG file, black on a transparent background."""
    drawing, texts = Image.new("RGBA", (SIDE, SIDE)), []
    draw = ImageDraw.Draw(drawing)
    for path in paths:
        before = None
        for place in np.array(path) * SIDE:
            draw.ellipse([*(place - BRUSH / 2), *(place + BRUSH / 2)], "black")
            if before is not None:
                draw.line([*before, *place], "black", BRUSH)
            file, before = io.BytesIO(), place
            drawing.save(file, "PNG")
            texts.append(b64encode(file.getvalue()).decode())
    return texts


# a simulated person

class Person:
    """Draws and asks the page, over a connection that stays open."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        self.connection.request("GET", "/config")
        components = json.load(self.connection.getresponse())["components"]
        self.pad = next(one["id"] for one in components if one["props"].get("elem_id") == "pad")
        self.session = uuid.uuid4().hex
        self.strokes, self.answers, self.keeps = [], [], []  # milliseconds
        self.kept = {}  # the numbers of drawings, by key

    def call(self, function: str, data: dict) -> dict:
        message = {"data": data, "fn_name": function, "component_id": self.pad, "session_hash": self.session}
        self.connection.request("POST", "/gradio_api/component_server", json.dumps(message),
                                {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
        return json.loads(answer)

    def draw(self, drawing: list[str]) -> None:
        """Make one drawing. The pen keeps its speed, however slowly the page answers."""
        begin, known = time.perf_counter(), 0
        while known < len(drawing):
            done = min(int((time.perf_counter() - begin) * RATE) + 1, len(drawing))
            if done > known:
                sent = time.perf_counter()
                self.call("recognise", {"picture": drawing[done - 1]})
                now = time.perf_counter()
                self.answers.append(1000 * (now - sent))
                self.strokes += [1000 * (now - begin - place / RATE) for place in range(known, done)]
                known = done
                time.sleep(min(0.5, 2 * (now - sent)))  # as pad.js does
            time.sleep(max(0, begin + done / RATE - time.perf_counter()))  # until the next point

    def keep(self, picture: str) -> None:
        key, sent = uuid.uuid4().hex, time.perf_counter()
        self.kept[key] = self.call("keep", {"drawing": key, "picture": picture, "label": None})["id"]
        self.keeps.append(1000 * (time.perf_counter() - sent))


def crowd(address: str, count: int, seconds: float, pause: float = PAUSE) -> dict:
    """Let `count` people draw for `seconds`, with pauses of `pause` seconds after each drawing.

    Returns the latencies of all people in milliseconds: "strokes", "answers" and "keeps". "kept" gives
    the numbers of their drawings, by key.
    """
    images, _ = load_split("test", ROOT / "dataset")
    drawings = [pictures(walked(traced(image))) for image in images[:DIGITS]]
    people = [Person(address) for _ in range(count)]
    end = time.perf_counter() + seconds

    def busy(number: int) -> None:
        for drawing in itertools.islice(itertools.cycle(drawings), number, None):
            if time.perf_counter() > end:
                return
            people[number].draw(drawing)
            time.sleep(pause)
            people[number].keep(drawing[-1])

    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        list(threads.map(busy, range(count)))
    return {name: [value for person in people for value in getattr(person, name)]
            for name in ("strokes", "answers", "keeps")} | {
            "kept": {key: number for person in people for key, number in person.kept.items()}}


# a person at a screen

def at_the_screen(address: str, going_on: Callable[[], bool]) -> list[float]:
    """Draw in Chromium as long as `going_on` returns True.

    Returns the milliseconds from each pen movement to the displayed answer. Where there is no browser,
    the list is empty.
    """
    images, _ = load_split("test", ROOT / "dataset")
    with browsing() as browser:
        if browser is None:
            return []
        page = browser.new_page()
        page.add_init_script(WATCH)
        page.goto(address)
        page.locator("canvas").wait_for()
        page.evaluate("heard.strokes.length = 0")
        for image in itertools.cycle(images[:DIGITS]):
            if not going_on():
                break
            for stroke in on_paper(page, walked(traced(image))):
                page.mouse.move(*stroke[0])
                page.mouse.down()
                begin = time.perf_counter()
                for number, place in enumerate(stroke[1:], 1):
                    time.sleep(max(0, begin + number / RATE - time.perf_counter()))
                    page.mouse.move(*place)
                page.mouse.up()
            page.locator(".verdict[aria-busy=false]").wait_for()
            page.locator(".clear").click()
        heard = page.evaluate("heard")
        browser.close()
    asked = np.searchsorted(heard["asked"], heard["strokes"])
    return [heard["shown"][number] - stroke for number, stroke in zip(asked, heard["strokes"])
            if number < len(heard["shown"])]


# measuring

def summary(milliseconds: list[float]) -> dict:
    median, most, nearly_all = np.quantile(milliseconds, [0.5, 0.95, 0.99])
    return {"number": len(milliseconds), "median": median, "95 %": most, "99 %": nearly_all}


def lost(database: Path, kept: dict[str, int]) -> int:
    """How many of the confirmed drawings are missing from the table, or have another number there."""
    engine = sa.create_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        found = {uuid.UUID(key).hex: number for key, number in connection.execute(sa.text(
            "SELECT drawing, id FROM predictions"))}
    engine.dispose()
    return sum(found.get(key) != number for key, number in kept.items())


def busy_cores(seconds: float = 2) -> float:
    """How many cores are busy with other work, measured for `seconds`. Works on Linux only."""
    def worked() -> float:
        return sum(map(int, Path("/proc/stat").read_text().split()[1:4])) / os.sysconf("SC_CLK_TCK")

    before = worked()
    time.sleep(seconds)
    return round((worked() - before) / seconds, 2)


def measure(site: Site) -> dict:
    results = {}
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as others:
        others.submit(crowd, site.address, 1, 2).result()  # warms up both processes
        for name, *crowded in (("10 people", 10, 20), ("10 people, no pause", 10, 15, 0), ("1 person", 1, 10),
                               ("50 people", 50, 20), ("10 people and a browser", 10, 30)):
            task, shown = others.submit(crowd, site.address, *crowded), []
            if "browser" in name:
                shown = at_the_screen(site.address, lambda task=task: not task.done())
            times = task.result()
            row = {"stroke_ms": summary(times["strokes"]), "answer_ms": summary(times["answers"]),
                   "keep_ms": summary(times["keeps"]), "lost": lost(site.database, times["kept"])}
            results[name] = row | ({"shown_ms": summary(shown)} if shown else {})
            for kind, cell in results[name].items():
                text = cell if kind == "lost" else f"{cell['number']:7,}, median {cell['median']:6.1f}, " \
                    f"95 % {cell['95 %']:6.1f}, 99 % {cell['99 %']:6.1f}"
                print(f"{name:26}{kind:10} {text}", flush=True)
    return results


def main() -> None:
    others = [busy_cores()]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), ROOT / "MNIST-MODEL.pth")
        try:
            site.start()
            results = measure(site)
        finally:
            site.stop()
    others.append(busy_cores())
    machine = {"processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
               "cores": os.cpu_count(), "system": platform.system(), "cores_busy_before_and_after": others}
    machine |= {name: version(name) for name in ("torch", "gradio", "sqlalchemy", "numpy")}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    path = ROOT / "figures" / "bench_page.json"
    path.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
