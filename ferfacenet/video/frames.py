"""The frames of a video file, a sequence of images or a camera; and frames to a video file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Picture: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3) RGB

#: What a written video's name may end in.
WRITABLE = ("mp4", "mov", "mkv", "webm")

_TICK = Fraction(1, 1000)  # seconds, in which written times are counted
# A file whose pictures end more than so many seconds before it says is torn.
_TORN = 0.5


def read_frames(
    source: str | os.PathLike[str] | int, every: int = 1, fps: float | None = None
) -> Generator[tuple[int, float, Picture]]:
    """Index, seconds and picture of the frames; arguments and errors are ``predict_video``'s."""
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every!r}")
    frames = _read_camera(source) if isinstance(source, int) else _read_file(Path(source), fps)
    with closing(frames):
        for index, (seconds, draw) in enumerate(frames):
            if index % every == 0:
                yield index, seconds, draw()


def _read_camera(number: int) -> Generator[tuple[float, Callable[[], Picture]]]:
    cv2 = import_extra("cv2")  # PyAV's own builds know no cameras on Linux
    camera = cv2.VideoCapture(number)
    try:
        begin = time.monotonic()
        while (read := camera.read())[0]:
            yield time.monotonic() - begin, partial(cv2.cvtColor, read[1], cv2.COLOR_BGR2RGB)
        raise ValueError(f"camera {number} gives no pictures: is it there, and free?")
    finally:
        camera.release()


def _read_file(path: Path, fps: float | None) -> Generator[tuple[float, Callable[[], Picture]]]:
    with open_video(path, fps) as file:
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        begin, stated = (file.start_time or 0) / 1e6, stated_end(file)
        end, torn, index, rate = 0.0, False, 0, stream.average_rate or 25
        stretch = float(stream.sample_aspect_ratio or 1)  # of pixels that are not square
        for frame in _decode(file):
            torn = torn or frame is None or frame.is_corrupt
            if frame is not None:
                # Where a file has no times, its frames are evenly spaced.
                seconds = index / rate if frame.time is None else frame.time - begin
                end = seconds + float((frame.duration or 0) * frame.time_base)
                index += 1
                yield float(seconds), partial(_draw, frame, stretch)
        if torn or (stated is not None and end < stated - _TORN):
            raise ValueError(f"{path}: torn: not all of it can be read; {index} frames could be")


def _decode(file: Any) -> Generator[Any]:
    """The frames of an open video, and None for each part that cannot be read."""
    error = import_extra("av").FFmpegError
    try:
        for packet in file.demux(file.streams.video[0]):
            try:
                yield from packet.decode()
            except error:
                yield None
    except error:
        yield None


def _draw(frame: Any, stretch: float) -> Picture:
    """(H, W, 3) RGB of a PyAV frame, with square pixels, and turned as its file says."""
    picture: Picture = frame.to_ndarray(format="rgb24", width=round(frame.width * stretch))
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


def open_video(path: Path, fps: float | None = None) -> Any:
    """A file or sequence of images as PyAV's container, whose first video is there."""
    av = import_extra("av")
    options = {"start_number_range": "100000"}  # a sequence may begin with any of these numbers
    try:
        file = av.open(str(path), options=options | ({"framerate": str(fps)} if fps else {}))
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path}: cannot be read as a video: {error.strerror}") from error
    if not file.streams.video:
        file.close()
        raise ValueError(f"{path}: there is no video in this file")
    return file


def stated_end(file: Any) -> float | None:
    """The seconds at which an open video says that it ends; None if it does not."""
    stream, begin = file.streams.video[0], (file.start_time or 0) / 1e6
    if stream.duration:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base) - begin
    return file.duration / 1e6 if file.duration else None


class VideoWriter:
    """Pictures of one size, each with its own time, to a file whose suffix is in ``WRITABLE``."""

    def __init__(self, path: Path) -> None:
        self._path, self._time = path, -1
        self._file: Any = None

    def write(self, picture: Picture, seconds: float) -> None:
        height, width = (length // 2 * 2 for length in picture.shape[:2])  # as the codecs want it
        av = import_extra("av")
        if self._file is None:
            self._file = av.open(str(self._path), "w")
            codec = self._file.default_video_codec
            self._stream = self._file.add_stream(codec, rate=30, width=width, height=height)
            self._stream.codec_context.time_base = _TICK
        frame = av.VideoFrame.from_ndarray(picture[:height, :width], format="rgb24")
        frame.pts = self._time = max(self._time + 1, round(seconds / _TICK))
        frame.time_base = _TICK
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file, so that what has been written can be played."""
        if self._file is not None:
            self._file.mux(self._stream.encode(None))
            self._file.close()


def import_extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'videos need {name}: pip install ".[video]"') from error
