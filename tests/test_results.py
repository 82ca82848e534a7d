"""The figures of docs/results.md and README are those that the scripts wrote beside them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from ferfacenet.hub import WeightsConfig

RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "results.md").read_text()
README = (ROOT / "README.md").read_text()
FOLDS = sorted(RESULTS.glob("ckplus-*/result.json"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_table_of_views() -> None:
    found = read(RESULTS / "first" / "evaluation.json")
    for tta, label in (("ten_crop", '"ten_crop"'), ("flip", '"flip"'), ("single", "None")):
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `tta={label}`")]
        figures = [cell.strip() for cell in row.split("|")[2:5]]
        accuracies = [found[kind][tta] for kind in ("accuracy", "accuracy_deduplicated")]
        assert figures == [*(f"{100 * a:.2f}" for a in accuracies), f"{found['ece'][tta]:.3f}"]
    assert f"error is {found['ece_cross_fitted']:.3f}" in PAGE.replace("\n", " ")
    assert f"({found['temperature']}) was fitted" in PAGE
    assert f"`fer2013` | {100 * found['accuracy']['ten_crop']:.2f} %" in README


def test_the_table_of_classes() -> None:
    found = read(RESULTS / "first" / "evaluation.json")
    for name, of in found["per_class"].items():
        shares = " | ".join(f"{100 * of[kind]:.1f}" for kind in ("recall", "precision", "f1"))
        assert f"| {name} | {shares} | {of['support']} |" in PAGE


def test_the_curve() -> None:
    lines = (RESULTS / "first" / "metrics.jsonl").read_text().splitlines()
    for epoch in map(json.loads, lines):
        accuracy = f"{100 * epoch['train_accuracy']:.1f} | {100 * epoch['public_accuracy']:.1f}"
        row = f"| {epoch['epoch']} | {epoch['size']} | {epoch['lr']:.4f} | {epoch['loss']:.3f}"
        assert f"{row} | {accuracy} | {epoch['images_per_second']:.0f} |" in PAGE


@pytest.mark.parametrize("path", FOLDS, ids=lambda path: path.parent.name)
def test_the_rows_of_ckplus(path: Path) -> None:
    found = read(path)
    pooled, folds = found["accuracy"]["ten_crop"], found["accuracy_by_fold"]
    spread = [found["accuracy_fold_mean"], found["accuracy_fold_sd"]]
    row = f"{100 * pooled:.2f} | " + ", ".join(f"{100 * value:.2f}" for value in spread)
    assert f"{row}, {100 * min(folds):.2f} to {100 * max(folds):.2f} |" in PAGE
    assert f"{100 * pooled:.2f} %" in README
    with (path.parent / "confusion.csv").open() as file:
        _, *rows = csv.reader(file)
    right = sum(int(row[1 + place]) for place, row in enumerate(rows))
    assert right / found["images"] == pytest.approx(pooled)
    with (path.parent / "folds.csv").open() as file:
        assert sum(1 for _ in file) == 1 + found["images"]


def test_the_tables_of_the_ckplus_classes() -> None:
    persons, frames = (
        read(RESULTS / f"ckplus-{protocol}" / "result.json")["per_class"]
        for protocol in ("subject", "random")
    )
    for name, of in persons.items():
        shares = [
            group[name][k] for group in (persons, frames) for k in ("recall", "precision", "f1")
        ]
        row = " | ".join(f"{share:.1%}" for share in shares)
        assert f"| {name} | {row} | {of['support']} |" in PAGE


def test_the_faces_in_photos() -> None:
    found = read(RESULTS / "faces.json")
    pasted, times = found["pasted"], found["times"]
    assert f"| faces found | {100 * pasted['found']:.1f} % |" in PAGE
    roll = f"{pasted['roll_error_mean']:.2f} and {pasted['roll_error_median']:.2f} degrees |"
    assert roll in PAGE
    assert f"CPU time | {times['detect_cpu_ms'] / times['predict_cpu_ms']:.2f} |" in PAGE


@pytest.mark.parametrize(("name", "run"), [("fer2013", "first"), ("ckplus", "ckplus-subject")])
def test_the_weights_quote_what_was_measured(name: str, run: str) -> None:
    folder = ROOT / "ferfacenet" / "weights" / name
    config = WeightsConfig.from_json((folder / "config.json").read_bytes())
    found = read(next(p for p in (RESULTS / run).glob("*.json") if p.stem != "config"))
    assert config.temperature == found["temperature"]
    for tta, accuracy in found["accuracy"].items():
        assert config.metrics[f"{found['split']} {tta} accuracy"] == pytest.approx(
            accuracy, abs=1e-4
        )
