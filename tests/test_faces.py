"""Faces are found, levelled and framed whatever the photo: each kind of fault is shut out."""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PHOTO, PORTRAITS
from PIL import Image
from torch import Tensor

from ferfacenet import DetectedFace, detect_faces, images, preprocess
from ferfacenet.faces.search import Search
from ferfacenet.faces.yunet import detect
from ferfacenet.images import decode, open_photo

HEAD = (135, 35, 315, 215)  # a square of the photo about the face, which is half as wide
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def portrait() -> Array:
    return np.array(Image.open(PHOTO))


@pytest.fixture(scope="module")
def head() -> Image.Image:
    return Image.open(PHOTO).convert("L").crop(HEAD)


def paste(head: Image.Image, size: int, roll: float = 0.0, side: int = 640) -> Array:
    """The head at a size in pixels, turned clockwise, in the middle of a plain picture."""
    cubic = Image.Resampling.BICUBIC
    turned = head.resize((size, size), cubic).rotate(-roll, cubic, expand=True, fillcolor=90)
    picture = Image.new("L", (side, side), 90)
    picture.paste(turned, ((side - turned.width) // 2, (side - turned.height) // 2))
    return np.array(picture)


def roll_of(face: DetectedFace) -> float:
    """Degrees that the eyes are turned clockwise from level."""
    dx, dy = (face.landmarks[1] - face.landmarks[0]).tolist()
    return math.degrees(math.atan2(dy, dx))


def close(first: DetectedFace, second: DetectedFace) -> bool:
    """Whether two crops show the same."""
    return bool((first.crop - second.crop).abs().mean() < 0.07)


def test_the_portrait_has_one_face_where_it_is() -> None:
    (face,) = detect_faces(PHOTO)
    assert face.box == pytest.approx((179, 64, 270, 174), abs=8)
    assert all(type(end) is float for end in face.box)
    assert 0.9 < face.score <= 1
    assert face.landmarks.shape == (5, 2) and face.landmarks.dtype == torch.float32
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks.tolist()
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert face.crop.shape == (1, 48, 48) and face.crop.dtype == torch.float32
    assert 0 <= face.crop.min() < face.crop.max() <= 1
    assert not hasattr(face, "label"), "it has not been read"


def test_the_crop_is_framed_as_fer2013_is(head: Image.Image) -> None:
    for roll in (0.0, 25.0):
        (face,) = detect_faces(paste(head, 400, roll))
        large = torch.nn.functional.interpolate(face.crop[None], size=(192, 192), mode="bilinear")
        row = detect(large.expand(1, 3, -1, -1), 0.5, torch.device("cpu"))[0][0]
        framed = [(0.31, 0.38), (0.69, 0.38), (0.50, 0.60), (0.35, 0.76), (0.65, 0.76)]
        assert row[4:14].view(5, 2).numpy() / 192 == pytest.approx(np.array(framed), abs=0.1)


@pytest.mark.parametrize("size", [90, 120, 360])
def test_faces_follow_the_roll(head: Image.Image, size: int) -> None:
    """Of a face of 45 to 75 pixels, YuNet by itself sees half the roll."""
    (level,) = detect_faces(paste(head, size))
    errors, differences = [], []
    for roll in (-30, -15, 20, 30):
        (turned,) = detect_faces(paste(head, size, roll))
        errors.append(abs(roll_of(turned) - roll_of(level) - roll))
        differences.append(float((turned.crop - level.crop).abs().mean()))
    assert sum(errors) / len(errors) < 3
    assert sum(differences) / len(differences) < 0.05 and max(differences) < 0.08


def test_what_comes_first_and_what_the_caller_asks_for(head: Image.Image) -> None:
    picture = Image.new("L", (900, 480), 128)
    for x, size in ((20, 160), (220, 400), (680, 200)):
        picture.paste(head.resize((size, size)), (x, 40))
    found = detect_faces(picture)
    assert [round(face.box[0] // 200) for face in found] == [1, 3, 0]
    for align in (True, "auto"):
        assert torch.equal(preprocess(picture, align=align), found[0].crop)  # type: ignore[arg-type]
    boxes = [face.box for face in found]
    assert [face.box for face in detect_faces(picture, max_faces=2)] == boxes[:2]
    for face, box in zip(detect_faces(picture, min_size=110), boxes[:2], strict=True):
        assert face.box == pytest.approx(box, abs=12)
    assert detect_faces(picture, min_score=0.99) == []
    wrongs = {"min_size": (0,), "min_score": (2.0, 0.0), "max_faces": (0, 1.5)}
    for wrong in ({name: value} for name, values in wrongs.items() for value in values):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            detect_faces(picture, **wrong)  # type: ignore[arg-type]


def test_sightings_that_a_look_from_close_by_decides_on(
    monkeypatch: pytest.MonkeyPatch, head: Image.Image
) -> None:
    """A forearm of 120 pixels beside a face of 100: it has to be evident, and comes after it; and
    the face counts even if its sighting is weak."""
    picture = Image.new("L", (640, 320), 90)
    picture.paste(head.resize((200, 200)), (20, 60))
    (real,) = detect_faces(picture)
    arm = [400.0, 100, 520, 220, 430, 140, 490, 140, 460, 170, 440, 190, 480, 190]
    confirm = Search._confirm
    for score, less, found in ((0.64, 0.45, [True]), (0.81, 0.0, [True, False])):
        row, weaker = torch.tensor([[*arm, score, 0]]), torch.tensor([0.0] * 14 + [less, 0])

        def doubt(self: Search, rows: Tensor, row: Tensor = row, weaker: Tensor = weaker) -> Any:
            return confirm(self, torch.cat([row, rows - weaker]))

        monkeypatch.setattr(Search, "_confirm", doubt)
        assert [face.score > 0.9 for face in detect_faces(picture)] == found
        assert torch.equal(preprocess(picture), real.crop)


def test_the_same_picture_in_another_form_has_the_same_face(portrait: Array) -> None:
    (wanted,) = detect_faces(portrait)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.fromarray(np.rot90(portrait)).save(turned, "PNG", exif=exif)
    tensor = torch.from_numpy(portrait).permute(2, 0, 1)
    for same in (portrait.astype(np.uint16) * 257, tensor, tensor / 255, turned):
        (face,) = detect_faces(same)
        assert face.box == wanted.box and torch.equal(face.crop, wanted.crop)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            (face,), crop = detect_faces(portrait), preprocess(portrait)
    finally:
        torch.set_default_dtype(torch.float32)
    assert face.box == wanted.box and face.landmarks.device.type == "cpu"
    assert torch.equal(face.crop, wanted.crop) and torch.equal(crop, wanted.crop)
    reddish = Image.fromarray(portrait // np.array([1, 4, 4], np.uint8))
    (face,), (gray,) = detect_faces(reddish), detect_faces(reddish.convert("L"))
    assert face.box == pytest.approx(gray.box, abs=5)
    assert close(face, gray), "red and blue have changed places"


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_pictures_on_their_side_or_head(quarters: int) -> None:
    """Without an EXIF orientation."""
    photo = np.array(Image.open(PORTRAITS))
    upright, turned = detect_faces(photo), detect_faces(np.rot90(photo, quarters).copy())
    assert len(upright) == len(turned) == 2
    for face, same in zip(upright, turned, strict=True):
        assert close(face, same)
        lying = (roll_of(same) - roll_of(face) + 90 * quarters) % 360
        assert min(lying, 360 - lying) < 6


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.6, 1.0])
def test_somebody_lies_beside_one_who_stands(quarters: int, scale: float) -> None:
    photo = np.array(Image.open(PORTRAITS))
    left, right = photo[:, :480], photo[:, 480:]
    alone = detect_faces(left)[0]
    lying = np.rot90(left, quarters)
    side = max(len(lying), 512)
    both = np.full((side, right.shape[1] + 100 + lying.shape[1], 3), 120, np.uint8)
    both[:512, : right.shape[1]], both[: len(lying), -lying.shape[1] :] = right, lying
    size = [round(length * scale) for length in both.shape[1::-1]]
    found = detect_faces(Image.fromarray(both).resize(size))
    (face,) = [face for face in found if face.box[0] > scale * (right.shape[1] + 50)]
    turned = (roll_of(face) - roll_of(alone) + 90 * quarters) % 360
    assert min(turned, 360 - turned) < 15 and len(found) == 2


def test_a_face_across_the_edge_of_two_parts_is_whole(portrait: Array) -> None:
    """A picture that is looked at in parts because of its length."""
    head = Image.fromarray(portrait).crop(HEAD).resize((900, 900))
    for length, top in ((1780, 700), (1780, 800), (3000, 1500), (3000, 1700), (3000, 1900)):
        tall = Image.new("RGB", (1000, length), (120, 120, 120))
        tall.paste(head, (50, top))
        ((x0, y0, x1, y1),) = [face.box for face in detect_faces(tall)]
        assert 0.7 < (x1 - x0) / (y1 - y0) < 0.95


def test_close_ups_and_faces_that_the_edge_cuts(portrait: Array) -> None:
    """The face fills the picture, or is partly out of it; no part of it is a face of its own."""
    (whole,) = detect_faces(portrait)
    x0, y0, x1, y1 = map(round, whole.box)
    for left, top, right, bottom in ((5, 5, 5, 5), (14, 10, 14, 10), (30, 0, -20, -20)):
        part = portrait[y0 + top : y1 - bottom, x0 + left : x1 - right]
        for scale in (1, 6):
            (face,) = detect_faces(Image.fromarray(part).resize((part.shape[1] * scale,) * 2))
            x, y, right_end, bottom_end = (end / scale for end in face.box)
            assert right_end - x > 0.6 * part.shape[1]
            assert x >= 0 and y >= 0 and right_end <= part.shape[1] and bottom_end <= part.shape[1]
    for side in (120, 200, 640):
        assert len(detect_faces(Image.fromarray(portrait).resize((side, side)))) == 1


def test_a_big_face_and_small_ones_in_a_big_photo(head: Image.Image) -> None:
    photo = Image.new("L", (3000, 2000), 120)
    photo.paste(head.resize((1400, 1400)), (100, 100))
    for x in range(1700, 2900, 200):
        photo.paste(head.resize((100, 100)), (x, 300))
    assert len(detect_faces(photo)) == 7
    big = Image.new("L", (3000, 2000), 120)
    big.paste(head.crop((15, 15, 165, 165)).resize((2000, 2000)), (500, 0))
    (face,), (small,) = detect_faces(big), detect_faces(big.reduce(5))
    assert face.box == pytest.approx([5 * end for end in small.box], abs=100)
    assert close(face, small)
    detail = np.tile(np.array([[60, -60], [-60, 60]], np.int16), (1000, 1500))
    (face,) = detect_faces((np.asarray(big) + detail).clip(0, 255).astype(np.uint8))
    assert (face.crop - small.crop).abs().mean() < 0.07, "what is finer than the crop shows in it"


@pytest.mark.parametrize(("kind", "size"), [("JPEG", 180), ("MPO", 900)])
def test_a_large_jpeg_is_decoded_as_small_as_its_faces_allow(
    kind: str, size: int, head: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At half of its size, and once more as it is if a face would be too small for its crop."""
    drawn = Image.new("RGB", (3000, 4000), (120, 120, 120))
    drawn.paste(head.resize((size, size)), (1500, 900))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    drawn.rotate(90, expand=True).save(buffer, kind, quality=95, exif=exif)
    photo, whole = open_photo(buffer.getvalue(), 10**6), decode(buffer)
    assert photo.pixels.shape == (3, 2000, 1500) and photo.scale == 2
    assert torch.equal(photo.whole(), whole) and whole.shape == (3, 4000, 3000)
    decoded = []
    monkeypatch.setattr(images, "decode", lambda data: decoded.append(decode(data)) or decoded[0])
    (face,), (same,) = detect_faces(buffer), detect_faces(whole)
    assert len(decoded) == (size < 200)
    assert face.box == pytest.approx(same.box, abs=0.03 * size) and close(face, same)
    assert (face.landmarks - same.landmarks).abs().max() < 0.03 * size
    assert open_photo(drawn, 10**6).scale == open_photo(buffer).scale == 1


def test_min_size_says_how_far_a_huge_picture_is_searched() -> None:
    head = Image.open(PHOTO).crop(HEAD)  # in colour: small gray faces are harder to see
    wide = Image.new("RGB", (12000, 1500), (120,) * 3)
    for index in range(17):
        wide.paste(head.resize((80, 80)), (700 * index + 30, 80 * index))
    assert len(detect_faces(wide, min_size=30)) == 17
    assert detect_faces(wide) == [], "faces of 49 pixels, where the default is 53"
    small = Image.new("RGB", (640, 480), (120,) * 3)
    small.paste(head.resize((26, 26)), (200, 200))  # a face of 16 pixels
    assert detect_faces(small) == [] and len(detect_faces(small, min_size=8)) == 1


def square(portrait: Array, larger: float = 1.0, shift: float = 0.0) -> Array:
    """A square of the portrait that is FER2013's frame of its face, times ``larger``."""
    x0, y0, x1, y1 = detect_faces(portrait)[0].box
    side = math.sqrt((x1 - x0) * (y1 - y0)) / 0.95 * larger
    left, top = round((x0 + x1 - side) / 2 + shift * side), round((y0 + y1 - side) / 2)
    return portrait[top : top + round(side), left : left + round(side)]


def test_only_what_is_framed_as_fer2013_is_taken_as_it_is(portrait: Array) -> None:
    """A gray square with its framing is; one with a margin, or of colour, is framed anew."""
    gray = np.array(Image.fromarray(portrait).convert("L"))
    for crop in (square(gray), square(gray, 1.1, 0.05), np.stack([square(gray)] * 3, 2)):
        level, plain = preprocess(crop, align=True), preprocess(crop, align=False)
        assert torch.equal(preprocess(crop), plain) and not torch.equal(level, plain)
        (face,) = detect_faces(crop)
        assert torch.equal(face.crop, plain)
    (whole,) = detect_faces(portrait)
    for larger in (1.0, 1.15, 1.3, 1.5, 1.9):
        crop = square(portrait, larger)
        assert torch.equal(preprocess(crop), preprocess(crop, align=True))
        assert close(detect_faces(crop)[0], whole)
    for crop in (square(gray, 1.5), square(gray, 1.1, 0.3), square(gray)[:-4]):
        assert not torch.equal(preprocess(crop), preprocess(crop, align=False))


def test_a_face_crop_that_is_turned_is_turned_back(portrait: Array) -> None:
    """By quarters, and otherwise framed anew where it is tilted more than FER2013's are."""
    gray = Image.fromarray(portrait).convert("L")
    crop = square(np.array(gray))
    for quarters in range(4):
        turned = np.rot90(crop, quarters).copy()
        assert torch.equal(preprocess(turned), preprocess(crop, align=False))
        assert torch.equal(detect_faces(turned)[0].crop, preprocess(turned))
    x0, y0, x1, y1 = detect_faces(portrait)[0].box
    middle = (x0 + x1) / 2, (y0 + y1) / 2
    for tilt in (-40, 40):
        crop = square(np.array(gray.rotate(tilt, Image.Resampling.BICUBIC, center=middle)))
        assert not torch.equal(preprocess(crop), preprocess(crop, align=False))


def test_no_face(tmp_path: Path) -> None:
    path, random = tmp_path / "wall.png", np.random.default_rng(0)
    chart = np.full((300, 400, 3), 255, np.uint8)
    for index in range(6):
        chart[200 - 30 * index :, 60 * index + 10 : 60 * index + 50] = (40, 90, 200)
    small = random.integers(0, 256, (64, 64), dtype=np.uint8)
    for picture in (random.integers(0, 256, (300, 400, 3), dtype=np.uint8), chart, small):
        Image.fromarray(picture).save(path)
        assert detect_faces(path) == []
        # A square of up to 64 pixels is a face crop.
        for align in (True,) if picture is small else (True, "auto"):
            with pytest.raises(ValueError, match=r"wall\.png: no face found; align=False"):
                preprocess(path, align=align)  # type: ignore[arg-type]
        assert preprocess(path, align=False).shape == (1, 48, 48)
    assert torch.equal(preprocess(path), preprocess(path, align=False))


def test_threads_agree(portrait: Array, head: Image.Image) -> None:
    pictures = [portrait, paste(head, 300, 20)]
    alone = [face for picture in pictures for face in detect_faces(picture)]
    with ThreadPoolExecutor(8) as pool:
        for wanted, (face,) in zip(alone * 8, pool.map(detect_faces, pictures * 8), strict=True):
            assert face.box == wanted.box and torch.equal(face.crop, wanted.crop)
