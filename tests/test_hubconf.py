"""torch.hub, as a user meets it: another folder, other modules around, a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as an archive holds them, scripts, documents and tests included, unzipped."""
    folder = tmp_path_factory.mktemp("archive")
    paths = [ROOT / "hubconf.py", ROOT / "pyproject.toml", ROOT / "README.md"]
    for name in ("ferfacenet", "tools", "docs", "tests"):
        paths += sorted((ROOT / name).rglob("*.*"))
    with zipfile.ZipFile(folder / "source.zip", "w") as packed:
        for path in paths:
            if path.is_file() and path.suffix != ".pyc":
                packed.write(path, Path("ferfacenet-0.1.0") / path.relative_to(ROOT))
    with zipfile.ZipFile(folder / "source.zip") as packed:
        packed.extractall(folder)
    return folder / "ferfacenet-0.1.0"


@pytest.fixture
def abroad(tmp_path: Path) -> Path:
    """A working directory with modules of the names that collide most often."""
    for name in ("models", "utils", "tools"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong module')")
    return tmp_path


def run(code: str, cwd: Path) -> str:
    """What ``code`` prints in a fresh interpreter that has no path to the checkout."""
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p != str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, others))}
    environment |= {"TORCH_HOME": str(cwd / "torch"), "HF_HOME": str(cwd / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", "import sys, torch\n" + code],
        cwd=cwd, env=environment, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("source", ["checkout", "archive"])
def test_load_from_a_folder(source: str, archive: Path, abroad: Path) -> None:
    folder = ROOT if source == "checkout" else archive
    code = f"""
import json
load = lambda name: torch.hub.load({str(folder)!r}, name, source="local")
model, preprocess, predict_proba = map(load, ("improved_vgg19", "preprocess", "predict_proba"))
image = torch.rand(1, 60, 50)
assert preprocess(image).shape == (1, 48, 48)
rows = predict_proba(model, [image, image])
import ferfacenet
print(json.dumps(dict(
    categories=model.categories, training=model.training,
    sums=rows.sum(1).tolist(), shape=list(rows.shape), file=ferfacenet.__file__,
)))
"""
    found = json.loads(run(code, abroad))
    assert found["categories"][3] == "happiness"
    assert found["training"] is False
    assert found["shape"] == [2, 7]
    assert found["sums"] == pytest.approx([1, 1], abs=1e-5)
    assert Path(found["file"]) == folder / "ferfacenet" / "__init__.py"


def test_list_help_and_load_from_the_cache(archive: Path, abroad: Path) -> None:
    """``list`` and ``help`` have no ``source="local"``: they look where torch.hub unzips the
    archives that it downloads, and so does the one-liner with GitHub's slug and a tag."""
    (abroad / "torch" / "hub").mkdir(parents=True)
    (abroad / "torch" / "hub" / "ferfacenet_ferfacenet_v0.1.0").symlink_to(archive)
    code = """
import json
slug = "ferfacenet/ferfacenet:v0.1.0"
names = torch.hub.list(slug, trust_repo=True, verbose=False)
texts = [torch.hub.help(slug, name, trust_repo=True) for name in names]
model = torch.hub.load(slug, "improved_vgg19", trust_repo=True, verbose=False)
print(json.dumps(dict(names=names, texts=texts, categories=model.categories)))
"""
    found = json.loads(run(code, abroad).splitlines()[-1])
    assert sorted(found["names"]) == ["improved_vgg19", "predict_proba", "preprocess"]
    assert all(len(text) > 80 for text in found["texts"])
    assert "fer2013" in found["texts"][found["names"].index("improved_vgg19")]
    assert found["categories"][3] == "happiness"


def test_options_and_other_weights(abroad: Path) -> None:
    weights = ROOT / "ferfacenet" / "weights" / "fer2013"
    code = f"""
load = lambda **options: torch.hub.load({str(ROOT)!r}, "improved_vgg19", source="local", **options)
print(next(load(weights={str(weights)!r}, device="meta").parameters()).device.type)
try:
    load(weights="nothing")
except RuntimeError as error:
    print(type(error).__name__)
"""
    assert run(code, abroad).split() == ["meta", "WeightsError"]


@pytest.mark.parametrize("name", ["numpy", "PIL"])
def test_a_missing_dependency_gives_the_message_of_torch_hub(name: str, abroad: Path) -> None:
    code = f"""
sys.modules[{name!r}] = None  # as if it was not installed
try:
    torch.hub.load({str(ROOT)!r}, "improved_vgg19", source="local")
except RuntimeError as error:
    print(error)
"""
    assert run(code, abroad).strip() == f"Missing dependencies: {name}"


def test_what_is_not_needed_may_be_missing(abroad: Path) -> None:
    """Bundled weights load without the packages that only the Hub or photos need."""
    code = f"""
for name in ("huggingface_hub", "safetensors", "cv2", "matplotlib", "torchvision"):
    sys.modules[name] = None
model = torch.hub.load({str(ROOT)!r}, "improved_vgg19", source="local")
predict_proba = torch.hub.load({str(ROOT)!r}, "predict_proba", source="local")
print(predict_proba(model, torch.rand(1, 48, 48)).shape[1])
try:
    torch.hub.load({str(ROOT)!r}, "improved_vgg19", source="local", weights="org/repo")
except RuntimeError as error:
    print(error)
"""
    seven, message = run(code, abroad).splitlines()
    assert seven == "7"
    assert "pip install huggingface_hub" in message
