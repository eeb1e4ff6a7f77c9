"""How well numbers are read as people write them: python tests/benchmark_numbers.py, also in `make bench`.

It takes half an hour. Every picture is drawn anew by tests/scenes.py from MNIST's test digits: digits
that touch, lines, forms, pages on a table, notes; and words and surfaces, in which there is no
number. A picture is right if all its digits are read, in their order, and nothing else is. It
misleads if it is wrong and at least one of its numbers is trusted, be it the wrong one or another.
So the trusted numbers are counted too, and those among them that the picture does not have.

RapidOCR and Tesseract read the first ENGINE_COUNT pictures of each kind, enlarged twice where they
are small; `pip install --group ocr` installs them. The results go to figures/bench_numbers.json.
figures/numbers.png shows the first two pictures of each kind, and output/numbers.png the first six,
with what was read: orange is not trusted.
"""

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import binomtest
from tqdm import tqdm

import scenes
from app.views import outlined
from mnist.predict import MNISTPredictor, Number

ROOT = Path(__file__).parents[1]
COUNT, ENGINE_COUNT, SEED = 500, 40, 1
FEW, MANY = 2, 6  # pictures of each kind in the two figures
SMALL = 400  # pixels: the longer side below which the OCR engines get a picture twice as large
MEGAPIXELS = (4000, 3000)


def engines() -> dict[str, Callable[[Image.Image], str]]:
    """The digits that each installed OCR engine reads in a picture."""
    found: dict[str, Callable[[Image.Image], str]] = {}
    try:
        from rapidocr_onnxruntime import RapidOCR

        rapid = RapidOCR()

        def read_rapid(picture: Image.Image) -> str:
            lines, _ = rapid(np.asarray(picture)[:, :, ::-1])
            lines = sorted(lines or [], key=lambda line: (np.mean([y for _, y in line[0]]), line[0][0][0]))
            return "".join(character for line in lines for character in line[1] if not character.isspace())

        found["RapidOCR"] = read_rapid
    except ImportError:
        pass
    try:
        import pytesseract

        pytesseract.get_tesseract_version()

        def read_tesseract(picture: Image.Image) -> str:
            text = pytesseract.image_to_string(picture, config="--psm 6 -c tessedit_char_whitelist=0123456789")
            return "".join(text.split())

        found["Tesseract"] = read_tesseract
    except (ImportError, OSError):
        pass
    return found


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture as the OCR engines get it."""
    if max(picture.size) >= SMALL:
        return picture
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC)


def wrongly_trusted(numbers: list[Number], expected: tuple[str, ...]) -> int:
    """How many of the trusted numbers are none of the expected ones, each of which can be read once."""
    read, there = Counter(one.text for one in numbers if one.trusted), Counter(expected)
    return (read - there).total()


def photograph_speed(predictor: MNISTPredictor, folder: Path) -> dict[str, float]:
    """The median seconds for a photograph of 12 million pixels, and by how many MB the peak of memory grew."""
    path = folder / "photograph.jpg"
    scenes.desk(np.random.default_rng(5)).picture.resize(MEGAPIXELS, Image.Resampling.BICUBIC).save(path, quality=90)
    predictor.read_numbers(np.zeros((300, 300)))  # loads the detector
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        predictor.read_numbers(path)
        seconds.append(time.perf_counter() - start)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    path.unlink()
    return {"seconds": float(np.median(seconds)), "megabytes": grown / (2**20 if sys.platform == "darwin" else 2**10)}


def main() -> None:
    (ROOT / "output").mkdir(exist_ok=True)
    predictor = MNISTPredictor(ROOT / "MNIST-MODEL.pth")
    speed = photograph_speed(predictor, ROOT / "output")
    print(f"a photograph of 12 million pixels: {speed['seconds']:.2f} s, {speed['megabytes']:.0f} MB more at the peak")
    others = engines()
    results, shown = {}, []
    print(f"{'':12}{'pictures':>9}{'right':>8}{'95 % interval':>18}{'trusted':>9}{'misleads':>10}"
          f"{'wrong of trusted':>18}" + "".join(f"{name:>11}" for name in others))
    for kind, draw in scenes.KINDS.items():
        rng = np.random.default_rng(SEED)
        right, trusted, misleading, seconds = [], [], [], []
        sure = wrong = 0  # of all numbers, those that are trusted, and those of them that are wrong
        theirs: dict[str, list[bool]] = {name: [] for name in others}
        for number in tqdm(range(COUNT), desc=kind, leave=False, disable=None):
            scene = draw(rng)
            expected = "".join(scene.numbers)
            start = time.perf_counter()
            numbers = predictor.read_numbers(scene.picture)
            seconds.append(time.perf_counter() - start)
            found = "".join(one.text for one in numbers)
            right.append(found == expected)
            trusted.append(bool(numbers) and all(one.trusted for one in numbers))
            misleading.append(not right[-1] and any(one.trusted for one in numbers))
            sure += sum(one.trusted for one in numbers)
            wrong += wrongly_trusted(numbers, scene.numbers)
            if number < MANY:
                shown.append((kind, number, replace(scene, picture=outlined(scene.picture.copy(), 1, numbers)),
                              " ".join(scene.numbers) or "no number"))
            if number < ENGINE_COUNT:
                for name, read in others.items():
                    theirs[name].append(read(enlarged(scene.picture)) == expected)
        low, high = binomtest(sum(right), COUNT).proportion_ci(method="wilson")
        results[kind] = {"pictures": COUNT, "right": np.mean(right), "low": low, "high": high,
                         "trusted": np.mean(trusted), "misleading": np.mean(misleading),
                         "trusted_numbers": sure, "wrong_trusted_numbers": wrong,
                         "seconds": float(np.median(seconds)), "slowest": max(seconds),
                         **{name: np.mean(answers) for name, answers in theirs.items()}}
        print(f"{kind:12}{COUNT:9}{np.mean(right):8.1%}{f'{low:.1%} to {high:.1%}':>18}{np.mean(trusted):9.1%}"
              f"{np.mean(misleading):10.1%}{f'{wrong} of {sure:,}':>18}"
              + "".join(f"{np.mean(theirs[name]):11.0%}" for name in others), flush=True)
    for folder, count in (("output", MANY), ("figures", FEW)):
        chosen = [(scene, caption) for kind, number, scene, caption in shown if number < count and kind != "nothing"]
        scenes.sheet(*zip(*chosen)).save(ROOT / folder / "numbers.png")
    path = ROOT / "figures" / "bench_numbers.json"
    path.write_text(json.dumps({"seed": SEED, "threads": torch.get_num_threads(), "photograph": speed,
                                "engine_pictures": ENGINE_COUNT if others else 0, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
