"""How well numbers are read as people write them: python tests/benchmark_numbers.py, also in `make bench`.

Every picture is drawn anew by tests/scenes.py from MNIST's test digits: digits that touch, lines, forms,
pages on a table, notes; and words and surfaces, in which there is no number. A picture is right if all
its digits are read, in their order, and nothing else is. The results go to figures/bench_numbers.json,
and output/numbers.png shows some pictures with what was read.
"""

import json
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from tqdm import tqdm

import scenes
from mnist.picture import PictureError
from mnist.predict import MNISTPredictor, Prediction

ROOT = Path(__file__).parents[1]
COUNT, SHOWN, SEED = 100, 6, 1


def read(predictor: MNISTPredictor, scene: scenes.Scene) -> list[Prediction]:
    """The digits read in a scene; none where the reader refuses the picture."""
    try:
        return [one for one in predictor.read(scene.picture) if one.digit is not None]
    except PictureError:
        return []


def main() -> None:
    torch.set_num_threads(1)
    predictor = MNISTPredictor(ROOT / "MNIST-MODEL.pth")
    results, shown = {}, []
    print(f"{'':12}{'pictures':>9}{'right':>8}{'95 % interval':>18}{'trusted, but wrong':>20}")
    for kind, draw in scenes.KINDS.items():
        rng = np.random.default_rng(SEED)
        right, misleading = [], []
        for number in tqdm(range(COUNT), desc=kind, leave=False, disable=None):
            scene = draw(rng)
            digits = read(predictor, scene)
            found = "".join(str(one.digit) for one in digits)
            right.append(found == "".join(scene.numbers))
            if number < SHOWN:
                shown.append((scene, f"{' '.join(scene.numbers) or 'no number'}: read {found or 'nothing'}"))
            misleading.append(not right[-1] and bool(digits) and all(one.trusted for one in digits))
        low, high = binomtest(sum(right), COUNT).proportion_ci(method="wilson")
        results[kind] = {"pictures": COUNT, "right": np.mean(right), "low": low, "high": high,
                         "trusted_but_wrong": np.mean(misleading)}
        print(f"{kind:12}{COUNT:9}{np.mean(right):8.0%}{f'{low:.0%} to {high:.0%}':>18}{np.mean(misleading):20.0%}",
              flush=True)
    (ROOT / "output").mkdir(exist_ok=True)
    scenes.sheet(*zip(*shown)).save(ROOT / "output" / "numbers.png")
    path = ROOT / "figures" / "bench_numbers.json"
    path.write_text(json.dumps({"seed": SEED, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
