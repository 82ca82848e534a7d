"""Find the faces in an ordinary photo, level them, and frame them as FER2013 frames its own."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ferfacenet.detector import (
    MAX_UPSCALE,
    NMS_IOU,
    SURE,
    detect,
    find_sightings,
    get_detector,
    overlap,
    to_bgr,
)
from ferfacenet.images import Image, decode
from ferfacenet.transforms import SIZE, resize, to_gray

if TYPE_CHECKING:
    from ferfacenet.detector import Array

# Below about 90 px YuNet's eyes do not follow the head's roll, so every face is looked at again,
# turned upright by what is known of its roll, its box this large in a square view of that side:
# until less than so many degrees are left to turn, or so many times.
_CLOSE_FACE, _CLOSE_VIEW = 270.0, 384
_CLOSE_LOOKS, _LEVEL = 3, 2.0

# FER2013's framing, measured on 3,923 training crops: the box's side over the frame's, and how
# far the frame's centre is below the box's, in frame sides.
_BOX_SHARE, _DROP = 0.95, 0.01
# The frame is drawn at the picture's own resolution, but at most this, before the one resizing.
_MAX_FRAME = 480

# With ``align="auto"`` a square picture is a face crop already if the side of its largest face's
# box is at least this share of its own and the box's middle is at most so far from its own, in
# its sides; so it is with 97 % of FER2013's (tools/evaluate_faces.py). Where no detector can be
# asked, a square up to this side counts as one.
_CROP_SHARE, _CROP_SHIFT = 0.55, 0.2
_SMALL_CROP = 128


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photo; all coordinates in pixels of the EXIF-turned picture.

    Attributes:
        box: (x0, y0, x1, y1), within the picture.
        landmarks: (5, 2) float32, x and y of the eye, the eye, the nose and the two mouth
            corners, of each pair the one at the left of an upright picture first.
        score: the detector's confidence, 0.6 to 1.
        crop: (1, 48, 48) float32 gray in [0, 1]: the face levelled and framed as FER2013's
            are, which is what the network takes.
    """

    box: tuple[float, float, float, float]
    landmarks: Tensor
    score: float
    crop: Tensor


@dataclass(frozen=True, eq=False)
class _Pose:
    """How a face stands: landmarks (5, 2), middle and side of its box, in pixels of the picture;
    roll in degrees clockwise; the best score it was seen with."""

    points: Array
    centre: Array
    size: float
    angle: float
    score: float


def detect_faces(image: Image) -> list[Face]:
    """Every face in a picture, the largest first.

    Args:
        image: of any kind that ``preprocess`` takes, on which errors it raises too.

    Returns:
        The faces; an empty list if there are none.

    Raises:
        ImportError: the ``faces`` extra is not installed; says what to install.
    """
    get_detector()
    picture = to_bgr(decode(image))
    rows = find_sightings(picture)
    poses = [_look_closer(picture, row) for row in rows]
    return [
        _frame(picture, row, pose)
        for row, pose in zip(rows, poses, strict=True)
        if pose.score >= SURE
    ]


def frame_largest_face(pixels: Tensor, name: str, required: bool) -> Tensor | None:
    """What ``preprocess`` takes of a picture that is to be aligned.

    Args:
        pixels: (1 or 3, H, W) as ``decode`` returns it.
        name: what to call the picture in errors and warnings.
        required: whether to raise, not warn, when there is no face, and to align a picture
            that is a face crop already.

    Returns:
        The crop of the largest face, (1, 48, 48) float32 in [0, 1]; or None where the centre
        square is to be taken: the picture is a face crop already, has no face, or cannot be
        searched for want of the ``faces`` extra.
    """
    height, width = pixels.shape[-2:]
    try:
        get_detector()
    except ImportError as error:
        if required:
            raise
        if height != width or height > _SMALL_CROP:
            warnings.warn(f"{error}; taking the centre square", stacklevel=3)
        return None
    picture = to_bgr(pixels)
    for row in find_sightings(picture):
        pose = _look_closer(picture, row)
        if pose.score >= SURE:
            if not required and _is_crop(pose, height, width):
                return None
            return _frame(picture, row, pose).crop
    if required:
        raise ValueError(f"{name}: no face found")
    warnings.warn(f"{name}: no face found, taking the centre square", stacklevel=3)
    return None


def _measure_roll(points: Array) -> float:
    """Degrees that the line of the eyes is turned clockwise from level."""
    (x0, y0), (x1, y1) = points[:2]
    return math.degrees(math.atan2(float(y1 - y0), float(x1 - x0)))


def _cut_view(
    picture: Array, centre: Array, angle: float, side: float, size: int, border: int
) -> tuple[Array, Array]:
    """A square of a picture, turned upright: its middle at ``centre``, ``side`` pixels of the
    picture wide, turned by ``angle``, drawn at ``size`` by ``size`` with OpenCV's ``border``
    where the picture ends; and the (2, 3) matrix that takes the view's coordinates to the
    picture's."""
    import cv2
    import numpy as np

    # First only the part that is needed, shrunk by averaging: warpAffine alone would alias.
    reach = side * 0.75 + 2
    x0, y0 = np.maximum(0, np.floor(centre - reach)).astype(int)
    x1, y1 = np.ceil(centre + reach).astype(int)
    part = picture[y0:y1, x0:x1]
    step = np.ones(2)
    if size < side:
        small = [max(1, round(length * size / side)) for length in (part.shape[1], part.shape[0])]
        step = np.array([part.shape[1] / small[0], part.shape[0] / small[1]])
        part = cv2.resize(part, small, interpolation=cv2.INTER_AREA)
    turn = math.radians(angle)
    axes = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    axes *= side / size
    corner = centre - axes @ (size / 2, size / 2)
    # OpenCV's whole numbers are the pixels' centres, hence the halves.
    start = (corner + axes @ (0.5, 0.5) - (x0, y0)) / step - 0.5
    view = cv2.warpAffine(
        part,
        np.column_stack([axes / step[:, None], start]),
        (size, size),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=border,
    )
    return view, np.column_stack([axes, corner])


def _look_closer(picture: Array, row: Array) -> _Pose:
    """What is seen of one sighting when it is turned upright and drawn at the right size."""
    import cv2
    import numpy as np

    pose = _Pose(
        points=row[4:14].reshape(5, 2).astype(np.float64),
        centre=(row[:2] + row[2:4] / 2.0).astype(np.float64),
        size=math.sqrt(float(row[2] * row[3])),
        angle=_measure_roll(row[4:14].reshape(5, 2)),
        score=float(row[14]),
    )
    for _ in range(_CLOSE_LOOKS):
        scale = min(_CLOSE_FACE / pose.size, MAX_UPSCALE)
        # Past the picture's end black: smeared or mirrored pixels mislead YuNet.
        view, matrix = _cut_view(
            picture,
            pose.centre,
            pose.angle,
            _CLOSE_VIEW / scale,
            _CLOSE_VIEW,
            cv2.BORDER_CONSTANT,
        )
        wanted = np.array([(_CLOSE_VIEW - pose.size * scale) / 2] * 2 + [pose.size * scale] * 2)
        seen = max(detect(view), key=lambda face: overlap(face, wanted), default=None)
        if seen is None or overlap(seen, wanted) < NMS_IOU:
            break
        points = seen[4:14].reshape(5, 2)
        left = _measure_roll(points)
        pose = _Pose(
            points=points @ matrix[:, :2].T + matrix[:, 2],
            centre=matrix[:, :2] @ (seen[:2] + seen[2:4] / 2.0) + matrix[:, 2],
            size=math.sqrt(float(seen[2] * seen[3])) / scale,
            angle=pose.angle + left,
            score=max(pose.score, float(seen[14])),
        )
        if abs(left) < _LEVEL:
            break
    return pose


def _is_crop(pose: _Pose, height: int, width: int) -> bool:
    """Whether a picture is itself framed on this face as FER2013's pictures are."""
    x, y = pose.centre / width - 0.5
    return (
        height == width and pose.size / width >= _CROP_SHARE and max(abs(x), abs(y)) <= _CROP_SHIFT
    )


def _frame(picture: Array, row: Array, pose: _Pose) -> Face:
    """Frame one face whose pose is known."""
    import cv2
    import numpy as np

    side, turn = pose.size / _BOX_SHARE, math.radians(pose.angle)
    middle = pose.centre + _DROP * side * np.array([-math.sin(turn), math.cos(turn)])
    size = max(SIZE, min(_MAX_FRAME, round(side)))
    frame, _ = _cut_view(picture, middle, pose.angle, side, size, cv2.BORDER_REPLICATE)
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = (
        float(min(max(end, 0), length))
        for end, length in zip((*row[:2], *(row[:2] + row[2:4])), (width, height) * 2, strict=True)
    )
    return Face(
        box=(x0, y0, x1, y1),
        landmarks=torch.from_numpy(pose.points.astype(np.float32)),
        score=min(1.0, pose.score),
        crop=resize(to_gray(torch.from_numpy(frame).permute(2, 0, 1).flip(0))),
    )
