"""docs/results/experts/run.py on tiny data."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from conftest import ROOT


def test_experts_of_a_network_are_measured(tiny_csv: Path, tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "docs" / "results" / "experts" / "run.py"))["main"]
    main(["--data", str(tiny_csv), "--weights", "fer2013-small", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "experts.json").read_text())
    assert result["PublicTest accuracy by weight"]["0.0"] == result["without"]["accuracy"]
