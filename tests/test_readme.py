"""README's and the docs' code is run, so that it cannot rot."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str) -> None:
    pytest.importorskip("cv2", reason="needs the faces extra")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_the_command_line_blocks_run(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs the faces extra")
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    ours = [c for c in commands if c.startswith("ferfacenet ")]
    assert ours
    for command in ours:
        arguments = shlex.split(command, comments=True)[1:]
        arguments = [str(tmp_path / a) if a.startswith("out") else a for a in arguments]
        done = subprocess.run(
            [sys.executable, "-c", "from ferfacenet.cli import main; raise SystemExit(main())",
             *arguments],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_every_script_that_is_named_exists() -> None:
    texts = [README, *((ROOT / "docs").glob("*.md"))]
    for text in texts:
        content = text if isinstance(text, str) else text.read_text()
        for name in re.findall(
            r"(?:tools|docs|ferfacenet|tests)/[\w/.-]+\.(?:py|md|png|jpg)", content
        ):
            assert (ROOT / name).is_file(), name


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
