"""tools/ablations.py on tiny data: every variant trains, at one budget, and only once."""

from __future__ import annotations

import json
from pathlib import Path

import ablations
import pytest


def test_every_variant_is_trained_once_and_tabulated(
    tiny_csv: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    call = ["--data", str(tiny_csv), "--runs", str(runs), "--out", str(out), "--epochs", "1"]
    call += ["--sizes", "32", "--batch-size", "7", "--limit", "14", "--device", "cpu"]
    ablations.main(call)
    printed = capfd.readouterr().out
    configs = {}
    for name, flags in ablations.VARIANTS.items():
        folder = out / ablations.slug(name)
        configs[name] = json.loads((folder / "config.json").read_text())
        (line,) = ablations.read_lines(folder)
        (row,) = [row for row in printed.splitlines() if row.startswith(f"| {name} |")]
        assert f"| {100 * line['public_accuracy']:.2f} |" in row
        assert " ".join(flags) in row
    base = configs.pop(ablations.BASE)
    assert (base["epochs"], base["limit"], base["lr"]) == (1, 14, 0.01)
    changed = [{key for key in base if config[key] != base[key]} for config in configs.values()]
    assert changed == [
        {"pool"}, {"hidden_features"}, {"loss"}, {"batch_norm"}, {"dropout"}, {"arch"},
    ]  # fmt: skip
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
