"""tools/_winograd.py and tools/_columns.py: the same convolutions in other forms."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from _columns import use_columns
from _winograd import use_winograd
from torch import Tensor, nn

# (in, out channels, height, width): the network's stages at 44x44, 32x32 and 48x48, and odd ones.
WINOGRAD = [
    (64, 128, 22, 22), (256, 256, 11, 11), (512, 512, 5, 5), (512, 512, 2, 2), (128, 128, 16, 16),
    (256, 256, 8, 8), (512, 512, 4, 4), (256, 256, 12, 12), (512, 512, 3, 3), (96, 64, 7, 13),
]  # fmt: skip
COLUMNS = [(512, 512, 5, 5), (512, 512, 2, 2), (256, 512, 4, 4), (64, 96, 1, 1), (32, 64, 6, 3)]
FORMS = [(use_winograd, False, of) for of in WINOGRAD] + [(use_columns, True, of) for of in COLUMNS]


def run(layer: nn.Module, x: Tensor, gradient: Tensor, narrow: bool = False) -> list[Tensor]:
    """The output and the gradients of the input, the weight and the bias."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        y = layer(x)
    y.backward(gradient.to(y.dtype))
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("change", "narrow", "shape"), FORMS)
def test_layers_match_float64(
    change: Callable[[nn.Module], None], narrow: bool, shape: tuple[int, int, int, int]
) -> None:
    c_in, c_out, height, width = shape
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1)).to(
        memory_format=torch.channels_last
    )
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    change(model)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    x, gradient = torch.randn(3, c_in, height, width), torch.randn(3, c_out, height, width)
    wanted = run(exact, x.double(), gradient.double())
    found, usual = (run(of, x, gradient, narrow) for of in (model, plain))
    assert not torch.equal(found[0], usual[0])  # it was another form
    for one, other, right in zip(found, usual, wanted, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        error, of_plain = ((of.double() - right).norm() / right.norm() for of in (one, other))
        assert error < (min(1.2 * of_plain + 1e-4, 0.02) if narrow else 2e-5)
    # The fused optimizer takes it for granted that a gradient lies as its weight does.
    weight = model[0].weight
    assert weight.grad.stride() == weight.stride()


def test_what_follows_may_work_in_place() -> None:
    layer = nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last)
    model = nn.Sequential(layer, nn.ReLU(inplace=True))
    use_columns(model)
    _, *gradients = run(model, torch.randn(2, 32, 4, 4), torch.ones(2, 32, 4, 4), narrow=True)
    assert all(of.abs().sum() > 0 for of in gradients)


@pytest.mark.parametrize(
    ("change", "narrow", "side", "dtype"),
    [(use_winograd, False, 44, torch.float32), (use_winograd, False, 11, torch.float64),
     (use_winograd, True, 11, torch.float32), (use_columns, True, 11, torch.float32),
     (use_columns, False, 5, torch.float32)],
)  # fmt: skip
def test_plain_where_it_does_not_pay_or_does_not_fit(
    change: Callable[[nn.Module], None], narrow: bool, side: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3, padding=1)
    )
    model.to(dtype)
    plain, x = copy.deepcopy(model), torch.randn(1, 64, side + 2, side + 2, dtype=dtype)
    change(model)
    assert [type(layer) is nn.Conv2d for layer in model] == [True, True, False]
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        assert torch.equal(model(x), plain(x))
