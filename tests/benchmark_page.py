"""Measure how soon the page answers: python tests/benchmark_page.py, also in `make bench`. Takes two minutes.

One person draws MNIST's test digits without a pause in a real Chromium, whose network reads at every
frame of the screen. Meanwhile simulated people draw: the pen of each moves for as long as the digit's
strokes take, pauses, and then the page keeps the drawing. The figures, in milliseconds, are:

- "shown", from a place of the pen to the first answer on the screen that takes it into account;
- "keep", from the request to keep a drawing to the confirmation.

The simulated people share one process, and each has a connection that stays open. That process,
Chromium and the page share the cores of one machine, so the figures include the work of all three.
"as fast as it can" says how many drawings a second the page keeps where eight people never pause. The
results go to figures/bench_page.json.
"""

import concurrent.futures
import http.client
import io
import itertools
import json
import multiprocessing
import os
import platform
import random
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
from mnist.html import NoBrowser, browsing
from mnist_utils import load_split
from visitor import Site, on_paper

ROOT = Path(__file__).parents[1]
RATE = 60  # pen movements a second: as often as a usual screen is redrawn
SPEED = 1.5  # of the pen, in sides of the paper a second
SIDE, BRUSH, PAUSE = 280, 20, 0.7  # pixels and seconds, as in reader.js and pad.js
DIGITS = 30  # different drawings
WATCH = """
    const heard = window.heard = {strokes: [], shown: []};
    for (const kind of ["pointerdown", "pointermove"]) {
      addEventListener(kind, (event) => event.buttons && heard.strokes.push(event.timeStamp), {capture: true});
    }
    const {requestAnimationFrame} = window;
    let painting = false;
    window.requestAnimationFrame = (work) => requestAnimationFrame((now) => {
      painting = true;
      work(now);
      painting = false;
    });
    new MutationObserver(() => {
      const known = heard.strokes.length, after = () => {
        const channel = new MessageChannel();  // its message arrives after the frame has been painted
        channel.port1.onmessage = () => heard.shown.push([known, performance.now()]);
        channel.port2.postMessage(null);
      };
      if (painting) after();
      else requestAnimationFrame(after);
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


def drawn(paths: list) -> str:
    """The drawing as pad.js sends it: base64 of a PNG file, black on a transparent background."""
    drawing, file = Image.new("RGBA", (SIDE, SIDE)), io.BytesIO()
    draw = ImageDraw.Draw(drawing)
    for path in paths:
        before = None
        for place in np.array(path) * SIDE:
            draw.ellipse([*(place - BRUSH / 2), *(place + BRUSH / 2)], "black")
            if before is not None:
                draw.line([*before, *place], "black", BRUSH)
            before = place
    drawing.save(file, "PNG")
    return b64encode(file.getvalue()).decode()


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
        self.keeps = []  # milliseconds
        self.kept = {}  # the numbers of drawings, by key

    def call(self, function: str, data: dict) -> dict:
        message = {"data": data, "fn_name": function, "component_id": self.pad, "session_hash": self.session}
        try:
            response = self._post(message)
        except (ConnectionError, http.client.RemoteDisconnected):  # the server closes connections that were idle
            self.connection.close()
            response = self._post(message)
        answer = response.read()
        assert response.status == 200, answer
        return json.loads(answer)

    def _post(self, message: dict) -> http.client.HTTPResponse:
        self.connection.request("POST", "/gradio_api/component_server", json.dumps(message),
                                {"Content-Type": "application/json"})
        return self.connection.getresponse()

    def keep(self, picture: str) -> None:
        key, sent = uuid.uuid4().hex, time.perf_counter()
        self.kept[key] = self.call("keep", {"drawing": key, "picture": picture, "label": None})["id"]
        self.keeps.append(1000 * (time.perf_counter() - sent))


def crowd(address: str, count: int, seconds: float, resting: bool = True) -> dict:
    """Let `count` people draw for `seconds`, or keep one drawing after the other where they are not `resting`.

    Returns the latencies of all "keeps" in milliseconds, and the numbers of the "kept" drawings, by key.
    """
    images, _ = load_split("test", ROOT / "dataset")
    paths = [walked(traced(image)) for image in images[:DIGITS]]
    drawings = [(drawn(path), sum(map(len, path)) / RATE + PAUSE) for path in paths]
    people = [Person(address) for _ in range(count)]
    begin = time.perf_counter()

    def busy(number: int) -> None:
        chance = random.Random(number)
        time.sleep(chance.uniform(0, 2) * resting)  # people do not begin together
        while time.perf_counter() < begin + seconds:
            picture, takes = chance.choice(drawings)
            time.sleep(takes * resting)
            people[number].keep(picture)

    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        list(threads.map(busy, range(count)))
    return {"keeps": [value for person in people for value in person.keeps],
            "kept": {key: number for person in people for key, number in person.kept.items()},
            "seconds": time.perf_counter() - begin}


# a person at a screen

def at_the_screen(address: str, going_on: Callable[[], bool]) -> list[float]:
    """Draw in Chromium as long as `going_on` returns True.

    Returns the milliseconds from each pen movement to the displayed answer. Where there is no browser,
    the list is empty.
    """
    images, _ = load_split("test", ROOT / "dataset")
    try:
        with browsing() as browser:
            page = browser.new_page()
            page.add_init_script(WATCH)
            page.goto(address)
            page.locator(".labels button").last.wait_for()
            for number, image in enumerate(itertools.cycle(images[:DIGITS])):
                if not going_on():
                    break
                for stroke in on_paper(page, walked(traced(image))):
                    page.mouse.move(*stroke[0])
                    page.mouse.down()
                    begin = time.perf_counter()
                    for step, place in enumerate(stroke[1:], 1):
                        time.sleep(max(0, begin + step / RATE - time.perf_counter()))
                        page.mouse.move(*place)
                    page.mouse.up()
                page.locator(".verdict[aria-busy=false]").wait_for()
                page.locator(".clear").click()
                if number == 2:  # now the browser has compiled what it runs
                    page.evaluate("for (const list of Object.values(heard)) list.length = 0")
            heard = page.evaluate("heard")
    except NoBrowser:
        return []
    known, moments = np.array(heard["shown"]).T
    first = np.searchsorted(known, np.arange(1, len(heard["strokes"]) + 1))
    return [moments[index] - stroke for index, stroke in zip(first, heard["strokes"]) if index < len(moments)]


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
        for name, people, seconds, resting in (("1 person", 1, 20, True), ("10 people", 10, 20, True),
                                               ("200 people", 200, 30, True), ("as fast as it can", 8, 15, False)):
            task, shown = others.submit(crowd, site.address, people, seconds, resting), []
            if resting:
                shown = at_the_screen(site.address, lambda task=task: not task.done())
            times = task.result()
            results[name] = {"shown_ms": summary(shown)} if shown else {}
            results[name] |= {"keep_ms": summary(times["keeps"]),
                              "kept_a_second": len(times["kept"]) / times["seconds"],
                              "lost": lost(site.database, times["kept"])}
            for kind, cell in results[name].items():
                text = f"{cell:.0f}" if not isinstance(cell, dict) else f"{cell['number']:7,}, " \
                    f"median {cell['median']:6.1f}, 95 % {cell['95 %']:6.1f}, 99 % {cell['99 %']:6.1f}"
                print(f"{name:20}{kind:15} {text}", flush=True)
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
