"""How well handwriting is read: python tests/benchmark_handwriting.py, also in `make bench`. Five minutes.

Every picture is made anew from one of MNIST's test digits, which neither the network nor the
preparation of pictures has learned from; tests/handwriting.py says what varies, and how much. The
results go to figures/bench_handwriting.json.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from tqdm import tqdm

import handwriting
from mnist.predict import MNISTPredictor
from mnist_utils import load_split

ROOT = Path(__file__).parents[1]
COUNT, SEED = 500, 1


def kinds() -> dict[str, tuple[int, Callable]]:
    """How many pictures of each kind, and how one is made."""
    pages = {f"page: {kind}": (COUNT, lambda digit, rng, kind=kind: handwriting.page(digit, rng, kind))
             for kind in ("plain", "shadow", "ruled", "tilted")}
    pages["page: all of these"] = (2 * COUNT, lambda digit, rng: handwriting.page(digit, rng, "photo"))
    strokes = {f"mouse: {brush} pixels": (COUNT, lambda digit, rng, brush=brush: handwriting.stroked(digit, brush, rng))
               for brush in (1, 2, 5, 10, 20, 30, 40)}
    return {"MNIST's own": (10_000, lambda digit, rng: digit)} | pages | strokes


def main() -> None:
    torch.set_num_threads(1)
    predictor = MNISTPredictor(ROOT / "MNIST-MODEL.pth")
    images, labels = load_split("test", ROOT / "dataset")
    results = {}
    print(f"{'':24}{'pictures':>9}{'right':>9}{'95 % interval':>19}{'trusted':>9}{'of these right':>16}")
    for name, (count, draw) in kinds().items():
        rng = np.random.default_rng(SEED)
        chosen = rng.permutation(len(labels))[:count]
        bar = tqdm(chosen, desc=name, leave=False, disable=None)
        answers = [predictor.predict(draw(images[index], rng)) for index in bar]
        right = np.array([answer.digit == label for answer, label in zip(answers, labels[chosen])])
        trusted = np.array([answer.trusted for answer in answers])
        low, high = binomtest(int(right.sum()), count).proportion_ci(method="wilson")
        results[name] = {"pictures": count, "right": right.mean(), "low": low, "high": high,
                         "trusted": trusted.mean(), "right_of_trusted": right[trusted].mean()}
        print(f"{name:24}{count:9,}{right.mean():9.2%}{f'{low:.2%} to {high:.2%}':>19}{trusted.mean():9.2%}"
              f"{right[trusted].mean():16.2%}", flush=True)
    rng = np.random.default_rng(SEED)
    read = [predictor.predict(handwriting.printed(str(digit), font, size)).digit == digit
            for font in handwriting.FONTS for size in (20, 40, 80, 160, 320) for digit in range(10)]
    results["printed"] = {"pictures": len(read), "right": np.mean(read)}
    letters = [not result.trusted for result in predictor.predict_many(handwriting.letters())]
    results["letters"] = {"pictures": len(letters), "told": np.mean(letters)}
    told = []
    for one, other in rng.integers(0, len(images), (2 * COUNT, 2)):
        page = 1 - handwriting.touching(images[one], images[other], int(rng.integers(12, 26)))
        told.append(not predictor.predict(page).trusted)
    results["touching"] = {"pictures": len(told), "told": np.mean(told)}
    print(f"printed, {len(handwriting.FONTS)} fonts of 20 to 320 pixels: {np.mean(read):.2%} of {len(read):,} right")
    print(f"printed letters: {np.mean(letters):.2%} of {len(letters):,} not trusted")
    print(f"two digits that touch, or nearly: {np.mean(told):.2%} of {len(told):,} not trusted")
    path = ROOT / "figures" / "bench_handwriting.json"
    path.write_text(json.dumps({"seed": SEED, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
