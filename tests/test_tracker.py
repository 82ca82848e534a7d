"""FaceTracker: who is who from frame to frame, and what its times may be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import PHOTO, PORTRAITS, sharp
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from ferfacenet import FaceTracker, ImprovedVGG19, TrackedFace, detect_faces, predict_faces
from ferfacenet.model import FER2013_CATEGORIES

pytest.importorskip("scipy", reason="needs the video extra")

Heads = list[Image.Image]


@pytest.fixture(scope="module")
def model() -> ImprovedVGG19:
    """A small network by which views of one face have different answers."""
    model = sharp(width=0.125)
    model.categories = FER2013_CATEGORIES
    return model


@pytest.fixture(scope="module")
def heads() -> Heads:
    """Of two people, 160x180."""
    with Image.open(PORTRAITS) as file:
        photo = file.convert("RGB")
    found = []
    for face in sorted(detect_faces(photo), key=lambda face: face.box[0]):
        x0, y0, x1, y1 = face.box
        x, y, side = (x0 + x1) / 2, (y0 + y1) / 2, y1 - y0
        left, top = round(x - 0.8 * side), round(y - 0.9 * side)
        frame = left, top, left + round(1.6 * side), top + round(1.8 * side)
        found.append(photo.crop(frame).resize((160, 180)))
    return found


def room(*heads: tuple[Image.Image, int]) -> np.ndarray[Any, Any]:
    """(300, 640, 3) with heads, each so far to the right, the later ones before the earlier."""
    picture = Image.linear_gradient("L").resize((640, 300)).convert("RGB")
    shape = Image.new("L", (160, 180))
    ImageDraw.Draw(shape).ellipse((12, 4, 148, 176), fill=255)
    for head, x in heads:
        picture.paste(head, (x, 60), shape)
    return np.asarray(picture)


def numbers(faces: list[TrackedFace]) -> list[int]:
    """From the left to the right."""
    return [face.track for face in sorted(faces, key=lambda face: face.box[0])]


def test_people_keep_their_numbers_until_a_cut(model: ImprovedVGG19) -> None:
    with Image.open(PORTRAITS) as photo:
        pair = np.asarray(photo.convert("RGB"))
    alone = pair.copy()
    left, right = sorted(face.box for face in predict_faces(model, pair))
    x0, y0, x1, y1 = map(round, right)
    alone[y0 - 30 : y1 + 30, x0 - 30 : x1 + 30] = 128  # something passes before one of the two
    tracker = FaceTracker(model)

    def see(picture: np.ndarray[Any, Any], seconds: float) -> list[tuple[int, bool]]:
        faces = tracker.update(picture, seconds)
        return sorted((face.track, face.box[0] < (left[2] + right[0]) / 2) for face in faces)

    both = see(pair, 0)
    assert {number for number, _ in both} == {1, 2} and {side for _, side in both} == {True, False}
    (stays,) = (seen for seen in both if seen[1])
    assert see(np.roll(pair, 10, 1), 0.04) == both
    assert see(alone, 0.08) == [stays]
    assert see(pair, 0.6) == both
    assert see(alone, 0.64) == [stays]
    assert [number for number, _ in see(pair, 4)] == [stays[0], 3]  # gone for too long
    with Image.open(PHOTO) as photo:
        other = np.asarray(photo.convert("RGB").resize((pair.shape[1], pair.shape[0])))
    assert min(see(other, 4.04))[0] == 4


def test_of_two_people_on_one_face_one_is_out_of_sight(model: ImprovedVGG19) -> None:
    """Two who come together are not both found on the one that is left."""
    with Image.open(PHOTO) as photo:
        face = np.asarray(photo.convert("RGB"))[20:200, 140:320]

    def picture(gap: int) -> np.ndarray[Any, Any]:
        canvas = np.full((240, 480, 3), 120, np.uint8)
        for x in (150 + gap, 150 - gap):
            canvas[30:210, x : x + 180] = face
        return canvas

    tracker = FaceTracker(model)
    assert len(tracker.update(picture(90), 0)) == 2
    for step, gap in enumerate(range(80, -1, -10)):
        found = tracker.update(picture(gap), 0.04 * (step + 1))
    assert len(found) == 1


def test_at_most_so_many_faces(model: ImprovedVGG19) -> None:
    tracker = FaceTracker(model, max_faces=1)
    assert [numbers(tracker.update(PORTRAITS, 0.3 * step)) for step in range(4)] == [[1]] * 4


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_somebody_else_in_the_seat_is_somebody_else(
    model: ImprovedVGG19, heads: Heads, gap: float
) -> None:
    """With no cut, at once or a second later; and nobody inherits an average."""
    tracker, (first, second) = FaceTracker(model, smooth=math.inf), heads
    for step in range(10):
        (face,) = tracker.update(room((first, 230)), step / 25)
    assert face.track == 1 and face.raw != face.probabilities
    if gap:
        assert not tracker.update(room(), 0.4) and not tracker.update(room(), 0.8)
    seen: list[int] = []
    for step in range(24):
        for face in tracker.update(room((second, 233)), 0.4 + gap + step / 25):
            if face.track not in [1, *seen]:
                assert face.raw == face.probabilities
            seen.append(face.track)
    assert seen == sorted(seen) and set(seen) <= {1, 2}
    assert seen.count(1) < 15  # half a second of doubt
    (face,) = tracker.update(room((first, 230)), 2.5)
    assert face.track == 1


def test_after_a_cut_only_who_looks_the_same_goes_on(model: ImprovedVGG19, heads: Heads) -> None:
    for head, number in zip(heads, (1, 2), strict=True):
        tracker, shown = FaceTracker(model), room((head, 230))
        tracker.update(room((heads[0], 230)), 0)
        elsewhere = np.where(shown == room(), 255 - shown, shown)
        assert numbers(tracker.update(elsewhere, 0.04)) == [number]


def test_behind_another_head_both_keep_their_numbers(model: ImprovedVGG19, heads: Heads) -> None:
    tracker, (passer, sitter), seen = FaceTracker(model), heads, []
    for step, x in enumerate(range(20, 460, 12)):
        seen.append(numbers(tracker.update(room((sitter, 230), (passer, x)), step / 25)))
    assert sorted(seen[0]) == [1, 2] and seen[-1] == seen[0][::-1]
    assert sum(len(faces) == 1 for faces in seen) >= 7


def variations(head: Image.Image) -> Heads:
    """One person with the mouth wide open, turned, tilted, in other light, blurred."""
    mouth = head.copy()
    ImageDraw.Draw(mouth).ellipse((65, 106, 87, 130), fill=(90, 40, 40))
    turned = head.resize((136, 180)).crop((-12, 0, 148, 180))
    tilts = [head.rotate(angle, Image.Resampling.BICUBIC) for angle in (15, -15)]
    lights = [ImageEnhance.Brightness(head).enhance(gain) for gain in (0.5, 1.5)]
    blurred = [head.filter(ImageFilter.GaussianBlur(radius)) for radius in (2, 6)]
    return [mouth, turned, *tilts, *lights, *blurred]


@pytest.mark.parametrize("hidden", [False, True])
def test_whoever_looks_different_is_the_same(
    model: ImprovedVGG19, heads: Heads, hidden: bool
) -> None:
    """As a webcam shows them five times a second, or after a second out of sight."""
    head, tracker, now = heads[0], FaceTracker(model), 0.0
    for other in variations(head):
        for shown in (head, *[other] * (1 if hidden else 3), head):
            assert numbers(tracker.update(room((shown, 230)), now)) == [1]
            if hidden:
                assert not tracker.update(room(), now + 0.2)
                now += 1
            now += 0.2


def test_a_moment_of_doubt_costs_no_number(model: ImprovedVGG19, heads: Heads) -> None:
    """What is before a face for a moment, a hand or here another face, is nobody else."""
    tracker, (head, other) = FaceTracker(model), heads
    for step, shown in enumerate([head] * 5 + [other] * 5 + [head] * 10):
        assert numbers(tracker.update(room((shown, 230)), step / 25)) == [1]


def test_a_time_that_is_none_is_refused(model: ImprovedVGG19, heads: Heads) -> None:
    tracker, (one, other) = FaceTracker(model), heads
    for wrong in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"finite.*{wrong}"):
            tracker.update(room((other, 400)), wrong)
    assert numbers(tracker.update(room((one, 20)), 0)) == [1]


def test_a_time_that_falls_starts_anew(model: ImprovedVGG19, heads: Heads) -> None:
    """As where a file is played again."""
    tracker, (one, other) = FaceTracker(model, smooth=math.inf), heads
    assert numbers(tracker.update(room((one, 20)), 10)) == [1]
    (face,) = tracker.update(room((one, 20)), 0)
    assert face.track == 2 and face.raw == face.probabilities
    assert numbers(tracker.update(room((one, 20), (other, 400)), 0.3)) == [2, 3]


def test_a_time_that_stands_still_hides_nobody(model: ImprovedVGG19, heads: Heads) -> None:
    tracker, (one, other) = FaceTracker(model), heads
    assert numbers(tracker.update(room((one, 20)), 5)) == [1]
    assert numbers(tracker.update(room((one, 20), (other, 400)), 5)) == [1, 2]
    assert numbers(tracker.update(room((other, 400)), 5)) == [2]
    assert numbers(tracker.update(room((one, 20), (other, 400)), 5)) == [1, 2]
