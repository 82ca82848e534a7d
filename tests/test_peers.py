"""docs/results/peers/run.py where no other package is installed."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from conftest import ROOT


def test_what_is_not_installed_keeps_its_rows(
    tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "docs" / "results" / "peers" / "run.py"))["main"]
    own = {"package": "@vladmandic/human", "called": "detect", "pictures": "margin"}
    (tmp_path / "peers.json").write_text(json.dumps({"rows": [own]}))
    package = ["--only", "@vladmandic/human", "--node", str(tmp_path), "--out", str(tmp_path)]
    main(["--data", str(tiny_csv), *package])
    assert "@vladmandic/human is not asked" in capsys.readouterr().err
    assert json.loads((tmp_path / "peers.json").read_text())["rows"] == [own]
