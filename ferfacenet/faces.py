"""Find the faces in an ordinary photo, level them, and frame them as FER2013 frames its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ferfacenet.detector import MAX_UPSCALE, cover, detect, find_sightings
from ferfacenet.images import Image, decode
from ferfacenet.transforms import SIZE, cut_view, max_value, resize, strips, to_gray

#: A face has this score.
MIN_SCORE = 0.6

# A sighting whose score is too low by no more than this is a face if a closer look shows a better.
_WEAKER = 0.2
# YuNet's eyes follow the head's roll in part only, so every face is looked at again, turned
# upright by what is known of its roll and drawn with its box this large in a square view of that
# side: once, again if that shows more roll than so many degrees, and then tilted by so many to
# either side, of which the mean is taken.
_CLOSE_FACE, _CLOSE_VIEW, _LEVEL, _TILTS = 180, 256, 3.0, (-8.0, 8.0)
# What is no further from a face than this, in sides and in size, is that face seen again.
_SAME = 0.6
_BATCH = 16

# FER2013's framing, measured on 3,923 training crops: the box's side over the frame's, and how
# far the frame's centre is below the box's, in frame sides.
_BOX_SHARE, _DROP = 0.95, 0.01
# The frame is drawn at the picture's own resolution, but at most this, before the one resizing.
_MAX_FRAME = 480

# A square is a face crop already if it is no larger than this; or if it is gray, and the side of
# its face's box is at least this share of its own, and the box's middle at most so far from its
# own, in its sides: so it is with 95 % of FER2013's when they are enlarged. The face may be turned
# by quarters, and beyond them by so many degrees, three standard deviations of FER2013's.
SMALL_CROP = 64
_CROP_SHARE, _CROP_SHIFT, _CROP_ROLL = 0.64, 0.17, 27.0


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photo; all coordinates in pixels of the EXIF-turned picture.

    Attributes:
        box: (x0, y0, x1, y1), within the picture.
        landmarks: (5, 2) float32, x and y of the eye, the eye, the nose and the two mouth
            corners, of each pair the one at the left of the upright face first.
        score: the detector's confidence, in [0, 1].
        crop: (1, 48, 48) float32 gray in [0, 1]: the face levelled and framed as FER2013's
            are, which is what the network takes.
        label: the likeliest expression; None, like the next two, until the face is read.
        confidence: its probability, in [0, 1].
        probabilities: of each expression by its name, summing to 1.
    """

    box: tuple[float, float, float, float]
    landmarks: Tensor
    score: float
    crop: Tensor
    label: str | None = None
    confidence: float | None = None
    probabilities: dict[str, float] | None = None


@dataclass(frozen=True, eq=False)
class Pose:
    """How a face stands: landmarks (5, 2), the middle (2,) and the side of its upright box, and
    the box in which it was first seen (4,), in pixels of the picture, all in float64; the score."""

    points: Tensor
    middle: Tensor
    side: float
    box: Tensor
    score: float

    @property
    def roll(self) -> float:
        """Degrees that the line of the eyes is turned clockwise from level."""
        x, y = (self.points[1] - self.points[0]).tolist()
        return math.degrees(math.atan2(y, x))

    @property
    def square(self) -> Tensor:
        """(4,), of that side about the middle."""
        return torch.cat([self.middle - self.side / 2, self.middle + self.side / 2])


def detect_faces(
    image: Image,
    *,
    min_size: float | None = None,
    min_score: float = MIN_SCORE,
    max_faces: int | None = None,
) -> list[Face]:
    """Every face in a picture, by score times the square root of the area, the greatest first.

    Args:
        image: of any kind that ``preprocess`` takes, on which errors it raises too.
        min_size: the longer side of the smallest box, in pixels of the picture. None: 20, or an
            80th of the root of the picture's area if that is more; the search then costs at most
            what 1.3 megapixels cost, and four times as much for half the size.
        min_score: the least of the detector's confidence, in [0, 1].
        max_faces: how many are returned at most; None for all.

    Returns:
        The faces; an empty list if there are none.

    Raises:
        ValueError: ``min_size``, ``min_score`` or ``max_faces`` is out of range.
    """
    return find_faces(decode(image), min_size, min_score, max_faces)


def find_faces(
    pixels: Tensor,
    min_size: float | None = None,
    min_score: float = MIN_SCORE,
    max_faces: int | None = None,
    device: torch.device | None = None,
    keep_crops: bool = True,
) -> list[Face]:
    """As ``detect_faces``, of (1 or 3, H, W) as ``decode`` returns it, by a detector on
    ``device``; a picture that is a face crop already is taken as it is, but turned upright by
    quarters, if ``keep_crops``."""
    check_limits(min_size, min_score, max_faces)
    picture = to_rgb(pixels)
    found = find_poses(picture, min_size, min_score, max_faces, device or torch.device("cpu"))
    faces = [frame_face(picture, pose) for pose in found]
    if faces and keep_crops and _is_crop(picture, found[0]):
        upright = torch.rot90(pixels, round(found[0].roll / 90), (1, 2))
        return [replace(faces[0], crop=resize(to_gray(upright)))]
    return faces


def find_poses(
    picture: Tensor,
    min_size: float | None,
    min_score: float,
    max_faces: int | None,
    device: torch.device,
    known: Sequence[Pose] = (),
) -> list[Pose]:
    """The faces of (3, H, W) uint8 but for those that are known, by score times size."""
    weak = max(0.1, min_score - _WEAKER)
    found: list[Pose] = []
    unturned = torch.eye(2, 3, dtype=torch.float64, device="cpu")
    rows = find_sightings(picture, min_size, weak, device)
    sightings = [_read_pose(row, unturned) for row in rows]
    sightings = [pose for pose in sightings if not _is_among(pose, known)]
    for start in range(0, len(sightings), _BATCH):
        for pose in _look_closer(picture, sightings[start : start + _BATCH], weak, device):
            if pose.score >= min_score and not _is_among(pose, [*known, *found]):
                found.append(pose)
        if max_faces is not None and len(found) >= max_faces:
            break
    return sorted(found, key=lambda pose: pose.score * pose.side, reverse=True)[:max_faces]


def follow_faces(
    picture: Tensor, poses: Sequence[Pose], min_score: float, device: torch.device
) -> list[Pose | None]:
    """Faces in the next picture of a video, each looked for around where it was; None for what
    is not seen there, or only where another face is."""
    weak = max(0.1, min_score - _WEAKER)
    old = [replace(pose, score=0.0) for pose in poses]  # what counts is what this picture shows
    new = _look_again(picture, old, _look(picture, old, _TILTS, weak, device), _TILTS, weak, device)
    moves = [distance(pose, before) for pose, before in zip(new, old, strict=True)]
    followed: list[Pose | None] = [None] * len(old)
    for index in sorted(range(len(old)), key=moves.__getitem__):
        pose, before = new[index], old[index]
        if pose.score >= min_score and not _is_among(pose, [other for other in followed if other]):
            corners = (before.box.view(2, 2) - before.middle) * (pose.side / before.side)
            followed[index] = replace(pose, box=(corners + pose.middle).flatten())
    return followed


def check_limits(min_size: float | None, min_score: float, max_faces: int | None) -> None:
    """Raise a ValueError where one of ``detect_faces``'s arguments is out of range."""
    if min_size is not None and not min_size >= 1:
        raise ValueError(f"min_size must be at least 1 pixel, got {min_size!r}")
    if not 0 < min_score <= 1:
        raise ValueError(f"min_score must be above 0 and at most 1, got {min_score!r}")
    if max_faces is not None and max_faces < 1:
        raise ValueError(f"max_faces must be at least 1, got {max_faces!r}")


def to_rgb(pixels: Tensor) -> Tensor:
    """(1 or 3, H, W) as ``decode`` returns it to (3, H, W) uint8, gray without a copy."""
    if pixels.dtype != torch.uint8:
        wide, pixels = pixels, torch.empty_like(pixels, dtype=torch.uint8)
        for rows in strips(*wide.shape[1:]):
            part = wide[:, rows].to(torch.float32) * (255 / max_value(wide.dtype))
            pixels[:, rows] = part.round_().to(torch.uint8)
    return pixels.expand(3, -1, -1)


def _read_pose(row: Tensor, matrix: Tensor) -> Pose:
    """The pose in a row of ``detect`` on a view with that (2, 3) matrix."""
    row = row.double()
    points = torch.cat([(row[:2] + row[2:4])[None] / 2, row[4:14].view(5, 2)])
    points = points @ matrix[:, :2].T + matrix[:, 2]
    area = (row[2:4] - row[:2]).prod() * torch.det(matrix[:, :2])
    return Pose(points[1:], points[0], math.sqrt(float(area)), row[:4], float(row[14]))


def _look_closer(
    picture: Tensor, sightings: Sequence[Pose], min_score: float, device: torch.device
) -> list[Pose]:
    """What is seen of some sightings when each is turned upright and drawn at the right size."""
    poses = _look(picture, sightings, (0.0,), min_score, device)
    poses = _look_again(picture, sightings, poses, (0.0,), min_score, device)
    return _look(picture, poses, _TILTS, min_score, device)


def _look_again(
    picture: Tensor,
    before: Sequence[Pose],
    poses: list[Pose],
    tilts: tuple[float, ...],
    min_score: float,
    device: torch.device,
) -> list[Pose]:
    """The poses, those that rolled since ``before`` looked at once more by what is known now."""
    turns = [pose.roll - old.roll for pose, old in zip(poses, before, strict=True)]
    rolled = [i for i, turn in enumerate(turns) if abs((turn + 180) % 360 - 180) > _LEVEL]
    again = _look(picture, [poses[i] for i in rolled], tilts, min_score, device)
    return [again[rolled.index(i)] if i in rolled else pose for i, pose in enumerate(poses)]


def _look(
    picture: Tensor,
    poses: Sequence[Pose],
    tilts: tuple[float, ...],
    min_score: float,
    device: torch.device,
) -> list[Pose]:
    """The poses as they are seen from close by, in views that are tilted by so many degrees from
    upright, of which the mean is taken; those that are not seen again as they were."""
    if not poses:
        return []
    views = []
    for pose in poses:
        side = _CLOSE_VIEW * max(pose.side / _CLOSE_FACE, 1 / MAX_UPSCALE)
        # Past the picture's end black: smeared or mirrored pixels mislead YuNet.
        views += [
            cut_view(picture, pose.middle, pose.roll + tilt, side, _CLOSE_VIEW, "zeros")
            for tilt in tilts
        ]
    found = detect(torch.stack([view for view, _ in views]), min_score, device)
    seen = [
        [_read_pose(row, matrix) for row in rows]
        for rows, (_, matrix) in zip(found, views, strict=True)
    ]
    closer = []
    for index, pose in enumerate(poses):
        looks = [
            min(near, key=lambda look: distance(look, pose))
            for near in seen[index * len(tilts) : (index + 1) * len(tilts)]
            if near
        ]
        looks = [look for look in looks if distance(look, pose) < _SAME]
        if looks:
            points, middle = (
                torch.stack(parts).mean(0)
                for parts in zip(*((look.points, look.middle) for look in looks), strict=True)
            )
            side = sum(look.side for look in looks) / len(looks)
            score = max(pose.score, *(look.score for look in looks))
            pose = Pose(points, middle, side, pose.box, score)
        closer.append(pose)
    return closer


def _is_among(pose: Pose, others: Sequence[Pose]) -> bool:
    """Whether one of the others is near to a face, or lies in it, or it in the other."""
    if not others:
        return False
    covers = cover(pose.square[None], torch.stack([other.square for other in others]))
    return bool(covers.max() >= _SAME) or any(distance(pose, other) < _SAME for other in others)


def distance(first: Pose, second: Pose) -> float:
    """How far apart two boxes are, in sides, and in size."""
    apart = float((first.middle - second.middle).norm()) / second.side
    return apart + abs(math.log(first.side / second.side))


def _is_crop(picture: Tensor, pose: Pose) -> bool:
    """Whether a picture is itself framed on this face as FER2013's pictures are."""
    height, width = picture.shape[1:]
    if height != width or width <= SMALL_CROP:
        return height == width
    return (
        pose.side >= _CROP_SHARE * width
        and bool((pose.middle / width - 0.5).abs().max() <= _CROP_SHIFT)
        and abs((pose.roll + 45) % 90 - 45) <= _CROP_ROLL
        and bool((picture[:1] == picture[1:]).all())
    )


def frame_face(picture: Tensor, pose: Pose) -> Face:
    """Frame one face whose pose is known."""
    side, turn = pose.side / _BOX_SHARE, math.radians(pose.roll)
    down = torch.tensor([-math.sin(turn), math.cos(turn)], dtype=torch.float64, device="cpu")
    size = max(SIZE, min(_MAX_FRAME, round(side)))
    middle = pose.middle + _DROP * side * down
    frame, _ = cut_view(picture, middle, pose.roll, side, size, "border")
    height, width = picture.shape[1:]
    x0, y0, x1, y1 = (
        max(0.0, min(end, float(length)))
        for end, length in zip(pose.box.tolist(), (width, height) * 2, strict=True)
    )
    return Face((x0, y0, x1, y1), pose.points.float(), min(1.0, pose.score), resize(to_gray(frame)))
