"""The figures of docs/results.md and README are those that the scripts wrote beside them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import ablations
import experts
import pytest
from conftest import ROOT
from test_ablations import assert_one_change_each

from ferfacenet.hub import WeightsConfig

RESULTS = ROOT / "docs" / "results"
PAGE = (ROOT / "docs" / "results.md").read_text()
PROSE = PAGE.replace("\n", " ")
README = (ROOT / "README.md").read_text()
SHIPPED = "release8"  # the run whose weights are bundled as fer2013
TRIED = {  # each run and its epochs
    "first": 9,
    "release": 30,
    "release2": 28,
    "release2-precise": 0,  # release2's weights, BatchNorm's statistics measured anew
    "release3": 31,
    "release4": 20,
    "teacher1": 36,
    "teacher2": 36,
    "teacher3": 36,
    "teacher4": 36,
    "release6": 44,
    "release7": 105,
    SHIPPED: 83,
    "release8-avg": 98,
    "release9": 376,
    "half": 71,
    "quarter": 83,
}
FOLDS = sorted(RESULTS.glob("ckplus-*/result.json"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def percent(found: Any, tta: str) -> list[str]:
    return [f"{100 * found[kind][tta]:.2f}" for kind in ("accuracy", "accuracy_deduplicated")]


def test_the_figures_of_the_shipped_weights() -> None:
    public, private = (read(RESULTS / SHIPPED / f"{n}.json") for n in ("evaluation", "private"))
    assert (public["split"], private["split"]) == ("PublicTest", "PrivateTest")
    for tta, label in (("ten_crop", '"ten_crop"'), ("flip", '"flip"'), ("single", "None")):
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `tta={label}`")]
        expected = [
            cell
            for of in (public, private)
            for cell in (*percent(of, tta), f"{of['ece'][tta]:.3f}")
        ]
        assert [cell.strip() for cell in row.split("|")[2:8]] == expected
    for name, run in (("fer2013", SHIPPED), ("fer2013-small", "quarter")):
        splits = (read(RESULTS / run / f"{split}.json") for split in ("evaluation", "private"))
        row = " | ".join(cell for split in splits for cell in percent(split, "ten_crop"))
        assert f"| `{name}`, ours, ten crops | {row} |" in PAGE
        assert re.search(rf"\| the bundled weights `{name}`.* \| {re.escape(row)} \|", README)
    assert f"error is {public['ece_cross_fitted']:.3f}" in PROSE
    assert f"({public['temperature']}) was fitted" in PROSE


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


@pytest.mark.parametrize("run", TRIED)
def test_the_shipped_run_is_the_best_on_public_test(run: str) -> None:
    found, best = (read(RESULTS / name / "evaluation.json") for name in (run, SHIPPED))
    assert found["accuracy"]["ten_crop"] <= best["accuracy"]["ten_crop"]
    holdout = RESULTS / run / "holdout.json"
    held = f"{100 * read(holdout)['accuracy']['ten_crop']:.2f}" if holdout.exists() else "none"
    assert f" | {held} | " in row_of(run)


def test_what_precise_bn_is_worth() -> None:
    for without, precise, words in (
        ("release2/evaluation", "release2-precise/evaluation", "and {:.1f} to `release2`"),
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


def test_the_experts() -> None:
    found = read(RESULTS / "experts" / "experts.json")
    assert experts.table(found) in PAGE
    assert f"for all ({found['weight']}), chosen" in PROSE
    known = found["held-out accuracy by weight"]["0.0"]
    assert f"twentieth {100 * known:.1f} % are right without any expert" in PROSE


def test_the_table_of_classes() -> None:
    splits = [
        read(RESULTS / SHIPPED / f"{name}.json")["per_class"] for name in ("evaluation", "private")
    ]
    for name in splits[0]:
        cells = [
            cell
            for split in splits
            for cell in (
                *(f"{100 * split[name][kind]:.1f}" for kind in ("recall", "precision", "f1")),
                str(split[name]["support"]),
            )
        ]
        assert f"| {name} | {' | '.join(cells)} |" in PAGE


def test_the_curve() -> None:
    lines = (RESULTS / SHIPPED / "metrics.jsonl").read_text().splitlines()
    tested = [line for line in map(json.loads, lines) if "public_accuracy" in line]
    assert [line["epoch"] for line in tested] == [25, 50, 75, 83]
    for line in tested:
        accuracy = f"{100 * line['train_accuracy']:.1f} | {100 * line['public_accuracy']:.1f}"
        row = f"| {line['epoch']} | {line['lr']:.4f} | {line['loss']:.3f} | {accuracy}"
        assert f"{row} | {line['images_per_second']:,.0f} |" in PAGE


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
        ("fer2013", f"{SHIPPED}/private.json"),
        ("fer2013-small", "quarter/evaluation.json"),
        ("fer2013-small", "quarter/private.json"),
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
