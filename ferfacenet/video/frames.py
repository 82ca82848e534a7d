"""The frames of a video: a file, a stream, an animation, a sequence of images or a camera."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from ferfacenet.files import HEIC
from ferfacenet.images import Image, decode, named
from ferfacenet.transforms import to_rgb
from ferfacenet.video.container import (
    Clock,
    Picture,
    find_video,
    import_extra,
    open_container,
    play,
    stated_end,
)

if TYPE_CHECKING:
    import PIL.Image

#: What a video may be; ``predict_video`` says how each is read.
Source: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | int"
_Frames: TypeAlias = Generator[tuple[float, Callable[[], Picture]]]

#: The animations, by Pillow's names, which reads them: FFmpeg misreads some and refuses others.
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")
_ADDRESS = re.compile(r"(https?|rtmps?|rtsps?)://\S", re.IGNORECASE)
# How many seconds a stream may be silent, and for how many it is tried to open a live one again.
_SILENCE, _PATIENCE = 10.0, 30.0


def read_frames(
    source: Source, every: int = 1, fps: float | None = None, *, stream: bool = False
) -> Generator[tuple[int, float, Picture]]:
    """Index, seconds and picture of the frames; arguments and errors are ``predict_video``'s."""
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every!r}")
    with named(f"camera {source}" if isinstance(source, int) else hide_password(source)):
        if isinstance(source, str | os.PathLike) and is_sequence(source) and not stream:
            yield from _read_sequence(Path(source), every, fps or 25)
            return
        if isinstance(source, int):
            frames = _read_camera(source)
        else:
            frames = _read_stream(str(source)) if stream else _read_file(source)
        with closing(frames):
            for index, (seconds, draw) in enumerate(frames):
                if index % every == 0:
                    yield index, seconds, draw()


def is_sequence(source: str | os.PathLike[str]) -> bool:
    """Whether this is a pattern such as ``"frames/%04d.png"``, and no file."""
    return bool(re.search(r"%\d*d", Path(source).name)) and not Path(source).exists()


def is_video(path: Path) -> bool:
    """Whether what is in a file can be read as a video, or is an animation."""
    try:
        with _open_file(path) as file:
            if _animation(file) is None:
                open_container(file).close()
            return True
    except (ValueError, OSError):
        return False


def count_frames(path: Path) -> int | None:
    """About how many frames a file has, if it says so."""
    if is_sequence(path):
        return None
    with _open_file(path) as file:
        if image := _animation(file):
            return int(getattr(image, "n_frames", 0))
        with open_container(file) as container:
            end, rate = stated_end(container), find_video(container).average_rate
            return round(end * rate) if end and rate else None


def hide_password(source: Any) -> Any:
    """The source; of an address without what is before the host."""
    return re.sub(r"//[^/]*@", "//", source) if isinstance(source, str) else source


def _read_camera(number: int) -> _Frames:
    cv2 = import_extra("cv2")  # PyAV's own builds know no cameras on Linux
    if number < 0:
        raise ValueError("a camera's number is 0 or more")
    camera = cv2.VideoCapture(number)
    try:
        begin = time.monotonic()
        while (read := camera.read())[0]:
            yield time.monotonic() - begin, partial(cv2.cvtColor, read[1], cv2.COLOR_BGR2RGB)
        raise ValueError("gives no pictures: is it there, and free?")
    finally:
        camera.release()


def _read_sequence(path: Path, every: int, fps: float) -> Generator[tuple[int, float, Picture]]:
    """The pictures that fit a pattern, by their numbers; at last a ValueError that names those
    that are missing, or cannot be read."""
    begin, width, end = re.split(r"%(\d*)d", path.name, maxsplit=1)
    files = {}
    for file in path.parent.iterdir():
        digits = file.name.removeprefix(begin).removesuffix(end)
        if digits.isdecimal() and file.name == f"{begin}{int(digits):0{width or 1}}{end}":
            files[int(digits)] = file
    if not files:
        raise FileNotFoundError(f"{path}: there are no such images")
    numbers, wrong = sorted(files), list[str]()
    for last, number in zip([numbers[0] - 1, *numbers], numbers, strict=False):
        if number > last + 1:
            wrong.append(f"{number - last - 1} missing before {files[number].name}")
        index = number - numbers[0]
        if index % every == 0:
            try:
                yield index, index / fps, _show(files[number])
            except (ValueError, OSError) as error:
                wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong[:5] + ["and more"] * (len(wrong) > 5)))


def _show(image: Image) -> Picture:
    picture: Picture = to_rgb(decode(image)).permute(1, 2, 0).contiguous().numpy()
    return picture


@contextmanager
def _open_file(source: str | os.PathLike[str] | bytes | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        if _ADDRESS.match(str(source)) and not path.exists():
            raise ValueError("is an address: stream=True reads it, over the network")
        if path.exists() and not path.is_file():  # opening a FIFO that nobody writes to would hang
            raise ValueError("is a folder or a device, not a video file")
        with path.open("rb") as file:
            yield file
    elif hasattr(source, "read"):
        if not isinstance(source.read(0), bytes):
            raise TypeError("a video must be open in binary mode, not as text")
        yield source
    else:
        kinds = "a path, bytes, an open binary file or a camera's number"
        raise TypeError(f"a video must be {kinds}, got {type(source).__name__}")


def _read_file(source: str | os.PathLike[str] | bytes | BinaryIO) -> _Frames:
    with _open_file(source) as file:
        if image := _animation(file):
            yield from _read_animation(image)
        else:
            with open_container(file) as container:
                yield from play(container, Clock())


def _animation(file: BinaryIO) -> PIL.Image.Image | None:
    """The animation in an open file, if it is one; a ValueError if it is a single picture."""
    import PIL.Image

    try:
        file.seek(0)
    except (AttributeError, OSError):  # a pipe or download
        return None
    if file.read(12)[4:] in HEIC:  # of which FFmpeg makes a video of its tiles
        raise ValueError("is a picture, not a video")
    try:
        image = PIL.Image.open(file, formats=ANIMATIONS)
        animated = getattr(image, "is_animated", False)
    except Exception:  # decoders raise nearly anything on broken data
        return None
    finally:
        file.seek(0)
    if not animated:
        raise ValueError("is a picture, not a video")
    return image


def _read_animation(image: PIL.Image.Image) -> _Frames:
    """Each picture in full, and as browsers time it."""
    seconds = 0.0
    for index in count(int(getattr(image, "default_image", False))):
        try:
            image.seek(index)
            picture = _show(image)
        except EOFError:
            return
        except Exception as error:  # decoders raise nearly anything on broken data
            raise ValueError("torn: not all of it can be read") from error
        yield seconds, partial(np.asarray, picture)
        duration = image.info.get("duration", 0)
        seconds += (duration if duration > 10 else 100) / 1000


def _read_stream(address: str) -> _Frames:
    """A stream until it ends; a live one, which never does, is opened again when it breaks off."""
    if not _ADDRESS.match(address):
        raise ValueError("is no address of a stream: those of http, https, rtsp, rtmp are read")
    # By "reconnect" FFmpeg asks a server again for the rest of a file.
    options = {"reconnect": "1", "rtsp_transport": "tcp"}
    clock, live, heard = Clock(), False, 0.0
    while True:
        try:
            with open_container(address, timeout=_SILENCE, options=options) as container:
                # What comes over HTTP is a file, unless it is a camera's page of pictures.
                camera = container.format.name == "mpjpeg" or not address.lower().startswith("http")
                live = camera and not container.duration
                for frame in play(container, clock):
                    heard = time.monotonic()
                    yield frame
            if not live:
                return
            raise ValueError("has ended")
        except ValueError:
            if not live or time.monotonic() - heard > _PATIENCE:
                raise
        time.sleep(1)
