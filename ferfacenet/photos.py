"""predict_faces: photos in, faces out, each with its expression."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, Literal, get_args, overload

import torch
from torch import nn

from ferfacenet.faces import enough_pixels, find_faces
from ferfacenet.faces.types import MIN_SCORE, DetectedFace, Face, Limits
from ferfacenet.fast import Precision
from ferfacenet.images import Image, Photo, open_photo
from ferfacenet.inference import check, check_reading, predict_proba
from ferfacenet.model import unwrap
from ferfacenet.reading import UNREADABLE, Errors, is_one, result, search_ahead
from ferfacenet.transforms import TTA


@overload
def predict_faces(  # type: ignore[overload-overlap]  # a path is an iterable of strings
    model: nn.Module, images: Image, *, tta: TTA | None = ...,
    min_size: float | None = ..., min_score: float = ..., max_faces: int | None = ...,
    precision: Precision = ..., errors: Literal["raise"] = ...,
) -> list[Face]: ...  # fmt: skip


@overload
def predict_faces(  # type: ignore[overload-overlap]
    model: nn.Module, images: Image, *, tta: TTA | None = ...,
    min_size: float | None = ..., min_score: float = ..., max_faces: int | None = ...,
    precision: Precision = ..., errors: Literal["coerce"],
) -> list[Face] | None: ...  # fmt: skip


@overload
def predict_faces(
    model: nn.Module, images: Iterable[Image], *, tta: TTA | None = ...,
    min_size: float | None = ..., min_score: float = ..., max_faces: int | None = ...,
    precision: Precision = ..., errors: Literal["raise"] = ...,
) -> Generator[list[Face], None, None]: ...  # fmt: skip


@overload
def predict_faces(
    model: nn.Module, images: Iterable[Image], *, tta: TTA | None = ...,
    min_size: float | None = ..., min_score: float = ..., max_faces: int | None = ...,
    precision: Precision = ..., errors: Literal["coerce"],
) -> Generator[list[Face] | None, None, None]: ...  # fmt: skip


def predict_faces(
    model: nn.Module,
    images: Image | Iterable[Image],
    *,
    tta: TTA | None = "flip",
    min_size: float | None = None,
    min_score: float = MIN_SCORE,
    max_faces: int | None = None,
    precision: Precision = "auto",
    errors: Errors = "raise",
) -> list[Face] | Generator[list[Face] | None, None, None] | None:
    """Every face of a photo, or of each of many, read: found and framed as by ``detect_faces``, on
    the model's device, and labelled as by ``predict_proba``, whose errors it raises.

    Args:
        model: as for ``predict_proba``.
        images: one photo, of any kind that ``preprocess`` takes, or an iterable of such.
        tta: which views of each face are averaged, as for ``predict_proba``.
        min_size: the longer side of the smallest box, in pixels, as for ``detect_faces``.
        min_score: the least of the detector's confidence, in [0, 1].
        max_faces: how many are returned of a photo at most; None for all.
        precision: in which floats the network computes, as for ``predict_proba``.
        errors: ``"raise"``, or ``"coerce"``: a photo that cannot be read gives None.

    Returns:
        The faces by score times the square root of the area, the greatest first, each with its
        ``label``, ``confidence`` and ``probabilities``; an empty list if there are none. Of many
        photos, each of which must stay as it is until it is read, a generator of such lists in
        their order, which threads work on ahead of who asks; an error comes when those before it
        have been given.
    """
    model = check_reading(model, tta, precision)
    check("errors", errors, get_args(Errors))
    limits = Limits(min_size, min_score, max_faces)
    if not is_one(images):
        many: Iterable[Any] = images  # type: ignore[assignment]
        read = read_all(model, find_ahead(many, limits, device_of(model)), tta, precision)
        return (result(faces, index, errors) for index, faces in enumerate(read))
    try:
        photo = open_photo(images, enough_pixels(limits))  # type: ignore[arg-type]
    except UNREADABLE:
        if errors == "raise":
            raise
        return None
    (faces,) = find_faces([photo], limits, device_of(model))
    return read_faces(model, faces, tta, precision)


def find_ahead(
    images: Iterable[Image], limits: Limits, device: torch.device
) -> Generator[list[list[DetectedFace] | Exception], None, None]:
    """As ``find_faces``, of many photos, a few at a time."""

    def find(opened: Sequence[tuple[Image, Photo]]) -> list[list[DetectedFace]]:
        return find_faces([photo for _, photo in opened], limits, device)

    return search_ahead(images, partial(open_photo, enough=enough_pixels(limits)), find)


def read_all(
    model: nn.Module,
    found: Generator[list[list[DetectedFace] | Exception], None, None],
    tta: TTA | None,
    precision: Precision = "auto",
) -> Generator[list[Face] | Exception, None, None]:
    """The faces of many photos, with what the model reads in them."""
    with closing(found):
        for some in found:
            faces = [face for one in some if not isinstance(one, Exception) for face in one]
            read = iter(read_faces(model, faces, tta, precision))
            for one in some:
                yield one if isinstance(one, Exception) else list(islice(read, len(one)))


def device_of(model: nn.Module) -> torch.device:
    """Where the model is; the CPU if it has no parameters."""
    return next(model.parameters(), torch.zeros(0, device="cpu")).device


def read_faces(
    model: nn.Module, faces: Sequence[DetectedFace], tta: TTA | None, precision: Precision = "auto"
) -> list[Face]:
    """The faces, of one photo or several, with what the model reads in them."""
    if not faces:
        return []
    crops = torch.stack([face.crop for face in faces])
    rows = predict_proba(model, crops, tta=tta, precision=precision).tolist()
    model, read = unwrap(model), []
    names = getattr(model, "categories", None) or [str(index) for index in range(len(rows[0]))]
    if len(names) != len(rows[0]):
        raise ValueError(
            f"model.categories is {names}, and the model has {len(rows[0])} outputs: name each"
        )
    for face, row in zip(faces, rows, strict=True):
        chances = dict(zip(names, row, strict=True))
        label = max(chances, key=chances.__getitem__)
        parts = face.box, face.landmarks, face.score, face.crop
        read.append(Face(*parts, label, chances[label], chances))
    return read
