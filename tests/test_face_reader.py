"""The folder of tools/export_onnx.py: what `predict_faces` says, by onnxruntime alone."""

from __future__ import annotations

import importlib
import json
import math
import re
import runpy
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PHOTO, PORTRAITS, ROOT, encoded
from PIL import Image

from ferfacenet import ImprovedVGG19, load_pretrained, predict_faces, predict_proba, save_pretrained

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")


@pytest.fixture(scope="module")
def module(app: Path) -> Any:
    sys.path.insert(0, str(app))
    return importlib.import_module("face_reader")


@pytest.fixture(scope="module")
def reader(module: Any) -> Any:
    return module.FaceReader(threads=1)


@pytest.fixture(scope="module")
def photos() -> ImprovedVGG19:
    return load_pretrained("photos")


def pictures() -> Iterator[tuple[str, Any]]:
    """Photos of every way that the search goes."""
    with Image.open(PORTRAITS) as photo, Image.open(PHOTO) as one:
        portraits, portrait = photo.convert("RGB"), one.convert("RGB")
    yield "two faces", portraits
    yield "a path", PHOTO
    for angle in (35, 90, 180):
        yield f"turned by {angle}", portraits.rotate(angle, expand=True)
    face = portrait.crop((150, 40, 310, 200))
    yield "tight and large", face.resize((1400, 1400), Image.Resampling.BICUBIC)
    crop = portrait.crop((164, 60, 284, 180)).convert("L").resize((200, 200))
    yield "a crop as FER2013's", crop.rotate(90)
    yield "at the edge", portraits.crop((720, 0, 967, 512))
    yield "a crop of 48 pixels", face.convert("L").resize((48, 48), Image.Resampling.BICUBIC)
    many = Image.new("RGB", (2400, 400), (90, 120, 90))
    for index in range(6):
        many.paste(face.resize((60 + 20 * index,) * 2), (40 + 390 * index, 100))
    yield "many, in a wide picture", many
    yield "a large JPEG", encoded(portraits.resize((3868, 2048)), "JPEG", quality=80)
    small = Image.new("RGB", (4200, 2800), (90, 120, 90))
    small.paste(face.resize((150, 150)), (3000, 1500))
    yield "a small face in a large JPEG", encoded(small, "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 6
    yield "turned by EXIF", encoded(portraits.rotate(90, expand=True), "JPEG", exif=turned)
    clear = portraits.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    yield "transparent", encoded(clear)
    group = Image.new("RGB", (1500, 1100), (90, 120, 90))
    for size, x, turn in ((22, 200, 0), (40, 700, 180), (60, 1200, 0)):
        group.paste(face.resize((2 * size,) * 2).rotate(turn), (x, 500))
    yield "small ones, one upside down", group
    # A width of -5, which Pillow cannot write anew, and a half turn.
    odd = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    odd += struct.pack("<HHIi", 0x0100, 9, 1, -5) + struct.pack("<HHIII", 0x0112, 3, 1, 3, 0)
    yield "odd EXIF", encoded(portraits.rotate(180), "JPEG", exif=odd)
    yield "none", Image.new("RGB", (300, 200), (90, 140, 220))


@pytest.mark.parametrize(("name", "picture"), [*pictures()])
def test_the_same_faces_as_the_package(
    reader: Any, photos: ImprovedVGG19, name: str, picture: Any
) -> None:
    expected = [face.to_dict() for face in predict_faces(photos, picture, precision="float32")]
    found = reader.predict_faces(picture)
    assert len(found) == len(expected) == {"none": 0, "two faces": 2}.get(name, len(found))
    assert expected or name == "none"
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == list(theirs) and mine["label"] == theirs["label"]
        side = math.dist(theirs["box"][:2], theirs["box"][2:])
        assert mine["box"] == pytest.approx(theirs["box"], abs=max(1.0, 0.01 * side))
        assert mine["score"] == pytest.approx(theirs["score"], abs=0.01)
        assert mine["confidence"] == max(mine["probabilities"].values())
        assert mine["probabilities"] == pytest.approx(theirs["probabilities"], abs=0.05)


def test_its_arguments(reader: Any, photos: ImprovedVGG19) -> None:
    with Image.open(PORTRAITS) as photo:
        picture = np.asarray(photo.convert("RGB"))
    for options in ({"min_size": 150.0}, {"max_faces": 1}, {"min_score": 0.944}):
        expected = predict_faces(photos, picture, **options)  # type: ignore[call-overload]
        found = reader.predict_faces(picture, **options)
        assert [face["label"] for face in found] == [face.label for face in expected]
    assert len(reader.predict_faces(picture, min_size=150.0)) == 1


def test_bad_arguments_and_pictures_are_one_error(reader: Any, tmp_path: Path) -> None:
    for options in ({"min_size": 0}, {"max_faces": 0}, {"min_score": 0}, {"min_score": 1.1}):
        with pytest.raises(ValueError, match="min_score is in"):
            reader.predict_faces(PHOTO, **options)
    wide = encoded(Image.new("1", (14000, 14000)))  # of which Pillow has an error of its own
    for picture in (b"", wide, np.zeros((0, 3, 3), np.uint8), np.zeros((9, 9)), 7, None):
        with pytest.raises(ValueError, match="cannot be read|an array must be"):
            reader.predict_faces(picture)


def test_uploads_and_streams(reader: Any) -> None:
    whole = PHOTO.read_bytes()
    (expected,) = reader.predict_faces(PHOTO)
    download = SimpleNamespace(read=lambda: whole)  # which knows no way back
    for upload in (bytearray(whole), memoryview(whole), download):
        assert reader.predict_faces(upload) == [expected]


def test_two_sets_of_weights_in_one_process(module: Any, app: Path, tmp_path: Path) -> None:
    import export_onnx

    own = ImprovedVGG19(3, width=0.125).eval()
    own.categories = ("calm", "tense", "très fatigué")
    shutil.copytree(app, tmp_path / "own")
    (tmp_path / "own" / "network.onnx").write_bytes(export_onnx.export(own))
    faces = module.FaceReader(tmp_path / "own").predict_faces(PHOTO)
    assert sorted(faces[0]["probabilities"]) == ["calm", "tense", "très fatigué"]


def test_what_cannot_be_exported_is_said_before_the_work(tmp_path: Path) -> None:
    import export_onnx

    colour = ImprovedVGG19(3, in_channels=3)
    colour.categories = ("a", "b", "c")
    save_pretrained(colour, tmp_path / "colour")
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    for options, said in (
        (["--out", str(tmp_path / "file")], "is a file; take another name"),
        (["--out", str(tmp_path / "folder.onnx")], "is a folder; take another name"),
        (["--out", str(tmp_path / "v1.2"), "--weights", str(tmp_path / "colour")], "of gray pict"),
    ):
        with pytest.raises(SystemExit, match=said):
            export_onnx.main(options)
    assert not (tmp_path / "v1.2").exists()


def test_the_command_without_torch(app: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(PHOTO.read_bytes()[:2000])
    (tmp_path / "deep.png").write_bytes(encoded(Image.new("I;16", (40, 40))))
    names = ["broken.jpg", str(PHOTO), "deep.png", "gone.jpg"]
    block = "import sys, runpy\nfor name in ('torch', 'torchvision', 'ferfacenet', 'onnx'):"
    block += f"\n    sys.modules[name] = None\nsys.argv = ['face_reader.py', *{names}]\n"
    block += f"runpy.run_path({str(app / 'face_reader.py')!r}, run_name='__main__')"
    command = [sys.executable, "-I", "-c", block]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    problems = done.stderr.splitlines()
    assert [line.split(": ")[0] for line in problems] == ["broken.jpg", "deep.png", "gone.jpg"]
    own = subprocess.run(
        [sys.executable, "-m", "ferfacenet", "--weights", "photos", "--json", str(PHOTO)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    mine, theirs = json.loads(done.stdout), json.loads(own.stdout)
    assert mine["image"] == theirs["image"]
    (face,), (expected,) = mine["faces"], theirs["faces"]
    assert list(face) == list(expected)
    assert list(face["probabilities"]) == list(expected["probabilities"])


def test_it_is_small_and_needs_three_packages(app: Path) -> None:
    text = (app / "face_reader.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    imported = set(re.findall(r"(?m)^(?:import|from) (\w+)", text))
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL"}
    assert sum(path.stat().st_size for path in app.iterdir()) < 4e6


def test_the_script_that_compares_photos(app: Path, module: Any, photos: ImprovedVGG19) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "results" / "embedded" / "run.py"))
    found = script["compare_photos"](photos, app, ROOT / "docs" / "photos")
    alike = {found[name] for name in ("faces", "found_again", "boxes_alike", "same_label")}
    assert found["photos"] == 2 and alike == {3}


def test_int8_loses_nothing_on_publictest(
    app: Path, photos: ImprovedVGG19, fer2013_csv: Path
) -> None:
    from _fer2013 import load

    data = load(fer2013_csv)
    public = data.where((data.splits == 1) & data.varied())
    some = public.where(np.arange(len(public)) % 5 == 0)
    x = torch.from_numpy(some.images)[:, None] / 255
    expected = predict_proba(photos, x, precision="float32").numpy()
    session = onnxruntime.InferenceSession(app / "network.onnx")
    parts = [session.run(None, {"faces": part.numpy()})[0] for part in x.split(100)]
    found = np.concatenate(parts)
    right, before = ((rows.argmax(1) == some.labels).mean() for rows in (found, expected))
    assert right > before - 0.01
    assert np.quantile(np.abs(found - expected).max(1), 0.95) < 0.03
