"""The pictures that the scripts draw: training curves, confusion matrix, reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def plot_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss and accuracies over the epochs, as lines of metrics.jsonl, to a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in history]
    # Of one epoch a line shows nothing.
    left.plot(epochs, [line["loss"] for line in history], marker=".", color="C3")
    left.set(xlabel="epoch", ylabel="training loss")
    for key, label in (
        ("train_accuracy", "training batches, augmented"),
        ("public_accuracy", "PublicTest, one centre crop"),
        ("holdout_accuracy", "held-out Training, one centre crop"),
    ):
        points = [(line["epoch"], 100 * line[key]) for line in history if key in line]
        if points:
            right.plot(*zip(*points, strict=True), marker=".", label=label)
    right.set(xlabel="epoch", ylabel="accuracy in %")
    right.legend(loc="best", frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=110)


def plot_variants(histories: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """PublicTest accuracy over the epochs of several runs, by name, to a PNG."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, history in histories.items():
        accuracies = [100 * line["public_accuracy"] for line in history]
        axes.plot([line["epoch"] for line in history], accuracies, marker=".", label=name)
    axes.set(xlabel="epoch", ylabel="PublicTest, one centre crop, accuracy in %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def plot_widths(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy on PublicTest, by one crop, against the time of one crop in a batch, to a PNG."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        own = "width" in row
        point = row["ms_128"] / 128, 100 * row["accuracy"]
        axes.scatter(*point, color="C0" if own else "C1")
        place = 0, -14 if own else 7
        axes.annotate(row["package"], point, place, textcoords="offset points", ha="center")
    axes.set(xlabel="ms of a crop, 128 at once", ylabel="PublicTest, one centre crop, %")
    axes.set(xscale="log", xticks=[0.2, 0.5, 1, 2, 5], xticklabels=["0.2", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def plot_confusion(
    counts: npt.NDArray[np.int64],
    names: Sequence[str],
    path: Path,
    axis_titles: tuple[str, str] = ("predicted label", "true label"),
) -> None:
    """The paper's Fig. 6: rows are true labels, columns predictions, each row's share."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel=axis_titles[0], ylabel=axis_titles[1])
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for row, column in np.ndindex(shares.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", color=colour)
    figure.colorbar(image, shrink=0.8)
    figure.savefig(path, dpi=110)


def plot_reliability(bins: Sequence[npt.NDArray[np.float64]], title: str, path: Path) -> None:
    """Accuracy against confidence; ``bins`` holds each bin's mean confidence, accuracy and
    share of the images, (B,) each."""
    confidence, accuracy, share = bins
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="gray", linestyle="--", label="perfect calibration")
    full = share > 0
    axes.scatter(confidence[full], accuracy[full], s=20 + 600 * share[full], alpha=0.6)
    axes.plot(confidence[full], accuracy[full], label="this model (area: share of images)")
    axes.set(xlabel="mean confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=title)
    axes.legend(loc="upper left", frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
