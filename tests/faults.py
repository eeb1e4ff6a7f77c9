"""Let things fail on purpose, for longer than tests may take: python tests/faults.py, or `make faults`.

- A training is killed a hundred times at random moments, also inside the write of its checkpoint, and
  must end with the weights of a training that was never stopped.
- Two hundred people keep drawings on the page for five minutes, while it is killed five times. Each
  drawing that was confirmed must be there, once, undamaged, under the number that was confirmed.

Takes about ten minutes. Prints what it counted; ends with an error if anything was lost or counted twice.
"""

import argparse
import http.client
import json
import random
import tempfile
import threading
import time
import uuid
from pathlib import Path

import sqlalchemy as sa

from app.store import Store
from benchmark_page import Person, drawn, lost, walked
from handwriting import traced
from mnist_utils import load_split
from test_resume import kill_again_and_again
from visitor import Site, serving

ROOT = Path(__file__).parents[1]
PAUSE = 2.0  # seconds between two drawings of a person


class Stubborn:
    """A person who sends a drawing again until the page confirms it, as pad.js does."""

    def __init__(self, address: str, drawings: list[str], seed: int) -> None:
        self.address, self.drawings, self.chance = address, drawings, random.Random(seed)
        self.kept: dict[str, int] = {}
        self.failures, self.person = 0, None

    def draw(self, end: float) -> None:
        time.sleep(self.chance.uniform(0, PAUSE))
        while time.monotonic() < end:
            key = uuid.uuid4().hex
            message = {"drawing": key, "picture": self.chance.choice(self.drawings), "label": None}
            while key not in self.kept:
                try:
                    self.person = self.person or Person(self.address)
                    self.kept[key] = self.person.call("keep", message)["id"]
                except (OSError, http.client.HTTPException, AssertionError, json.JSONDecodeError, KeyError):
                    self.failures, self.person = self.failures + 1, None
                    time.sleep(self.chance.uniform(0.2, 1))
                    if time.monotonic() > end + 60:
                        return
            time.sleep(self.chance.uniform(0.5, 1.5) * PAUSE)


def crowd(site: Site, people: int, seconds: float, kills: int) -> dict[str, int]:
    """Let people draw while the page is killed and started again; returns what was counted."""
    images, _ = load_split("test", ROOT / "dataset")
    drawings = [drawn(walked(traced(image))) for image in images[:20]]
    everyone = [Stubborn(site.address, drawings, seed) for seed in range(people)]
    end, chance = time.monotonic() + seconds, random.Random(0)
    threads = [threading.Thread(target=person.draw, args=(end,)) for person in everyone]
    for thread in threads:
        thread.start()
    port = site.address.rstrip("/").rsplit(":", 1)[1]
    for _ in range(kills):
        time.sleep(seconds / (kills + 1) * chance.uniform(0.7, 1))
        site.process.kill()
        site.process.wait()
        site.start("--port", port)
    for thread in threads:
        thread.join()
    kept = {key: number for person in everyone for key, number in person.kept.items()}
    store = Store(sa.URL.create("sqlite", database=str(site.database)))
    health = store.check()
    return {"confirmed": len(kept), "rows": health.total, "lost": lost(site.database, kept),
            "damaged": len(health.damaged) + len(health.faults or []),
            "requests that failed": sum(person.failures for person in everyone)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of the training (default: %(default)s)")
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        inside = kill_again_and_again(Path(folder), options.kills, 3 * options.kills)
        print(f"a training killed {options.kills} times, {inside} times inside a write: the same weights, "
              f"{time.monotonic() - begin:.0f} s", flush=True)
    with serving(ROOT / "MNIST-MODEL.pth") as site:
        counted = crowd(site, options.people, options.seconds, kills=5)
        print(f"{options.people} people, {options.seconds:.0f} s, the page killed 5 times: "
              + ", ".join(f"{number:,} {name}" for name, number in counted.items()))
        assert not counted["lost"] and not counted["damaged"]
        assert counted["rows"] >= counted["confirmed"]


if __name__ == "__main__":
    main()
