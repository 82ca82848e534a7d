"""YuNet in PyTorch: where in a picture there may be faces, with five landmarks each.

The network is Wu, Peng and Yu's (MIT licence, from the OpenCV Zoo); its 53,104 parameters are in
``weights/yunet``, converted by ``tools/convert_yunet.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferfacenet.hub import read_registry
from ferfacenet.weights import REINSTALL, as_weights_error, check_file

WEIGHTS = Path(__file__).parents[1] / "weights" / "yunet" / "model.safetensors"

_STRIDES = (8, 16, 32)
# Of two boxes that overlap by more than this (intersection over union) one is the other's echo.
ECHO = 0.3
# So many pixels are looked at together, or one view: what larger ones cost is their pixels, not the
# call, and their maps need more memory.
_TOGETHER = 2**18


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
        return _decode([head(x) for head, x in zip(self.heads, maps, strict=True)])


def _decode(maps: list[Tensor]) -> Tensor:
    """(N, 16, h, w) of each stride to (N, A, 15), in pixels."""
    corners, strides = [], []
    for x, stride in zip(maps, _STRIDES, strict=True):
        axes = (torch.arange(length, device=x.device) for length in (x.shape[3], x.shape[2]))
        corners.append(torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).flatten(0, 1))
        strides.append(torch.full_like(corners[-1][:, :1], stride))
    corner = torch.cat(corners)
    x = torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2)
    scores = x[..., :2].sigmoid().prod(-1, keepdim=True).sqrt()
    middles, halves = x[..., 2:4] + corner, x[..., 4:6].exp() / 2
    landmarks = x[..., 6:] + corner.repeat(1, 5)
    places = torch.cat([middles - halves, middles + halves, landmarks], -1) * torch.cat(strides)
    return torch.cat([places, scores], -1)


@cache
def load_detector(device: torch.device) -> YuNet:
    """The detector on a device, loaded once and shared by all threads; a WeightsError if its file
    is not there, or not the one that is registered."""
    sha256 = read_registry("yunet")["sha256"]
    with as_weights_error(WEIGHTS, REINSTALL), torch.device("meta"):  # no weights are drawn
        check_file(WEIGHTS, sha256)
        model = YuNet()
        model.load_state_dict(safetensors.torch.load_file(WEIGHTS), assign=True)
    model.eval().requires_grad_(False)
    # Until a block of this size has been freed, glibc gives memory back to the system that the next
    # maps need again, which can double the network's time. It is never written to.
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")
    return model.to(device, torch.float32).to(memory_format=torch.channels_last)


def detect(
    views: Sequence[Tensor] | Tensor, min_score: float, device: torch.device
) -> list[Tensor]:
    """What YuNet sees in pictures, each looked at once at its size; those of one size together.

    Args:
        views: (3, H, W) RGB each, uint8 or float in [0, 1].
        min_score: the least score of what is returned.
        device: where the network runs.

    Returns:
        For each picture (n, 15) float32 on the CPU, as ``YuNet`` has it, the best score first.
    """
    sizes = defaultdict[object, list[int]](list)
    for index, view in enumerate(views):
        sizes[view.shape, view.dtype].append(index)
    found: dict[int, Tensor] = {}
    for indices in sizes.values():
        step = max(1, _TOGETHER // views[indices[0]][0].numel())
        for part in (indices[i : i + step] for i in range(0, len(indices), step)):
            places = _look_at(torch.stack([views[index] for index in part]), device)
            for index, seen in zip(part, places, strict=True):
                seen = seen[seen[:, 14] >= min_score]
                seen = best_first(seen[seen.isfinite().all(1)])
                found[index] = seen[first_of_each(measure_overlap(seen, seen)[0] > ECHO)]
    return [found[index] for index in range(len(views))]


def _look_at(pixels: Tensor, device: torch.device) -> Tensor:
    """(N, 3, H, W) to all places, (N, A, 15) on the CPU."""
    height, width = pixels.shape[-2:]
    x = pixels.to(device).to(torch.float32, memory_format=torch.channels_last)
    x = x / 255 if pixels.dtype == torch.uint8 else x
    if height % 32 or width % 32:
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        places: Tensor = load_detector(device)(x).cpu()
    return places


def best_first(rows: Tensor) -> Tensor:
    return rows[rows[:, 14].argsort(descending=True)]


def first_of_each(same: Tensor) -> list[int]:
    """Of rows in order, of which (n, n) says which two are of the same face, the first of each."""
    matrix, taken = same.numpy(), list[int]()
    for index, row in enumerate(matrix):
        if not row[taken].any():
            taken.append(index)
    return taken


def measure_overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """What each two of boxes (n, 4) and (m, 4), or of rows that begin with one, have in common, as
    a share of their union and of the smaller one, (n, m) each."""
    low = torch.maximum(first[:, None, :2], second[:, :2])
    high = torch.minimum(first[:, None, 2:4], second[:, 2:4])
    common = (high - low).clamp(min=0).prod(2)
    one, other = ((b[..., 2:4] - b[..., :2]).prod(-1) for b in (first[:, None], second))
    return common / (one + other - common), common / torch.minimum(one, other)
