"""From anything image-like to the network's input: decode, turn, gray, frame, resize, normalise."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from ferfacenet.model import MEAN, STD

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

#: Side of the prepared image and of its crops in pixels (the paper's sections 3 and 4.1).
SIZE, CROP = 48, 44

#: Most pixels a picture may have. Phones' 50 megapixels (8160x6120) pass; this and the limits below
#: keep a process that reads one file under 1 GB, PyTorch's own 0.5 GB included
#: (tests/test_robustness.py).
MAX_PIXELS = 48 * 2**20

#: Most bytes an encoded picture may have.
MAX_BYTES = 64 * 2**20

# What the decoders of these formats hold of a picture at a time is two to four times what the
# others hold.
_MAX_PIXELS_OF = {"WEBP": 20 * 2**20, "JPEG2000": 16 * 2**20, "AVIF": 28 * 2**20}
# Limits of what else a small file could ask of a decoder. JPEG: the pixels of a picture in several
# scans, of which all coefficients are held, and the pixels gone through, scan by scan. JPEG 2000:
# tiles. TIFF: pixels of one tile. PPM: bytes of the variants that Pillow reads in Python, which
# take it seconds a megabyte.
_MAX_SCANNED, _MAX_SCANS = 28 * 2**20, 2**32
_MAX_TILES, _MAX_TILE, _MAX_TEXT = 4096, 2**22, 2**21

#: What one image may be; :func:`preprocess` says how each is read.
Image: TypeAlias = (
    "str | os.PathLike[str] | bytes | BinaryIO | PIL.Image.Image | np.ndarray[Any, Any] | Tensor"
)
Align: TypeAlias = Literal["auto", True, False]

# Formats whose decoders are in Pillow itself. Others start programs (EPS), or have no magic
# number, so that any rubbish passes for them.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_WHITE = {torch.uint8: 255.0, torch.uint16: 65535.0}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L
_FLOAT_SLACK = 1e-3  # what resizing and half precision leave outside [0, 1]


def preprocess(
    image: Image, *, align: Align = "auto", mean: float = MEAN, std: float = STD
) -> Tensor:
    """One image to the network's input: gray, framed on the face, 48x48, normalised.

    The same picture gives the same tensor, to 1/255, whichever way it comes in. A 48x48 image
    is never resampled; any other is resized once, bilinear and antialiased.

    Args:
        image: one picture, as

            - a path or the bytes or open binary file (read from its start) of a JPEG, PNG,
              WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF; of an animation, the first frame;
            - a PIL image of any mode;
            - a numpy array HxW or HxWxC, uint8, uint16, bool, or float in [0, 1];
            - a torch tensor HxW or CxHxW, of the same dtypes.

            C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha). Files and PIL images are
            turned as their EXIF orientation says. What is transparent is shown on white.
            PIL's modes I and F, which have no range of their own, are read as 0 to 255 (what
            PIL's own conversions write) if nothing in the picture is greater, I otherwise as
            0 to 65535, and F as 0 to 1 if nothing is greater than 1.
        align: what part of the picture is taken. ``False``: the centre square. ``True``: the
            largest face, levelled and framed as FER2013 frames it; needs the ``faces`` extra.
            ``"auto"``: as ``True``, but a picture that already is a face crop (48x48, or
            square with a face filling it) as it is, and the centre square, with a warning,
            when no face is found or the extra is not there.
        mean, std: the normalisation of the weights, for pixels in [0, 1].

    Returns:
        (1, 48, 48) float32 on the CPU, ``(pixels - mean) / std``.

    Raises:
        ValueError: the picture cannot be used (unreadable, empty, NaN, out of range, wrong
            dimensions or dtype, too large), or ``align=True`` and it has no face; the message
            begins with the file's name.
        OSError: the file cannot be opened.
        TypeError: ``image`` is none of the above.
        ImportError: ``align=True`` without the ``faces`` extra; says what to install.
    """
    if align not in ("auto", True, False):
        raise ValueError(f"align must be 'auto', True or False, got {align!r}")
    pixels = decode(image)
    square: Tensor | None = None
    if align is not False and (align is True or pixels.shape[-2:] != (SIZE, SIZE)):
        from ferfacenet.faces import frame_largest_face

        square = frame_largest_face(pixels, describe(image), required=align is True)
    if square is None:
        square = resize(to_gray(centre_square(pixels)))
    return normalise(square, mean, std)


def normalise(x: Tensor, mean: float = MEAN, std: float = STD) -> Tensor:
    """Pixels in [0, 1], any shape, to the network's scale: ``(x - mean) / std``."""
    return (x - mean) / std


def read_image(image: Image) -> Tensor:
    """One image, of any kind :func:`preprocess` takes, as (1 or 3, H, W) float32 in [0, 1].

    EXIF-turned, transparency shown on white, at its own size. Raises as :func:`preprocess`.
    """
    pixels = decode(image)
    return pixels.to(torch.float32) / (_WHITE.get(pixels.dtype, 1.0))


def to_gray(x: Tensor) -> Tensor:
    """(1 or 3, H, W) uint8, uint16 or float in [0, 1] to its luma (ITU-R BT.601), (1, H, W)
    float32 in [0, 1]."""
    _, height, width = x.shape
    gray = torch.empty(1, height, width)
    for rows in _strips(height, width):
        part = x[:, rows].to(torch.float32)
        if len(part) == 3:
            part = part[:1] * _LUMA[0] + part[1:2] * _LUMA[1] + part[2:] * _LUMA[2]
        gray[:, rows] = part
    return gray.div_(_WHITE.get(x.dtype, 1.0))


def centre_square(x: Tensor) -> Tensor:
    """The largest square in the centre of (..., H, W), as a view."""
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]


def resize(x: Tensor, size: int = SIZE) -> Tensor:
    """(C, H, W) float to (C, size, size), bilinear and antialiased; untouched if it is that."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(
        x[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )[0]


def ten_crop(x: Tensor, size: int = CROP) -> Tensor:
    """The paper's ten crops (section 4.1): corners and centre, then the same of the mirror.

    (N, C, H, W) to (10, N, C, size, size), ordered as torchvision's: top left, top right,
    bottom left, bottom right, centre, and these five of the mirrored image.

    Raises:
        ValueError: the images are smaller than the crops, or not (N, C, H, W).
    """
    if x.ndim != 4 or min(x.shape[-2:]) < size:
        raise ValueError(
            f"ten_crop needs (N, C, H, W) of at least {size}x{size}, got {tuple(x.shape)}"
        )
    bottom, right = x.shape[-2] - size, x.shape[-1] - size
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right))
    places = (*corners, (round(bottom / 2), round(right / 2)))
    return torch.stack(
        [
            side[..., top : top + size, left : left + size]
            for side in (x, x.flip(-1))
            for top, left in places
        ]
    )


def describe(image: object) -> str:
    """What errors and warnings call an image: its path, or its kind and size."""
    import numpy as np

    if isinstance(image, Tensor | np.ndarray):
        kind = "tensor" if isinstance(image, Tensor) else "array"
        return f"{kind} {tuple(image.shape)} {image.dtype}"
    if isinstance(image, str | os.PathLike):
        return os.fsdecode(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return f"image of {len(image)} bytes"
    name = getattr(image, "filename", "") or getattr(image, "name", "")
    if isinstance(name, str | bytes) and name:
        return os.fsdecode(name)
    return f"unnamed {type(image).__module__}.{type(image).__name__}"


def decode(image: Image) -> Tensor:
    """One image of any kind as (1 or 3, H, W) uint8, uint16, or float32 in [0, 1].

    EXIF-turned, transparency shown on white; never a view of the caller's memory that is
    written to. Raises as :func:`preprocess`.
    """
    import numpy as np

    name = describe(image)
    if isinstance(image, Tensor):
        return _from_tensor(image, name)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    if isinstance(image, str | os.PathLike):
        return _from_bytes(_read_file(image, name), name)
    if isinstance(image, bytes | bytearray | memoryview):
        return _from_bytes(bytes(image), name)

    import PIL.Image

    if isinstance(image, PIL.Image.Image):
        return _from_pil(image, name)
    if hasattr(image, "read"):
        return _from_bytes(_read_stream(image, name), name)
    raise TypeError(
        "an image must be a path, bytes, an open binary file, a PIL image, a numpy array or a "
        f"torch tensor, got {type(image).__name__}"
    )


def _read_file(path: str | os.PathLike[str], name: str) -> bytes:
    # O_NONBLOCK: opening a FIFO that nobody writes to must not hang.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # a NUL or a lone surrogate in the name
        raise ValueError(f"{name!r}: not a file name ({error})") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{name}: is a folder, not an image file")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{name}: is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)


def _read_stream(file: BinaryIO, name: str) -> bytes:
    with contextlib.suppress(AttributeError, OSError):  # a pipe or download: what is left of it
        file.seek(0)
    data: object = file.read(MAX_BYTES + 1)
    if not isinstance(data, bytes):
        raise TypeError(f"{name}: open the file in binary mode, its read() gave {type(data)}")
    return data


def _from_bytes(data: bytes, name: str) -> Tensor:
    import PIL.Image

    if not data:
        raise ValueError(f"{name}: is empty")
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name}: is larger than {MAX_BYTES >> 20} MiB")
    PIL.Image.init()
    formats = [known for known in _FORMATS if known in PIL.Image.OPEN]
    if data[:2] in (b"P1", b"P2", b"P3"):
        _check_text(data, name)
    try:
        opened = PIL.Image.open(io.BytesIO(data), formats=formats)
    except PIL.UnidentifiedImageError as error:
        raise ValueError(
            f"{name}: is not an image in a format that can be read ({', '.join(formats)})"
        ) from error
    except Exception as error:  # decoders raise nearly anything on broken data
        raise ValueError(f"{name}: cannot be read as an image ({error})") from error
    with opened:
        _check_size(opened.height, opened.width, name, opened.format)
        _check_effort(opened, data, name)
        del data  # a large one need not stand beside its pixels
        return _from_pil(opened, name)


def _check_effort(image: PIL.Image.Image, data: bytes, name: str) -> None:
    """Raises ValueError if the file asks much more of its decoder than its pixels account for."""
    asks: str | None = None
    if image.format in ("JPEG", "MPO") and _in_scans(data, len(image.getbands())):
        pixels = image.width * image.height
        if pixels > _MAX_SCANNED:
            asks = f"{_MAX_SCANNED >> 20} Mi pixels in several scans"
        elif data.count(b"\xff\xda") * pixels > _MAX_SCANS:
            asks = f"{_MAX_SCANS // pixels} scans"
    elif image.format == "JPEG2000" and _tiles(data) > _MAX_TILES:
        asks = f"{_MAX_TILES} tiles"
    elif image.format == "TIFF" and _tile_pixels(data) > _MAX_TILE:
        asks = f"{_MAX_TILE >> 20} Mi pixels in one tile"
    elif image.format == "PPM" and any(part[0] != "raw" for part in getattr(image, "tile", ())):
        _check_text(data, name)
    if asks:
        raise ValueError(f"{name}: has more than {asks}; save it anew")


def _check_text(data: bytes, name: str) -> None:
    if len(data) > _MAX_TEXT:
        raise ValueError(
            f"{name}: is larger than {_MAX_TEXT >> 20} MiB, for a PPM that is not of raw bytes"
        )


def _in_scans(data: bytes, components: int) -> bool:
    """Whether a JPEG comes in several scans; also if its segments do not follow each other."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        if data[at + 1 : at + 2] in (b"\xc2", b"\xc6", b"\xca", b"\xce"):  # progressive
            return True
        if data[at + 1 : at + 2] == b"\xff":  # padding
            at += 1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[at + 4 : at + 5] != bytes([components])


def _tiles(data: bytes) -> int:
    """The most tiles of any JPEG 2000 picture in the data: each takes 7 kB, empty or not."""
    most = 1
    for found in re.finditer(rb"\xff\x4f\xff\x51....(.{32})", data, re.DOTALL):
        right, bottom, _, _, width, height, left, top = struct.unpack(">8I", found[1])
        if width and height:
            most = max(most, -(-(right - left) // width) * -(-(bottom - top) // height))
    return most


def _tile_pixels(data: bytes) -> int:
    """Pixels of one tile of a TIFF's first picture, of which libtiff holds one as a whole. Taken
    from the file, since of several entries with one tag Pillow and libtiff pick different ones."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    offset, count = order + ("Q" if big else "I"), order + ("Q" if big else "H")
    narrow = {3: order + "H", 4: order + "I"}  # at the beginning of the value's place
    value_at = 4 + struct.calcsize(offset)  # after the entry's tag, kind and number of values
    length = value_at + struct.calcsize(offset)
    sides = {322: 0, 323: 0}  # TileWidth and TileLength
    # It may end within an entry, or point outside of itself, or beyond any memory.
    with contextlib.suppress(struct.error, OverflowError):
        (at,) = struct.unpack_from(offset, data, 8 if big else 4)
        (entries,) = struct.unpack_from(count, data, at)
        at += struct.calcsize(count)
        for place in range(at, at + min(entries, 2**16) * length, length):
            tag, kind = struct.unpack_from(order + "HH", data, place)
            if tag in sides:
                (value,) = struct.unpack_from(narrow.get(kind, offset), data, place + value_at)
                sides[tag] = max(sides[tag], value)
    return sides[322] * sides[323]


def _from_pil(image: PIL.Image.Image, name: str) -> Tensor:
    import numpy as np

    _check_size(image.height, image.width, name, image.format)
    try:
        image.load()
        white = _white(image)
        turn = _turn(image)
        across = turn in (5, 6, 7, 8)
        pixels: np.ndarray[Any, Any] | None = None
        for rows in _strips(image.height, image.width):
            strip = _plain(image.crop((0, rows.start, image.width, rows.stop)))
            part = np.asarray(strip) if white is None else np.asarray(strip, np.float32) / white
            if pixels is None:
                size = image.size if across else image.size[::-1]
                pixels = np.empty((*size, *part.shape[2:]), part.dtype)
            _as_stored(pixels, turn)[rows] = part
    except Exception as error:  # decoders raise nearly anything on broken data
        raise ValueError(f"{name}: cannot be read as an image ({error})") from error
    assert pixels is not None
    return _from_array(pixels, name)


def _strips(height: int, width: int) -> Iterator[slice]:
    """The rows of a picture, about a million pixels at a time: what is made of a large photo on
    the way (floats, other modes) never stands in memory as a whole."""
    step = max(1, 2**20 // width)
    for top in range(0, height, step):
        yield slice(top, min(height, top + step))


def _turn(image: PIL.Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 is upright."""
    turn: object = None
    with contextlib.suppress(Exception):  # a broken EXIF block leaves the picture readable
        turn = image.getexif().get(0x0112)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _as_stored(upright: np.ndarray[Any, Any], turn: int) -> np.ndarray[Any, Any]:
    """A view of an upright picture (H, W, ...) as a file with that EXIF orientation stores it."""
    stored = upright.swapaxes(0, 1) if turn >= 5 else upright
    if turn in (3, 4, 6, 7):
        stored = stored[::-1]
    return stored[:, ::-1] if turn in (2, 3, 7, 8) else stored


def _white(image: PIL.Image.Image) -> float | None:
    """What counts as white in PIL's modes I and F, which do not say; None for the others."""
    if image.mode not in ("I", "F"):
        return None
    low, high = image.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if image.mode == "I":
        white = 255.0 if high <= 255 else 65535.0
    else:
        white = 1.0 if high <= 1 else 255.0
    if not 0 <= low <= high <= white:
        raise ValueError(f"pixels from {low:g} to {high:g} are outside 0 to {white:g}")
    return white


def _plain(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in mode L, RGB, I, F or one of the I;16 modes, without transparency."""
    import PIL.Image

    mode = image.mode
    if mode in _ALPHA_MODES or ("transparency" in image.info and mode in ("1", "L", "P", "RGB")):
        if mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        plain = PIL.Image.new("RGB", image.size, "white")
        plain.paste(image, mask=image.getchannel("A"))
        return plain
    if mode == "1":
        return image.convert("L")
    if mode in ("L", "RGB", "I", "F") or mode.startswith("I;16"):
        return image
    return image.convert("RGB")


def _from_array(array: np.ndarray[Any, Any], name: str) -> Tensor:
    import numpy as np

    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise ValueError(
            f"{name}: a numpy image must be HxW or HxWxC with C of 1, 2, 3 or 4"
            + ("; CxHxW is for torch tensors" if array.ndim == 3 else "")
        )
    _check_size(array.shape[0], array.shape[1], name)
    if array.dtype.kind == "f":
        dtype: np.dtype[Any] = np.dtype(np.float32)
    elif array.dtype.newbyteorder("=") in (np.bool_, np.uint8, np.uint16):
        dtype = array.dtype.newbyteorder("=")
    else:
        raise ValueError(f"{name}: pixels must be uint8, uint16, bool or float")
    with np.errstate(over="ignore", invalid="ignore"):
        # torch.from_numpy takes no foreign byte order, no negative strides, and warns of
        # read-only memory.
        plain = np.asarray(array).astype(dtype, copy=False)
    if not plain.flags.writeable or min(plain.strides) < 0:
        plain = plain.copy()
    return _checked(torch.from_numpy(plain).permute(2, 0, 1), name)


def _from_tensor(tensor: Tensor, name: str) -> Tensor:
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 2, 3, 4):
        raise ValueError(
            f"{name}: a torch image must be CxHxW with C of 1, 2, 3 or 4"
            + ("; HxWxC is for numpy arrays" if tensor.ndim == 3 else "")
        )
    _check_size(tensor.shape[1], tensor.shape[2], name)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(f"{name}: a torch image must be a dense tensor with values")
    if tensor.dtype not in (torch.uint8, torch.uint16, torch.bool):
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: pixels must be uint8, uint16, bool or float")
        tensor = tensor.to(torch.float32)
    return _checked(tensor.detach().cpu(), name)


def _check_size(height: int, width: int, name: str, kind: str | None = None) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"{name}: is empty ({width}x{height} pixels)")
    limit = min(MAX_PIXELS, _MAX_PIXELS_OF.get(kind or "", MAX_PIXELS))
    if height * width > limit:
        of = f" for a {kind}" if limit < MAX_PIXELS else ""
        raise ValueError(
            f"{name}: {width}x{height} pixels are more than {limit >> 20} Mi{of}; shrink it first"
        )


def _checked(x: Tensor, name: str) -> Tensor:
    """(1 to 4, H, W) of a dtype we take, to (1 or 3, H, W) with all floats in [0, 1]."""
    if x.dtype == torch.bool:
        x = x.to(torch.uint8) * 255
    elif x.dtype == torch.float32:
        low, high = (float(end) for end in x.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name}: has NaN or infinite pixels")
        if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
            raise ValueError(
                f"{name}: float pixels must be in [0, 1], these go from {low:g} to {high:g}; "
                "divide them by their white, or give them as uint8"
            )
        if low < 0 or high > 1:  # a copy of a large one costs memory
            x = x.clamp(0, 1)
    return x if x.shape[0] in (1, 3) else _on_white(x)


def _on_white(x: Tensor) -> Tensor:
    """(2 or 4, H, W), the last channel alpha, to (1 or 3, H, W) over a white ground."""
    white = _WHITE.get(x.dtype, 1.0)
    shown = torch.empty_like(x[:-1])
    for rows in _strips(*x.shape[1:]):
        part = x[:, rows].to(torch.float32)
        part = white + (part[:-1] - white) * (part[-1:] / white)
        shown[:, rows] = part.round() if x.dtype in _WHITE else part
    return shown
