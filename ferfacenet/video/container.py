"""What FFmpeg opens, as a player shows it: which pictures, upright, in what colours, and when."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from ferfacenet.files import check_size
from ferfacenet.images import decode

Picture: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3) RGB

# FFmpeg's names of the containers that are read. No playlists: they name files and addresses,
# which FFmpeg would open in turn.
_CONTAINERS = (
    "asf,avi,dv,flv,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,mxf,ogg,yuv4mpegpipe"
)
# A file whose pictures end more than so many seconds before it says is torn.
_TORN = 0.5
# A time that falls by more seconds than _BACK, or in a container that may begin anew rises by more
# than _AHEAD, is that of another recording which has been put behind the first.
_BACK, _AHEAD = 0.1, 60.0


class Clock:
    """Seconds since the first picture, which rise whatever times a file gives."""

    def __init__(self, begin: float | None = None) -> None:
        self._shift = None if begin is None else -begin
        self._last, self._next = -math.inf, 0.0

    def place(self, time: float | None, duration: float, jumps: bool = False) -> float:
        """When to show what has this time in its file, or None, and this duration, both in seconds;
        ``jumps``: whether a time far ahead is another recording's."""
        if self._shift is None:
            self._shift = -(time or 0.0)
        now = self._next if time is None else time + self._shift
        if now < self._last - _BACK or (jumps and now > self._next + _AHEAD):
            self._shift += self._next - now
            now = self._next
        self._last = now if now > self._last else self._last + duration / 2
        self._next = self._last + duration
        return self._last


def open_container(source: BinaryIO | str, **settings: Any) -> Any:
    """An open file, or the address of a stream, as PyAV's container with moving pictures."""
    av = import_extra("av")
    if not isinstance(source, str):
        settings["options"] = {"format_whitelist": _CONTAINERS}
    try:
        # Without "r" PyAV would write to a file that is open for both.
        container = av.open(source, "r", metadata_errors="replace", **settings)
    except av.error.ExitError as error:
        raise ValueError("nothing has come from there for some seconds") from error
    except (av.FFmpegError, OSError) as error:
        what = "cannot be opened" if isinstance(source, str) else "is no video of a known format"
        raise ValueError(f"{what} ({error.strerror})") from error
    if find_video(container) is None:
        container.close()
        raise ValueError("there is no video in it")
    return container


def find_video(container: Any) -> Any:
    """The stream that a player would show: the default or largest, and none of the pictures that
    are attached to sound; None if there is none."""
    kinds = import_extra("av.stream").Disposition
    moving = [one for one in container.streams.video if not one.disposition & kinds.attached_pic]
    size = {one: (one.disposition & kinds.default, one.width * one.height) for one in moving}
    return max((one for one in moving if one.width), key=size.__getitem__, default=None)


def stated_end(container: Any) -> float | None:
    """The second, of the file's own, at which the pictures end by what its header says; None where
    it says nothing, or only of all streams together."""
    stream, kind = find_video(container), container.format.name
    for name, text in stream.metadata.items():
        if name.startswith("DURATION") and (parts := re.findall(r"[\d.]+", text)):  # Matroska
            return sum(float(part) * 60.0**power for power, part in enumerate(reversed(parts)))
    if kind == "avi" and stream.average_rate and stream.frames < 1 << 30:  # which means "unknown"
        return float(stream.frames / stream.average_rate)
    if kind.startswith("mov") and stream.duration:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    return None


def play(container: Any, clock: Clock) -> Generator[tuple[float, Callable[[], Picture]]]:
    """When each frame is shown, and what draws it; at last a ValueError if not all can be read."""
    av = import_extra("av")
    stream = find_video(container)
    stream.thread_type = "AUTO"
    reformatter = import_extra("av.video.reformatter").VideoReformatter()
    jumps = bool(container.format.flags & av.format.Flags.ts_discont.value)
    # AVI has no times of presentation, but its frames come out in order, and evenly.
    orderly = container.format.name == "avi"
    rate = stream.average_rate or stream.guessed_rate or 25
    count, torn, end = 0, False, 0.0
    for frame in _decode(container, stream):
        torn = torn or frame is None or frame.is_corrupt
        if frame is None:
            continue
        ticks = frame.dts if orderly else frame.pts
        time = None if ticks is None else float(ticks * stream.time_base)
        duration = float((frame.duration or 0) * stream.time_base or 1 / rate)
        end = (end if time is None else time) + duration
        count += 1
        stretch = float(stream.sample_aspect_ratio or 1)  # of pixels that are not square
        draw = partial(_draw, frame, stretch, reformatter)
        yield clock.place(time, duration, jumps), draw
    stated = stated_end(container)
    if torn or not count or (stated is not None and end < stated - _TORN):
        said = f"torn: not all of it can be read; {count} frames could be"
        if not count and container.format.name.startswith("mov"):
            said += ". A pipe, or a server without ranges, needs it with -movflags faststart"
        raise ValueError(said)


def _decode(container: Any, stream: Any) -> Generator[Any]:
    """The frames, and None for each part that cannot be read."""
    error = import_extra("av").FFmpegError
    try:
        for packet in container.demux(stream):
            # An empty packet repeats the last picture; the decoder would take it for the end.
            if not packet.size and packet.pts is not None:
                continue
            try:
                yield from packet.decode()
            except error:
                yield None
    except error:
        yield None
        with suppress(error):  # what the decoder still holds
            yield from stream.codec_context.decode(None)


def _draw(frame: Any, stretch: float, reformatter: Any) -> Picture:
    """(H, W, 3) RGB of a PyAV frame as screens show it: square pixels, turned or mirrored as its
    file says, on white where it is transparent, and HDR in the range of other videos."""
    width = round(frame.width * stretch)
    check_size(frame.height, width)
    colours = import_extra("av.video.reformatter")
    hdr = colours.ColorTrc.SMPTE2084, colours.ColorTrc.ARIB_STD_B67
    usual = colours.ColorTrc.BT709, colours.ColorPrimaries.BT709
    trc, primaries = usual if frame.color_trc in hdr else (None, None)
    alpha = any(part.is_alpha for part in frame.format.components)
    shown = reformatter.reformat(
        frame, width, format="rgba" if alpha else "rgb24",
        dst_color_trc=trc, dst_color_primaries=primaries,
    ).to_ndarray()  # fmt: skip
    picture: Picture = decode(shown).permute(1, 2, 0).numpy() if alpha else shown
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:  # x' = a x + c y, y' = b x + d y
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
        if abs(b) > abs(a):
            picture, a, d = picture.swapaxes(0, 1), c, b
        picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.array(picture, order="C")  # a copy: FFmpeg's own memory is slow to read


def import_extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        needed = "pip install av opencv-python-headless scipy"
        raise ImportError(f"videos need {name}: {needed}") from error
