"""preprocess and predict_proba: images of one face each in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ferfacenet.faces import enough_pixels, find_faces
from ferfacenet.faces.framing import SMALL_CROP
from ferfacenet.faces.types import DetectedFace, Limits
from ferfacenet.fast import Precision, fast_forward
from ferfacenet.images import FLOAT_SLACK, Image, Photo, named, open_photo
from ferfacenet.model import unwrap
from ferfacenet.reading import Errors, attempt, is_one, result, search_ahead
from ferfacenet.threads import evaluating
from ferfacenet.transforms import CROP, SIZE, TTA, VIEW_COUNTS, is_blank, take_centre, views

Align: TypeAlias = Literal["auto", True, False]

_FIRST = Limits(max_faces=1)


def preprocess(image: Image, *, align: Align = "auto") -> Tensor:
    """One image to the network's input: gray, framed on the face, 48x48 (paper, III and IV-C).

    The same picture gives the same tensor, to 1/255, whichever way it comes in; but JPEG files of
    5 megapixels and more are decoded at half of their size or less where their faces are large, and
    so may be framed a pixel or two otherwise. A 48x48 image is never resampled; any other is
    resized once, bicubic and antialiased.

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
    check("align", align, get_args(Align))
    photo = open_photo(image, enough_pixels(_FIRST) if align else None)
    (faces,) = _find_first([photo], align)
    return _take_crop(image, photo, faces)


def _find_first(photos: Sequence[Photo], align: Align) -> list[list[DetectedFace] | None]:
    """The first face of each picture, if it has one; None for one whose centre is taken."""
    sizes = [photo.pixels.shape[-2:] for photo in photos]
    whole = [not align or (align == "auto" and h == w <= SMALL_CROP) for h, w in sizes]
    searched = [photo for photo, centre in zip(photos, whole, strict=True) if not centre]
    keep_crops, device = align == "auto", torch.device("cpu")
    found = iter(find_faces(searched, _FIRST, device, keep_crops) if searched else ())
    return [None if centre else next(found) for centre in whole]


def _take_crop(image: Image, photo: Photo, faces: Sequence[DetectedFace] | None) -> Tensor:
    with named(image):
        if faces is None:
            return take_centre(photo.pixels)
        if not faces:
            raise ValueError("no face found; align=False would take its centre square")
        return faces[0].crop


def _crop_all(opened: Sequence[tuple[Image, Photo]], align: Align) -> list[Tensor | Exception]:
    found = _find_first([photo for _, photo in opened], align)
    return [attempt(_take_crop, *one, faces) for one, faces in zip(opened, found, strict=True)]


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
    check("errors", errors, get_args(Errors))
    check("align", align, get_args(Align))  # or else a coerced error of every image
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


def check_reading(model: object, tta: object, precision: object) -> nn.Module:
    """The model out of what it is wrapped in, or the errors of ``predict_proba`` about these."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check("tta", tta, tuple(VIEW_COUNTS))
    check("precision", precision, get_args(Precision))
    model = unwrap(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the model's weights are on the device 'meta', without values (not loaded yet, or "
            "offloaded): give it as load_pretrained returns it"
        )
    return model


def check(name: str, value: object, allowed: tuple[object, ...]) -> None:
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
        if ((low >= -FLOAT_SLACK) & (high <= 1 + FLOAT_SLACK) & ~is_blank(ready)).all():
            yield from ready.split(size) if len(ready) else ()
            return
    nan = torch.full(shape, torch.nan, dtype=torch.float32, device="cpu")
    if is_one(images):
        read = partial(preprocess, align=align)
        one = read(images) if errors == "raise" else attempt(read, images)  # type: ignore[arg-type]
        yield (nan if isinstance(one, Exception) else one)[None]
        return
    many: Iterable[Any] = images  # type: ignore[assignment]
    enough = enough_pixels(_FIRST) if align else None
    open_one, crop_all = partial(open_photo, enough=enough), partial(_crop_all, align=align)
    with closing(search_ahead(many, open_one, crop_all, size)) as found:
        crops = enumerate(chain.from_iterable(found))
        while batch := [result(crop, index, errors) for index, crop in islice(crops, size)]:
            yield torch.stack([nan if crop is None else crop for crop in batch])
