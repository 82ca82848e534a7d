"""Every kind of image gives the same tensor; no kind of rubbish gives anything but one error."""

from __future__ import annotations

import io
import os
import re
import resource
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ferfacenet import transforms
from ferfacenet.model import MEAN, STD
from ferfacenet.transforms import (
    centre_square,
    normalise,
    preprocess,
    read_image,
    resize,
    ten_crop,
    to_gray,
)

HEIGHT, WIDTH = 83, 130
STEP = 1 / 255


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray[Any, Any]:
    """An RGB picture that no turn or mirror maps onto itself, with detail at all scales."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack(
        [127 + 60 * np.sin(x / 9 + c) + 40 * np.cos(y / (5 + c)) + x / 4 for c in range(3)], -1
    )
    noise = random.normal(0, 12, waves.shape)
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


RGB = picture()
GRAY = RGB[:, :, 0].copy()


def pixels(image: Any) -> torch.Tensor:
    """``preprocess`` without its normalisation: (1, 48, 48) in [0, 1]."""
    return preprocess(image, align=False, mean=0.0, std=1.0)


def outcome(image: Any) -> torch.Tensor | str:
    """The tensor, or the message of the ValueError that came instead."""
    try:
        return preprocess(image, align=False)
    except ValueError as error:
        return str(error)


def reference(rgb: np.ndarray[Any, Any]) -> torch.Tensor:
    """The same by Pillow alone: luma, centre square, antialiased bilinear, all in floats."""
    luma = rgb.astype(np.float64) @ (0.299, 0.587, 0.114)
    side = min(luma.shape)
    top, left = (luma.shape[0] - side) // 2, (luma.shape[1] - side) // 2
    square = Image.fromarray(luma[top : top + side, left : left + side].astype(np.float32))
    small = square.resize((48, 48), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)[None] / 255)


def test_result_is_a_normalised_float32_square() -> None:
    result = preprocess(RGB, align=False)
    assert result.shape == (1, 48, 48)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result * STD + MEAN, pixels(RGB))
    torch.testing.assert_close(
        preprocess(RGB, align=False, mean=0.1, std=0.5) * 0.5 + 0.1, pixels(RGB)
    )


@pytest.mark.parametrize("shape", [(83, 130), (130, 83), (48, 49), (20, 31), (500, 301)])
def test_resizing_is_antialiased_bilinear(shape: tuple[int, int]) -> None:
    rgb = picture(*shape)
    torch.testing.assert_close(pixels(rgb), reference(rgb), atol=STEP / 2, rtol=0)


# --- the same picture, whichever way it comes in -------------------------------------------


def rgb_ways(folder: Path) -> dict[str, Any]:
    image = Image.fromarray(RGB)
    path = folder / "picture.png"
    image.save(path)
    data = path.read_bytes()
    opaque = np.dstack([RGB, np.full(GRAY.shape, 255, np.uint8)])
    unit = RGB.astype(np.float64) / 255
    chw = torch.from_numpy(RGB).permute(2, 0, 1)
    return {
        "path": str(path),
        "Path": path,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": io.BytesIO(data),
        "PIL RGB": image,
        "PIL RGBA": image.convert("RGBA"),
        "PIL CMYK": image.convert("CMYK"),
        "PIL YCbCr": image.convert("YCbCr"),
        "PIL RGBX": image.convert("RGBX"),
        "numpy uint8": RGB,
        "numpy uint16": RGB.astype(np.uint16) * 257,
        "numpy big-endian": (RGB.astype(np.uint16) * 257).astype(">u2"),
        "numpy float16": unit.astype(np.float16),
        "numpy float32": unit.astype(np.float32),
        "numpy float64": unit,
        "numpy longdouble": unit.astype(np.longdouble),
        "numpy HxWx4": opaque,
        "numpy float HxWx4": opaque.astype(np.float32) / 255,
        "numpy Fortran order": np.asfortranarray(RGB),
        "numpy negative strides": RGB[::-1, ::-1].copy()[::-1, ::-1],
        "torch uint8": chw,
        "torch uint8 contiguous": chw.contiguous(),
        "torch uint16": torch.from_numpy(RGB.astype(np.uint16) * 257).permute(2, 0, 1),
        "torch float16": (chw / 255).half(),
        "torch float32": chw / 255,
        "torch float64": chw.double() / 255,
        "torch with gradient": (chw / 255).requires_grad_(),
        "torch 4 channels": torch.from_numpy(opaque).permute(2, 0, 1),
        "PNG": encoded(image),
        "BMP": encoded(image, "BMP"),
        "TIFF": encoded(image, "TIFF"),
        "PPM": encoded(image, "PPM"),
        "WebP": encoded(image, "WEBP", lossless=True),
        "JPEG 2000": encoded(image, "JPEG2000"),
    }


def gray_ways() -> dict[str, Any]:
    image = Image.fromarray(GRAY)
    wide = GRAY.astype(np.uint16) * 257
    return {
        "PIL L": image,
        "PIL LA": image.convert("LA"),
        "PIL La": image.convert("LA").convert("La"),
        "PIL RGB": image.convert("RGB"),
        "PIL RGBA": image.convert("RGBA"),
        "PIL RGBa": image.convert("RGBA").convert("RGBa"),
        "PIL P": image.convert("P"),
        "PIL PA": image.convert("P").convert("PA"),
        "PIL CMYK": image.convert("CMYK"),
        "PIL YCbCr": image.convert("YCbCr"),
        "PIL HSV": image.convert("RGB").convert("HSV"),
        "PIL I;16": Image.fromarray(wide),
        "PIL I;16B": Image.frombytes("I;16B", image.size, wide.astype(">u2").tobytes()),
        "PIL I of 16 bits": Image.fromarray(wide.astype(np.int32)),
        "PIL I of 8 bits": image.convert("I"),
        "PIL F of 0 to 255": image.convert("F"),
        "PIL F of 0 to 1": Image.fromarray(GRAY.astype(np.float32) / 255),
        "PNG": encoded(image),
        "PNG of 16 bits": encoded(Image.fromarray(wide)),
        "PNG of a palette": encoded(image.convert("P")),
        "PGM of 16 bits": encoded(Image.fromarray(wide.astype(np.int32)), "PPM"),
        "TIFF of 16 bits": encoded(Image.fromarray(wide), "TIFF"),
        "GIF": encoded(image, "GIF"),
        "numpy HxW": GRAY,
        "numpy HxWx1": GRAY[:, :, None],
        "numpy HxWx2": np.dstack([GRAY, np.full_like(GRAY, 255)]),
        "numpy HxWx3": np.dstack([GRAY] * 3),
        "numpy uint16": wide,
        "numpy float": GRAY / 255,
        "torch HxW": torch.from_numpy(GRAY),
        "torch 1xHxW": torch.from_numpy(GRAY)[None],
        "torch 2xHxW": torch.from_numpy(np.stack([GRAY, np.full_like(GRAY, 255)])),
        "torch 3xHxW": torch.from_numpy(GRAY).expand(3, -1, -1),
        "torch float": torch.from_numpy(GRAY)[None] / 255,
    }


def test_every_way_of_giving_a_colour_picture_agrees(tmp_path: Path) -> None:
    wanted = reference(RGB)
    for way, image in rgb_ways(tmp_path).items():
        difference = (pixels(image) - wanted).abs().max().item()
        # To 8 bits of YCbCr and back, a pixel itself is off by more than a step.
        allowed = 2 * STEP if way == "PIL YCbCr" else STEP
        assert difference <= allowed, f"{way}: {difference * 255:.2f} / 255"


def test_every_way_of_giving_a_gray_picture_agrees() -> None:
    wanted = reference(np.dstack([GRAY] * 3))
    for way, image in gray_ways().items():
        difference = (pixels(image) - wanted).abs().max().item()
        assert difference <= STEP, f"{way}: {difference * 255:.2f} / 255"


def test_lab_is_converted() -> None:
    from PIL import ImageCms

    image = Image.fromarray(RGB)
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(image, to_lab)
    assert lab is not None
    # Eight bits of L*, a*, b* do not hold an RGB pixel exactly.
    torch.testing.assert_close(pixels(lab), reference(RGB), atol=3 * STEP, rtol=0)


def test_bilevel_pictures_agree() -> None:
    bits = GRAY > 128
    wanted = reference(np.dstack([bits.astype(np.uint8) * 255] * 3))
    image = Image.fromarray(bits)
    assert image.mode == "1"
    for same in (image, encoded(image), bits, torch.from_numpy(bits), torch.from_numpy(bits)[None]):
        torch.testing.assert_close(pixels(same), wanted, atol=STEP, rtol=0)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float", "RGB", "PNG", "tensor"])
def test_48x48_is_passed_through_unresampled(kind: str) -> None:
    gray = picture(48, 48)[:, :, 1].copy()
    images: dict[str, Any] = {
        "uint8": gray,
        "uint16": gray.astype(np.uint16) * 257,
        "float": gray / 255,
        "RGB": np.dstack([gray] * 3),
        "PNG": encoded(Image.fromarray(gray)),
        "tensor": torch.from_numpy(gray)[None],
    }
    wanted = (torch.from_numpy(gray)[None].double() / 255).float()
    torch.testing.assert_close(
        preprocess(images[kind], mean=0.0, std=1.0), wanted, atol=1e-6, rtol=0
    )


# --- turned pictures, transparency, animations ---------------------------------------------

TURNED: dict[int, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    # What a camera stores is the upright picture, turned the inverse way.
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](RGB)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    data = encoded(stored, kind, exif=exif, **options.get(kind, {}))
    tolerance = (4 if kind == "JPEG" else 1) * STEP
    assert read_image(data).shape == (3, HEIGHT, WIDTH)
    torch.testing.assert_close(pixels(data), reference(RGB), atol=tolerance, rtol=0)
    torch.testing.assert_close(
        pixels(Image.open(io.BytesIO(data))), reference(RGB), atol=tolerance, rtol=0
    )


def test_broken_exif_leaves_the_picture_readable() -> None:
    data = encoded(
        Image.fromarray(RGB), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xfe" * 9
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about the EXIF block
        torch.testing.assert_close(pixels(data), reference(RGB), atol=STEP, rtol=0)


def test_transparency_is_shown_on_white_in_every_form() -> None:
    alpha = np.zeros_like(GRAY)
    alpha[:, WIDTH // 2 :] = 255
    alpha[:20] = 100
    rgba = np.dstack([RGB, alpha])
    share = alpha[:, :, None] / 255
    shown = np.round(RGB * share + 255 * (1 - share)).astype(np.uint8)
    wanted = reference(shown)
    for same in (
        rgba,
        rgba.astype(np.float32) / 255,
        rgba.astype(np.uint16) * 257,
        torch.from_numpy(rgba).permute(2, 0, 1),
        Image.fromarray(rgba),
        encoded(Image.fromarray(rgba)),
        encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
    ):
        torch.testing.assert_close(pixels(same), wanted, atol=STEP, rtol=0)


def test_a_transparent_colour_is_white_too() -> None:
    gray = np.where(GRAY > 128, 200, 10).astype(np.uint8)
    wanted = reference(np.dstack([np.where(gray == 10, 255, gray)] * 3).astype(np.uint8))
    data = encoded(Image.fromarray(gray), transparency=10)
    palette = encoded(Image.fromarray(gray).convert("P"), transparency=10)
    gif = encoded(Image.fromarray(gray), "GIF", transparency=10)
    for same in (data, palette, gif):
        torch.testing.assert_close(pixels(same), wanted, atol=STEP, rtol=0)
    bilevel = encoded(Image.new("1", (48, 48)), transparency=0)  # black, which is transparent
    assert pixels(bilevel).unique().tolist() == [1]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind: str) -> None:
    first, second = (Image.fromarray(np.full((60, 60), v, np.uint8)) for v in (50, 200))
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second, second], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) > 1
    assert pixels(data).mean().item() == pytest.approx(50 / 255, abs=STEP)


# --- the parts -----------------------------------------------------------------------------


def test_read_image_keeps_size_and_colour() -> None:
    torch.testing.assert_close(read_image(RGB), torch.from_numpy(RGB).permute(2, 0, 1) / 255)
    assert read_image(GRAY).shape == (1, HEIGHT, WIDTH)
    assert read_image((GRAY.astype(np.uint16)) * 257).dtype == torch.float32
    assert read_image(Image.fromarray(np.full((9, 9), 65535, np.uint16))).max().item() == 1.0


def test_to_gray_is_bt601() -> None:
    colours = torch.eye(3)[:, :, None]
    torch.testing.assert_close(to_gray(colours)[0, :, 0], torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(to_gray(colours.mul(255).to(torch.uint8)), to_gray(colours))
    torch.testing.assert_close(to_gray(colours[:1]), colours[:1])


def test_centre_square() -> None:
    x = torch.arange(35).view(1, 5, 7)
    assert torch.equal(centre_square(x), x[:, :, 1:6])
    assert torch.equal(centre_square(x.mT), x.mT[:, 1:6])


def test_resize_leaves_the_right_size_alone() -> None:
    x = torch.rand(1, 48, 48)
    assert resize(x) is x


def test_normalise_and_its_input() -> None:
    x = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(normalise(x, 0.5, 0.25), torch.tensor([-2.0, 0.0, 2.0]))
    assert x.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("size", [44, 43, 48])
def test_ten_crop_is_torchvisions(size: int) -> None:
    from torchvision.transforms import functional

    x = torch.rand(3, 1, 48, 48)
    crops = ten_crop(x, size)
    assert crops.shape == (10, 3, 1, size, size)
    for ours, theirs in zip(crops, functional.ten_crop(x, size), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(1, 1, 43, 48), (1, 1, 48, 43), (1, 48, 48), (48, 48)])
def test_ten_crop_refuses_what_it_cannot_crop(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ten_crop needs"):
        ten_crop(torch.zeros(shape))


def test_the_callers_memory_is_left_alone() -> None:
    for given_image in (
        RGB.copy(),
        RGB.astype(np.float32) / 255,
        torch.rand(1, 48, 48),
        torch.rand(48, 48),
        picture(48, 48)[:, :, 0] / np.float32(255),
    ):
        before = given_image.copy() if isinstance(given_image, np.ndarray) else given_image.clone()
        result = preprocess(given_image, align=False)
        result.zero_()
        read_image(given_image).zero_()
        assert (given_image == before).all()


def test_read_only_arrays_do_not_warn() -> None:
    frozen = RGB.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(pixels(frozen), pixels(RGB))
        pixels(np.broadcast_to(np.float32(0.5), (50, 60, 3)))


def test_open_files_are_read_from_their_start_and_left_open(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    with path.open("rb") as file:
        first = pixels(file)
        torch.testing.assert_close(pixels(file), first)
        assert not file.closed


def test_a_pipe_is_read_to_its_end() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = io.BytesIO(encoded(Image.fromarray(RGB)))

        def read(self, size: int = -1) -> bytes:
            return self.data.read(size)

    torch.testing.assert_close(pixels(Pipe()), pixels(RGB))


def test_import_is_light() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import ferfacenet.transforms;"
        "print([m for m in ('PIL', 'cv2', 'torchvision', 'matplotlib', 'huggingface_hub')"
        " if m in sys.modules and m not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_thousand_crops_take_little_time() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (1000, 48, 48), dtype=np.uint8)
    start = time.thread_time()
    for crop in crops:
        preprocess(crop)
    assert time.thread_time() - start < 2.0


# --- what cannot be used -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((50, 50), np.nan), "NaN or infinite"),
        (np.full((50, 50), np.inf), "NaN or infinite"),
        (np.full((50, 50), 1e300), "NaN or infinite"),
        (torch.full((1, 50, 50), -np.inf), "NaN or infinite"),
        (np.full((50, 50), 1.5), r"in \[0, 1\].*1\.5"),
        (np.full((50, 50), -0.2), r"in \[0, 1\].*-0\.2"),
        (RGB.astype(np.float32), r"in \[0, 1\].*as uint8"),
        (torch.randn(1, 48, 48), r"in \[0, 1\]"),
        (np.zeros((0, 5), np.uint8), "empty"),
        (np.zeros((5, 0, 3), np.uint8), "empty"),
        (torch.zeros(3, 0, 0), "empty"),
        (Image.new("L", (0, 4)), "empty"),
        (np.zeros(48, np.uint8), "HxW"),
        (np.zeros((), np.uint8), "HxW"),
        (np.zeros((4, 4, 5), np.uint8), "HxWxC"),
        (np.zeros((3, 48, 48), np.uint8), "CxHxW is for torch"),
        (np.zeros((1, 48, 48, 3), np.uint8), "HxWxC"),
        (torch.zeros(48, 48, 3), "HxWxC is for numpy"),
        (torch.zeros(1, 1, 48, 48), "CxHxW"),
        (torch.zeros(5), "CxHxW"),
        (np.zeros((5, 5), np.int64), "uint8, uint16, bool or float"),
        (np.zeros((5, 5), np.complex64), "uint8, uint16, bool or float"),
        (np.zeros((5, 5), "datetime64[s]"), "uint8, uint16, bool or float"),
        (np.full((5, 5), "a", object), "uint8, uint16, bool or float"),
        (torch.zeros(1, 5, 5, dtype=torch.int32), "uint8, uint16, bool or float"),
        (torch.zeros(1, 5, 5, dtype=torch.complex64), "uint8, uint16, bool or float"),
        (torch.zeros(1, 5, 5).to_sparse(), "dense"),
        (torch.zeros(1, 5, 5, device="meta"), "dense"),
        (Image.fromarray(np.full((5, 5), np.nan, np.float32)), "outside 0 to"),
        (Image.fromarray(np.full((5, 5), 300, np.float32)), "outside 0 to"),
        (Image.fromarray(np.full((5, 5), -1, np.int32)), "outside 0 to"),
        (Image.fromarray(np.full((5, 5), 70000, np.int32)), "outside 0 to"),
        (b"", "is empty"),
        (b"hello, I am not an image", "not an image in a format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format"),
        (io.BytesIO(b""), "is empty"),
        ("a\0b.png", "not a file name"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_images_raise_one_value_error(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        preprocess(image, align=False)
    named = repr(image) if isinstance(image, str) else transforms.describe(image)
    assert str(error.value).startswith(named + ": ")


@pytest.mark.parametrize("image", [np.zeros(48), np.zeros((1, 4, 4, 3)), torch.zeros(5)])
def test_the_other_order_is_named_only_where_it_may_be_meant(image: Any) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        preprocess(image, align=False)
    assert "is for" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_every_width_are_held_to_their_range(dtype: torch.dtype) -> None:
    image = torch.full((1, 48, 48), 0.25, dtype=dtype)
    assert read_image(image).unique().tolist() == [0.25]
    image[0, 5, 5] = 1.5
    with pytest.raises(ValueError, match=r"float pixels must be in \[0, 1\]"):
        preprocess(image, align=False)


def test_what_resizing_leaves_outside_is_cut_off() -> None:
    slack = transforms._FLOAT_SLACK
    for make in (lambda array: array, torch.from_numpy):
        for row in ([-slack / 2, 0.5], [0.5, 1 + slack / 2], [-slack / 2, 1 + slack / 2]):
            shown = read_image(make(np.array([row], np.float32)))
            assert shown.flatten().tolist() == [min(max(value, 0), 1) for value in row]
        for row in ([-slack * 2, 0.5], [0.5, 1 + slack * 2]):
            with pytest.raises(ValueError, match=r"in \[0, 1\]"):
                read_image(make(np.array([row], np.float32)))


@pytest.mark.parametrize(
    "image", [None, 3, 1.5, [1, 2], [[0, 255]], {}, object(), io.StringIO("x")]
)
def test_wrong_types_raise_type_error(image: Any) -> None:
    with pytest.raises(TypeError):
        preprocess(image)


def test_align_must_be_known() -> None:
    for wrong in ("yes", None, "AUTO"):
        with pytest.raises(ValueError, match="align must be"):
            preprocess(GRAY, align=wrong)  # type: ignore[arg-type]


def test_what_has_no_file_is_called_by_its_kind_and_size() -> None:
    for image, name in (
        (np.zeros((9, 8, 5), np.uint8), "array (9, 8, 5) uint8"),
        (torch.zeros(5, 9, 8), "tensor (5, 9, 8) torch.float32"),
        (b"no image", "image of 8 bytes"),
        (io.BytesIO(b"no image"), "unnamed _io.BytesIO"),
        (Image.new("L", (0, 4)), "unnamed PIL.Image.Image"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(name)}: "):
            preprocess(image, align=False)


def test_errors_name_the_file(tmp_path: Path) -> None:
    bad = tmp_path / "holiday.jpg"
    bad.write_bytes(b"no image")
    for given_image in (bad, str(bad)):
        with pytest.raises(ValueError, match=r"holiday\.jpg"):
            preprocess(given_image)
    with bad.open("rb") as file, pytest.raises(ValueError, match=r"holiday\.jpg"):
        preprocess(file)
    with bad.open(encoding="ascii") as text, pytest.raises(TypeError, match=r"holiday.*binary"):
        preprocess(text)  # type: ignore[arg-type]
    whole = encoded(Image.fromarray(RGB))
    bad.write_bytes(whole[: len(whole) // 2])
    with Image.open(bad) as image, pytest.raises(ValueError, match=r"holiday\.jpg"):
        preprocess(image)
    with pytest.raises(ValueError, match=r"holiday\.jpg: cannot be read"):
        preprocess(bad)


def test_files_that_cannot_be_opened_stay_os_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        preprocess(tmp_path / "absent.png")
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match=r"loop\.png"):
        preprocess(loop)
    with pytest.raises(OSError, match="name too long"):
        preprocess("x" * 5000)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    if os.geteuid() == 0:  # root may read anything

        def refuse(path: object, flags: int) -> int:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "open", refuse)
    secret.chmod(0)
    with pytest.raises(PermissionError, match=r"secret\.png"):
        preprocess(secret)


def test_folders_and_devices_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path.name}: is a folder"):
        preprocess(tmp_path)
    with pytest.raises(ValueError, match="/dev/zero: is not a regular file"):
        preprocess("/dev/zero")


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    errors: list[ValueError] = []

    def attempt() -> None:
        try:
            preprocess(fifo)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert "fifo.png" in str(errors[0])


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data does not fill."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 9_500), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_unopened(size: tuple[int, int]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"pixels|bomb"):
        preprocess(png_claiming(*size))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_one_limit_of_pixels_for_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "MAX_PIXELS", 100 * 100)
    fits, large = np.zeros((100, 100), np.uint8), np.zeros((100, 101), np.uint8)
    for make in (
        lambda a: a,
        Image.fromarray,
        torch.from_numpy,
        lambda a: encoded(Image.fromarray(a)),
    ):
        preprocess(make(fits), align=False)
        with pytest.raises(ValueError, match="101x100 pixels"):
            preprocess(make(large), align=False)


def test_one_limit_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "MAX_BYTES", 2**20)
    path = tmp_path / "long.bmp"
    path.write_bytes(encoded(Image.fromarray(GRAY), "BMP") + b"\0" * 2**20)
    with path.open("rb") as file:
        for image in (path, path.read_bytes(), file):
            with pytest.raises(ValueError, match="larger than 1 MiB"):
                preprocess(image)


def test_raw_pictures_have_no_limit_of_text() -> None:
    """Larger than a PPM that Pillow reads number by number may be, which these are not."""
    large = Image.fromarray(picture(900, 1000))
    wanted = pixels(large)
    for kind in ("PPM", "BMP", "PNG"):
        data = encoded(large, kind, **({"compress_level": 0} if kind == "PNG" else {}))
        assert len(data) > transforms._MAX_TEXT
        assert torch.equal(pixels(data), wanted)


@pytest.mark.parametrize("magic", [b"P1", b"P2", b"P3"])
def test_large_text_is_refused_unopened(magic: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would go through the comments before the size, byte by byte in Python."""
    opened: list[object] = []
    monkeypatch.setattr(Image, "open", opened.append)
    with pytest.raises(ValueError, match="larger than 2 MiB, for a PPM"):
        preprocess(magic + b"\n#" + b" " * transforms._MAX_TEXT)
    assert not opened


BROKEN_KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")


@pytest.mark.parametrize("kind", BROKEN_KINDS)
def test_truncated_files_are_value_errors(kind: str) -> None:
    whole = encoded(Image.fromarray(RGB), kind)
    for cut in np.linspace(0, len(whole) * 0.9, 25).astype(int):
        result = outcome(whole[:cut])
        if isinstance(result, str):
            assert result.startswith(f"image of {cut} bytes: ")
        else:  # some decoders make do with what is there
            assert result.isfinite().all()


@pytest.mark.parametrize("kind", BROKEN_KINDS)
@pytest.mark.filterwarnings("ignore")  # Pillow's own, about broken files
def test_flipped_bits_give_a_tensor_or_a_value_error(kind: str) -> None:
    whole = encoded(Image.fromarray(picture(40, 50)), kind)
    random = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 4):
            data[place] ^= 1 << random.integers(8)
        result = outcome(bytes(data))
        if isinstance(result, str):
            assert result.startswith(f"image of {len(data)} bytes: ")
        else:
            assert result.isfinite().all()


@settings(max_examples=300, deadline=None)
@given(
    hnp.arrays(
        dtype=st.one_of(
            hnp.boolean_dtypes(),
            hnp.integer_dtypes(),
            hnp.unsigned_integer_dtypes(),
            hnp.floating_dtypes(),
            hnp.complex_number_dtypes(),
        ),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=60),
    ),
    st.booleans(),
)
def test_any_array_gives_a_tensor_or_a_value_error(array: Any, as_tensor: bool) -> None:
    image = array
    if as_tensor:
        try:
            image = torch.from_numpy(array.copy())
        except (TypeError, ValueError):
            return
    result = outcome(image)
    if isinstance(result, str):
        assert str(tuple(array.shape)) in result
    else:
        assert result.shape == (1, 48, 48)
        assert result.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4000), st.integers(1, 3), st.booleans(), st.sampled_from(["1", "L", "P", "RGB"])
)
def test_any_size_of_picture_works(long: int, short: int, tall: bool, mode: str) -> None:
    size = (short, long) if tall else (long, short)
    result = pixels(Image.new(mode, size, 1))
    assert result.shape == (1, 48, 48)
    assert (result - result.mean()).abs().max() < 1e-5
