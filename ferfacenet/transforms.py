"""Pure functions on image tensors: gray, square, resize, turned views, crops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

#: Side in pixels of a prepared face, and of the crops that the network sees (paper, IV-C).
SIZE, CROP = 48, 44

#: A face whose pixels differ by less than this, half a level of 256, shows nothing. One that
#: does is enough for a standard deviation above the model's ``PLAIN``, and so for an answer.
BLANK = 0.5 / 255

#: The views of a face that are averaged; None in its place is the centre alone.
TTA: TypeAlias = Literal["flip", "ten_crop"]

#: How many views of each face there are by the ways to take them.
VIEW_COUNTS: dict[TTA | None, int] = {None: 1, "flip": 2, "ten_crop": 10}

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L


def max_value(dtype: torch.dtype) -> float:
    """What white is in images of this dtype: 255, 65535, or 1 for floats."""
    return {torch.uint8: 255.0, torch.uint16: 65535.0}.get(dtype, 1.0)


def strips(height: int, width: int) -> Iterator[slice]:
    """The rows of a picture, about a million pixels at a time: what is made of a large photo on
    the way (floats, other modes) never stands in memory as a whole."""
    step = max(1, 2**20 // width)
    for top in range(0, height, step):
        yield slice(top, min(height, top + step))


def to_rgb(pixels: Tensor) -> Tensor:
    """(1 or 3, H, W) as ``decode`` returns it to (3, H, W) uint8, gray without a copy."""
    if pixels.dtype != torch.uint8:
        wide, pixels = pixels, torch.empty_like(pixels, dtype=torch.uint8)
        for rows in strips(*wide.shape[1:]):
            part = wide[:, rows].to(torch.float32) * (255 / max_value(wide.dtype))
            pixels[:, rows] = part.round_().to(torch.uint8)
    return pixels.expand(3, -1, -1)


def to_gray(x: Tensor) -> Tensor:
    """(1 or 3, H, W) uint8, uint16 or float in [0, 1] to its luma (ITU-R BT.601), (1, H, W)
    float32 in [0, 1]."""
    _, height, width = x.shape
    gray = torch.empty(1, height, width, device="cpu", dtype=torch.float32)
    for rows in strips(height, width):
        part = x[:, rows].to(torch.float32)
        if len(part) == 3:
            part = part[:1] * LUMA[0] + part[1:2] * LUMA[1] + part[2:] * LUMA[2]
        gray[:, rows] = part
    return gray.div_(max_value(x.dtype))


def take_centre(x: Tensor) -> Tensor:
    """The largest square in the centre of (1 or 3, H, W), gray, as (1, 48, 48) float32; a
    ValueError if it is of one plain colour, which has no expression."""
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = resize(to_gray(x[:, top : top + side, left : left + side]))
    if is_blank(square):
        raise ValueError("all pixels inside the edge are alike, so there is no expression")
    return square


def is_blank(x: Tensor) -> Tensor:
    """Which of (..., 1, 48, 48) show nothing in what all their views share: (...) bool."""
    low, high = x[..., SIZE - CROP : CROP, SIZE - CROP : CROP].flatten(-3).aminmax(dim=-1)
    return high - low < BLANK


def resize(x: Tensor) -> Tensor:
    """(C, H, W) float in [0, 1] to (C, 48, 48), bicubic and antialiased; untouched if it is that.
    Bilinear is blurred more than what the networks have learned from."""
    size = (SIZE, SIZE)
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x[None], size=size, mode="bicubic", antialias=True)[0].clamp_(0, 1)


def views(x: Tensor, tta: TTA | None) -> Tensor:
    """(N, C, 48, 48) to the views that ``tta`` averages, (1, 2 or 10, N, C, 44, 44): the centre,
    the centre and its mirror, or the paper's ten crops (IV-C), ordered as torchvision's: top left,
    top right, bottom left, bottom right, centre, and these five of the mirrored image."""
    end = SIZE - CROP
    places = [(end // 2, end // 2)]
    if tta == "ten_crop":
        places = [(0, 0), (0, end), (end, 0), (end, end), *places]
    sides = (x, x.flip(-1)) if tta else (x,)
    return torch.stack([side[..., y : y + CROP, x : x + CROP] for side in sides for y, x in places])
