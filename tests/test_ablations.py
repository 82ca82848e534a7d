"""docs/results/ablations/run.py on tiny data: a variant trains once, and the table shows it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from conftest import ROOT


def test_variants_train_once(
    tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "docs" / "results" / "ablations" / "run.py"))["main"]
    monkeypatch.delitem(main.__globals__["VARIANTS"], "plain VGG19")  # 140 million parameters
    flags = ["--epochs", "1", "--sizes", "32", "--batch-size", "7", "--limit", "7"]
    for seed in "01":  # the second time nothing is trained
        main(["--data", str(tiny_csv), *flags, "--width", "0.125", "--seed", seed], tmp_path)
        assert '"seed": 0' in (tmp_path / "no-dropout" / "config.json").read_text()
    assert "| no dropout | `--dropout 0` |" in (tmp_path / "table.md").read_text()
