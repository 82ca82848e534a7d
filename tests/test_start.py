"""docs/start.md, run from its first line to its last as a newcomer would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hub_server import HubServer

PAGE = (ROOT / "docs" / "start.md").read_text()


def test_the_newcomers_page_runs(tiny_csv: Path, tmp_path: Path) -> None:
    for extra in ("cv2", "matplotlib", "torchvision"):
        pytest.importorskip(extra)
    here = tmp_path / "checkout"
    here.mkdir()
    for name in ("docs", "ferfacenet", "tools", "hubconf.py"):
        (here / name).symlink_to(ROOT / name)
    steps = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
    assert [kind for kind, _ in steps] == ["bash", "python", "python", "bash", "bash"]
    with HubServer() as server:
        environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",  # the little Hub has plain uploads only
            "TORCH_HOME": str(tmp_path / "torch"),
        }
        printed = []
        for kind, code in steps:
            code = code.replace("fer2013.csv", str(tiny_csv))
            command = [sys.executable, "-c", code] if kind == "python" else ["bash", "-ec", code]
            done = subprocess.run(
                command, cwd=here, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stdout + done.stderr
            printed.append(done.stdout)
    assert "happiness" in printed[0] and (here / "astronaut.png").is_file()
    assert "torch.Size([2, 7]) happiness" in printed[1]
    assert printed[2].startswith("tensor([[")
    assert "happiness" in printed[3]
    assert printed[4].rstrip().endswith("'neutral')")
