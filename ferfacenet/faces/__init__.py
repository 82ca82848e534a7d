"""The faces of photos: found, levelled and framed as FER2013 frames its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ferfacenet.faces.framing import frame_face, is_crop
from ferfacenet.faces.search import SMALLEST, Search, run
from ferfacenet.faces.types import MIN_SCORE, DetectedFace, Limits
from ferfacenet.images import Image, Photo, open_photo
from ferfacenet.transforms import resize, to_gray, to_rgb

# A crop loses nothing if its face is so many pixels large.
_ENOUGH_FOR_CROP = 96.0


def detect_faces(
    image: Image,
    *,
    min_size: float | None = None,
    min_score: float = MIN_SCORE,
    max_faces: int | None = None,
) -> list[DetectedFace]:
    """Every face in a picture, by score times the square root of the area, the greatest first.

    Args:
        image: of any kind that ``preprocess`` takes, on which errors it raises too.
        min_size: the longer side of the smallest box, in pixels of the picture. None: 19, or an
            80th of the root of the picture's area if that is more; the search then costs at most
            what 1.3 megapixels cost, and four times as much for half the size.
        min_score: the least of the detector's confidence, in [0, 1].
        max_faces: how many are returned at most; None for all.

    Returns:
        The faces; an empty list if there are none.

    Raises:
        ValueError: ``min_size``, ``min_score`` or ``max_faces`` is out of range.
    """
    limits = Limits(min_size, min_score, max_faces)
    photo = open_photo(image, enough_pixels(limits))
    return find_faces([photo], limits, torch.device("cpu"))[0]


def enough_pixels(limits: Limits) -> int | None:
    """How many pixels of a photo are all that a search looks at; None if that is not known."""
    return None if limits.min_size else round((SMALLEST * Limits.SHARE) ** 2)


def find_faces(
    photos: Sequence[Photo], limits: Limits, device: torch.device, keep_crops: bool = True
) -> list[list[DetectedFace]]:
    """As ``detect_faces``, of several photos, which need no more than ``enough_pixels``, by a
    detector on ``device``; one that is a face crop already is taken as it is, but turned upright by
    quarters, if ``keep_crops``."""
    searches = [Search(to_rgb(photo.pixels), limits, photo.scale) for photo in photos]
    found = []
    for photo, search, poses in zip(
        photos, searches, run([search.find() for search in searches], limits, device), strict=True
    ):
        picture, scale = search.picture, photo.scale
        if scale > 1 and any(pose.side < _ENOUGH_FOR_CROP for pose in poses):
            picture, poses = to_rgb(photo.whole()), [pose.scaled(scale) for pose in poses]
            scale = 1.0
        faces = [frame_face(picture, pose, scale) for pose in poses]
        if faces and keep_crops and is_crop(picture, poses[0]):
            upright = torch.rot90(photo.pixels, round(poses[0].roll / 90), (1, 2))
            faces = [replace(faces[0], crop=resize(to_gray(upright)))]
        found.append(faces)
    return found
