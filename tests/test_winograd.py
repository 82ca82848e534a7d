"""tools/winograd.py: the Winograd convolutions give the plain ones' numbers."""

from __future__ import annotations

import copy

import pytest
import torch
import winograd
from torch import Tensor, nn

from ferfacenet.model import ImprovedVGG19

# (in, out channels, height, width): the network's stages at 44x44, 32x32, 48x48 and an odd shape.
SHAPES = [
    (64, 128, 22, 22),
    (256, 256, 11, 11),
    (512, 512, 5, 5),
    (512, 512, 2, 2),
    (128, 128, 16, 16),
    (256, 256, 8, 8),
    (512, 512, 4, 4),
    (512, 512, 1, 1),
    (256, 256, 12, 12),
    (512, 512, 3, 3),
    (96, 64, 7, 13),
]


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def convolution(c_in: int, c_out: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """One layer in Winograd form and the same one plain, in float64."""
    layer = nn.Conv2d(c_in, c_out, 3, padding=1)
    reference = copy.deepcopy(layer).double()
    winograd.use_winograd(layer)
    return layer, reference


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layer_matches_float64(
    shape: tuple[int, int, int, int], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    c_in, c_out, height, width = shape
    layer, reference = convolution(c_in, c_out)
    x = torch.randn(3, c_in, height, width).to(memory_format=memory_format)
    assert winograd._pays(x, layer.weight)
    gradient = torch.randn(3, c_out, height, width)
    inputs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = layer(inputs[0]), reference(inputs[1])
    y.backward(gradient)
    expected.backward(gradient.double())
    pairs = [(y, expected), (inputs[0].grad, inputs[1].grad)]
    pairs += [(layer.weight.grad, reference.weight.grad), (layer.bias.grad, reference.bias.grad)]
    for got, wanted in pairs:
        assert got.shape == wanted.shape
        assert error(got.detach(), wanted.detach()) < 2e-5


def smooth_network() -> ImprovedVGG19:
    """The network without its kinks: rounding moves a ReLU's or a maximum's switch, and the
    gradients of float32 then differ from float64's by far more than the convolutions do."""
    torch.manual_seed(0)
    model = ImprovedVGG19(dropout=0.0, pool="avg")
    for index, module in enumerate(model.features):
        if isinstance(module, nn.ReLU):
            model.features[index] = nn.Softplus()
    return model


@pytest.mark.parametrize("size", [32, 44])
def test_network_matches_float64(size: int) -> None:
    model = smooth_network()
    reference = copy.deepcopy(model).double()
    names = list(model.state_dict())
    winograd.use_winograd(model)
    assert list(model.state_dict()) == names
    x = torch.randn(4, 1, size, size)
    weights = torch.randn(4, 7)
    logits, expected = model(x), reference(x.double())
    assert error(logits.detach(), expected.detach()) < 1e-4
    (logits * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    wanted = dict(reference.named_parameters())
    layers = reference.named_modules()
    biases = {f"{name}.bias" for name, layer in layers if isinstance(layer, nn.Conv2d)}
    for name, parameter in model.named_parameters():
        if name in biases:
            continue  # a bias before BatchNorm: its gradient is rounding alone
        assert parameter.grad is not None
        assert wanted[name].grad is not None
        assert error(parameter.grad, wanted[name].grad) < 1e-3, name
    buffers = dict(reference.named_buffers())
    for name, buffer in model.named_buffers():
        assert error(buffer, buffers[name].double()) < 1e-4, name


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_evaluation_matches_plain(pool: str) -> None:
    torch.manual_seed(0)
    model = ImprovedVGG19(pool=pool).eval()  # type: ignore[arg-type]
    fast = copy.deepcopy(model)
    winograd.use_winograd(fast)
    x = torch.randn(4, 1, 44, 48)
    with torch.inference_mode():
        assert error(fast(x), model(x).double()) < 1e-4


def test_two_runs_are_identical() -> None:
    torch.manual_seed(0)
    layer, _ = convolution(128, 128)
    x = torch.randn(4, 128, 11, 11)
    results = []
    for _ in range(2):
        layer.zero_grad()
        y = layer(x)
        y.square().sum().backward()
        assert layer.weight.grad is not None
        results.append((y.detach(), layer.weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_need_no_copies_but_one(memory_format: torch.memory_format) -> None:
    block = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
    ).to(memory_format=memory_format)
    winograd.use_winograd(block)
    y = block(torch.randn(2, 64, 8, 8))
    # CopySlices, what a change of a view leaves, would copy the gradient into NCHW.
    assert y.grad_fn is not None and y.grad_fn.name() == "ReluBackward0"
    y.sum().backward()
    weight = block[0].weight
    assert weight.grad is not None and weight.grad.stride() == weight.stride()


def test_plain_where_it_does_not_pay() -> None:
    layer, reference = convolution(64, 64)
    x = torch.randn(1, 64, 44, 44)
    assert not winograd._pays(x, layer.weight)
    plain = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    assert torch.equal(layer(x), plain)
    x = torch.randn(1, 64, 11, 11, dtype=torch.float64)
    assert torch.equal(layer.double()(x), reference(x))


def test_other_convolutions_stay() -> None:
    model = nn.Sequential(
        nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
    )
    winograd.use_winograd(model)
    assert all(type(layer) is nn.Conv2d for layer in model)
