"""The pure functions on tensors, and what preprocess makes with them of a decoded picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_images import picture

from ferfacenet import preprocess
from ferfacenet.images import decode
from ferfacenet.transforms import max_value, resize, strips, take_centre, to_gray, views

STEP = 1 / 255
Array = np.ndarray[Any, Any]


def by_pillow(rgb: Array) -> torch.Tensor:
    """Luma, centre square, antialiased bicubic, all in floats and by Pillow."""
    luma = rgb.astype(np.float64) @ (0.299, 0.587, 0.114)
    side = min(luma.shape)
    top, left = (luma.shape[0] - side) // 2, (luma.shape[1] - side) // 2
    square = Image.fromarray(luma[top : top + side, left : left + side].astype(np.float32))
    small = square.resize((48, 48), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)[None] / 255)


@pytest.mark.parametrize("shape", [(83, 130), (130, 83), (48, 49), (20, 31), (500, 301)])
def test_preprocess_is_luma_centre_and_antialiased_bicubic(shape: tuple[int, int]) -> None:
    rgb = picture(*shape)
    found = preprocess(rgb, align=False)
    assert found.shape == (1, 48, 48) and found.dtype == torch.float32
    torch.testing.assert_close(found, by_pillow(rgb), atol=STEP / 2, rtol=0)


def test_48x48_is_passed_through_unresampled() -> None:
    gray = picture(48, 48)[:, :, 1].copy()
    expected = torch.from_numpy(gray)[None] / 255
    for image in (gray, np.dstack([gray] * 3), gray.astype(np.uint16) * 257, expected):
        torch.testing.assert_close(preprocess(image), expected, atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 3), st.booleans())
def test_any_size_of_picture_works(long: int, short: int, tall: bool) -> None:
    size = (short, long) if tall else (long, short)
    found = resize(to_gray(decode(Image.new("L", size, 51))))
    torch.testing.assert_close(found, torch.full((1, 48, 48), 0.2), atol=1e-5, rtol=0)


def test_to_gray_is_bt601_for_every_dtype() -> None:
    colours = torch.eye(3)[:, :, None]
    for dtype, white in ((torch.uint8, 255), (torch.uint16, 65535), (torch.float64, 1)):
        assert max_value(dtype) == white
        gray = to_gray((colours * white).to(dtype))
        assert gray.dtype == torch.float32
        torch.testing.assert_close(gray[0, :, 0], torch.tensor([0.299, 0.587, 0.114]))
    assert torch.equal(to_gray(colours[:1]), colours[:1])


def test_large_pictures_are_the_same_strip_by_strip() -> None:
    x = torch.randint(256, (3, 1100, 2000), dtype=torch.uint8)
    rows = list(strips(1100, 2000))
    assert len(rows) == 3
    assert [i for part in rows for i in range(1100)[part]] == list(range(1100))
    luma = (x / 255 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    torch.testing.assert_close(to_gray(x), luma)
    assert len(list(strips(3, 2**21))) == 3  # a row at least


def test_the_centre_and_resize() -> None:
    x = torch.rand(1, 50, 70)
    assert torch.equal(take_centre(x), resize(x[:, :, 10:60]))
    assert torch.equal(take_centre(x.mT), resize(x.mT[:, 10:60]))
    y = torch.rand(1, 48, 48)
    assert resize(y) is y


def test_views_are_the_centre_its_mirror_or_torchvisions_ten_crops() -> None:
    functional = pytest.importorskip("torchvision").transforms.functional
    x = torch.rand(3, 1, 48, 48)
    centre = x[..., 2:46, 2:46]
    assert torch.equal(views(x, None), centre[None])
    assert torch.equal(views(x, "flip"), torch.stack([centre, centre.flip(3)]))
    assert torch.equal(views(x, "ten_crop"), torch.stack(functional.ten_crop(x, 44)))
