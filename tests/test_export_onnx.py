"""The ONNX files: the same answers as PyTorch's."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, faces, sharp

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba, save_pretrained

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
pytest.importorskip("onnxscript", reason="needs the onnx extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
import export_onnx  # noqa: E402


@pytest.fixture(scope="module")
def model() -> ImprovedVGG19:
    """With no default among what the file must carry."""
    model = sharp(num_classes=3, width=0.125)
    model.categories = ("calm", "tense", "très fatigué")
    model.mean.fill_(0.45)
    model.std.fill_(0.3)
    model.temperature.fill_(6.5)
    return model


@pytest.fixture(scope="module")
def written(model: ImprovedVGG19, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file that the command writes, in a folder of its own, and what the command prints."""
    folder, weights = tmp_path_factory.mktemp("onnx"), tmp_path_factory.mktemp("weights")
    save_pretrained(model, weights, dtype=torch.float32)
    tool = [sys.executable, str(ROOT / "tools" / "export_onnx.py")]
    tool += ["--weights", str(weights), "--out", "face.onnx"]
    done = subprocess.run(tool, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["face.onnx"]
    return folder / "face.onnx", done.stdout


def test_the_file_is_valid_and_says_what_it_is(written: tuple[Path, str]) -> None:
    file, _ = written
    onnx.checker.check_model(str(file), full_check=True)
    proto = onnx.load(file, load_external_data=False)
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert {entry.domain for entry in proto.opset_import} == {""}, "standard operators only"
    session = onnxruntime.InferenceSession(file)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == ("faces", "tensor(float)", ["batch", 1, 48, 48])
    assert (given.name, given.shape) == ("probabilities", ["batch", 3])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["categories"]) == ["calm", "tense", "très fatigué"]
    assert about["tta"] == "flip"


def test_levels_hold_in_dark_faces_and_ten_crops_too(model: ImprovedVGG19) -> None:
    levelled = copy.deepcopy(model)
    levelled.levels.fill_(1)
    data, x = export_onnx.export(levelled, "ten_crop"), faces(5)
    session = onnxruntime.InferenceSession(data)
    expected = predict_proba(levelled, x, tta="ten_crop", precision="float32")
    assert (expected - predict_proba(model, x, tta="ten_crop")).abs().max() > 0.01
    x = torch.cat([x, 0.05 * x, 0.3 * x + 0.2, torch.full_like(x[:1], 0.3)])
    (found,) = session.run(["probabilities"], {"faces": x.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(found[:15]), expected.repeat(3, 1), atol=1e-4, rtol=0
    )
    assert torch.from_numpy(found[15]).isnan().all()


def test_nothing_is_written_if_the_check_fails(
    written: tuple[Path, str], model: ImprovedVGG19, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written[0].read_bytes()
    monkeypatch.setattr(export_onnx, "export", lambda *_: data)
    other = copy.deepcopy(model)
    other.temperature.fill_(6)
    save_pretrained(other, tmp_path / "weights")
    with pytest.raises(RuntimeError, match="differ"):
        export_onnx.main(
            ["--weights", str(tmp_path / "weights"), "--out", str(tmp_path / "face.onnx")]
        )
    assert not (tmp_path / "face.onnx").exists()
    with pytest.raises(SystemExit, match="there is no folder .*gone"):
        export_onnx.main(["--out", str(tmp_path / "gone" / "face.onnx")])


def test_in_int8_a_quarter_of_the_size_and_the_same_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = export_onnx.export(load_pretrained("photos"))
    rounded = export_onnx.quantise(data)
    assert len(rounded) < 0.3 * len(data)
    assert export_onnx.check_rounded(rounded, data) <= 0.03
    monkeypatch.setattr(export_onnx, "ROUNDED", 1e-3)
    with pytest.raises(RuntimeError, match="--float32"):
        export_onnx.check_rounded(rounded, data)


def test_the_detector() -> None:
    data = export_onnx.export_detector()
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    export_onnx.check_detector(data)
    session = onnxruntime.InferenceSession(data)
    assert [taken.name for taken in session.get_inputs()] == ["pictures", "least"]
    # Nothing, and four channels, as a canvas has them.
    nothing = {"pictures": np.zeros((2, 64, 32, 4), np.float32), "least": np.float32([0.5])}
    assert session.run(["rows"], nothing)[0].shape == (0, 16)
