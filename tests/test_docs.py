"""README's and the pages' code runs, their links lead somewhere, and they stay short."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PHOTO, ROOT, python_path
from PIL import Image

from ferfacenet.video.writer import VideoWriter

PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
FERFACENET = f"""
ferfacenet() {{ {sys.executable} -c 'from ferfacenet.command.cli import main; exit(main())' "$@"; }}
"""
#: Programs whose lines are not ours to try.
OTHERS = ("cd ", "git ", "hf ", "pytest", "python -m ", "ruff ", "mypy")


def blocks(page: str, languages: str) -> list[str]:
    return re.findall(rf"(?ms)^```(?:{languages})\n(.*?)^```", PAGES[page])


def commands(page: str) -> list[str]:
    """The commands in a page's shell blocks, each with what it goes on to, without comments."""
    text = "\n".join(blocks(page, "bash|sh")).replace("\\\n", " ")
    lines = re.split(r"\n| && ", re.sub(r"(^|\s)#.*", "", text))
    return [line.strip() for line in lines if line.strip()]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy in which a page's code may write what it likes."""
    for name in ("ferfacenet", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    pytest.importorskip("av", reason="needs the video extra")
    with Image.open(PHOTO) as photo, VideoWriter(tmp_path / "clip.mp4") as video:
        for index in range(10):
            video.write(np.asarray(photo.convert("RGB")), index / 25)
    return tmp_path


def try_out(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run_one_after_another(page: str, checkout: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    done = try_out([sys.executable, "-c", "\n".join(blocks(page, "python"))], checkout)
    assert done.stdout and not done.stderr


@functools.cache
def help_of(tool: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        importlib.import_module(tool).main(["--help"])
    return shown.getvalue()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_run_or_have_the_flags_that_they_are_given(page: str, checkout: Path) -> None:
    """Ours on pictures run; those that need FER2013, CK+ or hours are held against --help."""
    for needed in ("matplotlib", "sklearn", "cv2"):
        pytest.importorskip(needed, reason="needs the dev extra")
    project = (ROOT / "pyproject.toml").read_text()
    for command in dict.fromkeys(commands(page)):
        if command.startswith("ferfacenet "):
            try_out(["bash", "-ec", FERFACENET + command], checkout)
        elif command.startswith("pip "):
            for extra in re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", command))):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), command
        elif script := re.match(r"python ([\w/]+)/(\w+)\.py", command):
            folder = script[1].replace("app", "docs/examples")  # which export_onnx.py has made
            source = (ROOT / folder / f"{script[2]}.py").read_text()
            known = help_of(script[2]) if script[1] == "tools" else source
            for flag in re.findall(r"--[a-z][\w-]*", command):
                assert re.search(rf"{flag}(?![\w-])", known), f"{flag} of {command}"
        else:
            assert command.startswith(OTHERS), f"a command that this test does not know: {command}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_names_of_files_lead_somewhere(page: str) -> None:
    text, folder = PAGES[page], ROOT if page == "README.md" else ROOT / "docs"
    for link in re.findall(r"(?:\]\(|src=\")(?!https?:|#)([^)#\"\s]+)", text):
        assert (folder / link).exists(), link
        assert (folder / link).resolve().is_relative_to(ROOT), f"{link} is outside the repository"
    for name in re.findall(r"\b(?:tools|docs|ferfacenet|tests)/[\w/.-]+\.(?:py|md|png|jpg)", text):
        assert (ROOT / name).is_file(), name
    assert not re.search(r"\.\./shared|/(?:work|root|home|tmp)/", text)


def test_all_pages_are_read_in_one_sitting() -> None:
    words = {}
    for page, text in PAGES.items():
        prose = re.sub(
            r"^```.*?^```|^\|[^\n]*|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE
        )
        words[page] = len(prose.split())
    assert sum(words.values()) <= 5000, words
