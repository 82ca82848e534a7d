"""torch.hub, as a user meets it: another folder, other modules around, a fresh interpreter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PHOTO, ROOT

SLUG = "ferfacenet/ferfacenet:v0.1.0"


@pytest.fixture
def abroad(tmp_path: Path) -> Path:
    """A working directory with modules of the names that collide most often, and torch.hub's
    cache, which holds the package as torch.hub unzips the archives that it downloads."""
    for name in ("models", "utils", "tools"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong module')")
    archive = tmp_path / "torch" / "hub" / "ferfacenet_ferfacenet_v0.1.0"
    shutil.copytree(ROOT / "ferfacenet", archive / "ferfacenet")
    shutil.copy(ROOT / "hubconf.py", archive)
    return tmp_path


def run(code: str, cwd: Path) -> str:
    """What ``code`` prints in a fresh interpreter that has no path to the checkout."""
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p != str(ROOT)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, others))}
    environment |= {"TORCH_HOME": str(cwd / "torch"), "HF_HOME": str(cwd / "hf")}
    names = f"import json, sys, torch\nSLUG, PHOTO = {SLUG!r}, {str(PHOTO)!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", names + code],
        cwd=cwd, env=environment, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_list_help_and_load(abroad: Path) -> None:
    """With nothing there that is not listed in ``dependencies``."""
    code = """
for name in ("huggingface_hub", "cv2", "matplotlib", "sklearn", "tqdm"):
    sys.modules[name] = None
texts = {name: torch.hub.help(SLUG, name, trust_repo=True) for name in torch.hub.list(SLUG)}
load = lambda name, **options: torch.hub.load(SLUG, name, trust_repo=True, **options)
model, preprocess, predict_proba = map(load, ("improved_vgg19", "preprocess", "predict_proba"))
image = torch.rand(1, 48, 48)
assert torch.equal(preprocess(image), image)
rows = predict_proba(model, [image, image])
(face,) = load("predict_faces")(model, PHOTO)
small = load("improved_vgg19", weights="fer2013-small", device="meta")
import ferfacenet
print(json.dumps(dict(
    texts=texts, categories=model.categories, training=model.training, sums=rows.sum(1).tolist(),
    label=face.label, file=ferfacenet.__file__, device=small.classifier.weight.device.type,
)))
"""
    found = json.loads(run(code, abroad).splitlines()[-1])
    assert sorted(found["texts"]) == [
        "improved_vgg19", "predict_faces", "predict_proba", "preprocess",
    ]  # fmt: skip
    assert all(len(text) > 80 for text in found["texts"].values())
    assert found["categories"][3] == found["label"] == "happiness"
    assert (found["training"], found["device"]) == (False, "meta")
    assert found["sums"] == pytest.approx([1, 1], abs=1e-5)
    assert Path(found["file"]).is_relative_to(abroad)
