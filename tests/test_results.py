"""Scripts of docs/results: of ablations and experts on tiny data, of folds on what lies there."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

RESULTS = ROOT / "docs" / "results"


def script(name: str) -> Any:
    return runpy.run_path(str(RESULTS / name / "run.py"))["main"]


def test_variants_train_once(
    tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main = script("ablations")
    monkeypatch.delitem(main.__globals__["VARIANTS"], "plain VGG19")  # 140 million parameters
    flags = ["--epochs", "1", "--sizes", "32", "--batch-size", "7", "--limit", "7"]
    for seed in "01":  # the second time nothing is trained
        main(["--data", str(tiny_csv), *flags, "--width", "0.125", "--seed", seed], tmp_path)
        assert '"seed": 0' in (tmp_path / "no-dropout" / "config.json").read_text()
    assert "| no dropout | `--dropout 0` |" in (tmp_path / "table.md").read_text()


def test_experts_of_a_network_are_measured(tiny_csv: Path, tmp_path: Path) -> None:
    script("experts")(
        ["--data", str(tiny_csv), "--weights", "fer2013-small", "--out", str(tmp_path)]
    )
    result = json.loads((tmp_path / "experts.json").read_text())
    assert result["PublicTest accuracy by weight"]["0.0"] == result["without"]["accuracy"]


def test_answers_of_folds_are_of_this_data(
    fer2013_csv: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    for path in (RESULTS / "folds").glob("*.npz"):
        shutil.copy(path, tmp_path)
    script("folds")(["--data", str(fer2013_csv)], tmp_path)
    found = json.loads((tmp_path / "folds.json").read_text())
    assert found == json.loads((RESULTS / "folds" / "folds.json").read_text())
    for figures in found["folds"].values():
        assert figures["unseen"] < figures["learned"]  # or the fold was learned too
    with pytest.raises(SystemExit, match="1of5.npz: answers about other images"):
        script("folds")(["--data", str(tiny_csv)], tmp_path)
