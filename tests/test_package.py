"""What the package is from outside: names, imports, and the wheel that is built from it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
from conftest import PHOTO, ROOT, run

import ferfacenet

PACKAGE = ROOT / "ferfacenet"


def test_public_names() -> None:
    assert ferfacenet.__all__ == [
        "DetectedFace", "Face", "FaceTracker", "ImprovedVGG19", "TrackedFace", "VideoFrame",
        "WeightsError", "detect_faces", "draw_faces", "list_pretrained", "load_pretrained",
        "plot_faces", "predict_faces", "predict_proba", "predict_video", "preprocess",
        "save_pretrained",
    ]  # fmt: skip
    for name in ferfacenet.__all__:
        assert getattr(ferfacenet, name).__doc__, name
    assert {name for name in dir(ferfacenet) if name[:2] != "__"} == set(ferfacenet.__all__)
    with pytest.raises(AttributeError, match="'ferfacenet' has no attribute 'predict'"):
        ferfacenet.predict  # noqa: B018


def test_what_the_pages_show_passes_strict_types(tmp_path: Path) -> None:
    """But for what torch.hub gives, of which nothing is known. In the checkout, whose own check of
    types has the same cache."""
    pytest.importorskip("mypy", reason="needs the dev extra")
    for page in ("README", "docs/api"):
        blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / f"{page}.md").read_text())
        code = "\n".join(block for block in blocks if "torch.hub" not in block)
        (tmp_path / f"{Path(page).name}.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", *tmp_path.iterdir()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_imports_go_one_way() -> None:
    """Also those inside of functions: no module is, even in the end, imported by its own import."""
    modules = {
        path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", "."): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    imports: dict[str, set[str]] = {}
    for name, path in modules.items():
        nodes = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom))
        imports[name] = {str(node.module) for node in nodes} & modules.keys()
    assert imports["ferfacenet.video.tracker"] >= {"ferfacenet.inference"}
    while imports:
        free = {name for name, needed in imports.items() if not needed & imports.keys()}
        assert free, f"a circle among {sorted(imports)}"
        imports = {name: needed for name, needed in imports.items() if name not in free}


def test_import_loads_nothing_heavy_and_changes_nothing() -> None:
    code = """
import logging, random, socket, sys, warnings
import numpy, torch
def state():
    return (torch.get_num_threads(), torch.get_rng_state().sum(), torch.is_grad_enabled(),
            torch.get_default_dtype(), random.getstate(), numpy.random.get_state()[1].sum(),
            list(warnings.filters), list(logging.root.handlers), logging.root.level)
def refuse(*arguments, **options): raise AssertionError("went to the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
before = state()
import ferfacenet
assert state() == before
heavy = {"torchvision", "matplotlib", "huggingface_hub", "PIL", "safetensors"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
listed = ferfacenet.list_pretrained()
assert "sympy" not in sys.modules, "a second, for the meta device's random numbers"
model = ferfacenet.load_pretrained()
assert listed["fer2013"].categories == model.categories
ferfacenet.predict_proba(model, torch.eye(48)[None, None])
assert "torchvision" not in sys.modules, "a second for those who search no photo"
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_wheel_carries_weights_and_types_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("ferfacenet", "tools", "tests", "docs"):
        ignore = shutil.ignore_patterns("__pycache__", "*.png", "*.jpg", "*.json.gz")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q"]
    subprocess.run([*pip, str(source), "-w", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 60e6  # PyPI takes 100
    if importlib.util.find_spec("twine"):
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel], check=True)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {
        "ferfacenet/py.typed", "ferfacenet/weights/registry.json",
        "ferfacenet/weights/yunet/model.safetensors", "ferfacenet/weights/yunet/LICENSE",
        "ferfacenet/_pyinstaller/hook-ferfacenet.py",
    } <= set(names)  # fmt: skip
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ferfacenet"}
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})"
        + """
import ferfacenet
from ferfacenet.command.cli import main
for name, info in ferfacenet.list_pretrained().items():
    if info.bundled:
        ferfacenet.load_pretrained(name)
print(ferfacenet.__file__, main(["--json", *sys.argv[1:]]), file=sys.stderr)
"""
    )
    command = [sys.executable, "-I", "-c", code, str(PHOTO)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == f"{tmp_path / 'site/ferfacenet/__init__.py'} 0\n"
    assert len(json.loads(done.stdout)["faces"]) == 1


def test_pyinstaller_is_led_to_a_hook_that_takes_the_weights_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyInstaller itself is not installed here: its two functions note what they are asked."""
    entries = importlib.metadata.entry_points(group="pyinstaller40", name="hook-dirs")
    (folder,) = next(e for e in entries if e.value.startswith("ferfacenet.")).load()()
    hooks = types.ModuleType("PyInstaller.utils.hooks")
    hooks.collect_data_files = hooks.collect_submodules = lambda name: [name]  # type: ignore[attr-defined]
    for name in ("PyInstaller", "PyInstaller.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "PyInstaller.utils.hooks", hooks)
    found = runpy.run_path(str(Path(folder) / "hook-ferfacenet.py"))
    assert found["datas"] == found["hiddenimports"] == ["ferfacenet"]


def test_dependencies_have_lower_bounds_only() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(r"\ndependencies = \[(.*?)\]", text, re.DOTALL)
    for requirement in re.findall(r'"(.+?)"', listed):
        assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement), requirement


def test_no_folder_collides_under_torch_hub() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    folders = {part for path in tracked.stdout.splitlines() for part in Path(path).parts[:-1]}
    assert not folders & {"models", "utils"}
