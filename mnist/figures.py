"""Figures for the notebooks and the command line: images, predictions, maps, dots, and curves of a training run.

Where a function returns a matplotlib Figure, it is nine inches wide at most, and a notebook shows it as
a cell's last expression. The palette is colour-blind-safe.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from mnist.checkpoint import Epoch
from mnist_utils import CLASSES

WIDTH = 9.0  # inches
BLUE, ORANGE, WRONG = "#006BA4", "#FF800E", "#C85200"  # of matplotlib's style tableau-colorblind10


def draw_images(images: Iterable[np.ndarray], titles: Sequence[str] | None = None, *, columns: int = 10,
                colors: Sequence[str] | None = None) -> Figure:
    """A grid of images (N, 28, 28) of grey levels 0 to 255, black ink on white, with a title above each.

    There are `columns` images in a row, or fewer where the titles are too long for that.
    """
    images = list(images)
    lines = [line for title in titles or () for line in title.splitlines()]
    room = max(0.7, 0.075 * max(map(len, lines), default=0) + 0.1)  # inches for a title of ten points
    columns = max(1, min(columns, int(WIDTH / room), len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    title_lines = max((title.count("\n") + 1 for title in titles or ()), default=0)
    side = max(WIDTH / max(columns, 8), room)
    figure = Figure(figsize=(side * columns, rows * (side + 0.19 * title_lines)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for number, (ax, image) in enumerate(zip(axes, images)):
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        if titles:
            ax.set_title(titles[number], fontsize=10, color=colors[number] if colors else "black")
    return figure


def draw_predictions(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], *,
                     columns: int = 8) -> Figure:
    """A grid of images (N, 28, 28), each with its predicted class, its confidence and its label; orange where wrong.

    `labels` are (N,), `probabilities` are (N, 10), and `classes` are the ten names.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    titles = [f"{classes[answer]} ({sure:.1%})\nlabel {classes[label]}"
              for answer, sure, label in zip(predicted, confidence, labels)]
    colors = ["black" if answer == label else WRONG for answer, label in zip(predicted, labels)]
    return draw_images(images, titles, columns=columns, colors=colors)


def draw_maps(maps: np.ndarray, name: str, colorbar_label: str) -> Figure:
    """Maps (N, H, W) in two rows, on one colour scale: blue above zero, red below.

    A map's title is `name` and its number.
    """
    limit = np.abs(maps).max()
    scale = {"cmap": "RdBu", "vmin": -limit, "vmax": limit} if np.min(maps) < 0 else {"cmap": "Blues", "vmin": 0,
                                                                                     "vmax": limit}
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots(2, math.ceil(len(maps) / 2))
    for number, (ax, values) in enumerate(zip(axes.flat, maps)):
        shown = ax.imshow(values, **scale)
        ax.set_title(f"{name} {number}", fontsize=10)
        ax.axis("off")
    figure.colorbar(shown, ax=axes, label=colorbar_label)
    return figure


def draw_dots(values: Mapping[str, np.ndarray], xlabel: str, *, intervals: Sequence[tuple[float, float]] = (),
              line: tuple[float, str] | None = None) -> Figure:
    """For each name a row of dots, one for each of its values (N,), from bottom to top.

    A row's interval is a bar behind its dots. `line` is the x position and the label of a vertical line.
    """
    figure = Figure(figsize=(8, 0.9 + 0.33 * len(values)), layout="constrained")
    ax = figure.subplots()
    for row, interval in enumerate(intervals):
        ax.plot(interval, [row, row], color=ORANGE, linewidth=7, alpha=0.5)
    for row, numbers in enumerate(values.values()):
        ax.plot(numbers, [row] * len(numbers), "o", color=BLUE, markersize=5, alpha=0.8)
    if line:
        ax.axvline(line[0], color=ORANGE, linestyle="--", label=line[1])
        ax.legend()
    ax.set(xlabel=xlabel, yticks=range(len(values)), yticklabels=list(values))
    ax.grid(axis="x", alpha=0.3)
    return figure


def draw_answers(images: np.ndarray, labels: np.ndarray, answers: np.ndarray, classes: Sequence[str]) -> Figure:
    """How the answers (epochs, N) to N images changed from epoch to epoch: blue where right, orange where wrong."""
    epochs = len(answers)
    figure = Figure(figsize=(WIDTH, 1 + 0.3 * epochs), layout="constrained")
    top, grid = figure.subplots(2, 1, height_ratios=[0.9, 0.3 * epochs])
    top.imshow(np.concatenate(images, axis=1), cmap="gray_r", aspect="auto")
    top.axis("off")
    shades = np.where((answers == labels)[..., None], (162, 200, 236), (255, 188, 121))  # light blue, light orange
    grid.imshow(shades.astype(np.uint8), aspect="auto")
    for (row, column), answer in np.ndenumerate(answers):
        grid.text(column, row, classes[answer], ha="center", va="center", fontsize=9)
    grid.set(xticks=[], yticks=range(epochs), yticklabels=range(1, epochs + 1), ylabel="epoch")
    return figure


def draw_classes(ax: Axes, values: np.ndarray, classes: Sequence[str]) -> None:
    """Draw a bar for each of the ten classes; `values` are (10,)."""
    ax.bar(range(CLASSES), values, color=BLUE)
    ax.set_xlabel("class")
    ax.set_xticks(range(CLASSES), classes, rotation=tilt(classes))


def tilt(classes: Sequence[str]) -> int:
    """The angle in degrees at which the names of the classes fit below an axis."""
    return 0 if max(map(len, classes)) < 3 else 90


def draw_training(axes: Sequence[Axes], history: Sequence[Epoch], epochs: int) -> None:
    """Draw the losses by epoch on the first of two axes, and the learning rate by step on the second.

    The former contents of the axes are replaced, so a figure grows while a training run of `epochs` epochs runs.
    """
    losses, rates = axes
    numbers = [epoch.number for epoch in history]
    losses.clear()
    losses.plot(numbers, [epoch.train_loss for epoch in history], "o-", color=BLUE, label="training, warped images")
    losses.plot(numbers, [epoch.val_loss for epoch in history], "s--", color=ORANGE, label="validation")
    losses.set(xlabel="epoch", ylabel="mean cross-entropy (nats)", yscale="log", xlim=(0.5, epochs + 0.5))
    losses.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
    losses.legend()
    rates.clear()
    rates.plot([rate for epoch in history for rate in epoch.learning_rates], color=BLUE)
    rates.set(xlabel="step (one batch each)", ylabel="learning rate", ylim=0,
              xlim=(0, epochs * max((len(epoch.learning_rates) for epoch in history), default=1)))
    for ax in axes:
        ax.grid(alpha=0.3)
