"""Files and PIL images to arrays: which are read, within which limits."""

from __future__ import annotations

import io
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from torch import Tensor

from ferfacenet.transforms import strips

if TYPE_CHECKING:
    import PIL.Image

#: Most pixels a picture may have. Phones' 50 megapixels (8160x6120) pass; this and the limits below
#: keep a process that reads one file to about 1 GB, PyTorch's own 0.5 GB included.
MAX_PIXELS = 48 << 20

#: Most bytes an encoded picture may have.
MAX_BYTES = 64 << 20

# Pillow's own decoders, and HEIF where a plugin is registered. Of the others, some start programs
# (EPS), some take any bytes for theirs, and JPEG 2000 makes hundreds of megabytes of a few.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
# These decoders need two to four times the memory that the others need for a picture.
_LIMITS = {"WEBP": 20 << 20, "AVIF": 28 << 20, "HEIF": 28 << 20, "progressive JPEG": 28 << 20}
# A small file can ask for much besides: a pass over all pixels for each scan of a JPEG, and memory
# for a whole tile of a TIFF.
_MAX_SCANS, _MAX_TILE = 500, 4 << 20
HEIC = {b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")}


def suffixes() -> frozenset[str]:
    """The lower-case suffixes (".jpg") of the formats that are read."""
    import PIL.Image

    known = PIL.Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in FORMATS)


def describe(image: object) -> str:
    """What errors and warnings call an image: its path, or its kind and size."""
    if isinstance(image, Tensor | np.ndarray):
        return f"{type(image).__name__} {tuple(image.shape)} {image.dtype}"
    if isinstance(image, bytes | bytearray | memoryview):
        return f"image of {len(image)} bytes"
    name: object = getattr(image, "filename", "") or getattr(image, "name", "")
    name = image if isinstance(image, str | os.PathLike) else name
    if isinstance(name, str | bytes | os.PathLike) and name:
        return os.fsdecode(name)
    return f"unnamed {type(image).__name__}"


def is_url(text: str) -> bool:
    """Whether this is a URL (``data:`` too) and no path of a file that is there."""
    url = "://" in text or text.startswith("data:")
    return url and not os.path.exists(text)  # noqa: PTH110  # Path.exists raises for some names


def read_bytes(image: str | os.PathLike[str] | bytes | BinaryIO) -> bytes:
    """What the file holds, up to one byte more than it may."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str) and is_url(image):
        give = "download it first, or give its bytes (urllib.request.urlopen(url).read())"
        raise TypeError(f"an image must be a path, not a URL: {give}")
    if isinstance(image, str) and len(image) > 4096:  # no path is so long
        raise TypeError("an image must be a path, not base64: give base64.b64decode(text)")
    if isinstance(image, str | os.PathLike):
        if Path(image).is_fifo():
            raise ValueError("is a pipe, which might never end: give it opened, or what it holds")
        with Path(image).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    if not hasattr(image, "read"):
        kinds = "a path, bytes, an open binary file, a PIL image, a numpy array or a torch tensor"
        raise TypeError(f"an image must be {kinds}, got {type(image).__name__}")
    with suppress(AttributeError, OSError):  # a pipe or download: what is left of it
        image.seek(0)
    data: object = image.read(MAX_BYTES + 1)
    if not isinstance(data, bytes):
        raise TypeError(f"{describe(image)}: open it in binary mode; its read() gave {type(data)}")
    return data


def open_picture(data: bytes) -> PIL.Image.Image:
    """The picture, not yet decoded; none that would cost its decoder far more than its pixels."""
    import PIL.Image

    if not data:
        raise ValueError("is empty")
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES >> 20} MiB")
    PIL.Image.init()
    formats = [known for known in FORMATS if known in PIL.Image.OPEN]
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=formats)
        if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _MAX_SCANS:
            raise ValueError(f"more than {_MAX_SCANS} scans; save it anew")
        tags = getattr(image, "tag_v2", {})
        if math.prod(int(tags.get(side, 0)) for side in (322, 323)) > _MAX_TILE:
            raise ValueError(f"more than {_MAX_TILE >> 20} Mi pixels in one tile; save it anew")
        if image.format == "PPM" and any(tile[0] != "raw" for tile in image.tile):
            raise ValueError("a PPM in text, or of another maximum than 255; save it as PNG")
    except PIL.UnidentifiedImageError as error:
        if data[4:12] in HEIC:
            raise ValueError(
                "is HEIC: pip install pillow-heif, then call pillow_heif.register_heif_opener()"
            ) from error
        known = ", ".join(formats)
        raise ValueError(f"is not an image in a format that can be read ({known})") from error
    except Exception as error:  # decoders raise nearly anything on broken data
        raise ValueError(f"cannot be read as an image ({error})") from error
    return image


def reduce_scale(image: PIL.Image.Image, enough: int | None) -> float:
    """Let a JPEG be decoded at a scale of so many pixels; returns by what its sides are divided."""
    width, height = image.size
    check_size(height, width, _kind(image))
    if enough is not None and image.format in ("JPEG", "MPO") and width * height > enough:
        share = math.sqrt(enough / (width * height))
        image.draft(None, (math.ceil(width * share), math.ceil(height * share)))
    return width / image.width


def to_array(image: PIL.Image.Image) -> np.ndarray[Any, Any]:
    """Its pixels as numpy has them, upright; without alpha, on white."""
    check_size(image.height, image.width, _kind(image))
    if _may_be_misread(image):
        raise ValueError("a TIFF whose separate planes would be misread; save it interleaved")

    def strip(rows: slice) -> np.ndarray[Any, Any]:
        part = np.asarray(_remove_alpha(image.crop((0, rows.start, image.width, rows.stop))))
        return part if white is None else np.float32(part) / np.float32(white)

    try:
        image.load()
        white = _max_value(image)
        turn = _orientation(image)
        like = strip(slice(0, 1))
        size = image.size if turn >= 5 else image.size[::-1]
        upright = np.empty((*size, *like.shape[2:]), like.dtype)
        stored = upright.swapaxes(0, 1) if turn >= 5 else upright
        stored = stored[::-1] if turn in (3, 4, 6, 7) else stored
        stored = stored[:, ::-1] if turn in (2, 3, 7, 8) else stored
        for rows in strips(image.height, image.width):
            stored[rows] = strip(rows)
    except Exception as error:  # decoders raise nearly anything on broken data
        raise ValueError(f"cannot be read as an image ({error})") from error
    return upright


def _kind(image: PIL.Image.Image) -> str:
    """Its format, as ``_LIMITS`` has it."""
    return "progressive JPEG" if image.info.get("progressive") else image.format or "picture"


def _may_be_misread(image: PIL.Image.Image) -> bool:
    """Whether this is a TIFF of separate planes, but for plain gray and RGB bytes: many of the
    others Pillow decodes to other pixels without a word."""
    tags: Any = getattr(image, "tag_v2", {})
    plain = image.mode in ("L", "RGB") and tags.get(262) in (1, 2) and set(tags.get(258, ())) == {8}
    return tags.get(284) == 2 and not plain


def _orientation(image: PIL.Image.Image) -> int:
    """EXIF's, 1 to 8; 1 is upright."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block leaves the picture readable
        return 1
    return int(value) if value in range(1, 9) else 1


def _remove_alpha(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in mode 1, L, RGB, I, F or one of the I;16 modes, on white if it has alpha."""
    import PIL.Image

    numeric = image.mode[0] in "IF"
    if image.has_transparency_data and not numeric:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = PIL.Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba)
    return image if numeric or image.mode in ("1", "L", "RGB") else image.convert("RGB")


def _max_value(image: PIL.Image.Image) -> float | None:
    """What white is in PIL's modes I and F, which do not say; None for the others."""
    if image.mode not in ("I", "F"):
        return None
    low, high = map(float, image.getextrema())  # type: ignore[arg-type]
    for white in (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0):
        if 0 <= low <= high <= white:
            return white
    raise ValueError(f"pixels from {low:g} to {high:g} are outside 0 to {white:g}")


def check_size(height: int, width: int, kind: str = "picture") -> None:
    if height < 1 or width < 1:
        raise ValueError(f"is empty ({width}x{height} pixels)")
    limit = _LIMITS.get(kind, MAX_PIXELS)
    if height * width > limit:
        raise ValueError(f"{width}x{height} pixels exceed {limit >> 20} Mi for a {kind}; shrink it")
