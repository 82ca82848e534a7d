"""Train the network's 3x3 convolutions in Winograd form: the same sums in fewer products.

On a CPU without fast bfloat16 the training step is bound by multiplications, and a Winograd
(Toom-Cook) convolution needs up to 4.6 times fewer than the direct one (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", 2015). Each axis of length n becomes
``points x tiles`` samples by one small matrix, which also holds the zero padding; the
products over channels are then one batched matrix product, in both directions and for the
weights' gradient too.

Activations lie as (H, W, N, C) in memory between these layers, so every step is a matrix
product over views; BatchNorm and pooling are given views that they know as channels_last.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)


class _Axis(NamedTuple):
    """The three transforms of one axis, float32, rows or columns ordered (point, tile)."""

    points: int
    tiles: int
    data: Tensor  # (points * tiles, length)
    kernel: Tensor  # (points, 3)
    output: Tensor  # (length, points * tiles)


def _toom_cook(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """B^T (n, n), G (n, 3) and A^T (m, n) of F(m, 3), n = m + 2, in float64."""
    n = m + 2
    finite = _POINTS[: n - 1]
    data = torch.zeros(n, n, dtype=torch.float64)
    kernel = torch.zeros(n, 3, dtype=torch.float64)
    output = torch.zeros(m, n, dtype=torch.float64)
    for row in range(n):
        others = [p for k, p in enumerate(finite) if k != row]
        polynomial = [1.0]  # lowest power first; the product of (x - p) over the others
        for p in others:
            shifted = [0.0, *polynomial]
            polynomial = [a - p * b for a, b in zip(shifted, [*polynomial, 0.0], strict=True)]
        data[row, : len(polynomial)] = torch.tensor(polynomial, dtype=torch.float64)
        if row < n - 1:
            point = finite[row]
            scale = math.prod(point - p for p in others)
            kernel[row] = torch.tensor([point**k / scale for k in range(3)])
            output[:, row] = torch.tensor([point**k for k in range(m)])
    kernel[-1, 2] = 1.0
    output[-1, -1] = 1.0
    return data, kernel, output


@lru_cache(maxsize=64)
def _axis(length: int) -> _Axis:
    """The cheapest plan for a padded axis of ``length`` outputs."""
    if length == 1:  # only the middle tap meets data
        data, kernel, output = ([[1.0]], [[0.0, 1.0, 0.0]], [[1.0]])
        return _Axis(1, 1, torch.tensor(data), torch.tensor(kernel), torch.tensor(output))
    if length == 2:  # Karatsuba's three products: the padding leaves a 2x2 Toeplitz matrix
        return _Axis(
            3,
            1,
            torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]),
            torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 1.0], [1.0, -1.0, 0.0]]),
            torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]),
        )
    m = min((2, 3, 4, 5, 6), key=lambda m: (math.ceil(length / m) * (m + 2), m))
    points, tiles = m + 2, math.ceil(length / m)
    small_data, small_kernel, small_output = _toom_cook(m)
    data_ = torch.zeros(points, tiles, tiles * m + 2, dtype=torch.float64)
    output_ = torch.zeros(tiles * m, points, tiles, dtype=torch.float64)
    for tile in range(tiles):
        data_[:, tile, tile * m : tile * m + points] = small_data
        output_[tile * m : (tile + 1) * m, :, tile] = small_output
    return _Axis(
        points,
        tiles,
        data_[:, :, 1 : length + 1].reshape(points * tiles, length).float(),
        small_kernel.float(),
        output_[:length].reshape(length, points * tiles).float(),
    )


def _expand(x: Tensor, along_w: Tensor, along_h: Tensor, points_w: int) -> Tensor:
    """(H, W, L) to (points_w, rows of along_h, tiles_w * L)."""
    height = x.shape[0]
    x = torch.bmm(along_w.expand(height, -1, -1), x)
    x = x.view(height, points_w, -1).transpose(0, 1)
    return torch.bmm(along_h.expand(points_w, -1, -1), x)


def _contract(x: Tensor, along_w: Tensor, along_h: Tensor) -> Tensor:
    """(points_w, columns of along_h, tiles_w * L) to (H, W, L)."""
    points_w, _, length = x.shape
    height = along_h.shape[0]
    rows = x.new_empty(height, points_w, length)
    for point in range(points_w):
        torch.mm(along_h, x[point], out=rows[:, point])
    return torch.bmm(along_w.expand(height, -1, -1), rows.view(height, along_w.shape[1], -1))


class _Convolution(torch.autograd.Function):
    """(N, C_in, H, W) to (H, W, N * C_out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        n, c_in, height, width = x.shape
        c_out = weight.shape[0]
        h, w = _axis(height), _axis(width)
        count = h.points * w.points
        x = x.permute(2, 3, 0, 1).contiguous().view(height, width, -1)
        data = _expand(x, w.data, h.data, w.points).view(count, -1, c_in)
        samples = _samples(weight, height, width)
        product = torch.bmm(data, samples.transpose(1, 2))
        y = _contract(product.view(w.points, len(h.data), -1), w.output, h.output)
        if bias is not None:
            y.view(height, width, n, c_out).add_(bias)
        ctx.save_for_backward(data, samples)
        ctx.shape = (n, c_in, height, width)
        return y  # no view of it: a ReLU may yet work in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        data, samples = ctx.saved_tensors
        n, c_in, height, width = ctx.shape
        c_out = samples.shape[1]
        h, w = _axis(height), _axis(width)
        count = h.points * w.points
        dy = dy.contiguous()
        dx = dweight = dbias = None
        if ctx.needs_input_grad[2]:
            dbias = dy.view(-1, c_out).sum(0)
        dproduct = _expand(dy.view(height, width, -1), w.output.t(), h.output.t(), w.points)
        dproduct = dproduct.view(count, -1, c_out)
        if ctx.needs_input_grad[1]:
            dsamples = torch.bmm(dproduct.transpose(1, 2), data)
            dsamples = dsamples.view(w.points, h.points, -1)
            dweight = _contract(dsamples, w.kernel.t(), h.kernel.t())
            # Only a view: it is copied once, where the gradient is kept, in the weight's layout.
            dweight = dweight.view(3, 3, c_out, c_in).permute(2, 3, 0, 1)
        if ctx.needs_input_grad[0]:
            ddata = torch.bmm(dproduct, samples)
            dx = _contract(ddata.view(w.points, len(h.data), -1), w.data.t(), h.data.t())
            dx = dx.view(height, width, n, c_in).permute(2, 3, 0, 1)
        return dx, dweight, dbias


def _samples(weight: Tensor, height: int, width: int) -> Tensor:
    """(C_out, C_in, 3, 3) to (points, C_out, C_in)."""
    h, w = _axis(height), _axis(width)
    taps = weight.permute(2, 3, 0, 1).contiguous().view(3, 3, -1)
    return _expand(taps, w.kernel, h.kernel, w.points).view(-1, *weight.shape[:2])


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the Winograd form has clearly fewer products, its transforms included."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    height, width = x.shape[2:]
    c_out, c_in = weight.shape[:2]
    if min(height, width) < 1 or max(height, width) > 32 or min(c_in, c_out) < 32:
        return False
    h, w = _axis(height), _axis(width)
    samples = len(h.data) * len(w.data)
    transform = len(w.data) * height * (width + len(h.data))
    direct = 9 * height * width * c_in * c_out
    return samples * c_in * c_out + 2 * transform * (c_in + c_out) < 0.7 * direct


def _batch_inside(x: Tensor) -> bool:
    """Whether x (N, C, H, W) lies as (H, W, N, C) in memory, and not as channels_last."""
    return (
        x.dim() == 4
        and x.permute(2, 3, 0, 1).is_contiguous()
        and not x.is_contiguous(memory_format=torch.channels_last)
    )


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if _pays(x, self.weight) and not torch.is_autocast_enabled("cpu"):
            y: Tensor = _Convolution.apply(x, self.weight, self.bias)
            return y.view(*y.shape[:2], len(x), -1).permute(2, 3, 0, 1)
        return super().forward(x)


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if not _batch_inside(x):
            return super().forward(x)
        # The statistics do not care which axis is which: H as batch, W and N as the image.
        return super().forward(x.permute(2, 1, 3, 0)).permute(3, 1, 0, 2)


class _ReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        # Not in place: x is a view of what BatchNorm returned, and the backward pass of a change
        # of a view copies the whole gradient, into another layout at that.
        return nn.functional.relu(x, self.inplace and not _batch_inside(x))


def _pool(x: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
    if not _batch_inside(x):
        return forward(x)
    n, c, height, width = x.shape
    merged = x.permute(2, 3, 0, 1).reshape(1, height, width, n * c).permute(0, 3, 1, 2)
    y = forward(merged).permute(2, 3, 0, 1)
    return y.reshape(*y.shape[:2], n, c).permute(2, 3, 0, 1)


class _MaxPool2d(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return _pool(x, super().forward)


class _AvgPool2d(nn.AvgPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return _pool(x, super().forward)


def keep_memory() -> None:
    """Let glibc keep freed memory for the next tensor; elsewhere, do nothing.

    By default it hands large blocks back to the kernel, and each step then spends a good
    part of its time on page faults. For the whole process, so only programs call it, once
    and before the first step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not shrink the heap


def use_winograd(model: nn.Module) -> None:
    """Let the model's 3x3 convolutions take the Winograd form where it pays.

    Parameters, their names and the results (to float32's rounding, about 1e-5 relative)
    stay as they are. Anything but float32 on a CPU, and shapes that gain nothing, run as before.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d:
            if (
                module.kernel_size == (3, 3)
                and module.stride == (1, 1)
                and module.padding == (1, 1)
                and module.dilation == (1, 1)
                and module.groups == 1
                and module.padding_mode == "zeros"
            ):
                module.__class__ = _Conv2d
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = _BatchNorm2d
        elif type(module) is nn.ReLU:
            module.__class__ = _ReLU
        elif type(module) is nn.MaxPool2d:
            module.__class__ = _MaxPool2d
        elif type(module) is nn.AvgPool2d:
            module.__class__ = _AvgPool2d
