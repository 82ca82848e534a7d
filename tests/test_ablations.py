"""tools/ablations.py on tiny data: every variant trains, at one budget, and only once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ablations
import pytest


def assert_one_change_each(out: Path) -> dict[str, Any]:
    """Each ablation in the folder differs from the first in the setting it is named after; the
    first one's settings."""
    configs: list[dict[str, Any]] = [
        json.loads((out / ablations.slug(name) / "config.json").read_text())
        for name in ablations.VARIANTS
    ]
    base, *others = configs
    changed = [{key for key in base if config[key] != base[key]} for config in others]
    assert changed == [
        {"pool"}, {"hidden_features"}, {"loss"}, {"batch_norm"}, {"dropout"}, {"arch"},
    ]  # fmt: skip
    return base


def test_every_variant_is_trained_once_and_tabulated(
    tiny_csv: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    call = ["--data", str(tiny_csv), "--runs", str(runs), "--out", str(out), "--epochs", "1"]
    call += ["--sizes", "32", "--batch-size", "7", "--limit", "14", "--device", "cpu"]
    ablations.main(call)
    printed = capfd.readouterr().out
    for name, flags in ablations.VARIANTS.items():
        (line,) = ablations.read_lines(out / ablations.slug(name))
        (row,) = [row for row in printed.splitlines() if row.startswith(f"| {name} |")]
        assert f"| {100 * line['public_accuracy']:.2f} |" in row
        assert " ".join(flags) in row
    base = assert_one_change_each(out)
    assert (base["epochs"], base["limit"], base["lr"]) == (1, 14, 0.01)
    assert not any(runs.iterdir())
    assert (out / "table.md").read_text() == ablations.table(out)
    assert (out / "curves.png").stat().st_size > 5000

    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    ablations.main(call)
    assert capfd.readouterr().out == ablations.table(out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written


def test_a_training_that_fails_ends_the_script(tiny_csv: Path, tmp_path: Path) -> None:
    call = ["--data", str(tiny_csv), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="21 images do not fill one batch of 999"):
        ablations.main([*call, "--epochs", "1", "--batch-size", "999"])
    assert not (tmp_path / "baseline").exists()
