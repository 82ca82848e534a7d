"""predict_proba at the edges of what it promises; found by mutation testing (docs/quality.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ferfacenet import predict_proba


class Noting(nn.Module):
    """A network of a user's own, with no attribute of ours, which notes how it computes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3)
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.dtypes.append(y.dtype)
        return 20 * y.float().mean((2, 3))


def pictures(count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(0, 256, (48, 48), dtype=np.uint8)


def test_logits_without_a_temperature_are_taken_as_they_are() -> None:
    model, x = Noting(), torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        expected = model(x[..., 2:46, 2:46]).softmax(1)
    found = predict_proba(model, x, tta=None, precision="float32")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_that_is_asked_for_is_the_one_that_computes(precision: Any) -> None:
    model = Noting()
    predict_proba(model, torch.randn(2, 1, 48, 48), precision=precision)
    assert set(model.dtypes) == {getattr(torch, precision)}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_an_error_of_the_callers_own_iterable_is_the_one_that_is_raised(count: int) -> None:
    class OwnError(Exception):
        pass

    def failing() -> Iterator[np.ndarray]:
        yield from pictures(count)
        raise OwnError

    with pytest.raises(OwnError):
        predict_proba(Noting(), failing())


def test_a_batch_smaller_than_the_views_of_one_image_reads_one_image_ahead() -> None:
    read, before_the_first = 0, []

    def counted() -> Iterator[np.ndarray]:
        nonlocal read
        for picture in pictures(6):
            read += 1
            yield picture

    model = Noting()
    model.register_forward_pre_hook(lambda *_: before_the_first.append(read))
    assert predict_proba(model, counted(), batch_size=1).shape == (6, 3)
    assert before_the_first[0] == 2


def test_messages_name_what_was_given() -> None:
    with pytest.raises(TypeError, match="got str"):
        predict_proba("fer2013", torch.zeros(1, 1, 48, 48))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(N, C\) logits, got 4-D"):
        predict_proba(nn.Identity(), torch.zeros(1, 1, 48, 48))
