"""Train the network's 3x3 convolutions on small maps as one matrix product, in bfloat16.

Where a processor multiplies bfloat16 in units of its own, PyTorch's convolution keeps them busy on
large maps, but reaches a fifth of that, or less, on maps of five or two pixels a side. There each
output's nine pixels of all channels are copied into a row, and the convolution of the whole batch
is one product of those rows and the weights; so are the gradients of both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from _networks import change_convolutions
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LARGEST = 6  # pixels a side: on maps of eleven PyTorch's own convolution is twice as fast


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) to what each place sees of its padded map, (N * H * W, 9 * C)."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, 3, 1).unfold(2, 3, 1)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)


def _multiply(rows: Tensor, taps: Tensor, like: Tensor) -> Tensor:
    """What (N * H * W, K) ``rows`` and (K, C) ``taps`` make, as maps (N, C, H, W) of the size of
    ``like``, which lie as (N, H, W, C)."""
    n, _, height, width = like.shape
    # Not a view of the product: autograd lets no layer after this one change such in place.
    shape, last = (n, taps.shape[1], height, width), torch.channels_last
    maps = torch.empty(shape, dtype=rows.dtype, memory_format=last)
    torch.mm(rows, taps, out=maps.permute(0, 2, 3, 1).view(len(rows), -1))
    return maps


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, taps = _rows(x.bfloat16()), weight.bfloat16()
        ctx.save_for_backward(rows, taps)
        y = _multiply(rows, taps.permute(0, 2, 3, 1).flatten(1).t(), x)
        return y.add_(bias.bfloat16().view(-1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, taps = ctx.saved_tensors
        flat = dy.permute(0, 2, 3, 1).flatten(0, 2)
        dweight = (flat.t() @ rows).view(len(taps), 3, 3, -1).permute(0, 3, 1, 2)
        turned = taps.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)
        dx = _multiply(_rows(dy), turned, dy)
        return dx, dweight.float(), flat.sum(0, dtype=torch.float32)


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        small = max(x.shape[2:]) <= _LARGEST and x.device.type == "cpu"
        if not small or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        y: Tensor = _Convolution.apply(x, self.weight, self.bias)
        return y


def use_columns(model: nn.Module) -> None:
    """Let the 3x3 convolutions of ``model`` take this form on small maps, where autocast to
    bfloat16 is on. Parameters, their names and, to bfloat16's rounding, the results stay."""
    change_convolutions(model, _Conv2d)
