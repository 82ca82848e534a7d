"""README's and the pages' code runs, their links lead somewhere, and they stay short."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run

from ferfacenet.command import cli

PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
PROJECT = (ROOT / "pyproject.toml").read_text()
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
def checkout(tmp_path: Path, clip: Path) -> Path:
    """A copy in which a page's code may write what it likes."""
    for name in ("ferfacenet", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    shutil.copy(clip, tmp_path / "clip.mp4")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run_one_after_another(page: str, checkout: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    done = run("\n".join(blocks(page, "python")), cwd=checkout)
    assert done.returncode == 0 and done.stdout and not done.stderr, done.stderr


@functools.cache
def help_of(tool: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        importlib.import_module(tool).main(["--help"])
    return shown.getvalue()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_run_or_have_the_flags_that_they_are_given(
    page: str, checkout: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no network, server, data set or hours runs; of the rest the flags are known."""
    for needed in ("matplotlib", "sklearn", "cv2"):
        pytest.importorskip(needed, reason="needs the dev extra")
    monkeypatch.chdir(checkout)
    for command in dict.fromkeys(commands(page)):
        program, *words = shlex.split(command)
        if words[-2:-1] == ["<"]:
            monkeypatch.setattr(sys, "stdin", open(words[-1]))  # noqa: PTH123, SIM115
            words = words[:-2]
        script = Path(words[0]) if program == "python" else Path()
        if program == "ferfacenet":
            assert cli.main(words) == 0, command
        elif "--dry-run" in words:
            importlib.import_module(script.stem).main(words[1:])
        elif script.parent.name == "app":  # which export_onnx.py has made
            Path("app").symlink_to(request.getfixturevalue("app"))
            subprocess.run([sys.executable, *words], check=True)
        elif program == "pip":
            for extra in re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", command))):
                assert re.search(rf"^{extra} = \[", PROJECT, re.MULTILINE), command
        elif script.suffix == ".py":
            tool = script.parent.name == "tools"
            known = help_of(script.stem) if tool else (ROOT / script).read_text()
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


def test_the_workflows_test_what_the_package_promises() -> None:
    yaml = pytest.importorskip("yaml", reason="huggingface-hub brings it")
    files = {path.name: path.read_text() for path in ROOT.glob(".github/**/*.yml")}
    parsed = {name: yaml.safe_load(text) for name, text in files.items()}
    jobs = parsed["test.yml"]["jobs"]
    assert jobs["run"]["steps"][-1]["run"] == ".ci/run"
    assert jobs["tests"]["steps"][-1]["run"] in PAGES["README.md"]
    assert f'requires-python = ">={jobs["tests"]["strategy"]["matrix"]["python"][0]}"' in PROJECT
    uses = re.findall(r"uses: (.*)", files["test.yml"] + files["publish.yml"])
    assert uses and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", use) for use in uses)
