"""The ONNX file: the same probabilities as PyTorch's, in a process that has no PyTorch."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PHOTO, PORTRAITS, ROOT, faces, sharp
from PIL import Image

from ferfacenet import ImprovedVGG19, predict_faces, predict_proba, save_pretrained

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
    assert sorted(path.name for path in folder.iterdir()) == ["face.onnx", "yunet.onnx"]
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


def test_ten_crops(model: ImprovedVGG19) -> None:
    data = export_onnx.export(model, "ten_crop")
    assert export_onnx.check(data, model, "ten_crop") <= 1e-4


def test_levels_hold_in_dark_faces_too(model: ImprovedVGG19) -> None:
    levelled = copy.deepcopy(model)
    levelled.levels.fill_(1)
    session = onnxruntime.InferenceSession(export_onnx.export(levelled))
    x = faces(5)
    expected = predict_proba(levelled, x, precision="float32")
    assert (expected - predict_proba(model, x)).abs().max() > 0.01
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


def test_the_printed_lines_read_a_photo_without_torch(
    written: tuple[Path, str], model: ImprovedVGG19, tmp_path: Path
) -> None:
    file, output = written
    first, code = output.split("\n\n", 1)
    assert first.startswith("face.onnx: ") and "at batch 1, 7, 128" in first
    wall = tmp_path / "wall.png"
    Image.new("RGB", (120, 90), (90, 140, 220)).save(wall)

    def read(photo: Path) -> subprocess.CompletedProcess[str]:
        blocked = "import sys\nfor name in ('torch', 'ferfacenet'): sys.modules[name] = None\n"
        files = [str(path) for path in (file, file.with_name("yunet.onnx"), photo)]
        command = [sys.executable, "-I", "-c", blocked + code, *files]
        return subprocess.run(command, capture_output=True, text=True)

    for photo in (PHOTO, PORTRAITS):
        done = read(photo)
        assert done.returncode == 0, done.stderr
        found: dict[str, float] = json.loads(done.stdout)
        expected = predict_faces(model, photo)[0].probabilities
        assert expected is not None and list(found) == list(expected)
        assert list(found.values()) == pytest.approx(list(expected.values()), abs=0.1)
    assert "wall.png: no face" in read(wall).stderr


def test_the_printed_lines_give_the_network_what_preprocess_does(
    written: tuple[Path, str], tmp_path: Path
) -> None:
    """Pixels in [0, 1], though a cubic filter oversteps them at edges of black and white."""

    class Extremes(torch.nn.Module):
        def forward(self, faces: torch.Tensor) -> torch.Tensor:
            return torch.cat([faces.flatten(1).amin(1, True), faces.flatten(1).amax(1, True)], 1)

    x, sizes = torch.zeros(2, 1, 48, 48), {0: torch.export.Dim("batch", min=1)}
    about = {"categories": '["least", "most"]'}
    data = export_onnx._export(Extremes().eval(), x, "faces", sizes, "probabilities", about)
    (tmp_path / "extremes.onnx").write_bytes(data)
    photo = Image.open(PHOTO).convert("L").point(lambda level: min(255, max(0, 4 * level - 400)))
    photo.save(tmp_path / "photo.png")
    files = "extremes.onnx", written[0].with_name("yunet.onnx"), "photo.png"
    command = [sys.executable, str(export_onnx.SNIPPET), *map(str, files)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"least": 0, "most": 1}, done.stderr


def test_the_detector(written: tuple[Path, str]) -> None:
    file = written[0].with_name("yunet.onnx")
    onnx.checker.check_model(str(file), full_check=True)
    export_onnx.check_detector(file.read_bytes())
    session = onnxruntime.InferenceSession(file)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, given.name, given.shape[2]) == ("pictures", "places", 15)
