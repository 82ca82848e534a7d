"""What happens to faces between the world and a file: light, lenses, sensors, compression, size.

All functions take and give faces as (N, 1, 48, 48) float32 in [0, 1]; ``degrade`` rounds them to
the 256 levels of a file.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from ferfacenet.transforms import SIZE, resize

#: Faces, a strength, and where random numbers come from, to faces.
Degradation: TypeAlias = Callable[[Tensor, float, torch.Generator], Tensor]


def _blur(x: Tensor, sigma: float, _: torch.Generator) -> Tensor:
    blurred: Tensor = vision.gaussian_blur(x, [13, 13], [sigma, sigma])
    return blurred


def _shadow(x: Tensor, gain: float, generator: torch.Generator) -> Tensor:
    """One half of the face, left or right, with a soft edge."""
    lit = torch.sigmoid((torch.arange(SIZE) - (SIZE - 1) / 2) / 2)
    left = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return x * (gain + (1 - gain) * torch.where(left, lit, lit.flip(0)))


def _motion(x: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """The mean of odd so many pixels, in a row or a column."""
    reach = round((length - 1) / 2)
    across = F.avg_pool2d(F.pad(x, (reach, reach, 0, 0), "replicate"), (1, 2 * reach + 1), 1)
    down = F.avg_pool2d(F.pad(x, (0, 0, reach, reach), "replicate"), (2 * reach + 1, 1), 1)
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, across, down)


def _enlarge(x: Tensor, side: float, _: torch.Generator) -> Tensor:
    """As a photo of so many pixels has it, brought back as ``preprocess`` does."""
    sides = [round(side)] * 2
    large = vision.resize(x, sides, InterpolationMode.BICUBIC, antialias=True)
    return resize(round_levels(large)[:, 0])[:, None]


def _shrink(x: Tensor, side: float, _: torch.Generator) -> Tensor:
    small = vision.resize(x, [round(side)] * 2, antialias=True)
    return resize(round_levels(small)[:, 0])[:, None]


def _jpeg(x: Tensor, quality: float, _: torch.Generator) -> Tensor:
    faces = []
    for levels in (x[:, 0] * 255).round().to(torch.uint8).numpy():
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, "JPEG", quality=round(quality))
        faces.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(faces))[:, None] / 255


def _noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return x + deviation * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """``photons`` reach a white pixel."""
    return torch.poisson(x * photons, generator) / photons


def _frame(x: Tensor, kind: float, generator: torch.Generator) -> Tensor:
    """Scaled by 15 % (kind 0), shifted by four pixels (1) or turned by 15 degrees (2), one way or
    the other."""
    frames = []
    for way in (1, -1):
        angle, shift = 15.0 * way * (kind == 2), 4 * way * (kind == 1)
        scale = 1 + 0.15 * way * (kind == 0)
        outside = F.pad(x, (8, 8, 8, 8), "replicate")  # affine leaves it black
        bilinear = InterpolationMode.BILINEAR
        moved = vision.affine(outside, angle, [shift, shift], scale, [0.0], bilinear)
        frames.append(moved[..., 8:-8, 8:-8])
    larger, smaller = frames
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, larger, smaller)


def _cover(x: Tensor, kind: float, _: torch.Generator) -> Tensor:
    """The eyes by something dark (kind 0), the mouth by a hand (1), or all below them by a mask."""
    top, bottom, level = ((13, 23, 0.1), (31, 45, 0.5), (25, 48, 0.9))[round(kind)]
    x = x.clone()
    x[..., top:bottom, 4:-4] = level
    return x


KINDS: dict[str, Degradation] = {
    "gain": lambda x, gain, _: x * gain,
    "contrast": lambda x, gain, _: vision.adjust_contrast(x, gain),
    "clipped": lambda x, gain, _: x * gain,
    "gamma": lambda x, gamma, _: vision.adjust_gamma(x, gamma),
    "offset": lambda x, offset, _: x + offset,
    "shadow": _shadow,
    "blur": _blur,
    "motion blur": _motion,
    "enlarged": _enlarge,
    "shrunk": _shrink,
    "JPEG": _jpeg,
    "noise": _noise,
    "shot noise": _shot_noise,
    "framing": _frame,
    "covered": _cover,
}


def round_levels(x: Tensor) -> Tensor:
    """To the nearest of the 256 levels of an image file."""
    return (x.clamp(0, 1) * 255).round() / 255


def degrade(x: Tensor, kind: str, strength: float, generator: torch.Generator) -> Tensor:
    """Faces (N, 1, 48, 48) float32 in [0, 1], degraded in one way of ``KINDS``."""
    return round_levels(KINDS[kind](x, strength, generator))


#: What training draws from: the least and the greatest strength of each kind.
TRAINED = {
    "gain": (0.06, 0.6), "clipped": (1.2, 2.5), "gamma": (0.4, 3.0), "offset": (-0.35, 0.45),
    "shadow": (0.1, 0.6), "blur": (0.4, 2.2), "motion blur": (3, 9), "enlarged": (60, 300),
    "shrunk": (14, 40), "JPEG": (8, 70), "noise": (0.02, 0.14), "shot noise": (15, 200),
    "covered": (-0.49, 2.49),
}  # fmt: skip


def spoil(images: Tensor, numbers: Tensor, share: float) -> Tensor:
    """Images (N, 48, 48) uint8, of which about the ``share`` is degraded, in one way or, a third of
    them, in two. A number for each, (N,), uniform in [0, 1), decides which and how."""
    images = images.clone()
    for index, seed in enumerate((numbers * 2**24).long().tolist()):  # as many as there may be
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        if draw.random() >= share:
            continue
        x = images[index].cpu()[None, None] / 255
        for kind in draw.sample(list(TRAINED), draw.choice((1, 1, 2))):
            x = degrade(x, kind, draw.uniform(*TRAINED[kind]), generator)
        images[index] = (x[0, 0] * 255).round()
    return images
