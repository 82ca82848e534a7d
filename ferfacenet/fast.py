"""What the model answers in eval mode, sooner.

BatchNorm is folded into the convolutions, and each of these runs in the form that suits it:

- small maps in float32 on a CPU in Winograd's (Lavin and Gray, "Fast Algorithms for
  Convolutional Neural Networks", 2015), with tiles so small that of float32's seven digits at
  most one is lost;
- all others by ``conv2d`` on channels-last maps.

The model is only read. Its folded weights are kept outside it, for as long as it lives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ferfacenet.model import ImprovedVGG19, cut_centre, derived
from ferfacenet.threads import lock

Precision = Literal["auto", "float32", "bfloat16"]

_PART = 32  # views that a CPU takes at once, so that their maps stay in its cache
# Winograd's form pays on maps of up to _LARGEST a side. It has up to 2.8 times as many weights,
# which on maps of up to _SMALL, where they outweigh the maps, pays from _SHARING views on only.
_LARGEST, _SMALL, _SHARING = 12, 6, 4
_NARROW_FROM = 8  # views from which bfloat16 is faster, on a chip that is made for it


class _Folded(NamedTuple):
    """What is kept of a model."""

    marks: list[object]  # change when its weights do
    tensors: list[ReferenceType[Tensor]]  # weak, since a tensor's hook may hold the model
    layouts: dict[object, tuple[Tensor, Tensor]]  # weight and bias of each convolution, as needed


def fast_forward(model: nn.Module, precision: Precision) -> Callable[[Tensor], Tensor] | None:
    """What ``model`` computes in eval mode, as a faster function.

    The function takes pixels in [0, 1], (N, in_channels, H, W) float tensors on any device with
    H, W >= 32, and returns (N, num_classes) float32 logits on the model's. It neither minds nor
    sets the model's mode. It is good for the weights of this moment: ask again for each use. The
    folded weights are kept for the next time, unless the model is in training mode, its tensors or
    their versions differ by then, or ``train`` or ``eval`` is called. Where a fused optimizer, or
    code that works on ``.data`` or a numpy view, writes in place while the model is in eval mode,
    PyTorch gives no new version: call ``model.eval()`` after it.

    Returns:
        The function, or None where only the model itself will do: it is not an
        ``ImprovedVGG19`` as the constructor makes it (but a subclass, or with a changed layer
        or a hook), made in inference mode, not on a CPU or CUDA device, or in float64 under
        ``"auto"``.
    """
    if type(model) is not ImprovedVGG19 or not _is_as_built(model):
        return None
    tensors = [*model.features.parameters(), *model.features.buffers()]
    device, stored = tensors[0].device, tensors[0].dtype
    if device.type not in ("cpu", "cuda") or (precision == "auto" and stored == torch.float64):
        return None
    for t in tensors:
        if type(t) not in (Tensor, nn.Parameter) or t.device != device or t.is_inference():
            return None
    narrow_from = _NARROW_FROM if precision == "auto" and prefers_bfloat16(device) else math.inf
    narrow_from = 0 if precision == "bfloat16" else narrow_from
    marks: list[object] = [vars(m).get("eps") for m in model.features]
    marks += [(id(t), t.data_ptr(), t._version) for t in tensors]
    with lock:
        folded: _Folded | None = derived.get(model)
        # Of a tensor that is gone, another may have the id and the memory.
        if not folded or folded.marks != marks or any(t() is None for t in folded.tensors):
            folded = _Folded(marks, [ref(t) for t in tensors], {})
            # In training, a fused optimizer may change the weights without a mark.
            if not any(m.training for m in model.modules()):
                derived[model] = folded
    layouts = folded.layouts

    def forward(x: Tensor) -> Tensor:
        dtype = torch.bfloat16 if len(x) >= narrow_from else torch.float32
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            x = cut_centre(x).to(device, torch.float32)
            x = model.normalise(x).to(dtype)
            count = max(1, -(-len(x) // _PART)) if device.type == "cpu" else 1
            maps = [_run(model.features, part, layouts) for part in x.tensor_split(count)]
            x = model.avgpool(torch.cat(maps).to(stored)).flatten(1)
            for layer in model.classifier.modules():
                x = layer(x) if isinstance(layer, (nn.Linear, nn.ReLU)) else x  # no dropout
            return (x / model.temperature).float()

    return forward


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in units of its own that are faster than float32:
    on a CPU, AMX or ARM's BF16 (AVX512-BF16 is no faster); on a GPU, compute capability 8."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("amx_bf16", "bf16"))


_KINDS = {
    nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", nn.MaxPool2d: "P", nn.AvgPool2d: "P",
    nn.AdaptiveAvgPool2d: "A", nn.Sequential: "S", nn.Linear: "L", nn.Dropout: "D", nn.Identity: "I"
}  # fmt: skip


def _is_as_built(model: ImprovedVGG19) -> bool:
    """Whether the layers are the constructor's, and calling one does what its class does and
    nothing else."""
    everywhere, features = torch.nn.modules.module, model.features
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return False
    for m in model.modules():
        if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m):
            return False
        if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)) and m.bias is None:
            return False
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is None:
            return False
        if type(m) is nn.Conv2d:
            settings = (m.kernel_size, m.stride, m.padding, m.dilation, m.groups, m.padding_mode)
            if settings != ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"):
                return False
    layers = *features.children(), model.avgpool, model.dropout, *model.classifier.modules()
    kinds = "".join(_KINDS.get(type(m), "-") for m in layers)
    return type(features) is nn.Sequential and bool(re.fullmatch("((CBR)+P)+AD[SLRDI]+", kinds))


def _run(
    features: nn.Sequential, x: Tensor, layouts: dict[object, tuple[Tensor, Tensor]]
) -> Tensor:
    """Normalised pixels (N, C, H, W) to the last feature map."""
    n, last = len(x), torch.channels_last
    suits_winograd = n > 0 and x.device.type == "cpu" and x.dtype == torch.float32
    if x.shape[1] == 1:
        x = x.expand(-1, 2, -1, -1)  # _fold says why
    for place, module in enumerate(features):
        if isinstance(module, nn.Conv2d):
            small = suits_winograd and x.shape[2] == x.shape[3] <= _LARGEST
            winograd = _make_winograd(x.shape[3], n < _SHARING) if small else None
            key = place, winograd.tile if winograd else x.dtype
            with lock:
                if key not in layouts:
                    weight, bias = _fold(module, features[place + 1])
                    weight = winograd.arrange(weight) if winograd else weight.to(memory_format=last)
                    layouts[key] = weight.to(x.dtype), bias.to(x.dtype)
                weight, bias = layouts[key]
            if winograd:
                x = winograd.convolve(x.permute(2, 3, 0, 1).contiguous(), weight)
                x = x.add_(bias).permute(2, 3, 0, 1)
            else:
                x = F.conv2d(x.contiguous(memory_format=last), weight, bias, padding=1)
            x = x.relu_()
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            x = module(x.contiguous(memory_format=last))
    return x


def _fold(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight (C_out, C_in, 3, 3) and bias of the one convolution that equals the two modules."""
    vectors: Any = (conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    bias, mean, variance, scale, shift = (t.double() for t in vectors)
    weight = conv.weight.detach().float()
    weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    # A second channel, of zeros: oneDNN takes several times as long over a single one.
    return F.pad(weight, (0, 0, 0, 0, 0, int(weight.shape[1] == 1))), bias


class _Winograd(NamedTuple):
    """How a square map is convolved with few products. Along an axis, zeros around it, that is
    output @ ((kernel @ taps) * (data @ x)); in a small map both axes are taken as one."""

    tile: int  # outputs that a tile makes; 0: the whole of an axis of two
    kernel: Tensor  # (points, 3)
    data: Tensor  # (points * tiles, side), or of both axes (points**2 * tiles**2, side**2)
    output: Tensor  # (side, points * tiles), or of both axes (side**2, points**2 * tiles**2)

    def arrange(self, weight: Tensor) -> Tensor:
        """(C_out, C_in, 3, 3) to its values at each pair of points, (points**2, C_in, C_out)."""
        pairs = torch.kron(self.kernel, self.kernel) @ weight.mT.reshape(-1, 9).t()
        return pairs.view(-1, *weight.shape[:2]).mT.contiguous()

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """A contiguous map (side, side, N, C_in) to (side, side, N, C_out)."""
        _, kernel, data, output = self
        side, _, n, channels = x.shape
        points = len(kernel)
        if side <= _SMALL:
            x = torch.bmm((data @ x.view(side**2, -1)).view(points**2, -1, channels), weight)
            return (output @ x.view(len(data), -1)).view(side, side, n, -1)
        # To the points along the columns, then the rows; a product over the channels for each pair
        # of points; and back.
        x = torch.bmm(data.expand(side, -1, -1), x.view(side, side, -1))
        x = torch.bmm(data.expand(points, -1, -1), x.view(side, points, -1).transpose(0, 1))
        x = torch.bmm(x.view(points**2, -1, channels), weight)
        x = torch.bmm(output.expand(points, -1, -1), x.view(points, len(data), -1))
        x = x.transpose(0, 1).reshape(side, len(data), -1)
        return torch.bmm(output.expand(side, -1, -1), x).view(side, side, n, -1)


@cache
def _make_winograd(side: int, few: bool) -> _Winograd:
    """Polynomials are multiplied by their values (Toom and Cook) at infinity and the first of the
    points 0, 1, -1, 2; more would lose digits. That of the fewest products, or for ``few`` views of
    the fewest weights."""
    tile = min((3, 2), key=lambda m: -(-side // m) * (m + 2))
    if side == 2 or (few and side <= _SMALL):
        tile = 1
    eye = partial(torch.eye, dtype=torch.float64, device="cpu")

    def powers(count: int) -> Tensor:
        rows = [[float(x**i) for i in range(count)] for x in (0, 1, -1, 2)[: tile + 1]]
        return torch.cat([eye(count).new_tensor(rows), eye(count)[-1:]])

    if side == 2:
        # Taps and pixels change places: three taps, of which two pixels make two outputs.
        kernel, data = torch.linalg.inv(powers(3)).mT, powers(2)[:, None]
        output = powers(2).mT.flip(0)[..., None]
    else:
        kernel, tiles = powers(3), -(-side // tile)
        room = (0, 0, 1, tiles * tile + 1 - side)
        windows = F.pad(eye(side), room).unfold(0, tile + 2, tile)  # each tile's onto the axis
        data = torch.einsum("sp,tis->pti", torch.linalg.inv(powers(tile + 2)), windows)
        output = torch.einsum("po,tu->topu", powers(tile), eye(tiles)).flatten(0, 1)[:side]
    if side <= _SMALL:
        data = torch.einsum("pti,quj->qptuij", data, data).flatten(0, 2)
        output = torch.einsum("ipt,jqu->ijqptu", output, output).flatten(0, 1)
    data, output = data.flatten(0, 1).flatten(1), output.flatten(1)
    return _Winograd(0 if side == 2 else tile, kernel.float(), data.float(), output.float())
