"""Train the digit detector on scenes that are drawn while it trains.

    training = DetectorTraining("dataset", Path("mnist/detector.pth"), seed=0)
    for epoch in training.epochs(resume=False):
        print(epoch.number, epoch.val_accuracy)
    training.calibrate()
    training.save()

The digits are MNIST's training images without those held out for validation. The scenes for
validation are whole pictures, drawn from the held-out images.
"""

import math
import os
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mnist.checkpoint import Epoch, TrainingState, read_checkpoint
from mnist.detect import Found, FoundDigit, crops, find_digits, layers
from mnist.files import checkpoint_path
from mnist.ink import Digits, words
from mnist.lines import line_loss, read_lines
from mnist.networks import CELL, NONE, REFERENCE, DigitDetector
from mnist.numbers import is_in
from mnist.runs import check_model_path, set_aside
from mnist.scenes import LINE_HEIGHTS, Placed, Runs, Targets, draw_page, draw_scenes
from mnist.train import bfloat16_is_fast
from mnist.weights import save_weights
from mnist_utils import digest, load_training

STEPS = 500  # in what counts as an epoch
SCENES = 32  # in a step
LEARNING_RATE = 3e-3
EPOCHS = 16
CROPS, OTHERS = 160, 40  # per step, at most: crops of digits and of other places
PAGES = 40  # validation pictures after each epoch
DIGIT_PAGES, NUMBER_PAGES = 500, 1000  # to calibrate the probabilities of digits, and those of numbers


class _Scenes(Dataset[tuple[Tensor, Targets, Runs]]):
    """The batches of scenes, each a function of the seed and its number."""

    def __init__(self, digits: Digits, seed: int) -> None:
        self.digits, self.seed, self.words = digits, seed, words()

    def __getitem__(self, number: int) -> tuple[Tensor, Targets, Runs]:
        return draw_scenes(self.digits, self.words, SCENES, self.seed, number)


class DetectorTraining:
    """Trains a digit detector, and keeps its checkpoint beside its weights file."""

    def __init__(self, data: str | os.PathLike[str], path: Path, *, seed: int) -> None:
        """Load the data, and initialise the detector.

        Raises ValueError for a `path` that cannot name a weights file, and what `load_training` raises.
        """
        check_model_path(path)
        self.path, self.checkpoint, self.seed = path, checkpoint_path(path), seed
        self.train_set, self.val_set, *_ = load_training(data)
        torch.manual_seed(seed)
        self.detector = DigitDetector(batch_norm=True)
        self.settings: dict[str, Any] = {}

    def epochs(self, *, resume: bool, epochs: int = EPOCHS, batch_bar: tqdm | None = None) -> Iterator[Epoch]:
        """Train, epoch by epoch; accuracy is the share of validation pictures of which every digit is read.

        With `resume` it continues after the checkpoint's last epoch, and ends with the weights of an
        uninterrupted training run. Raises WeightsError for a checkpoint of another training run,
        FileNotFoundError if it is missing, and OSError if it cannot be written.
        """
        stored = read_checkpoint(self.checkpoint) if resume else None
        detector = self.detector.to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, epochs * STEPS, pct_start=0.05,
                                                       cycle_momentum=False)
        amp = bfloat16_is_fast(torch.device("cpu"))
        self.settings = {"network": "DigitDetector", "epochs": epochs, "steps": STEPS, "scenes": SCENES,
                         "crops": CROPS, "others": OTHERS, "lines": list(LINE_HEIGHTS), "learning_rate": LEARNING_RATE,
                         "seed": self.seed, "amp": amp, "data": digest(*self.train_set, *self.val_set)}
        state = TrainingState(detector, optimizer, schedule, torch.Generator(), self.settings, losses=torch.empty(0))
        if stored:
            state.restore(stored, self.checkpoint)
        yield from state.history
        if len(state.history) == epochs:
            return
        if not resume:
            set_aside(self.checkpoint)
        state.save(self.checkpoint)
        digits, held_out = Digits(*self.train_set, bar=batch_bar), Digits(*self.val_set, bar=batch_bar)
        first = len(state.history) * STEPS
        threads = torch.get_num_threads()
        torch.set_num_threads(_threads())
        scenes = iter(DataLoader(_Scenes(digits, self.seed), batch_size=None, num_workers=1, prefetch_factor=4,
                                 sampler=range(first, epochs * STEPS)))
        try:
            while len(state.history) < epochs:
                start = time.perf_counter()
                if batch_bar is not None:
                    batch_bar.reset(total=STEPS)
                with torch.random.fork_rng(devices=[]):  # of the crops; a checkpoint need not hold its state
                    torch.manual_seed((self.seed << 32) + len(state.history))
                    loss, rates = self._train_epoch(state, scenes, amp, batch_bar)
                    val_loss, accuracy = self.validate(held_out)
                state.record(Epoch(len(state.history) + 1, loss, val_loss, accuracy, time.perf_counter() - start,
                                   rates))
                state.save(self.checkpoint)
                yield state.history[-1]
        finally:
            torch.set_num_threads(threads)

    def _train_epoch(self, state: TrainingState, scenes: Iterator[Any], amp: bool,
                     batch_bar: tqdm | None) -> tuple[float, tuple[float, ...]]:
        self.detector.train()
        total, rates = 0.0, list[float]()
        for _ in range(STEPS):
            pictures, targets, runs = next(scenes)
            loss = detection_loss(self.detector, pictures, targets, amp) + line_loss(self.detector, pictures, *runs)
            state.optimizer.zero_grad()
            loss.backward()
            rates += [float(rate) for rate in state.schedule.get_last_lr()]
            state.optimizer.step()
            state.schedule.step()
            total += loss.item()
            if batch_bar is not None:
                batch_bar.update()
        if not math.isfinite(total):
            raise FloatingPointError(f"the training loss became {total}: try another seed")
        return total / STEPS, tuple(rates)

    def validate(self, digits: Digits) -> tuple[float, float]:
        """The loss on scenes, and the share of pictures read right, both drawn from these digits."""
        self.detector.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # of the crops
            scenes = [draw_scenes(digits, words(), SCENES, self.seed + 1, number) for number in range(4)]
            loss = np.mean([(detection_loss(self.detector, pictures, targets)
                             + line_loss(self.detector, pictures, *runs)).item() for pictures, targets, runs in scenes])
        right = [read_page(self.detector, digits, self.seed, number) for number in range(PAGES)]
        return float(loss), float(np.mean(right))

    def calibrate(self, bar: tqdm | None = None) -> None:
        """Fit the detector's two logistic regressions on pictures drawn from the validation images."""
        if bar is not None:
            bar.reset(total=DIGIT_PAGES + NUMBER_PAGES)
        self.detector.eval()
        held_out = Digits(*self.val_set)

        def pages(first: int, count: int) -> Iterator[tuple[Found, list[Placed]]]:
            for number in range(first, first + count):
                grey, placed = draw_page(held_out, words(), self.seed, number)
                yield find_digits(self.detector, grey), placed
                if bar is not None:
                    bar.update()

        # others than those of `validate`
        digits = [row for found, placed in pages(PAGES, DIGIT_PAGES) for row in judged(found.digits, placed)]
        fit(self.detector.there, digits)
        fit(self.detector.sure, [row for found, placed in pages(PAGES + DIGIT_PAGES, NUMBER_PAGES)
                                 for row in judged_numbers(self.detector, found, placed)])

    def save(self) -> None:
        """Save the trained weights in half precision, without batch norm.

        Raises OSError if the file cannot be written.
        """
        training = self.settings | {"threads": _threads(), "torch": version("torch")}
        save_weights(self.path, self.detector.folded().half(), mean=0.0, std=1.0, training=training)


def fit(regression: Tensor, rows: list[tuple[np.ndarray, bool]]) -> None:
    """Fit a logistic regression (F + 1,) to evidence (F,), and whether it was right.

    It stays as it is where all its examples are alike, as they are for an untrained detector.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import

    if len({truth for _, truth in rows}) == 2:
        fitted = LogisticRegression().fit(*map(np.array, zip(*rows)))
        regression.copy_(torch.tensor([*fitted.coef_[0], *fitted.intercept_]))


def judged(found: list[FoundDigit], placed: list[Placed]) -> Iterator[tuple[np.ndarray, bool]]:
    """For each digit found its evidence, and whether there is one; each is there only once."""
    left = list(placed)
    for one in sorted(found, key=lambda one: -one.evidence[0]):
        own = _nearest(one, left)
        if own is not None:
            left.remove(own)
        yield one.evidence, own is not None


def judged_numbers(detector: DigitDetector, found: Found, placed: list[Placed]) -> Iterator[tuple[np.ndarray, bool]]:
    """For each number read its evidence, and whether it has all the digits on its strip, each once, and no others."""
    found, readings = read_lines(detector, found)
    for place, reading in readings:
        if not reading.kept:
            continue
        own = [_nearest(found.digits[index], placed) for index in reading.kept]
        there = [one for one in placed if is_in(place, (one.left, one.top, one.right, one.bottom))]
        yield reading.evidence, ([one and one.label for one in own] == reading.digits
                                 and len(set(own)) == len(own) and all(one in own for one in there))


def _nearest(found: FoundDigit, placed: list[Placed]) -> Placed | None:
    """The digit in whose middle this one was found."""
    side = max(found.box[2] - found.box[0], found.box[3] - found.box[1])

    def apart(other: Placed) -> float:
        return math.hypot(found.box[0] + found.box[2] - other.left - other.right,
                          found.box[1] + found.box[3] - other.top - other.bottom) / 2

    return min((other for other in placed if apart(other) < 0.3 * side), key=apart, default=None)


def _threads() -> int:
    """How many threads train: one less than usual, because a process of its own draws the scenes."""
    return max(1, torch.get_num_threads() - 1)


def read_page(detector: DigitDetector, digits: Digits, seed: int, number: int) -> bool:
    """Whether exactly the digits of one validation picture are read, in their order."""
    grey, placed = draw_page(digits, words(), seed, number)
    _, readings = read_lines(detector, find_digits(detector, grey))
    read = [digit for _, reading in readings for digit in reading.digits]
    return read == [one.label for one in placed]


def detection_loss(detector: DigitDetector, pictures: Tensor, targets: Targets, amp: bool = False) -> Tensor:
    """What training minimises: for centres the focal loss of Zhou, Wang & Krähenbühl (2019), for the rest the usual.

    The reader's part is the cross-entropy on crops of the digits, and of the likeliest other places.
    """
    targets = Targets(*targets)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        maps = detector(pictures)
    centres, sizes, votes, strokes = (part.float() for part in maps)
    here, chance = F.logsigmoid(centres), centres.sigmoid()
    centred = (targets.heat == 1).float()
    wanted = centred * (1 - chance) ** 2 * here
    # near a centre, being wrong costs less
    unwanted = (1 - centred) * (1 - targets.heat) ** 4 * chance ** 2 * (here - centres)
    found = -(wanted + unwanted * ~targets.ignored[:, None]).sum()
    size = (F.smooth_l1_loss(sizes, targets.sizes, reduction="none", beta=0.1) * targets.centred[:, None]).sum()
    vote = (F.smooth_l1_loss(votes, targets.centres, reduction="none", beta=0.1) * targets.inked[:, None]).sum()
    with torch.no_grad():
        parts, labels = _crops(pictures, targets, chance, sizes, votes, strokes)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        read = detector.reader(parts.contiguous(memory_format=torch.channels_last))
    return ((found + 2 * size) / centred.sum().clamp_min(1) + vote / targets.inked.sum().clamp_min(1)
            + F.binary_cross_entropy_with_logits(strokes, targets.strokes) + F.cross_entropy(read.float(), labels))


def _crops(pictures: Tensor, targets: Targets, chance: Tensor, sizes: Tensor, votes: Tensor,
           strokes: Tensor) -> tuple[Tensor, Tensor]:
    """Crops of some digits and of likely places without a digit: the crops (K, 3, 32, 32), the labels (K,)."""
    around = F.max_pool2d(targets.heat, 3, 1, 1)[:, 0]
    peaks = (chance == F.max_pool2d(chance, 3, 1, 1))[:, 0] & (around < 0.1) & ~targets.ignored
    digits = targets.centred.nonzero()
    digits = digits[torch.randperm(len(digits))[:CROPS]]
    others = peaks.nonzero()
    others = others[chance[:, 0][peaks].topk(min(OTHERS, len(others))).indices]
    cells = torch.cat([digits, others])
    labels = torch.cat([targets.labels[tuple(digits.T)], torch.full([len(others)], NONE)])
    own = torch.where(targets.centred[:, None], targets.sizes, sizes.clamp(-0.8, 0.6)).amax(1)[tuple(cells.T)]
    # as inaccurate as the detector's own boxes
    sides = REFERENCE * own.exp() * (1 + 0.08 * torch.randn(len(cells)))
    middles = (cells[:, [2, 1]] + 0.5) * CELL + 0.05 * sides[:, None] * torch.randn(len(cells), 2)
    return crops(layers(pictures, votes, strokes), cells[:, 0], middles, sides), labels
