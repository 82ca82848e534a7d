"""Anything image-like to pixels, with errors that name it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ferfacenet.files import (
    check_size,
    describe,
    open_picture,
    read_bytes,
    reduce_scale,
    to_array,
)
from ferfacenet.transforms import max_value, strips

if TYPE_CHECKING:
    import PIL.Image

#: What one image may be; :func:`ferfacenet.preprocess` says how each is read.
Image: TypeAlias = (
    "str | os.PathLike[str] | bytes | BinaryIO | PIL.Image.Image | np.ndarray[Any, Any] | Tensor"
)

_DARK = 1 << 13  # uint16 pixels below this throughout are a camera's of 12 bits or fewer
FLOAT_SLACK = 1e-3  # how far resizing and half precision may leave [0, 1]


@contextmanager
def named(image: object) -> Iterator[str]:
    """Let a ValueError begin with the image's name."""
    name = f"{describe(image)}: "
    try:
        yield name
    except ValueError as error:
        raise ValueError(name + str(error).removeprefix(name)) from error


class Photo(NamedTuple):
    """A picture that is decoded, perhaps at a reduced scale."""

    pixels: Tensor  #: (1 or 3, H, W), as ``decode`` returns them
    scale: float  #: how many of the picture's own pixels each of these is wide
    whole: Callable[[], Tensor]  #: decodes the picture at its own size


def decode(image: Image) -> Tensor:
    """One image as (1 or 3, H, W) uint8, uint16 or float32 in [0, 1], on the CPU: EXIF-turned, what
    is transparent on white, at its own size; may share the given array's memory. Takes and raises
    what :func:`ferfacenet.preprocess` does."""
    return open_photo(image).pixels


def open_photo(image: Image, enough: int | None = None) -> Photo:
    """As ``decode``, but a JPEG that is a file at half, a quarter or an eighth of its size, as long
    as ``enough`` pixels are left, which takes as much less time; None for all."""
    import PIL.Image

    with named(image) as name:
        scale, source = 1.0, image
        if isinstance(image, Tensor):
            pixels = _from_tensor(image)
        elif isinstance(image, np.ndarray):
            pixels = _from_array(image)
        else:
            picture = image
            if not isinstance(picture, PIL.Image.Image):
                source = read_bytes(picture)
                picture = open_picture(source)
                scale = reduce_scale(picture, enough)
            pixels = _from_array(to_array(picture))
        if pixels.dtype == torch.uint16 and (brightest := int(pixels.numpy().max())) < _DARK:
            dark = f"brightest pixel {brightest}, white 65535: multiply those of 12 bits by 16"
            warnings.warn(name + dark, stacklevel=3)  # the public function's caller

        return Photo(pixels, scale, partial(decode, source) if scale > 1 else lambda: pixels)


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    dtype = array.dtype.newbyteorder("=") if array.dtype.kind != "f" else np.dtype(np.float32)
    if dtype not in (np.bool_, np.uint8, np.uint16, np.float32):
        raise ValueError(f"pixels must be uint8, uint16, bool or float, not {dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        x = torch.from_numpy(np.require(array, dtype, ["C", "W"]))
    return _from_tensor(x.permute(2, 0, 1) if x.ndim == 3 else x)


def _from_tensor(x: Tensor) -> Tensor:
    """(H, W) or (1 to 4, H, W) to (1 or 3, H, W), without alpha, all floats in [0, 1]."""
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[0] not in (1, 2, 3, 4):
        raise ValueError("must be HxW, HxWxC (numpy) or CxHxW (torch), with C from 1 to 4")
    check_size(*x.shape[1:])
    x = x.detach().cpu()
    if x.dtype == torch.bool:
        x = x.to(torch.uint8) * 255
    elif x.is_floating_point():
        x = x.to(torch.float32)
        low, high = (float(end) for end in x.aminmax())
        if not (low >= -FLOAT_SLACK and high <= 1 + FLOAT_SLACK):  # or NaN
            raise ValueError(f"float pixels must be in [0, 1], not {low:g} to {high:g}; rescale")
        if low < 0 or high > 1:  # a copy of a large one costs memory
            x = x.clamp(0, 1)
    elif x.dtype not in (torch.uint8, torch.uint16):
        raise ValueError(f"pixels must be uint8, uint16, bool or float, not {x.dtype}")
    if len(x) in (1, 3):
        return x
    white, shown = max_value(x.dtype), torch.empty_like(x[:-1])
    for rows in strips(*x.shape[1:]):
        part = x[:, rows].to(torch.float32)
        part = white + (part[:-1] - white) * (part[-1:] / white)  # the last channel is alpha
        shown[:, rows] = part if x.is_floating_point() else part.round()
    return shown
