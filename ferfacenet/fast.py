"""The network's forward pass in its fastest form: the same answers as the model's, sooner.

BatchNorm is folded into the convolutions, their weights are laid out once per model, and
the arithmetic is chosen by where it runs:

- float32 on a CPU: large maps by oneDNN's convolution on prepacked weights; small maps, once
  there are enough views to share the reading of the weights, in Winograd's form (Lavin and
  Gray, "Fast Algorithms for Convolutional Neural Networks", 2015), with tiles so small that
  the rounding errors are no larger than the direct sum's.
- bfloat16 on a CPU, and all on a GPU: the library's own convolution, channels last.

The model is only read. What is kept of it is held outside it, goes when it goes, and is
checked against it on every call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferfacenet.model import ImprovedVGG19

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
_Weights: TypeAlias = tuple[Tensor, Tensor]
_Arrange: TypeAlias = Callable[[Tensor, Tensor], _Weights]

_BLOCKS = (2, 2, 4, 4, 4)  # convolutions per block
# Measured: on a CPU the first three blocks run on about so many views at a time; their maps
# then stay in the cache, and their memory is reused and not asked of the system anew.
_SPLIT, _PART = 3, 16
# Measured: Winograd's form pays up to this side of a map. Its weights are up to 2.8 times as
# large, which on the small maps, up to the other side, more views have to share.
_LARGEST, _SMALL = 12, 6
# What _source looks at, besides the tensors.
_SETTINGS = (
    "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "eps", "ceil_mode",
    "return_indices", "divisor_override", "output_size",
)  # fmt: skip
# Weights that are compared on every call: tensors up to a size, and stretches of larger ones.
_WHOLE, _STRETCH = 4096, 64


def fast_forward(model: nn.Module, precision: Precision) -> Callable[[Tensor], Tensor] | None:
    """What ``model`` computes in eval mode, as a faster function.

    The function takes (N, 1, S, S) float tensors on any device, S at least 32, and returns
    (N, C) float32 logits on the model's. It is good for the weights of this moment: ask again
    for each use. In-place updates, new tensors and ``.data`` assignments are noticed. So are
    writes that PyTorch's version counters miss (fused optimizers, BatchNorm's own statistics,
    in-place changes of ``.data`` or of a numpy view) if they touch any bias, BatchNorm tensor
    or classifier weight, or the weights of a convolution throughout.

    Returns:
        The function, or None where only the model itself will do: it is not an
        ``ImprovedVGG19`` as this package builds it (but a subclass, or with a changed layer
        or a hook), not on a CPU or a CUDA device, or in float64 under ``"auto"``.
    """
    network = _network(model)
    if network is None or (precision == "auto" and network.dtype == torch.float64):
        return None
    device = network.device
    narrow = precision == "bfloat16" or (precision == "auto" and prefers_bfloat16(device))
    dtype = torch.bfloat16 if narrow else torch.float32

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return network(x.to(device, dtype), model)

    return forward


_networks: WeakKeyDictionary[nn.Module, _Network] = WeakKeyDictionary()
_networks_lock = threading.Lock()


def _network(model: nn.Module) -> _Network | None:
    """The model's network: the one in store if it is still true, or a new one."""
    if type(model) is not ImprovedVGG19:
        return None
    modules = list(model.modules())
    everywhere = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return None
    if not all(map(_is_untouched, modules)):
        return None
    with _networks_lock:
        network = _networks.get(model)
        if network is None or not network.is_of(modules):
            _networks.pop(model, None)
            source = _source(model)
            if source is None:
                return None
            network = _networks[model] = _Network(source, modules)
    return network


def _is_untouched(module: nn.Module) -> bool:
    """Whether calling the module calls its class's ``forward`` and nothing else."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in units of its own that are faster than float32: on
    a CPU, AMX or ARM's BF16, with an oneDNN that uses it; on a GPU, compute capability 8.

    AVX512-BF16 alone is not enough. Measured on an Intel Xeon that has it without AMX, its
    products of matrices are no faster than float32's, and float32 in Winograd's form is twice as
    fast as bfloat16 (docs/speed.md)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not _can_prepack(torch.bfloat16):
        return False
    # PyTorch before 2.9 has only the private function.
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    older = getattr(torch.cpu, "_is_amx_tile_supported", bool)
    return bool(older()) or any(has.get(name) for name in ("amx_bf16", "bf16"))


# What the model is made of ------------------------------------------------------------------


class _Layer(NamedTuple):
    """A convolution and its BatchNorm."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor
    mean: Tensor
    variance: Tensor
    eps: float

    def folded(self) -> _Weights:
        """Weight (C_out, C_in, 3, 3) and bias of the one convolution that equals the two."""
        factor = self.scale.double() / (self.variance.double() + self.eps).sqrt()
        bias = (self.bias.double() - self.mean.double()) * factor + self.shift.double()
        return self.weight.float() * factor.float()[:, None, None, None], bias.float()


class _Source(NamedTuple):
    """All that a model's answers depend on."""

    layers: list[_Layer]
    linears: list[_Weights]
    averages: bool  # the pooling: average, or maximum


def _source(model: nn.Module) -> _Source | None:
    """What the model is made of, or None if a module is not as the constructor makes it."""
    assert isinstance(model, ImprovedVGG19)
    modules = iter(model.features)
    layers: list[_Layer] = []
    pools: list[Any] = []
    for depth in _BLOCKS:
        for _ in range(depth):
            layer = _layer(*(next(modules, None) for _ in range(3)))
            if layer is None:
                return None
            layers.append(layer)
        pools.append(next(modules, None))
    kind = type(pools[0])
    if next(modules, None) is not None or not all(type(m) is kind and _halves(m) for m in pools):
        return None
    if layers[0].weight.shape[1] != 1 or not _averages(model.avgpool):
        return None
    head = list(model.classifier) if type(model.classifier) is nn.Sequential else [model.classifier]
    if [type(m) for m in head] not in (
        [nn.Linear],
        [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear],
    ):
        return None
    linears: list[_Weights] = [(m.weight, m.bias) for m in head if isinstance(m, nn.Linear)]
    device = layers[0].weight.device
    if device.type not in ("cpu", "cuda"):
        return None
    tensors = [t for layer in layers for t in layer[:6]] + [t for pair in linears for t in pair]
    if not all(_is_readable(t, device) for t in tensors):
        return None
    return _Source(layers, linears, kind is nn.AvgPool2d)


def _layer(conv: Any, norm: Any, relu: Any) -> _Layer | None:
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or type(relu) is not nn.ReLU:
        return None
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    if shape != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or conv.padding_mode != "zeros":
        return None
    bias, mean, variance = conv.bias, norm.running_mean, norm.running_var
    if bias is None or mean is None or variance is None or not norm.affine:
        return None
    return _Layer(conv.weight, bias, norm.weight, norm.bias, mean, variance, norm.eps)


def _halves(pool: Any) -> bool:
    """Whether this is the constructor's 2x2 pooling of either kind."""
    if type(pool) not in (nn.MaxPool2d, nn.AvgPool2d):
        return False
    if (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) != (2, 2, 0, False):
        return False
    if isinstance(pool, nn.MaxPool2d):
        return bool(pool.dilation == 1 and not pool.return_indices)
    return pool.divisor_override is None


def _averages(pool: Any) -> bool:
    return type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))


def _is_readable(t: Tensor, device: torch.device) -> bool:
    return (
        type(t) in (Tensor, nn.Parameter)
        and t.device == device
        and t.layout == torch.strided
        and t.is_floating_point()
        and not t.is_inference()  # it has no version to tell a change by
        and (t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last))
    )


# What is kept of it -------------------------------------------------------------------------


class _Network:
    """The folded network: the layouts of its weights that were needed so far.

    It holds neither the model nor any part of it that could hold the model in turn, through a
    hook for instance: only weak references, views of the weights' memory, and copies.

    Between blocks, maps are (H, W, N, C): the products over channels are then matrix products
    as they lie, and many small maps are one large matrix.
    """

    def __init__(self, source: _Source, modules: list[nn.Module]) -> None:
        # What was seen is noted before it is used: a change in between shows at the next call.
        tensors = _tensors(modules)
        self._seen = _marks(modules, tensors)
        self._objects = [ref(o) for o in (*modules, *tensors)]
        self._probes = _probes(tensors)
        self._probed = torch.cat(self._probes)
        first = source.layers[0].weight
        self.device, self.dtype = first.device, first.dtype
        self._averages = source.averages
        self._linears = [
            tuple(t.detach().to(torch.float32, copy=True) for t in pair) for pair in source.linears
        ]
        self._layouts: dict[tuple[Any, ...], _Weights] = {}
        self._choices: dict[tuple[Any, ...], _Weights] = {}
        self._lock = threading.Lock()

    def is_of(self, modules: list[nn.Module]) -> bool:
        """Whether these are the modules and weights that this network was made of."""
        tensors = _tensors(modules)
        objects = [*modules, *tensors]
        return (
            len(objects) == len(self._objects)
            and all(known() is o for known, o in zip(self._objects, objects, strict=True))
            and _marks(modules, tensors) == self._seen
            and torch.equal(torch.cat(self._probes), self._probed)
        )

    def __call__(self, x: Tensor, model: nn.Module) -> Tensor:
        """(N, 1, S, S) on the device and in the dtype to compute in, to (N, C) logits; ``model``
        for the weights whose layout is not here yet."""
        n = len(x)
        *hidden, last = self._linears
        if not n:
            return x.new_empty(0, len(last[0]), dtype=torch.float32)
        count = -(-n // _PART) if x.device.type == "cpu" else 1
        parts = [
            self._blocks(part.permute(2, 3, 0, 1), 0, _SPLIT, n, model)
            for part in x.tensor_split(count)
        ]
        x = torch.cat(parts, 2) if count > 1 else parts[0]
        x = self._blocks(x, _SPLIT, len(_BLOCKS), n, model).float().mean((0, 1))
        for linear in hidden:
            x = F.linear(x, *linear).relu_()
        return F.linear(x, *last)

    def _blocks(self, x: Tensor, first: int, last: int, n: int, model: nn.Module) -> Tensor:
        """Some of the blocks, for some of ``n`` views."""
        place = sum(_BLOCKS[:first])
        for depth in _BLOCKS[first:last]:
            run = self._winograd if _gains(x, n) else self._direct
            x = run(x, range(place, place + depth), model)
            place += depth
        return x

    def _direct(self, x: Tensor, block: range, model: nn.Module) -> Tensor:
        """One block by the library's convolutions."""
        x = x.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
        n, _, side, _ = x.shape
        on_cpu, dtype = x.device.type == "cpu", x.dtype
        # bfloat16 on a CPU without it: its numbers, multiplied and summed in float32 as a CPU
        # with it does, 5 times as fast as PyTorch's own stopgap.
        wide = torch.float32 if on_cpu and not _can_prepack(dtype) else dtype
        packed = on_cpu and _can_prepack(wide)
        # What oneDNN's choice of a layout depends on.
        case = (n, side, torch.get_num_threads()) if packed else ()

        def arrange(weight: Tensor, bias: Tensor) -> _Weights:
            weight, bias = weight.to(dtype).to(wide), bias.to(dtype).to(wide)
            if packed:
                return _prepack(weight, n, side), bias
            return weight.contiguous(memory_format=torch.channels_last), bias

        for index in block:
            weight, bias = self._layout((index, dtype, *case), arrange, model)
            x = x.to(wide)
            if packed:
                x = _packed_conv(x, weight, bias)
            else:
                x = F.conv2d(x, weight, bias, padding=1).relu_()
            x = x.to(dtype)
        x = F.avg_pool2d(x, 2) if self._averages else F.max_pool2d(x, 2)
        return x.permute(2, 3, 0, 1)

    def _winograd(self, x: Tensor, block: range, model: nn.Module) -> Tensor:
        """One block in Winograd's form."""
        side, even = len(x), len(x) // 2 * 2
        for index in block:
            # An odd map's last row and column fall out of the pooling, so are not made.
            axis = _axis(side, even if index == block[-1] else side)
            samples, bias = self._layout((index, axis.form), axis.arrange, model)
            x = _winograd_conv(x.contiguous(), samples, bias, axis)
        halve = _middle if self._averages else torch.maximum
        x = halve(x[0::2], x[1::2])
        return halve(x[:, 0::2], x[:, 1::2])

    def _layout(self, key: tuple[Any, ...], arrange: _Arrange, model: nn.Module) -> _Weights:
        """A layer's folded weight and bias, arranged once."""
        found = self._layouts.get(key)
        if found is None:
            with self._lock:  # threads that come at once arrange, and hold, one copy
                found = self._layouts.get(key)
                if found is None:
                    source = _source(model)
                    if source is None:
                        raise RuntimeError("the model was changed while it was in use")
                    found = arrange(*source.layers[key[0]].folded())
                    if found[0].is_mkldnn:
                        # oneDNN's choices differ for few of the cases; what is equal is held once.
                        choice = (*key[:2], _description(found[0]))
                        found = self._choices.setdefault(choice, found)
                    self._layouts[key] = found
        return found


def _gains(x: Tensor, n: int) -> bool:
    """Whether a map (side, side, N, C) goes faster in Winograd's form."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) > _LARGEST:
        return False
    least = 1 if len(x) == 2 else 4 if len(x) <= _SMALL else 2
    return n >= least


def _middle(a: Tensor, b: Tensor) -> Tensor:
    return torch.lerp(a, b, 0.5)


def _tensors(modules: list[nn.Module]) -> list[Tensor]:
    held = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values())]
    return [t for t in held if t is not None]


def _marks(modules: list[nn.Module], tensors: list[Tensor]) -> list[object]:
    """What shows most changes of modules and tensors that are still the same objects."""
    settings = [vars(m).get(name) for m in modules for name in _SETTINGS]
    return [*map(type, modules), *settings, *((t.data_ptr(), t._version) for t in tensors)]


def _probes(tensors: list[Tensor]) -> list[Tensor]:
    """Views of the weights themselves, few and long, so that joining them takes microseconds:
    small tensors whole, of a large one the beginning, the end and two stretches between."""
    views = []
    for t in tensors:
        if not t.is_floating_point():
            continue
        flat = t.detach().as_strided((t.numel(),), (1,))
        if len(flat) <= _WHOLE:
            views.append(flat)
        else:
            step = (len(flat) - _STRETCH) // 3
            views += [flat[start : start + _STRETCH] for start in range(0, 3 * step + 1, step)]
    return views


# oneDNN's convolution with prepacked weights -------------------------------------------------
# These operators are those that torch.compile emits. They are not public, so nothing is taken
# for granted: _can_prepack tries them out, and without them F.conv2d does the same, slower.


def _prepack(weight: Tensor, n: int, side: int) -> Tensor:
    """A weight in the layout that oneDNN chooses for n maps of that side. With one chosen for
    other maps, some are computed 30 times as slowly."""
    inputs = [n, weight.shape[1], side, side]
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    packed: Tensor = reorder(weight.to_mkldnn(), [1, 1], [1, 1], [1, 1], 1, inputs)
    return packed


def _packed_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(conv2d(x, weight, bias, padding=1)) in one pass."""
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, [1, 1], [1, 1], [1, 1], 1, "relu", [None], ""
    )
    return y


def _description(packed: Tensor) -> tuple[int, ...]:
    """A prepacked weight's layout."""
    return tuple(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())


def _can_prepack(dtype: torch.dtype) -> bool:
    return bool(torch.backends.mkldnn.enabled) and _prepacked_agrees(dtype)


@cache
def _prepacked_agrees(dtype: torch.dtype) -> bool:
    """Whether prepacked convolution in this dtype is there, works, and is right."""
    weight = torch.arange(9 * 16 * 16, dtype=torch.float32, device="cpu").remainder(7) - 3
    weight = weight.view(16, 16, 3, 3)
    x = torch.arange(16 * 25, dtype=torch.float32, device="cpu").remainder(5).view(1, 16, 5, 5)
    bias = torch.ones(16, dtype=torch.float32, device="cpu")
    want = F.conv2d(x, weight, bias, padding=1).relu_()
    try:
        with torch.no_grad():
            packed = _prepack(weight.to(dtype), 1, 5)
            got = _packed_conv(x.to(dtype), packed, bias.to(dtype)).float()
            _description(packed)
    except Exception:  # an operator that is not there or has changed may raise anything
        return False
    # Whole numbers: exact in float32, and rounded once in bfloat16.
    return torch.allclose(got, want, rtol=0.0 if dtype == torch.float32 else 0.01, atol=0.0)


# Winograd's convolution ----------------------------------------------------------------------
# output @ ((kernel @ taps) * (data @ x)) is a 3-tap convolution with few products. 1: Karatsuba's
# for two outputs of two inputs in zeros; 2 and 3: Toom and Cook's for that many outputs, at the
# points 0, 1, -1, infinity, and 0, 1, -1, 2, infinity. Larger tiles lose digits.

_FORMS: dict[int, tuple[list[list[float]], list[list[float]], list[list[float]]]] = {
    1: (
        [[1, 1], [0, 1], [1, 0]],
        [[0, 1, 0], [0, -1, 1], [1, -1, 0]],
        [[1, 1, 0], [1, 0, 1]],
    ),
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, 1]],
    ),
    3: (
        [[2, -1, -2, 1, 0], [0, 2, 1, -1, 0], [0, -2, 3, -1, 0], [0, -1, 0, 1, 0],
         [0, 2, -1, -2, 1]],
        [[1 / 2, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 6, -1 / 6, 1 / 6], [1 / 6, 1 / 3, 2 / 3],
         [0, 0, 1]],
        [[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 1]],
    ),
}  # fmt: skip


class _Axis(NamedTuple):
    """One axis of a map, zero padding and all, in one of the forms."""

    form: int
    points: int
    tiles: int
    data: Tensor  # (points * tiles, length)
    output: Tensor  # (outputs, points * tiles)

    def arrange(self, weight: Tensor, bias: Tensor) -> _Weights:
        """(C_out, C_in, 3, 3) to its values at each pair of points, (points ** 2, C_out, C_in);
        and the bias as it is."""
        kernel = torch.tensor(_FORMS[self.form][1], dtype=torch.float64, device="cpu")
        pairs = torch.einsum("ai,bj->baij", kernel, kernel).reshape(-1, 9).float()
        return (pairs @ weight.reshape(-1, 9).t()).view(-1, *weight.shape[:2]), bias


@cache
def _axis(length: int, outputs: int) -> _Axis:
    """The plan with the fewest products for the first ``outputs`` of ``length`` positions."""
    form = 1 if length == 2 else min((2, 3), key=lambda m: -(-outputs // m) * (m + 2))
    small_data, kernel, small_output = _FORMS[form]
    if form == 1:
        data, output, tiles = _float(small_data), _float(small_output)[:outputs], 1
    else:
        tiles, points = -(-outputs // form), form + 2
        data = torch.zeros(points, tiles, tiles * form + 2, dtype=torch.float32, device="cpu")
        output = torch.zeros(tiles * form, points, tiles, dtype=torch.float32, device="cpu")
        for tile in range(tiles):
            start = tile * form
            data[:, tile, start : start + points] = _float(small_data)
            output[start : start + form, :, tile] = _float(small_output)
        # One position before the map and those behind it are zeros.
        data = F.pad(data, (0, max(0, length + 2 - data.shape[2])))[:, :, 1 : length + 1]
        data, output = data.flatten(0, 1), output[:outputs].flatten(1)
    return _Axis(form, len(kernel), tiles, data.contiguous(), output.contiguous())


def _float(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device="cpu")


def _winograd_conv(x: Tensor, samples: Tensor, bias: Tensor, axis: _Axis) -> Tensor:
    """relu(conv) of a contiguous map (side, side, N, C_in), to (outputs, outputs, N, C_out)."""
    side, _, n, channels = x.shape
    points, tiles, outputs = axis.points, axis.tiles, len(axis.output)
    # Along the columns, then along the rows, ...
    x = torch.bmm(axis.data.expand(side, -1, -1), x.view(side, side, -1))
    x = x.view(side, points, -1).transpose(0, 1)
    x = torch.bmm(axis.data.expand(points, -1, -1), x)
    # ... a product over channels for each pair of points, ...
    x = torch.bmm(x.view(points * points, -1, channels), samples.transpose(1, 2))
    # ... and back along the rows and along the columns.
    x = torch.bmm(axis.output.expand(points, -1, -1), x.view(points, points * tiles, -1))
    x = x.transpose(0, 1).reshape(outputs, points * tiles, -1)
    x = torch.bmm(axis.output.expand(outputs, -1, -1), x)
    return x.view(outputs, outputs, n, -1).add_(bias).relu_()
