"""Every kind of image gives the same pixels; no kind of rubbish gives anything but one error."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encoded
from PIL import Image, PngImagePlugin, TiffImagePlugin

from ferfacenet import files, preprocess
from ferfacenet.files import describe, suffixes
from ferfacenet.images import decode
from ferfacenet.transforms import max_value

HEIGHT, WIDTH = 83, 130
STEP = 1 / 255


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray[Any, Any]:
    """An RGB picture that no turn or mirror maps onto itself, with detail at all scales."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack(
        [127 + 60 * np.sin(x / 9 + c) + 40 * np.cos(y / (5 + c)) + x / 4 for c in range(3)], -1
    )
    return np.clip(waves + random.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


RGB = picture()
GRAY = RGB[:, :, 0].copy()


def read_image(image: Any) -> torch.Tensor:
    pixels = decode(image)
    return pixels.float() / max_value(pixels.dtype)


def assert_shows(image: Any, array: np.ndarray[Any, Any], steps: float = 1, what: str = "") -> None:
    """As uint8 HxW or HxWx3 has it; gray may come in three channels that are alike."""
    found = read_image(image)
    assert found.dtype == torch.float32 and found.shape[1:] == array.shape[:2], what
    difference = (found.permute(1, 2, 0) - torch.from_numpy(np.atleast_3d(array) / 255)).abs()
    assert difference.max() <= steps * STEP + 1e-6, f"{what}: {difference.max() * 255:.2f} / 255"


# --- the same picture, whichever way it comes in -------------------------------------------


def rgb_ways(folder: Path) -> dict[str, Any]:
    image, path = Image.fromarray(RGB), folder / "picture.png"
    image.save(path)
    data = path.read_bytes()
    wide = RGB.astype(np.uint16) * 257
    opaque = np.dstack([RGB, np.full(GRAY.shape, 255, np.uint8)])
    chw = torch.from_numpy(RGB).permute(2, 0, 1)
    return {
        "path": str(path), "Path": path, "bytes": data, "bytearray": bytearray(data),
        "memoryview": memoryview(data), "BytesIO": io.BytesIO(data),
        **{f"PIL {mode}": image.convert(mode) for mode in ("RGB", "RGBA", "CMYK", "RGBX")},
        "numpy uint8": RGB, "numpy uint16": wide, "numpy big-endian": wide.astype(">u2"),
        **{f"numpy {kind}": (RGB / 255).astype(kind) for kind in ("f2", "f4", "f8", ">f4", "g")},
        "numpy HxWx4": opaque, "numpy float HxWx4": opaque / np.float32(255),
        "numpy negative strides": RGB[::-1, ::-1].copy()[::-1, ::-1],
        "torch uint8": chw, "torch uint8 contiguous": chw.contiguous(),
        "torch uint16": torch.from_numpy(wide).permute(2, 0, 1),
        "torch float16": (chw / 255).half(), "torch float64": chw.double() / 255,
        "torch with gradient": (chw / 255).requires_grad_(),
        "torch 4 channels": torch.from_numpy(opaque).permute(2, 0, 1),
        **{kind: encoded(image, kind) for kind in ("BMP", "TIFF", "PPM")},
        "TIFF by libtiff": encoded(image, "TIFF", compression="tiff_lzw"),
        "WebP": encoded(image, "WEBP", lossless=True),
    }  # fmt: skip


def gray_ways() -> dict[str, Any]:
    image, wide = Image.fromarray(GRAY), GRAY.astype(np.uint16) * 257
    opaque = np.full_like(GRAY, 255)
    return {
        **{f"PIL {mode}": image.convert(mode) for mode in ("L", "LA", "RGB", "P", "CMYK", "I")},
        "PIL La": image.convert("LA").convert("La"), "PIL YCbCr": image.convert("YCbCr"),
        "PIL RGBa": image.convert("RGBA").convert("RGBa"),
        "PIL PA": image.convert("P").convert("PA"),
        "PIL HSV": image.convert("RGB").convert("HSV"),
        "PIL I;16": Image.fromarray(wide),
        "PIL I;16B": Image.frombytes("I;16B", image.size, wide.astype(">u2").tobytes()),
        "PIL I of 16 bits": Image.fromarray(wide.astype(np.int32)),
        "PIL F of 0 to 255": image.convert("F"),
        "PIL F of 0 to 1": Image.fromarray(GRAY / np.float32(255)),
        **{kind: encoded(image, kind) for kind in ("PNG", "PPM", "GIF")},
        "PNG of a palette": encoded(image.convert("P")),
        "PNG of 16 bits": encoded(Image.fromarray(wide)),
        "PGM of 16 bits": encoded(Image.fromarray(wide.astype(np.int32)), "PPM"),
        "TIFF of 16 bits": encoded(Image.fromarray(wide), "TIFF"),
        "numpy HxW": GRAY, "numpy HxWx1": GRAY[:, :, None], "numpy float": GRAY / 255,
        "numpy HxWx2": np.dstack([GRAY, opaque]), "numpy uint16": wide,
        "torch HxW": torch.from_numpy(GRAY), "torch 1xHxW": torch.from_numpy(GRAY)[None],
        "torch 2xHxW": torch.from_numpy(np.stack([GRAY, opaque])),
        "torch 3xHxW": torch.from_numpy(GRAY).expand(3, -1, -1),
        "torch float": torch.from_numpy(GRAY)[None] / 255,
    }  # fmt: skip


def test_every_way_of_giving_a_picture_agrees(tmp_path: Path) -> None:
    for way, image in rgb_ways(tmp_path).items():
        assert_shows(image, RGB, what=way)
    for way, image in gray_ways().items():
        assert_shows(image, GRAY, what=way)
    bits = GRAY > 128
    bilevel = Image.fromarray(bits)
    for same in (bilevel, encoded(bilevel), encoded(bilevel, "PPM"), bits, torch.from_numpy(bits)):
        assert_shows(same, bits * np.uint8(255), steps=0)


def test_decode_keeps_integers_and_takes_no_memory_for_them() -> None:
    wide = torch.from_numpy(GRAY.astype(np.uint16) * 257)
    for image, dtype in ((RGB, torch.uint8), (wide, torch.uint16), (GRAY / 255, torch.float32)):
        assert decode(image).dtype == dtype
    assert decode(encoded(Image.fromarray(RGB))).dtype == torch.uint8
    assert decode(RGB).data_ptr() == RGB.ctypes.data
    assert decode(wide).data_ptr() == wide.data_ptr()


def test_a_picture_of_several_strips_is_put_together_again() -> None:
    large = picture(700, 1600)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.rot90(large, 1))
    assert_shows(encoded(stored, "TIFF", exif=exif), large, steps=0)
    clear = np.zeros((700, 1600, 1), np.uint8)
    clear[:, 900:] = 255
    rgba = np.dstack([large, clear])
    for same in (rgba, rgba / np.float32(255), Image.fromarray(rgba)):
        assert_shows(same, np.where(clear, large, 255), steps=0)


# --- turned pictures, transparency, animations, ranges -------------------------------------

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
def test_exif_orientation_is_applied(orientation: int) -> None:
    # What a camera stores is the upright picture, turned the inverse way.
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](RGB)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (
        ("PNG", {}), ("JPEG", {"quality": 100, "subsampling": 0}), ("WEBP", {"lossless": True}),
        ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
    ):  # fmt: skip
        data = encoded(stored, kind, exif=exif, **options)
        assert_shows(data, RGB, steps=4 if kind == "JPEG" else 0, what=kind)
        with Image.open(io.BytesIO(data)) as opened:
            assert torch.equal(read_image(opened), read_image(data))


@pytest.mark.filterwarnings("ignore")  # Pillow's own, about the EXIF block
def test_broken_exif_leaves_the_picture_as_it_is() -> None:
    unknown = Image.Exif()
    unknown[0x0112] = 9
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xfe" * 9, unknown):
        assert_shows(encoded(Image.fromarray(RGB), exif=exif), RGB, steps=0)


def test_transparency_is_shown_on_white_in_every_form() -> None:
    alpha = np.zeros_like(GRAY)
    alpha[:, WIDTH // 2 :] = 255
    alpha[:20] = 100
    rgba = np.dstack([RGB, alpha])
    share = alpha[:, :, None] / 255
    shown = np.round(RGB * share + 255 * (1 - share)).astype(np.uint8)
    image = Image.fromarray(rgba)
    for same in (
        rgba, rgba / np.float32(255), rgba.astype(np.uint16) * 257,
        torch.from_numpy(rgba).permute(2, 0, 1), image, encoded(image),
        encoded(image, "WEBP", lossless=True, exact=True),
    ):  # fmt: skip
        assert_shows(same, shown)


def test_a_transparent_colour_is_white_too() -> None:
    gray = np.where(GRAY > 128, 200, 10).astype(np.uint8)
    shown = np.where(gray == 10, 255, gray)
    image = Image.fromarray(gray)
    for kind, mode in (("PNG", "L"), ("PNG", "P"), ("GIF", "L")):
        assert_shows(encoded(image.convert(mode), kind, transparency=10), shown, what=kind)
    clear = Image.fromarray(np.dstack([gray] * 3 + [np.uint8(255) * (gray != 10)]))
    palette = clear.quantize(method=Image.Quantize.FASTOCTREE)  # whose colours have alpha
    assert_shows(palette, shown, steps=8)
    assert torch.equal(read_image(palette), read_image(encoded(palette)))
    black = encoded(Image.new("1", (9, 9)), transparency=0)
    assert read_image(black).unique().tolist() == [1]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind: str) -> None:
    first, second = (Image.fromarray(np.full((60, 60), v, np.uint8)) for v in (50, 200))
    data = encoded(first, kind, save_all=True, append_images=[second, second], lossless=True)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) > 1
    assert_shows(data, np.asarray(first))


def test_modes_that_have_no_range_of_their_own() -> None:
    for kind, high, white in (
        ("i4", 255, 255), ("i4", 256, 65535), ("i4", 65535, 65535),
        ("f4", 1, 1), ("f4", 1.5, 255), ("f4", 255, 255),
    ):  # fmt: skip
        image = Image.fromarray(np.array([[0, high]], kind))
        assert image.mode == kind[0].upper()
        assert read_image(image).flatten().tolist() == pytest.approx([0, high / white])


# --- the caller's things -------------------------------------------------------------------


def test_the_callers_memory_is_left_alone() -> None:
    for given_image in (RGB.copy(), GRAY.astype(np.float32) / 255, torch.rand(1, 48, 48) + 5e-4):
        before = given_image.copy() if isinstance(given_image, np.ndarray) else given_image.clone()
        for read in (read_image, partial(preprocess, align=False)):
            read(given_image).zero_()
            assert (given_image == before).all()


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_do_not_warn() -> None:
    frozen = RGB.copy()
    frozen.flags.writeable = False
    assert_shows(frozen, RGB)
    read_image(np.broadcast_to(np.float32(0.5), (50, 60, 3)))


def test_open_files_are_read_from_their_start_and_pipes_to_their_end(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    with path.open("rb") as file:
        assert_shows(file, RGB)
        assert_shows(file, RGB)
        assert not file.closed
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        with os.fdopen(write, "wb") as other:
            other.write(encoded(Image.fromarray(RGB).resize((9, 8))))
        assert read_image(pipe).shape == (3, 8, 9)


def test_suffixes_are_those_of_the_formats_that_are_read() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm"} <= suffixes()
    assert not suffixes() & {".jp2", ".eps", ".pdf", ".psd", ".heic"}


def test_heif_is_read_where_a_plugin_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin(PngImagePlugin.PngImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self.fp = io.BytesIO(self.fp.read()[4:])
            super()._open()

    data = b"HEIF" + encoded(Image.fromarray(RGB))
    with pytest.raises(ValueError, match="format"):
        read_image(data)
    for table in ("ID", "OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())
    Image.register_open("HEIF", Plugin, lambda start: start.startswith(b"HEIF"))
    Image.register_extension("HEIF", ".HEIC")
    assert_shows(data, RGB)
    assert ".heic" in suffixes()


def test_pixels_of_a_camera_with_12_bits_get_a_warning_that_says_how_to_scale(
    tmp_path: Path,
) -> None:
    pixels, path = (RGB.astype(np.uint16) << 4) | 15, tmp_path / "camera.png"
    Image.fromarray(pixels[:, :, 0]).save(path)
    for same in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), path):
        text = f"{describe(same)}: brightest pixel 4095, white 65535: multiply those of 12 bits"
        with pytest.warns(UserWarning, match=re.escape(text)) as said:
            preprocess(same, align=False)
        assert [warning.filename for warning in said] == [__file__]  # the caller's line


def planar_tiff(planes: np.ndarray[Any, Any], photometric: int, **more: int) -> bytes:
    """A TIFF of (C, H, W) planes, one strip each, with more tags as ``t322=64``."""
    count, height, width = planes.shape
    size, tags = planes[0].nbytes, TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258] = width, height, (8 * planes.itemsize,) * count
    tags[262], tags[277], tags[278], tags[284] = photometric, count, height, 2
    for tag, value in more.items():
        tags[int(tag[1:])] = value
    tags[273], tags[279] = tuple(index * size for index in range(count)), (size,) * count
    return b"II*\0\x08\0\0\0" + tags.tobytes(8) + planes.tobytes()


def test_tiffs_of_separate_planes_are_read_right_or_refused() -> None:
    planes = RGB.transpose(2, 0, 1)
    assert_shows(planar_tiff(planes, 2), RGB, steps=0)
    assert_shows(planar_tiff(planes[:1], 1), RGB[..., 0], steps=0)
    for others, photometric in (
        (planes, 8), (planes[:1], 0), (planes.astype(np.uint16) * 257, 2),
        (planes[:1].astype(np.uint16), 1), (np.concatenate([planes, planes[:1]]), 5),
    ):  # fmt: skip
        data = planar_tiff(others, photometric)
        for same in (data, Image.open(io.BytesIO(data))):
            with pytest.raises(ValueError, match=r"separate planes.*save it interleaved"):
                decode(same)


# --- what cannot be used -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        *((np.full((5, 5), bad), r"in \[0, 1\].*(nan|inf)") for bad in (np.nan, -np.inf, 1e300)),
        (np.full((50, 50), -0.2), r"in \[0, 1\].*-0\.2"),
        (RGB.astype(np.float32), r"in \[0, 1\].*255"),
        *((np.zeros(shape, np.uint8), "empty") for shape in ((0, 5), (5, 0, 3))),
        (torch.zeros(3, 0, 0), "empty"),
        (Image.new("L", (0, 4)), "empty"),
        (Image.fromarray(np.array([[0.5, np.nan]], np.float32)), "nan"),
        *((Image.fromarray(np.array([[0, bad]], "i4")), "outside 0 to") for bad in (-1, 65536)),
        *((Image.fromarray(np.array([[0, bad]], "f4")), "outside 0 to") for bad in (-0.5, 255.5)),
        *((np.zeros(shape), "HxWxC") for shape in ((), (48,), (4, 4, 5), (3, 9, 9), (1, 4, 4, 3))),
        *((torch.zeros(shape), "CxHxW") for shape in ((5,), (48, 48, 3), (1, 1, 48, 48))),
        *((np.zeros((5, 5), kind), "uint8, uint16, bool") for kind in ("i8", "c8", "M8[s]", "O")),
        *((torch.zeros(5, 5, dtype=kind), "uint8, uint16") for kind in (torch.int32, torch.cfloat)),
        (b"", "is empty"),
        (io.BytesIO(b""), "is empty"),
        (b"hello, I am not an image", "not an image in a format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format"),
        (encoded(Image.fromarray(RGB), "JPEG2000"), "not an image in a format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pip install pillow-heif"),
        (b"P2 3 2 255\n0 50 100\n150 200 250\n", "PPM in text"),
        (b"P6 1 1 254\n\0\0\0", "PPM in text, or of another maximum"),
        ("a\0b.png", "null"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_bad_images_raise_one_value_error_that_names_them(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        decode(image)
    assert str(error.value).startswith(describe(image) + ": ")


def test_what_resizing_leaves_outside_the_range_is_cut_off() -> None:
    for dtype in (torch.float16, torch.float64):
        image = torch.tensor([[-5e-4, 0.25, 1 + 5e-4]], dtype=dtype)
        assert read_image(image).tolist() == [[[0, 0.25, 1]]]


@pytest.mark.parametrize("image", [None, 3, [[0, 255]], {}, object(), io.StringIO("x")])
def test_wrong_types_raise_type_error(image: Any) -> None:
    with pytest.raises(TypeError):
        decode(image)


def test_errors_name_the_file_or_the_kind(tmp_path: Path) -> None:
    assert describe(np.zeros((9, 8, 5), np.uint8)) == "ndarray (9, 8, 5) uint8"
    assert describe(torch.zeros(5, 9)) == "Tensor (5, 9) torch.float32"
    assert describe(b"no image") == "image of 8 bytes"
    assert describe(io.BytesIO()) == "unnamed BytesIO"
    bad = tmp_path / "holiday.png"
    whole = encoded(Image.fromarray(RGB))
    bad.write_bytes(whole[: len(whole) // 2])
    with bad.open("rb") as file, Image.open(bad) as opened:
        for given_image in (bad, str(bad), file, opened):
            with pytest.raises(ValueError, match=r"holiday\.png: cannot be read"):
                decode(given_image)
    with bad.open(encoding="latin1") as text, pytest.raises(TypeError, match=r"holiday.*binary"):
        decode(text)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        decode(tmp_path / "absent.png")
    with pytest.raises(OSError, match="name too long"):
        decode("x" * 900)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(ValueError, match=r"pipe\.jpg: is a pipe"):  # nobody writes to it
            decode(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("kind", [*files._LIMITS, "PNG", "JPEG", "picture"])
def test_limits_of_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    format = kind.split()[-1]
    if format not in (*Image.SAVE, "picture"):
        pytest.skip(f"this Pillow writes no {format}")

    def ways(width: int) -> list[Any]:
        array = picture(80, width)
        image = Image.fromarray(array)
        if kind == "picture":
            return [array, torch.from_numpy(array).permute(2, 0, 1), image]
        data = encoded(image, format, progressive=kind.startswith("progressive"))
        return [data, Image.open(io.BytesIO(data))]

    monkeypatch.setattr(files, "MAX_PIXELS", 80 * 90)
    monkeypatch.setattr(files, "_LIMITS", dict.fromkeys(files._LIMITS, 80 * 80))
    most = 80 if kind in files._LIMITS else 90
    for image in ways(most):
        decode(image)
    for image in ways(most + 1):
        with pytest.raises(ValueError, match=f"{most + 1}x80 pixels .* {kind}; shrink it"):
            decode(image)


def test_limits_of_scans_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    image, tiles = Image.fromarray(RGB), planar_tiff(GRAY[None], 1, t322=64, t323=64)
    monkeypatch.setattr(files, "_MAX_SCANS", 5)
    monkeypatch.setattr(files, "_MAX_TILE", 64 * 63)
    for data, message in (
        (encoded(image, "JPEG", progressive=True), "more than 5 scans"),
        (tiles, "pixels in one tile"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(data)


def test_limit_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 2**20)
    path = tmp_path / "long.bmp"
    path.write_bytes(encoded(Image.fromarray(GRAY), "BMP") + b"\0" * 2**20)
    with path.open("rb") as file:
        for image in (path, path.read_bytes(), file):
            with pytest.raises(ValueError, match="larger than 1 MiB"):
                decode(image)
