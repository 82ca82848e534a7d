"""Augmentation of 48x48 gray faces, a batch at a time, on whatever device the batch is on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How far each image may be changed; every range is symmetric and uniform.

    With ``crop`` the image is only cut, at a random whole pixel, as the paper does; else a
    window as large as the crop is rotated by up to ``rotate`` degrees, scaled by up to
    ``scale``, and shifted by up to ``shift`` of the side. Half the images are mirrored either
    way. ``brightness`` and ``contrast`` are in units of the pixel range; ``erase`` is the
    probability of blanking a rectangle of 2 to 25 % of the area.
    """

    crop: bool = False
    rotate: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    erase: float = 0.0


#: Random numbers each image needs.
NUMBERS = 12


def augment(images: Tensor, numbers: Tensor, how: Augmentation, size: int, crop: int) -> Tensor:
    """(N, 48, 48) uint8 to (N, 1, size, size) float32 in [0, 1].

    ``numbers`` (N, ``NUMBERS``) uniform in [0, 1) decides everything, so that the result
    depends neither on the device nor on how a batch is shared between processes. ``crop`` is
    the side of the window that is cut out, which ``size`` samples.
    """
    n, full = len(images), images.shape[-1]
    flip = numbers[:, 0] < 0.5
    signed = 2 * numbers[:, 1:7] - 1
    if how.crop:
        start = (numbers[:, 1:3] * (full - crop + 1)).long()
        span = torch.arange(crop, device=images.device)
        rows = start[:, 0, None, None] + span[None, :, None]
        columns = start[:, 1, None, None] + torch.where(flip[:, None], span.flip(0), span)[:, None]
        cut = images[torch.arange(n, device=images.device)[:, None, None], rows, columns]
        x = cut[:, None].float() / 255
        if size != crop:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    else:
        angle = signed[:, 0] * (how.rotate * torch.pi / 180)
        zoom = (1 + signed[:, 1] * how.scale) * (crop / full)
        mirror = 1 - 2 * flip.float()
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        # affine_grid's coordinates run from -1 to 1, so a shift of the whole side is 2.
        shift_x, shift_y = 2 * how.shift * signed[:, 2], 2 * how.shift * signed[:, 3]
        theta = torch.stack((cos * mirror, -sin, shift_x, sin * mirror, cos, shift_y), dim=1).view(
            n, 2, 3
        )
        grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
        x = F.grid_sample(
            images[:, None].float() / 255, grid, padding_mode="border", align_corners=False
        )
    if how.brightness or how.contrast:
        gain = (1 + how.contrast * signed[:, 4]).view(n, 1, 1, 1)
        offset = (how.brightness * signed[:, 5]).view(n, 1, 1, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        x = ((x - mean) * gain + mean + offset).clamp_(0, 1)
    if how.erase:
        area = 0.02 + 0.23 * numbers[:, 7]
        ratio = torch.exp((2 * numbers[:, 8] - 1) * 1.2)
        height, width = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        top, left = numbers[:, 9] * (1 - height), numbers[:, 10] * (1 - width)
        where = (torch.arange(size, device=x.device) + 0.5) / size
        inside_y = (where >= top[:, None]) & (where < (top + height)[:, None])
        inside_x = (where >= left[:, None]) & (where < (left + width)[:, None])
        hole = (
            inside_y[:, :, None]
            & inside_x[:, None, :]
            & (numbers[:, 11] < how.erase)[:, None, None]
        )
        x = x.masked_fill(hole[:, None], 0.5)
    return x
