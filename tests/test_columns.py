"""tools/_columns.py: the same convolutions, in bfloat16, as one product."""

from __future__ import annotations

import copy

import pytest
import torch
from _columns import use_columns
from torch import Tensor, nn


def run(layer: nn.Module, x: Tensor, gradient: Tensor, narrow: bool) -> list[Tensor]:
    """The output and the gradients of the input, the weight and the bias."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        y = layer(x)
    y.backward(gradient.to(y.dtype))
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    "shape",
    [(512, 512, 5, 5), (512, 512, 2, 2), (256, 512, 4, 4), (64, 96, 1, 1), (32, 64, 6, 3)],
    ids=str,
)
def test_layer_matches_float64(shape: tuple[int, int, int, int]) -> None:
    c_in, c_out, height, width = shape
    torch.manual_seed(0)
    layer = nn.Conv2d(c_in, c_out, 3, padding=1).to(memory_format=torch.channels_last)
    plain, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    model = nn.Sequential(layer)
    use_columns(model)
    assert type(layer) is not nn.Conv2d and list(model.state_dict()) == ["0.weight", "0.bias"]
    x, gradient = torch.randn(3, c_in, height, width), torch.randn(3, c_out, height, width)
    wanted = run(exact, x.double(), gradient.double(), narrow=False)
    found, usual = (run(of, x, gradient, narrow=True) for of in (layer, plain))
    for one, other, right in zip(found, usual, wanted, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        error, of_plain = ((of.double() - right).norm() / right.norm() for of in (one, other))
        assert error < 1.2 * of_plain + 1e-4 < 0.02
    # The fused optimizer takes it for granted that a gradient lies as its weight does.
    assert layer.weight.grad is not None
    assert layer.weight.grad.stride() == layer.weight.stride()
    assert torch.equal(layer(x), plain(x))  # in float32 all is as it was


def test_what_follows_may_work_in_place() -> None:
    layer = nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last)
    model = nn.Sequential(layer, nn.ReLU(inplace=True))
    use_columns(model)
    x = torch.randn(2, 32, 4, 4)
    _, *gradients = run(model, x, torch.ones(2, 32, 4, 4), narrow=True)
    assert all(of.abs().sum() > 0 for of in gradients)


def test_other_layers_and_large_maps_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, padding=1))
    plain, x = copy.deepcopy(model), torch.randn(2, 8, 11, 11)
    use_columns(model)
    assert [type(layer) is nn.Conv2d for layer in model] == [True, True, False]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), plain(x))
