"""tools/_winograd.py: the Winograd convolutions give the plain ones' numbers."""

from __future__ import annotations

import copy

import _winograd
import pytest
import torch
from torch import Tensor, nn

from ferfacenet.model import ImprovedVGG19

# (in, out channels, height, width): the network's stages at 44x44, 32x32, 48x48 and an odd shape.
SHAPES = [
    (64, 128, 22, 22), (256, 256, 11, 11), (512, 512, 5, 5), (512, 512, 2, 2), (128, 128, 16, 16),
    (256, 256, 8, 8), (512, 512, 4, 4), (256, 256, 12, 12), (512, 512, 3, 3), (96, 64, 7, 13),
]  # fmt: skip


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def convolution(c_in: int, c_out: int) -> tuple[nn.Sequential, nn.Sequential]:
    """One layer in Winograd form and the same one plain, in float64."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1))
    reference = copy.deepcopy(layer).double()
    _winograd.use_winograd(layer)
    return layer, reference


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layer_matches_float64(
    shape: tuple[int, int, int, int], memory_format: torch.memory_format
) -> None:
    c_in, c_out, height, width = shape
    layer, reference = convolution(c_in, c_out)
    layer.to(memory_format=memory_format)
    x = torch.randn(3, c_in, height, width).to(memory_format=memory_format)
    assert _winograd._pays(x, layer[0].weight)
    gradient = torch.randn(3, c_out, height, width)
    inputs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = layer(inputs[0]), reference(inputs[1])
    y.backward(gradient)
    expected.backward(gradient.double())
    pairs = [(y, expected), (inputs[0].grad, inputs[1].grad)]
    parameters = zip(layer[0].parameters(), reference[0].parameters(), strict=True)
    pairs += [(one.grad, other.grad) for one, other in parameters]
    for got, wanted in pairs:
        assert got.shape == wanted.shape
        assert error(got.detach(), wanted.detach()) < 2e-5
    # The fused optimizer takes it for granted that a gradient lies as its weight does.
    assert layer[0].weight.grad.stride() == layer[0].weight.stride()


@pytest.mark.parametrize("size", [32, 44])
def test_network_matches_float64(size: int) -> None:
    # Without kinks: rounding moves a ReLU's or a maximum's switch, and the gradients of float32
    # then differ from float64's by far more than the convolutions do.
    torch.manual_seed(0)
    model = ImprovedVGG19(dropout=0.0, pool="avg", width=0.5)
    for index, module in enumerate(model.features):
        if isinstance(module, nn.ReLU):
            model.features[index] = nn.Softplus()
    reference = copy.deepcopy(model).double()
    _winograd.use_winograd(model)
    assert list(model.state_dict()) == list(reference.state_dict())
    x, weights = torch.rand(4, 1, size, size), torch.randn(4, 7)
    logits, expected = model(x), reference(x.double())
    assert error(logits.detach(), expected.detach()) < 1e-4
    (logits * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        # But biases before BatchNorm, whose gradient is rounding alone.
        if (
            not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Conv2d)
            or "weight" in name
        ):
            assert error(parameter.grad, wanted[name].grad) < 1e-3, name


def test_plain_where_it_does_not_pay_or_does_not_fit() -> None:
    layer, reference = convolution(64, 64)
    x = torch.randn(1, 64, 44, 44)
    plain = nn.functional.conv2d(x, layer[0].weight, layer[0].bias, padding=1)
    assert torch.equal(layer(x), plain)
    x = torch.randn(1, 64, 11, 11, dtype=torch.float64)
    assert torch.equal(layer.double()(x), reference(x))
    others = nn.Sequential(nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3))
    _winograd.use_winograd(others)
    assert all(type(layer) is nn.Conv2d for layer in others)
