"""Moving pictures: each person's expressions, from frame to frame."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferfacenet.faces.framing import Pose, distance, frame_face
from ferfacenet.faces.search import Search, run
from ferfacenet.faces.types import MIN_SCORE, DetectedFace, Limits, TrackedFace
from ferfacenet.fast import Precision
from ferfacenet.images import Image, decode
from ferfacenet.inference import check_reading
from ferfacenet.photos import device_of, read_faces
from ferfacenet.transforms import TTA, to_rgb
from ferfacenet.video.container import Picture, import_extra
from ferfacenet.video.frames import Source, read_frames

# Each frame shows faces where they were in the last; the whole of it is searched when one is lost
# there, and for new ones when this many seconds have passed since.
_SEARCH_EVERY = 0.25
# Somebody out of sight keeps the number for _REMEMBER seconds, if they come back no further away
# than _NEAR, by ``distance``.
_REMEMBER, _NEAR = 2.0, 2.0
# A frame of which a small copy differs by this much (of 1) from that of the last may follow a cut:
# nobody who is out of sight is remembered.
_CUT = 0.08
# A face with a score of at least _CLEAR has an appearance; it is a person's only if this correlates
# by _ALIKE with their last or mean one, and from one frame to the next by _NEXT less the seconds
# between. Else the number stays with the place for _DOUBT seconds, in which a hand or a flash may
# go by.
# Measured: nobody followed in five videos at 1 to 30 frames a second lost the number; a second out
# of sight cost it 0 to 9 %, an extreme change of expression in CK+ 1 %. Somebody else in the seat
# is told in 100 % of pairs of photos, later in 93; in CK+, with one pose and light, in 70 and 43.
_CLEAR, _ALIKE, _NEXT, _DOUBT = 0.88, 0.72, 0.85, 0.5


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video.

    Attributes:
        index: its number in the file, from 0.
        seconds: when it is shown, from the first on.
        image: (H, W, 3) uint8 RGB, upright.
        faces: those in it, by score times the square root of the area; empty if there are none.
    """

    index: int
    seconds: float
    image: Picture
    faces: list[TrackedFace]


def predict_video(
    model: nn.Module,
    source: Source,
    *,
    every: int = 1,
    smooth: float = 0.5,
    fps: float | None = None,
    stream: bool = False,
    tta: TTA | None = "flip",
    min_size: float | None = None,
    min_score: float = MIN_SCORE,
    max_faces: int | None = None,
    precision: Precision = "auto",
) -> Generator[VideoFrame]:
    """The frames of a video one by one, with their faces read and followed from frame to frame.
    Needs av, opencv-python-headless and scipy. One frame is in memory at a time.

    Args:
        model: as for ``predict_faces``, whose further arguments have the same meaning here.
        source: a path, bytes or an open binary file of a video or an animated GIF, PNG, WebP or
            AVIF; a pattern such as ``"frames/%04d.png"`` for a sequence of images; or a camera's
            number, whose frames end when the generator is closed.
        every: of so many frames only the first is looked at and returned.
        smooth: over how many past seconds probabilities are averaged, exponentially; 0: not at all.
        fps: frames a second of a sequence of images, 25 by default.
        stream: ``source`` is an http, rtsp or rtmp address, which is read over the network.

    Raises:
        ValueError: the source cannot be read as a video; or an argument is out of range. What is
            torn gives the frames that can be read, and then this error.
        OSError: the file cannot be opened.
        ImportError: one of these packages is missing.
    """
    tracker = FaceTracker(
        model, smooth=smooth, tta=tta, min_size=min_size, min_score=min_score,
        max_faces=max_faces, precision=precision,
    )  # fmt: skip
    with closing(read_frames(source, every, fps, stream=stream)) as frames:
        for index, seconds, image in frames:
            yield VideoFrame(index, seconds, image, tracker.update(image, seconds))


@dataclass(eq=False)
class _Track:
    pose: Pose
    face: DetectedFace
    appearance: Tensor | None  # (2, n): the last, and the mean; None while it has not been clear
    seen: float  # the time of the last frame that showed it
    doubt: float = math.inf  # since when it has had another appearance
    number: int = 0
    weight: float = 0.0  # of all that is in the average
    average: dict[str, float] = field(default_factory=dict)

    def is_like(self, new: _Track, seconds: float) -> bool:
        """Whether a face may be this person's, this many seconds after they were seen."""
        if self.appearance is None or new.appearance is None:
            return True
        likeness = float(F.cosine_similarity(self.appearance, new.appearance).max())
        return likeness >= max(_ALIKE, _NEXT - seconds)

    def cost(self, new: _Track) -> float:
        """How far away a face is; 2 * _NEAR more where it looks like somebody else, but may for a
        moment be this person; and 3 * _NEAR where it cannot be."""
        apart = distance(new.pose, self.pose)
        if apart < _NEAR and self.is_like(new, new.seen - self.seen):
            return apart
        return apart + 2 * _NEAR if apart < _NEAR and new.seen - self.doubt < _DOUBT else 3 * _NEAR

    def take(self, new: _Track, sure: bool = True) -> None:
        self.pose, self.face = new.pose, new.face
        self.doubt = math.inf if sure else min(self.doubt, new.seen)
        if sure and new.appearance is not None:
            last, mean = new.appearance
            mean = mean if self.appearance is None else self.appearance[1].lerp(mean, 0.05)
            self.appearance = torch.stack([last, mean])


class FaceTracker:
    """Reads the faces of a video that is given frame by frame, and follows them.

    The arguments are ``predict_video``'s. A tracker is for one video, and one thread at a time.
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
        if not smooth >= 0:
            raise ValueError(f"smooth must be at least 0 seconds, got {smooth!r}")
        self._model, self._smooth = model, smooth
        self._limits = Limits(min_size, min_score, max_faces)
        self._tta, self._precision = tta, precision
        self._device = device_of(model)
        self._tracks: list[_Track] = []
        self._small: Tensor | None = None  # the last frame
        self._count, self._now, self._due = 0, -math.inf, -math.inf

    def update(self, image: Image, seconds: float) -> list[TrackedFace]:
        """The faces of the next frame, an image of any kind that ``preprocess`` takes, shown at
        ``seconds``; sorted as those of ``predict_faces``.

        Where the time is before the last, as in a file that begins again, nobody is remembered, and
        numbers go on; where it stands still, the whole frame is searched.

        Raises:
            ValueError: ``seconds`` is not finite; or as ``preprocess``. The tracker remains usable.
        """
        if not math.isfinite(seconds):
            raise ValueError(f"seconds must be finite, got {seconds!r}")
        picture = to_rgb(decode(image))
        if seconds < self._now:
            self._tracks, self._small = [], None
        before, self._small = self._small, _shrink(picture)
        cut = before is not None and float((self._small - before).abs().mean()) > _CUT
        followed = [track for track in self._tracks if track.seen == self._now]
        steps = Search(picture, self._limits).follow([track.pose for track in followed])
        (poses,) = run([steps], self._limits, self._device)
        visible = []
        for track, pose in zip(followed, poses, strict=True):
            new = pose and _see(picture, pose, seconds)
            if new and track.is_like(new, math.inf if cut else seconds - track.seen):
                track.take(new)
                visible.append(track)
        lost = [t for t in self._tracks if t in followed or seconds - t.seen <= _REMEMBER]
        lost = [] if cut else [track for track in lost if track not in visible]
        self._tracks = visible + lost
        most = self._limits.max_faces
        room = None if most is None else most - len(visible)
        steady = len(visible) == len(followed) and self._now < seconds < self._due
        if (cut or not steady) and room != 0:
            self._due = seconds + _SEARCH_EVERY
            known = [track.pose for track in visible]
            limits = replace(self._limits, max_faces=room)
            search = Search(picture, limits, known=known)
            (found,) = run([search.find()], limits, self._device)
            visible += self._recognise([_see(picture, pose, seconds) for pose in found], lost)
        self._now = seconds
        return self._read(visible)

    def _recognise(self, found: list[_Track], lost: list[_Track]) -> list[_Track]:
        """The tracks of faces that a search has found: of those out of sight, or new ones."""
        tracks: dict[int, _Track] = {}
        if found and lost:
            costs = np.array([[track.cost(new) for track in lost] for new in found])
            solve = import_extra("scipy.optimize").linear_sum_assignment
            for row, column in zip(*solve(costs), strict=True):
                if costs[row, column] < 3 * _NEAR:
                    tracks[row] = lost[column]
                    tracks[row].take(found[row], sure=costs[row, column] < _NEAR)
        for row, new in enumerate(found):
            if row not in tracks:
                self._count += 1
                new.number, tracks[row] = self._count, new
                self._tracks.append(new)
        return list(tracks.values())

    def _read(self, tracks: list[_Track]) -> list[TrackedFace]:
        tracks = sorted(tracks, key=lambda track: track.pose.rank(), reverse=True)
        crops = [track.face for track in tracks]
        faces, read = read_faces(self._model, crops, self._tta, self._precision), []
        for track, face in zip(tracks, faces, strict=True):
            raw, old = face.probabilities, track.average
            fade = math.exp((track.seen - self._now) / self._smooth) if self._smooth else 0
            track.weight = 1 + track.weight * fade
            for name, value in raw.items():
                old[name] = old.get(name, 0.0) + (value - old.get(name, 0.0)) / track.weight
            track.seen, label = self._now, max(old, key=old.__getitem__)
            parts = face.box, face.landmarks, face.score, face.crop, label, old[label], dict(old)
            read.append(TrackedFace(*parts, track=track.number, raw=raw))
        return read


def _shrink(picture: Tensor) -> Tensor:
    """(3, H, W) uint8 to (3, 24, 32) in [0, 1]."""
    small = F.interpolate(picture[None], size=(24, 32), mode="bilinear", antialias=True)[0]
    return small.float() / 255


def _see(picture: Tensor, pose: Pose, seconds: float) -> _Track:
    """A face, with its appearance if it is clear: the logarithms of 12x12 means of its crop, less
    their mean. They stay as the expression changes, the head turns a little, the light changes."""
    face = frame_face(picture, pose)
    cells = (F.avg_pool2d(face.crop, 4) + 0.1).log().flatten()
    appearance = (cells - cells.mean()).expand(2, -1) if pose.score >= _CLEAR else None
    return _Track(pose, face, appearance, seconds)
