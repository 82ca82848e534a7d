"""Videos: what is read of the faces in each frame."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videos import shift

from ferfacenet import ImprovedVGG19, VideoFrame, predict_faces, predict_video


def test_each_frame_is_read_as_a_photo_is(clip: Path, model: ImprovedVGG19) -> None:
    frames = list(predict_video(model, clip, smooth=0))
    assert [frame.index for frame in frames] == list(range(24))
    assert [frame.seconds for frame in frames] == pytest.approx([0.05 * i for i in range(24)])
    assert [len(frame.faces) for frame in frames] == [1] * 20 + [0] * 4
    for frame in frames[:20:6]:
        (face,), (photo,) = frame.faces, predict_faces(model, frame.image)
        side = photo.box[2] - photo.box[0]
        assert face.track == 1 and face.box == pytest.approx(photo.box, abs=0.1 * side)
        assert (face.landmarks - photo.landmarks).abs().max() < 0.05 * side
        assert (face.crop - photo.crop).abs().mean() < 0.07
        assert face.probabilities == face.raw
        assert sum(face.raw.values()) == pytest.approx(1, abs=1e-5)
        assert face.label == max(face.raw, key=face.raw.__getitem__)
    moved = frames[18].faces[0].box[0] - frames[0].faces[0].box[0]
    assert moved == pytest.approx(36, abs=4)


@pytest.mark.parametrize("smooth", [0.2, math.inf])
def test_probabilities_are_smoothed_over_the_past(
    clip: Path, model: ImprovedVGG19, smooth: float
) -> None:
    total, mean = 0.0, np.zeros(7)
    for frame in predict_video(model, clip, smooth=smooth, every=4):
        for face in frame.faces:
            total = 1 + total * math.exp(-0.2 / smooth)
            mean += (np.array(list(face.raw.values())) - mean) / total
            assert list(face.probabilities.values()) == pytest.approx(mean.tolist(), abs=1e-6)
            assert face.label == list(face.raw)[int(mean.argmax())]
            assert face.confidence == pytest.approx(mean.max(), abs=1e-6)
            assert frame.index == 0 or face.raw != face.probabilities


def test_arguments_out_of_range(clip: Path, model: ImprovedVGG19) -> None:
    options: tuple[dict[str, Any], ...] = (
        {"every": 0}, {"smooth": -1}, {"min_score": 2}, {"max_faces": 0}, {"tta": "ten"}
    )  # fmt: skip
    for option in options:
        with pytest.raises(ValueError, match=next(iter(option))):
            list(predict_video(model, clip, **option))


def test_a_camera(clip: Path, model: ImprovedVGG19, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the camera's place; there is none on the machines that test."""
    cv2 = pytest.importorskip("cv2", reason="needs the video extra")
    capture = cv2.VideoCapture
    sources = {3: [str(clip)]}
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: capture(*sources.get(number, [])))
    seen: list[VideoFrame] = []
    with pytest.raises(ValueError, match="camera 3"):
        seen.extend(predict_video(model, 3, every=5))
    times = [frame.seconds for frame in seen]
    assert len(seen) == 5 and times == sorted(times) and times[0] < 1
    (face,), (photo,) = seen[1].faces, predict_faces(model, shift(10))
    assert face.box == pytest.approx(photo.box, abs=8)
    for number, said in {4: "camera 4", -1: "camera -1: a camera's number is 0 or more"}.items():
        with pytest.raises(ValueError, match=said):
            next(predict_video(model, number))


def test_without_the_extra_the_remedy_is_named(
    clip: Path, model: ImprovedVGG19, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("av", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)
    for source in (clip, 0):
        with pytest.raises(ImportError, match="pip install av opencv-python-headless scipy"):
            next(predict_video(model, source))
