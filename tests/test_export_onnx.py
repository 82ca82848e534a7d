"""The ONNX file: the same probabilities as PyTorch's, in a process that has no PyTorch."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_model import lively, sharp

from ferfacenet import ImprovedVGG19, predict_proba, preprocess, save_pretrained

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
pytest.importorskip("onnxscript", reason="needs the onnx extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
import export_onnx  # noqa: E402


@pytest.fixture(scope="module")
def model() -> ImprovedVGG19:
    """With no default among what the file must carry."""
    model = sharp(num_classes=3)
    model.categories = ("calm", "tense", "très fatigué")
    model.mean, model.std, model.temperature = 0.45, 0.3, 1.7
    return model


class Written(NamedTuple):
    """What the tool wrote and said."""

    file: Path
    output: str


@pytest.fixture(scope="module")
def written(model: ImprovedVGG19, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The tool's own command, ten crops, checked at batch 1, 7 and 128."""
    folder = tmp_path_factory.mktemp("onnx")
    save_pretrained(model, folder / "weights", dtype=torch.float32)
    tool = [sys.executable, str(ROOT / "tools" / "export_onnx.py")]
    tool += ["--weights", "weights", "--out", "face.onnx"]
    done = subprocess.run(tool, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {"weights", "face.onnx"}, "one file"
    return Written(folder / "face.onnx", done.stdout)


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The astronaut's face as FER2013 would frame it (where detect_faces finds it)."""
    image = pytest.importorskip("PIL.Image")
    path = tmp_path_factory.mktemp("face") / "face.png"
    with image.open(ROOT / "docs" / "images" / "astronaut.jpg") as photo:
        photo.crop((172, 67, 277, 172)).save(path)
    return path


def test_the_file_is_valid_and_says_what_it_is(written: Written, model: ImprovedVGG19) -> None:
    onnx.checker.check_model(str(written.file), full_check=True)
    proto = onnx.load(written.file, load_external_data=False)
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert {entry.domain for entry in proto.opset_import} == {""}, "standard operators only"
    session = onnxruntime.InferenceSession(written.file)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("faces", "tensor(float)", ["batch", 1, 48, 48])
    assert (given.name, given.type) == ("probabilities", "tensor(float)")
    assert given.shape == ["batch", 3]
    about = session.get_modelmeta().custom_metadata_map
    assert about | {"categories": json.loads(about["categories"])} == {
        "categories": list(model.categories or ()),
        "mean": "0.45",
        "std": "0.3",
        "size": "48",
        "temperature": "1.7",
        "tta": "ten_crop",
    }


def test_the_tool_says_what_it_measured(written: Written) -> None:
    first = written.output.splitlines()[0]
    assert first.startswith("face.onnx: 80.")
    assert "at batch 1, 7, 128" in first
    assert float(first.rsplit(" ", 1)[1].rstrip(".")) <= 1e-4


@pytest.mark.parametrize("tta", ["ten_crop", "flip", None])
def test_the_exported_module_is_predict_proba(model: ImprovedVGG19, tta: str | None) -> None:
    x = torch.randn(3, 1, 48, 48)
    with torch.no_grad():
        found = export_onnx.Probabilities(model, tta)(x)
    expected = predict_proba(model, x, tta=tta, precision="float32")
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)


def test_without_ten_crops(model: ImprovedVGG19, tmp_path: Path) -> None:
    data = export_onnx.export(model, None)
    assert export_onnx.check(data, model, None) <= 1e-4
    session = onnxruntime.InferenceSession(data)
    assert session.get_modelmeta().custom_metadata_map["tta"] == "none"
    model_with_another_temperature = lively(num_classes=3)
    with pytest.raises(RuntimeError, match=r"differ by 0\.\d+, over 0\.0001"):
        export_onnx.check(data, model_with_another_temperature, None)


def test_nothing_is_written_if_the_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise RuntimeError("they differ")

    monkeypatch.setattr(export_onnx, "load_pretrained", lambda _: None)
    monkeypatch.setattr(export_onnx, "export", lambda *_: b"")
    monkeypatch.setattr(export_onnx, "check", fail)
    with pytest.raises(RuntimeError, match="they differ"):
        export_onnx.main(["--out", str(tmp_path / "face.onnx")])
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_early_is_no_error(
    tmp_path: Path,
) -> None:
    """As in ``export_onnx.py | head -1``: the file is whole, and nothing is said on stderr."""
    code = """
import export_onnx
export_onnx.load_pretrained = lambda _: None
export_onnx.export = lambda *_: b"the file"
export_onnx.check = lambda *_: 0.0
export_onnx.main(["--out", "face.onnx"])
"""
    reading, writing = os.pipe()
    os.close(reading)
    path = os.pathsep.join([str(ROOT / "tools"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path}, text=True,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "face.onnx").read_bytes() == b"the file"


def test_the_snippet_is_fifteen_lines_of_numpy_pillow_and_onnxruntime(written: Written) -> None:
    code = export_onnx.snippet()
    assert len(code.splitlines()) == 15
    assert written.output.endswith(f"\n\n{code}\n")
    imported = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}


def run_snippet(code: str, *arguments: Path) -> dict[str, float]:
    """What the snippet prints in a process where nothing can import torch or this package."""
    blocked = "import sys\nfor name in ('torch', 'ferfacenet'): sys.modules[name] = None\n"
    command = [sys.executable, "-I", "-c", blocked + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_the_snippet_reads_a_face_without_torch(
    written: Written, model: ImprovedVGG19, face: Path
) -> None:
    printed = written.output.split("\n\n", 1)[1]
    found = run_snippet(printed, written.file, face)
    assert list(found) == list(model.categories or ())
    x = preprocess(face, align=False, mean=model.mean, std=model.std)
    expected = predict_proba(model, x[None], precision="float32")[0].numpy()
    assert expected.max() - expected.min() > 0.1, "probabilities this alike would hide a mistake"
    assert np.abs(np.array(list(found.values())) - expected).max() <= 1e-4


def test_a_face_crop_needs_no_detector(written: Written, model: ImprovedVGG19, face: Path) -> None:
    """predict_proba with its defaults takes the crop as it is, and so agrees as well."""
    pytest.importorskip("cv2", reason="needs the faces extra")
    found = run_snippet(export_onnx.snippet(), written.file, face)
    expected = predict_proba(model, face, precision="float32")[0].numpy()
    assert np.abs(np.array(list(found.values())) - expected).max() <= 1e-4


def test_blocking_torch_blocks_it() -> None:
    with pytest.raises(AssertionError, match="torch"):
        run_snippet("import torch")
