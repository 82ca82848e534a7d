"""Augmentation of 48x48 gray faces, a batch at a time, on whatever device the batch is on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from _degrade import spoil
from torch import Tensor

from ferfacenet.transforms import CROP, SIZE


@dataclass(frozen=True)
class Augmentation:
    """How far each image may be changed; every range is symmetric and uniform.

    With ``crop`` the image is only cut, at a random whole pixel, as the paper does; else a
    window as large as the crop is rotated by up to ``rotate`` degrees, scaled by up to
    ``scale``, and shifted by up to ``shift`` of the side. Half the images are mirrored either
    way. ``brightness`` and ``contrast`` are in units of the pixel range; ``erase`` is the
    probability of blanking a rectangle of 2 to 25 % of the area. With ``degrade`` that share of
    the images is degraded as photos are, and another such share, drawn by itself, is rotated,
    scaled and shifted; the rest is only cut.
    """

    crop: bool = False
    rotate: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    erase: float = 0.0
    degrade: float = 0.0


#: Random numbers each image needs.
NUMBERS = 12


def augment(images: Tensor, numbers: Tensor, how: Augmentation, size: int = CROP) -> Tensor:
    """(N, 48, 48) uint8 to (N, 1, size, size) float32 in [0, 1].

    ``numbers`` (N, ``NUMBERS``) uniform in [0, 1) decides everything, so that the result
    depends neither on the device nor on how a batch is shared between processes. The window
    that is cut out is 44x44 pixels (IV-C), and is sampled ``size`` times each way.
    """
    n = len(images)
    flip = numbers[:, 0] < 0.5
    signed = 2 * numbers[:, 1:7] - 1
    if how.degrade:
        images = spoil(images, numbers[:, 11], how.degrade)
    if how.crop:
        start = (numbers[:, 1:3] * (SIZE - CROP + 1)).long()
        span = torch.arange(CROP, device=images.device)
        rows = start[:, 0, None, None] + span[None, :, None]
        columns = start[:, 1, None, None] + torch.where(flip[:, None], span.flip(0), span)[:, None]
        cut = images[torch.arange(n, device=images.device)[:, None, None], rows, columns]
        x = cut[:, None].float() / 255
        if size != CROP:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    else:
        angle = signed[:, 0] * (how.rotate * torch.pi / 180)
        zoom = 1 + signed[:, 1] * how.scale
        # affine_grid's coordinates run from -1 to 1, so a shift of the whole side is 2.
        shifts = 2 * how.shift * signed[:, 2:4]
        if how.degrade:
            # The rest is shifted by whole pixels, so that nothing is blurred. The number also says
            # where a rectangle is erased, which has nothing to do with it.
            cut = numbers[:, 10] >= how.degrade
            angle, zoom = angle.masked_fill(cut, 0), zoom.masked_fill(cut, 1)
            whole = (signed[:, 2:4] * (SIZE - CROP + 1) / 2).round() * (2 / SIZE)
            shifts = torch.where(cut[:, None], whole, shifts)
        zoom, mirror = zoom * (CROP / SIZE), 1 - 2 * flip.float()
        cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        shift_x, shift_y = shifts.unbind(1)
        theta = torch.stack((cos * mirror, -sin, shift_x, sin * mirror, cos, shift_y), dim=1)
        grid = F.affine_grid(theta.view(n, 2, 3), [n, 1, size, size], align_corners=False)
        x = images[:, None].float() / 255
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
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
        chosen = (numbers[:, 11] < how.erase)[:, None, None]
        hole = inside_y[:, :, None] & inside_x[:, None, :] & chosen
        x = x.masked_fill(hole[:, None], 0.5)
    return x
