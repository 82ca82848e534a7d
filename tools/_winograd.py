"""Train the network's 3x3 convolutions in Winograd form: the same sums in fewer products.

On a CPU without fast bfloat16 the training step is bound by multiplications, and a Winograd
(Toom-Cook) convolution needs up to 4.6 times fewer than the direct one (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", 2015). Each axis of length n becomes
``points x tiles`` samples by one small matrix, which also holds the zero padding; the
products over channels are then one batched matrix product, in both directions and for the
weights' gradient too. Maps lie as (H, W, N, C) in memory, so every step is a matrix product
over views.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from _networks import change_convolutions
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)


class _Axis(NamedTuple):
    """The three transforms of one axis, float32, rows or columns ordered (point, tile)."""

    points: int
    data: Tensor  # (points * tiles, length)
    kernel: Tensor  # (points, 3)
    output: Tensor  # (length, points * tiles)


def _toom_cook(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """B^T (n, n), G (n, 3) and A^T (m, n) of F(m, 3), n = m + 2, in float64."""
    points = torch.tensor(_POINTS[: m + 1], dtype=torch.float64)[:, None]

    def values(count: int) -> Tensor:
        """Of the powers 0 to ``count`` - 1 at the points and, the last alone, at infinity."""
        return torch.cat((points ** torch.arange(count), torch.eye(count)[-1:].double()))

    return values(m + 2).inverse().T, values(3), values(m).T


@lru_cache(maxsize=64)
def _axis(length: int) -> _Axis:
    """The cheapest plan for a padded axis of ``length`` outputs, at least 2."""
    if length == 2:  # Karatsuba's three products: the padding leaves a 2x2 Toeplitz matrix
        return _Axis(
            3,
            torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]),
            torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 1.0], [1.0, -1.0, 0.0]]),
            torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]),
        )
    m = min((2, 3, 4, 5, 6), key=lambda m: (math.ceil(length / m) * (m + 2), m))
    points, tiles = m + 2, math.ceil(length / m)
    small_data, kernel, small_output = _toom_cook(m)
    data = torch.zeros(points, tiles, tiles * m + 2, dtype=torch.float64)
    output = torch.zeros(tiles * m, points, tiles, dtype=torch.float64)
    for tile in range(tiles):
        data[:, tile, tile * m : tile * m + points] = small_data
        output[tile * m : (tile + 1) * m, :, tile] = small_output
    return _Axis(
        points,
        data[:, :, 1 : length + 1].reshape(points * tiles, length).float(),
        kernel.float(),
        output[:length].reshape(length, points * tiles).float(),
    )


def _expand(x: Tensor, along_w: Tensor, along_h: Tensor, points_w: int) -> Tensor:
    """(H, W, L) to (points_w, rows of along_h, tiles_w * L)."""
    x = torch.bmm(along_w.expand(len(x), -1, -1), x)
    x = x.view(len(x), points_w, -1).transpose(0, 1)
    return torch.bmm(along_h.expand(points_w, -1, -1), x)


def _contract(x: Tensor, along_w: Tensor, along_h: Tensor) -> Tensor:
    """(points_w, columns of along_h, tiles_w * L) to (H, W, L)."""
    height, points_w, length = len(along_h), len(x), x.shape[2]
    rows = x.new_empty(height, points_w, length)
    for point in range(points_w):  # faster than a copy of the transposed product
        torch.mm(along_h, x[point], out=rows[:, point])
    return torch.bmm(along_w.expand(height, -1, -1), rows.view(height, along_w.shape[1], -1))


def _to_rows(x: Tensor) -> Tensor:
    """(N, C, H, W) to (H, W, N * C)."""
    return x.permute(2, 3, 0, 1).flatten(2).contiguous()


def _from_rows(x: Tensor, channels: int) -> Tensor:
    """(H, W, N * C) to (N, C, H, W), which lies as (N, H, W, C)."""
    images = x.view(*x.shape[:2], -1, channels).permute(2, 3, 0, 1)
    return images.contiguous(memory_format=torch.channels_last)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        c_out, c_in = weight.shape[:2]
        h, w = ctx.axes = _axis(x.shape[2]), _axis(x.shape[3])
        data = _expand(_to_rows(x), w.data, h.data, w.points).view(h.points * w.points, -1, c_in)
        taps = weight.permute(2, 3, 0, 1).contiguous().view(3, 3, -1)
        samples = _expand(taps, w.kernel, h.kernel, w.points).view(-1, c_out, c_in)
        product = torch.bmm(data, samples.transpose(1, 2))
        y = _contract(product.view(w.points, len(h.data), -1), w.output, h.output)
        ctx.save_for_backward(data, samples)
        return _from_rows(y, c_out).add_(bias.view(-1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        data, samples = ctx.saved_tensors
        (h, w), (_, c_out, c_in) = ctx.axes, samples.shape
        dproduct = _expand(_to_rows(dy), w.output.T, h.output.T, w.points)
        dproduct = dproduct.view(len(samples), -1, c_out)
        dsamples = torch.bmm(dproduct.transpose(1, 2), data).view(w.points, h.points, -1)
        dweight = _contract(dsamples, w.kernel.T, h.kernel.T)
        dweight = dweight.view(3, 3, c_out, c_in).permute(2, 3, 0, 1)
        dx = None
        if ctx.needs_input_grad[0]:
            ddata = torch.bmm(dproduct, samples).view(w.points, len(h.data), -1)
            dx = _from_rows(_contract(ddata, w.data.T, h.data.T), c_in)
        return dx, dweight, dy.sum((0, 2, 3))


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the Winograd form has clearly fewer products, its transforms included."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    height, width = x.shape[2:]
    c_out, c_in = weight.shape[:2]
    if min(height, width) < 2 or max(height, width) > 32 or min(c_in, c_out) < 32:
        return False
    h, w = _axis(height), _axis(width)
    samples = len(h.data) * len(w.data)
    transform = len(w.data) * height * (width + len(h.data))
    direct = 9 * height * width * c_in * c_out
    return samples * c_in * c_out + 2 * transform * (c_in + c_out) < 0.7 * direct


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if not _pays(x, self.weight):
            return super().forward(x)
        y: Tensor = _Convolution.apply(x, self.weight, self.bias)
        return y


def keep_memory() -> None:
    """Let glibc keep freed memory for the next tensor; elsewhere, do nothing. By default it hands
    large blocks back to the kernel, and a good part of each step goes into page faults."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not shrink the heap


def use_winograd(model: nn.Module) -> None:
    """Let the 3x3 convolutions of ``model`` take the Winograd form where it pays: in float32 on a
    CPU. Parameters, their names and, to a relative 1e-5, the results stay as they are."""
    change_convolutions(model, _Conv2d)
