"""preprocess, predict_proba and predict_faces: images in, expressions out."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ferfacenet.faces import enough_pixels, find_faces
from ferfacenet.faces.framing import SMALL_CROP
from ferfacenet.faces.types import MIN_SCORE, DetectedFace, Face, Limits
from ferfacenet.fast import Precision, fast_forward
from ferfacenet.images import FLOAT_SLACK, Image, named, open_photo
from ferfacenet.model import ImprovedVGG19, unwrap
from ferfacenet.threads import evaluating
from ferfacenet.transforms import BLANK, CROP, SIZE, TTA, VIEW_COUNTS, take_centre, views

Align: TypeAlias = Literal["auto", True, False]
Errors: TypeAlias = Literal["raise", "coerce"]

# Threads that prepare images while the model is busy with the ones before.
_WORKERS = min(16, 2 * (os.cpu_count() or 1))


def preprocess(image: Image, *, align: Align = "auto") -> Tensor:
    """One image to the network's input: gray, framed on the face, 48x48 (paper, III and IV-C).

    The same picture gives the same tensor, to 1/255, whichever way it comes in. A 48x48 image
    is never resampled; any other is resized once, bilinear and antialiased.

    Args:
        image: one picture, as

            - a path or the bytes or open binary file (read from its start) of a JPEG, PNG,
              WebP, GIF, BMP, TIFF, raw PPM or AVIF; of an animation, the first frame;
            - a PIL image of any mode;
            - a numpy array HxW or HxWxC, uint8, uint16, bool, or float in [0, 1];
            - a torch tensor HxW or CxHxW, of the same dtypes.

            C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha). Files and PIL images are
            turned as their EXIF orientation says. What is transparent is shown on white.
            PIL's modes I and F, which have no range of their own, are read as 0 to 255 (what
            PIL's own conversions write) if nothing in the picture is greater, I otherwise as
            0 to 65535, and F as 0 to 1 if nothing is greater than 1.
        align: what part of the picture is taken. ``True``: of its faces the one with the
            greatest score times root of area, levelled and framed as FER2013 frames its own.
            ``"auto"``: the same, but a picture that already is a face crop (a square up to 64
            pixels; or a gray one framed as FER2013's are, turned upright by quarters) as it is.
            ``False``: the centre square.

    Returns:
        (1, 48, 48) float32 pixels in [0, 1], on the CPU.

    Raises:
        ValueError: the picture cannot be used (unreadable, empty, NaN, out of range, wrong
            dimensions or dtype, too large), or it has no face, or one plain colour; the message
            begins with the file's name.
        OSError: the file cannot be opened.
        TypeError: ``image`` is none of the above.
    """
    _check("align", align, get_args(Align))
    limits = Limits(max_faces=1)
    photo = open_photo(image, enough_pixels(limits) if align else None)
    height, width = photo.pixels.shape[-2:]
    with named(image):
        if not align or (align == "auto" and height == width <= SMALL_CROP):
            return take_centre(photo.pixels)
        (faces,) = find_faces([photo], limits, torch.device("cpu"), keep_crops=align == "auto")
        if not faces:
            raise ValueError("no face found; align=False would take its centre square")
        return faces[0].crop


def predict_proba(
    model: nn.Module,
    images: Image | Iterable[Image] | Tensor,
    *,
    tta: TTA | None = "flip",
    batch_size: int = 128,
    align: Align = "auto",
    errors: Errors = "raise",
    precision: Precision = "auto",
) -> Tensor:
    """The class probabilities of one image or many: the average over each one's views of the
    softmax of the model's logits (paper, IV-C).

    The model's dtype, device and gradients, and the caller's grad mode, are afterwards what they
    were, also on an error. An ``ImprovedVGG19`` as the constructor makes it answers as in eval mode
    whatever its mode is or becomes meanwhile, and keeps that. Any other module is in eval mode for
    as long as a call lasts, and afterwards in the mode in which it was found.

    Args:
        model: an ``ImprovedVGG19``, or any module from pixels (N, 1, H, W) in [0, 1] to logits
            (N, C); also in ``DataParallel`` or the like, or compiled, out of which it is taken.
        images: one image of any kind that ``preprocess`` takes; an iterable of them (a list, a
            generator, an array or a pandas Series of paths), which is read lazily; or a float
            tensor (N, 1, 48, 48) in [0, 1], as ``preprocess`` makes them. Any other tensor or
            array of numbers is a sequence of images if it has four dimensions and a single
            image if it has three or two (so a prepared tensor (1, 48, 48) needs ``[None]``).
        tta: the views of each image: ``"flip"``, the centre 44x44 and its mirror;
            ``"ten_crop"``, the paper's corners and centre with their mirrors; None, the centre.
        batch_size: the most views (crops) that exist, and that the model is given, at once;
            with ten crops, those of ``batch_size // 10`` images (of one, in parts, if less).
        align: what part of each picture is taken, as in ``preprocess``.
        errors: ``"raise"``, or ``"coerce"``: an image that cannot be read, or has no face, has a
            row of NaN.
        precision: ``"float32"``; ``"bfloat16"``; or ``"auto"``, for an ``ImprovedVGG19`` the
            faster of the two on the device for so many views, else float32.

    Returns:
        (N, C) float32 on the CPU, in [0, 1], each row summing to 1, columns in the order of
        ``model.categories``; (0, C) for no images.

    Raises:
        ValueError: an image that cannot be read or has no face (of several, the message begins
            with its position, from 0), or a bad ``tta``, ``batch_size``, ``align``, ``errors`` or
            ``precision``; or the model's weights have no values.
        OSError, TypeError: the same of a file that cannot be opened, or something that is not an
            image; or ``model`` is no module.
    """
    model = check_reading(model, tta, precision)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    _check("errors", errors, get_args(Errors))
    _check("align", align, get_args(Align))  # or else a coerced error of every image
    rows = []
    batches = _prepare(images, align, errors, max(1, batch_size // VIEW_COUNTS[tta]))
    with torch.no_grad(), closing(batches), _forward(model, precision) as forward:
        for batch in batches:
            crops = views(batch, tta)
            logits = torch.cat([forward(part) for part in crops.flatten(0, 1).split(batch_size)])
            if logits.ndim != 2:
                raise ValueError(f"the model must return (N, C) logits, got {logits.ndim}-D")
            row = torch.softmax(logits, dim=1).unflatten(0, crops.shape[:2]).mean(0).cpu()
            row[batch.isnan().flatten(1).any(1)] = torch.nan
            rows.append(row)
        if not rows:
            # The model itself says how many columns its empty answer has.
            return forward(torch.zeros(0, 1, CROP, CROP, device="cpu")).cpu()
        return torch.cat(rows)


def predict_faces(
    model: nn.Module,
    image: Image,
    *,
    tta: TTA | None = "flip",
    min_size: float | None = None,
    min_score: float = MIN_SCORE,
    max_faces: int | None = None,
    precision: Precision = "auto",
) -> list[Face]:
    """Every face of a photo, read: found and framed as by ``detect_faces``, on the model's
    device, and labelled as by ``predict_proba``, whose arguments these are and whose errors it
    raises.

    Returns:
        The faces by score times the square root of the area, the greatest first, each with its
        ``label``, ``confidence`` and ``probabilities``; an empty list if there are none.
    """
    model = check_reading(model, tta, precision)
    limits = Limits(min_size, min_score, max_faces)
    photo = open_photo(image, enough_pixels(limits))
    (faces,) = find_faces([photo], limits, device_of(model))
    return read_faces(model, faces, tta, precision)


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
    names = getattr(model, "categories", None)
    if names is None and not isinstance(model, ImprovedVGG19):
        names = [str(index) for index in range(len(rows[0]))]
    if names is None or len(names) != len(rows[0]):
        raise ValueError(
            f"model.categories is {names}, and the model has {len(rows[0])} outputs: name each"
        )
    for face, row in zip(faces, rows, strict=True):
        chances = dict(zip(names, row, strict=True))
        label = max(chances, key=chances.__getitem__)
        parts = face.box, face.landmarks, face.score, face.crop
        read.append(Face(*parts, label, chances[label], chances))
    return read


def check_reading(model: object, tta: object, precision: object) -> nn.Module:
    """The model out of what it is wrapped in, or the errors of ``predict_proba`` about these."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _check("tta", tta, tuple(VIEW_COUNTS))
    _check("precision", precision, get_args(Precision))
    model = unwrap(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the model's weights are on the device 'meta', without values (not loaded yet, or "
            "offloaded): give it as load_pretrained returns it"
        )
    return model


def _check(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


@contextmanager
def _forward(model: nn.Module, precision: Precision) -> Iterator[Callable[[Tensor], Tensor]]:
    """The model in eval mode as a function of views on any device, to float32 logits."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    # The caller's own autocast must not change the answer behind ``precision``'s back.
    narrow, fast = precision == "bfloat16", fast_forward(model, precision)
    with (
        nullcontext() if fast else evaluating(model),
        torch.autocast(like.device.type, torch.bfloat16, enabled=narrow),
    ):
        yield fast or (lambda x: model(x.to(like.device, like.dtype)).float())


def _prepare(
    images: Image | Iterable[Image] | Tensor, align: Align, errors: Errors, size: int
) -> Generator[Tensor, None, None]:
    """The images as float32 tensors (n, 1, 48, 48) of at most ``size`` images each, those that
    cannot be read and are not to raise as NaN.

    Images that are yet to be prepared are so by threads, one batch ahead of the model.
    """
    shape = (1, SIZE, SIZE)
    if isinstance(images, Tensor) and images.is_floating_point() and images.shape[1:] == shape:
        ready = images.detach().float()
        low, high = ready.flatten(1).aminmax(dim=1)
        # What cannot be used is taken one by one, so that the error has a position.
        if ((low >= -FLOAT_SLACK) & (high <= 1 + FLOAT_SLACK) & (high - low >= BLANK)).all():
            yield from ready.split(size) if len(ready) else ()
            return
    one = _is_one(images)
    source: Iterator[Any] = enumerate([images] if one else images)  # type: ignore[arg-type]

    def read(position: int, image: Any) -> Tensor:
        try:
            return preprocess(image, align=align)
        except (ValueError, OSError, TypeError) as error:
            if errors == "coerce":
                return torch.full((1, SIZE, SIZE), torch.nan, dtype=torch.float32, device="cpu")
            if one:
                raise
            # The nearest kind that is made from a message alone, as urllib's HTTPError is not.
            known = (kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
            kind = ValueError if isinstance(error, ValueError) else next(known)
            raise kind(f"images[{position}]: {error}") from error

    with ThreadPoolExecutor(_WORKERS) as pool:

        def start() -> list[Future[Tensor]]:
            batch = []
            try:
                for position, image in islice(source, size):
                    batch.append(pool.submit(read, position, image))
            except Exception as error:  # of the caller's iterable; its turn is after these
                batch.append(Future())
                batch[-1].set_exception(error)
            return batch

        batch = start()
        try:
            while batch:
                following = start()
                yield torch.stack([future.result() for future in batch])
                batch = following
        finally:
            pool.shutdown(cancel_futures=True)


def _is_one(images: Any) -> bool:
    """Whether this is one image and not several (files and strings are iterable too)."""
    files = str, bytes, bytearray, memoryview, os.PathLike
    if isinstance(images, files) or hasattr(images, "read"):
        return True
    if isinstance(images, np.ndarray) and images.dtype.kind in "OUST":  # objects and strings
        return False
    if isinstance(images, (Tensor, np.ndarray)):
        return images.ndim < 4
    return not (hasattr(images, "__iter__") or hasattr(images, "__getitem__"))
