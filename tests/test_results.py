"""The figures of docs/results.md and README are those that the scripts wrote beside them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import ablations
import pytest
from conftest import ROOT
from test_ablations import assert_one_change_each

from ferfacenet.hub import WeightsConfig

RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "results.md").read_text()
PROSE = PAGE.replace("\n", " ")
README = (ROOT / "README.md").read_text()
SHIPPED = "release2-precise"  # the run whose weights are bundled as fer2013
TRIED = {  # each run and its epochs
    "first": 9,
    "release": 30,
    "release2": 28,
    SHIPPED: 0,  # release2's weights, BatchNorm's statistics measured anew
    "release3": 31,
    "release4": 20,
    "teacher1": 36,
    "teacher2": 36,
    "teacher3": 36,
    "teacher4": 36,
    "release6": 44,
    "release7": 105,
}
FOLDS = sorted(RESULTS.glob("ckplus-*/result.json"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_table_of_views() -> None:
    found, held = (read(RESULTS / SHIPPED / f"{name}.json") for name in ("evaluation", "holdout"))
    for tta, label in (("ten_crop", '"ten_crop"'), ("flip", '"flip"'), ("single", "None")):
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `tta={label}`")]
        figures = [cell.strip() for cell in row.split("|")[2:6]]
        accuracies = [found[kind][tta] for kind in ("accuracy", "accuracy_deduplicated")]
        assert figures == [
            *(f"{100 * a:.2f}" for a in accuracies),
            f"{found['ece'][tta]:.3f}",
            f"{100 * held['accuracy'][tta]:.2f}",
        ]
    assert held["split"] == "Hold-out 0.05 of Training"
    assert f"say {100 * held['accuracy']['ten_crop']:.2f} % by the same" in PROSE
    assert f"error is {found['ece_cross_fitted']:.3f}" in PROSE
    assert f"error at this temperature is {held['ece']['ten_crop']:.3f}" in PROSE
    assert f"({found['temperature']}) was fitted" in PROSE
    assert f"`fer2013` | {100 * found['accuracy']['ten_crop']:.2f} %" in README
    assert f"they reach {100 * held['accuracy']['ten_crop']:.2f} %" in README


def test_what_float16_changes() -> None:
    found = read(RESULTS / SHIPPED / "evaluation.json")
    differ = found["decisions_that_differ"]
    assert found["images"] == 3589
    assert max(differ.values()) <= 3
    assert (
        f'{differ["ten_crop"]} of the 3,589 decisions by ten crops, {differ["flip"]} by `"flip"` '
        f"and {differ['single']} by one crop"
    ) in PROSE


def row_of(run: str) -> str:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| [{run}](")]
    return row


@pytest.mark.parametrize("run", TRIED)
def test_the_runs_that_were_tried(run: str) -> None:
    found, config = (read(RESULTS / run / f"{name}.json") for name in ("evaluation", "config"))
    assert config["epochs"] == TRIED[run]
    if TRIED[run]:
        assert len((RESULTS / run / "metrics.jsonl").read_text().splitlines()) == TRIED[run]
    figures = f"{config['seed']} | {TRIED[run]} | {100 * found['accuracy']['ten_crop']:.2f}"
    assert f"| {figures} |" in row_of(run)


@pytest.mark.parametrize("run", sorted(TRIED.keys() - {"first"}))
def test_the_shipped_run_is_the_best_that_is_calibrated(run: str) -> None:
    found, held, best = (
        read(RESULTS / name)
        for name in (f"{run}/evaluation.json", f"{run}/holdout.json", f"{SHIPPED}/evaluation.json")
    )
    error, accuracy = found["ece_cross_fitted"], found["accuracy"]["ten_crop"]
    assert f"| {100 * held['accuracy']['ten_crop']:.2f} |" in row_of(run)
    if run == SHIPPED:
        assert error <= 0.03 and accuracy >= 0.715
    elif accuracy > best["accuracy"]["ten_crop"]:
        assert error > 0.03
        assert f"calibration error {error:.3f}" in row_of(run)


def test_what_precise_bn_is_worth() -> None:
    for without, precise, words in (
        ("release2/evaluation", f"{SHIPPED}/evaluation", "and {:.1f} to `release2`"),
        ("release3/without-precise-bn", "release3/evaluation", "{:.1f} points to `release3`"),
    ):
        before, after = (
            read(RESULTS / f"{name}.json")["accuracy"]["ten_crop"] for name in (without, precise)
        )
        assert words.format(100 * (after - before)) in PROSE


def test_the_ablations() -> None:
    folder = RESULTS / "ablations"
    assert ablations.table(folder) in PAGE
    base = assert_one_change_each(folder)
    assert base["epochs"] >= 10
    for name in ablations.VARIANTS:
        assert len(ablations.read_lines(folder / ablations.slug(name))) == base["epochs"]


def test_the_table_of_classes() -> None:
    found = read(RESULTS / SHIPPED / "evaluation.json")
    for name, of in found["per_class"].items():
        shares = " | ".join(f"{100 * of[kind]:.1f}" for kind in ("recall", "precision", "f1"))
        assert f"| {name} | {shares} | {of['support']} |" in PAGE


def test_the_curve() -> None:
    lines = (RESULTS / "release2" / "metrics.jsonl").read_text().splitlines()
    for epoch in map(json.loads, lines):
        accuracy = f"{100 * epoch['train_accuracy']:.1f} | {100 * epoch['public_accuracy']:.1f}"
        accuracy += f" | {100 * epoch['holdout_accuracy']:.1f}"
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


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("fer2013", f"{SHIPPED}/evaluation.json"),
        ("fer2013", f"{SHIPPED}/holdout.json"),
        ("ckplus", "ckplus-subject/result.json"),
    ],
)
def test_the_weights_quote_what_was_measured(name: str, measured: str) -> None:
    folder = ROOT / "ferfacenet" / "weights" / name
    config = WeightsConfig.from_json((folder / "config.json").read_bytes())
    found = read(RESULTS / measured)
    assert config.temperature == found["temperature"]
    for tta, accuracy in found["accuracy"].items():
        assert config.metrics[f"{found['split']} {tta} accuracy"] == pytest.approx(
            accuracy, abs=1e-4
        )
