"""Moving pictures: each person's expressions, from frame to frame."""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferfacenet.faces import (
    MIN_SCORE,
    Face,
    Pose,
    check_limits,
    distance,
    find_poses,
    follow_faces,
    frame_face,
    to_rgb,
)
from ferfacenet.fast import Precision
from ferfacenet.images import Image, decode
from ferfacenet.inference import check_reading, device_of, read_faces
from ferfacenet.transforms import TTA
from ferfacenet.video.container import Picture, import_extra
from ferfacenet.video.frames import read_frames

# Between whiles a face is looked for around where it was; the whole picture is searched when one
# is lost there, and for new ones at least so often, in seconds.
_SEARCH_EVERY = 0.25
# For so many seconds somebody who is out of sight keeps the number, and so far, in sides and in
# size, may have moved.
_REMEMBER, _NEAR = 2.0, 1.5
# Where the picture as a whole, in small, differs by so much from the last (of 1), there may be a
# cut: a face goes on only if it looks the same, by the correlation of its pixels, and nobody who
# is out of sight is remembered.
_CUT, _ALIKE = 0.08, 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class TrackedFace(Face):
    """One face of a video's frame.

    Attributes:
        track: the person's number, from 1, the same in all frames.
        raw: the probabilities of this frame alone; ``label``, ``confidence`` and
            ``probabilities`` are smoothed.
    """

    track: int
    raw: dict[str, float]


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video.

    Attributes:
        index: its number in the file, from 0.
        seconds: when it is shown, from the file's beginning.
        image: (H, W, 3) uint8 RGB, upright.
        faces: those in it, by score times the square root of the area; empty if there are none.
    """

    index: int
    seconds: float
    image: Picture
    faces: list[TrackedFace]


def predict_video(
    model: nn.Module,
    source: str | os.PathLike[str] | int,
    *,
    every: int = 1,
    smooth: float = 0.5,
    fps: float | None = None,
    tta: TTA | None = "flip",
    min_size: float | None = None,
    min_score: float = MIN_SCORE,
    max_faces: int | None = None,
    precision: Precision = "auto",
) -> Generator[VideoFrame]:
    """The frames of a video one by one, with their faces read and followed from frame to frame.
    Needs the ``video`` extra. One frame is in memory at a time.

    Args:
        model: as for ``predict_faces``, whose further arguments have the same meaning here.
        source: a video file; a pattern such as ``"frames/%04d.png"`` for a sequence of images;
            or a camera's number, whose frames end when the generator is closed.
        every: of so many frames only the first is looked at and returned.
        smooth: over how many seconds the probabilities of a person are averaged
            (exponentially, over the past); 0 for not at all.
        fps: frames a second of a sequence of images, 25 by default.

    Raises:
        ValueError: the source cannot be read as a video; or an argument is out of range. A file
            that is torn gives the frames that can be read, and then this error.
        OSError: the file cannot be opened.
        ImportError: the ``video`` extra is missing.
    """
    tracker = FaceTracker(
        model, smooth=smooth, tta=tta, min_size=min_size, min_score=min_score,
        max_faces=max_faces, precision=precision,
    )  # fmt: skip
    with closing(read_frames(source, every, fps)) as frames:
        for index, seconds, image in frames:
            yield VideoFrame(index, seconds, image, tracker.update(image, seconds))


@dataclass(eq=False)
class _Track:
    number: int
    pose: Pose
    crop: Tensor = field(default_factory=lambda: torch.zeros(0))
    seen: float = 0.0  # the time of the last frame in which it was
    weight: float = 0.0  # of all that is in the average
    average: dict[str, float] = field(default_factory=dict)


class FaceTracker:
    """Reads the faces of a video that is given frame by frame, and follows them.

    The arguments are those of ``predict_video``. One tracker is for one video, and for one thread
    at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        smooth: float = 0.5,
        tta: TTA | None = "flip",
        min_size: float | None = None,
        min_score: float = MIN_SCORE,
        max_faces: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        check_reading(model, tta, precision)
        check_limits(min_size, min_score, max_faces)
        if not smooth >= 0:
            raise ValueError(f"smooth must be at least 0 seconds, got {smooth!r}")
        self._model, self._smooth = model, smooth
        self._min_size, self._min_score, self._max_faces = min_size, min_score, max_faces
        self._tta, self._precision = tta, precision
        self._device = device_of(model)
        self._tracks: list[_Track] = []
        self._small: Tensor | None = None  # the last frame
        self._count, self._now, self._searched = 0, -math.inf, -math.inf

    def update(self, image: Image, seconds: float) -> list[TrackedFace]:
        """The faces of the next frame, an image of any kind that ``preprocess`` takes, shown at
        ``seconds``; sorted as those of ``predict_faces``."""
        picture = to_rgb(decode(image))
        before, self._small = self._small, _shrink(picture)
        cut = before is not None and float((self._small - before).abs().mean()) > _CUT
        followed = [track for track in self._tracks if track.seen == self._now]
        self._tracks = [t for t in self._tracks if t in followed or seconds - t.seen <= _REMEMBER]
        poses = follow_faces(picture, [t.pose for t in followed], self._min_score, self._device)
        visible = []
        for track, pose in zip(followed, poses, strict=True):
            if pose and not (cut and _correlation(track.crop, picture, pose) < _ALIKE):
                track.pose = pose
                visible.append(track)
        if cut:
            self._tracks = visible.copy()
        room = None if self._max_faces is None else self._max_faces - len(visible)
        due = cut or len(visible) < len(followed) or seconds - self._searched >= _SEARCH_EVERY
        if due and room != 0:
            self._searched = seconds
            known = [track.pose for track in visible]
            found = find_poses(picture, self._min_size, self._min_score, room, self._device, known)
            lost = [track for track in self._tracks if track not in visible]
            visible += self._recognise(found, lost)
        self._now = seconds
        return self._read(picture, visible)

    def _recognise(self, found: list[Pose], lost: list[_Track]) -> list[_Track]:
        """The tracks of faces that a search has found: of those out of sight the nearest, or new
        ones."""
        tracks: dict[int, _Track] = {}
        if found and lost:
            costs = np.array([[distance(pose, track.pose) for track in lost] for pose in found])
            solve = import_extra("scipy.optimize").linear_sum_assignment
            for row, column in zip(*solve(costs.clip(max=_NEAR)), strict=True):
                if costs[row, column] < _NEAR:
                    tracks[row] = lost[column]
        for row, pose in enumerate(found):
            if row not in tracks:
                self._count += 1
                tracks[row] = _Track(self._count, pose)
                self._tracks.append(tracks[row])
            tracks[row].pose = pose
        return list(tracks.values())

    def _read(self, picture: Tensor, tracks: list[_Track]) -> list[TrackedFace]:
        tracks = sorted(tracks, key=lambda track: -track.pose.score * track.pose.side)
        crops = [frame_face(picture, track.pose) for track in tracks]
        faces, read = read_faces(self._model, crops, self._tta, self._precision), []
        for track, face in zip(tracks, faces, strict=True):
            raw, old = face.probabilities or {}, track.average
            past = max(0.0, self._now - track.seen)
            track.weight = 1 + track.weight * (
                math.exp(-past / self._smooth) if self._smooth else 0
            )
            for name, value in raw.items():
                old[name] = old.get(name, 0.0) + (value - old.get(name, 0.0)) / track.weight
            track.crop, track.seen, label = face.crop, self._now, max(old, key=old.__getitem__)
            parts = face.box, face.landmarks, face.score, face.crop, label, old[label], dict(old)
            read.append(TrackedFace(*parts, track=track.number, raw=raw))
        return read


def _shrink(picture: Tensor) -> Tensor:
    """(3, H, W) uint8 in small, in [0, 1]."""
    small = F.interpolate(picture[None], size=(24, 32), mode="bilinear", antialias=True)[0]
    return small.float() / 255


def _correlation(crop: Tensor, picture: Tensor, pose: Pose) -> float:
    """Of the pixels of a face as it was and as it is."""
    crops = torch.stack([crop, frame_face(picture, pose).crop])
    return float(torch.corrcoef(crops.flatten(1))[0, 1])
