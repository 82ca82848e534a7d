"""YuNet in PyTorch: where in a picture there may be faces, with five landmarks each.

The network is Wu, Peng and Yu's (MIT licence, from the OpenCV Zoo); its 53,104 parameters are in
``weights/yunet``, converted by ``tools/convert_yunet.py``.
"""

from __future__ import annotations

import ctypes
import math
from contextlib import suppress
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferfacenet.hub import read_registry
from ferfacenet.weights import REINSTALL, SkipInit, as_weights_error, check_file

WEIGHTS = Path(__file__).parent / "weights" / "yunet" / "model.safetensors"

_STRIDES = (8, 16, 32)
_NMS_IOU = 0.3

# A picture is searched in small, within a border and at all four quarter turns, which shows its
# large faces, those that its edge cuts, and how they lie; then, as it is and turned as those lie,
# at a long side of 640; and as far beyond as its smallest faces ask for, in tiles that overlap.
# Where nothing sure is seen by then, it is also searched at double and half of 640.
_COARSE, _BORDER, _MEDIUM = 160, 40, 640
_TILE, _OVERLAP = 1280, 160
MAX_UPSCALE = 4.0
# The side of the smallest face that is seen for certain, in pixels of what the network is given.
_SMALLEST = 14
# A face turned by quarters has to be seen better than an upright one by this.
_TURNED = 0.02
_SURE = 0.6
# Of two sightings, that much of the smaller box in the other makes them the same face; and where
# they are turned otherwise, that much.
_SAME_FACE, _SAME_FACE_TURNED = 0.6, 0.3


def _unit(inputs: int, outputs: int, last: bool = False) -> nn.Sequential:
    """A convolution over channels and one over pixels: YuNet is made of these."""
    layers = [nn.Conv2d(inputs, outputs, 1), nn.Conv2d(outputs, outputs, 3, 1, 1, groups=outputs)]
    return nn.Sequential(*layers) if last else nn.Sequential(*layers, nn.ReLU(inplace=True))


class YuNet(nn.Module):
    """(N, 3, H, W) RGB in [0, 1], H and W multiples of 32, to (N, A, 15) for its A places: x0, y0,
    x1 and y1 of a box, x and y of five landmarks, score in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(inplace=True), _unit(16, 16), nn.MaxPool2d(2)]
        stem += [_unit(16, 16), _unit(16, 32), _unit(32, 32), _unit(32, 64)]
        deeper = [[nn.MaxPool2d(2), _unit(64, 64), _unit(64, 64)] for _ in _STRIDES]
        stages = (stem + deeper[0], deeper[1], deeper[2])
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.laterals = nn.ModuleList(_unit(64, 64) for _ in _STRIDES)
        # Of each place: class, objectness, four of the box, ten of the landmarks.
        self.heads = nn.ModuleList(_unit(64, 16, last=True) for _ in _STRIDES)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = self.laterals[2](maps[2])
        maps[2] = x
        for level in (1, 0):
            x = self.laterals[level](maps[level] + F.interpolate(x, scale_factor=2.0))
            maps[level] = x
        outputs = zip(maps, self.heads, _STRIDES, strict=True)
        return torch.cat([_decode(head(x), stride) for x, head, stride in outputs], 1)


def _decode(x: Tensor, stride: int) -> Tensor:
    """(N, 16, h, w) of one stride to (N, h * w, 15), in pixels."""
    height, width = x.shape[-2:]
    axes = torch.arange(width, device=x.device), torch.arange(height, device=x.device)
    corner = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).flatten(0, 1)
    x = x.flatten(2).transpose(1, 2)
    scores = x[..., :2].sigmoid().prod(-1, keepdim=True).sqrt()
    middles, halves = x[..., 2:4] + corner, x[..., 4:6].exp() / 2
    landmarks = x[..., 6:] + corner.repeat(1, 5)
    places = torch.cat([middles - halves, middles + halves, landmarks], -1) * stride
    return torch.cat([places, scores], -1)


@cache
def load_detector(device: torch.device) -> YuNet:
    """The detector on a device, loaded once and shared by all threads; a WeightsError if its file
    is not there, or not the one that is registered."""
    sha256 = read_registry("yunet")["sha256"]
    with as_weights_error(WEIGHTS, REINSTALL), torch.device("cpu"), SkipInit():
        check_file(WEIGHTS, sha256)
        model = YuNet()
        model.load_state_dict(safetensors.torch.load_file(WEIGHTS))
    model.eval().requires_grad_(False)
    return model.to(device, torch.float32).to(memory_format=torch.channels_last)


def detect(pixels: Tensor, min_score: float, device: torch.device) -> list[Tensor]:
    """What YuNet sees in pictures of one size, each looked at once at that size.

    Args:
        pixels: (N, 3, H, W) RGB, uint8 or float in [0, 1].
        min_score: the least score of what is returned.
        device: where the network runs.

    Returns:
        For each picture (n, 15) float32 on the CPU, as ``YuNet`` has it, the best score first.
    """
    from torchvision.ops import nms  # takes as long to import as torch: only for a search

    height, width = pixels.shape[-2:]
    x = pixels.to(device).to(torch.float32, memory_format=torch.channels_last)
    x = x / 255 if pixels.dtype == torch.uint8 else x
    if height % 32 or width % 32:
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        places = load_detector(device)(x).cpu()
    found = []
    for seen in places:
        seen = seen[seen[:, 14] >= min_score]
        seen = seen[seen.isfinite().all(1)]
        found.append(seen[nms(seen[:, :4], seen[:, 14], _NMS_IOU)])
    return found


def find_sightings(
    picture: Tensor, min_size: float | None, min_score: float, device: torch.device
) -> Tensor:
    """What may be faces in a picture of any size.

    Args:
        picture: (3, H, W) uint8 RGB on the CPU.
        min_size: the longer side of the smallest box to look for, in its pixels; None for 20, or
            an 80th of the root of the picture's area, if that is more.
        min_score: the least score.
        device: where the network runs.

    Returns:
        (n, 15) as ``YuNet`` has it, in the picture's pixels, by score times the root of the area.
    """
    height, width = picture.shape[1:]
    if min_size is None:
        min_size = max(20.0, math.sqrt(height * width) / 80)

    def draw(like: Tensor, scale: float) -> Tensor:
        size = [max(1, round(length * min(scale, MAX_UPSCALE))) for length in (height, width)]
        if list(like.shape[1:]) == size:
            return like
        return F.interpolate(like[None], size=size, mode="bilinear", antialias=True)[0]

    def look(drawn: Tensor, quarter: int, border: int = 0) -> Tensor:
        rows = _look(drawn, quarter, border, min_score, device)
        rows[:, 0:14:2] *= width / drawn.shape[2]
        rows[:, 1:14:2] *= height / drawn.shape[1]
        rows[:, 14] -= _TURNED * (quarter > 0)
        return F.pad(rows, (0, 1), value=quarter)

    long = max(height, width)
    fine = draw(picture, max(_SMALLEST / min_size, _MEDIUM / long))
    medium = draw(fine, _MEDIUM / long)
    small = draw(medium, _COARSE / long)
    seen = [_distinct(torch.cat([look(small, quarter, _BORDER) for quarter in range(4)]))]
    quarters = {0, *seen[0][seen[0][:, 14] >= _SURE, 15].int().tolist()}
    seen += [look(medium, quarter) for quarter in quarters]
    if fine.shape[1:].numel() > 1.2 * medium.shape[1:].numel():
        seen += [look(fine, quarter) for quarter in quarters]
    if not any((rows[:, 14] >= _SURE).any() for rows in seen):
        others = [draw(picture, scale * _MEDIUM / long) for scale in (2.0, 0.5)]
        seen += [look(drawn, 0) for drawn in others if drawn.shape != medium.shape]
    _give_back((height, width))
    rows = _distinct(torch.cat(seen))[:, :15]
    rows = rows[(rows[:, 2:4] - rows[:, :2]).amax(1) >= min_size]
    return rows[(rows[:, 14] * _area(rows[:, :4]).sqrt()).argsort(descending=True)]


_sizes = set[tuple[int, int]]()  # of the pictures that were searched since memory was given back


def _give_back(size: tuple[int, int]) -> None:
    """Tensors of ever new sizes leave holes in glibc's heap that the next do not fit, so it grows.
    After every eighth size its free pages go back to the system; other systems see to it."""
    _sizes.add(size)
    if len(_sizes) >= 8:
        _sizes.clear()
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)


def _look(
    drawn: Tensor, quarter: int, border: int, min_score: float, device: torch.device
) -> Tensor:
    """What is seen of a picture, (3, H, W), when it is turned anticlockwise by quarters and in a
    gray border; (n, 15) in its pixels."""
    turned = F.pad(torch.rot90(drawn, quarter, (1, 2)), [border] * 4, value=128)
    found = []
    for top in range(0, max(1, turned.shape[1] - _OVERLAP), _TILE - _OVERLAP):
        for left in range(0, max(1, turned.shape[2] - _OVERLAP), _TILE - _OVERLAP):
            tile = turned[None, :, top : top + _TILE, left : left + _TILE]
            (rows,) = detect(tile, min_score, device)
            rows[:, 0:14:2] += left - border
            rows[:, 1:14:2] += top - border
            found.append(rows)
    rows = torch.cat(found)
    (x, y), (height, width) = rows[:, :14].view(-1, 7, 2).unbind(2), drawn.shape[1:]
    x, y = ((x, y), (width - y, x), (width - x, height - y), (y, height - x))[quarter]
    points = torch.stack([x, y], 2)
    corners = points[:, :2].aminmax(dim=1)
    return torch.cat([*corners, points[:, 2:].flatten(1), rows[:, 14:]], 1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def cover(first: Tensor, second: Tensor) -> Tensor:
    """How much of the smaller of two boxes is in the other: (n, 4) and (m, 4) to (n, m)."""
    low = torch.maximum(first[:, None, :2], second[:, :2])
    high = torch.minimum(first[:, None, 2:], second[:, 2:])
    areas = torch.minimum(_area(first)[:, None], _area(second))
    return (high - low).clamp(min=0).prod(2) / areas


def _distinct(rows: Tensor) -> Tensor:
    """Those of some rows, each with its quarter turns behind it, that are of different faces, the
    best score first."""
    rows = rows[rows[:, 14].argsort(descending=True)]
    boxes, turns = rows[:, :4], rows[:, 15]
    same = cover(boxes, boxes) >= torch.where(
        turns[:, None] == turns, _SAME_FACE, _SAME_FACE_TURNED
    )
    kept: list[int] = []
    for index in range(len(rows)):
        if not same[index, kept].any():
            kept.append(index)
    return rows[kept]
