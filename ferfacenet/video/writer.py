"""Pictures, and the sound of the file that they are from, to a video file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from ferfacenet.video.container import Clock, Picture, find_video, import_extra, open_container
from ferfacenet.weights import open_atomically

#: What a written video's name may end in, and FFmpeg's name of that container.
WRITABLE = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm"}

_TICK = Fraction(1, 90_000)  # the unit of times, in seconds, of which all usual rates are made
_BT709, _LIMITED = 1, 1  # the colours and the range of written pictures, as FFmpeg numbers them


class VideoWriter:
    """Pictures, each with its own time, to a file whose suffix is in ``WRITABLE``.

    A context manager, which on leaving finishes the file and moves it to its place: whatever ended
    the block, what was written can be played. Where nothing or not all could be written, no file
    appears, and an older one stays.
    """

    def __init__(self, path: Path, source: Path | None = None, every: int = 1) -> None:
        """``source``: the video whose frames these are, or one of ``every`` of them: for its rate,
        and for its sound, which is copied as it is where the container takes it."""
        self._path, self._source, self._every = path, source, every
        self._file: Any = None
        self._failure: Exception | None = None
        self._resources = ExitStack()
        self._sound: Iterator[tuple[float, Any]] = iter(())
        self._heard = self._seen = -math.inf
        self._rate = Fraction(30)  # the source's

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._named(), self._resources:
            if self._failure:
                raise self._failure
            if self._file:
                self._mux(self._stream.encode(None))
                self._copy_sound(self._seen if kind else math.inf)
                self._file.close()

    def write(self, picture: Picture, seconds: float) -> None:
        """Add (H, W, 3) uint8 RGB, shown from ``seconds`` on, which rise; scaled to the size of the
        first, whose last row or column is left out where their number is odd."""
        with self._named():
            if self._file is None:
                self._begin(*picture.shape[:2])
            self._copy_sound(seconds)
            self._seen = seconds
            self._add(picture)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Let an error of the disk name the file; after any error nothing more is written."""
        try:
            yield
        except Exception as error:
            self._failure = error
            # Not the temporary file, whose name holds that of the file.
            if isinstance(error, OSError) and self._path.name in str(error.filename or self._path):
                error.filename = str(self._path)
            raise

    def _begin(self, height: int, width: int) -> None:
        av, sound, begin = import_extra("av"), None, 0.0
        if self._source:
            file = self._resources.enter_context(self._source.open("rb"))
            source = self._resources.enter_context(open_container(file))
            stream, sound = find_video(source), source.streams.best("audio")
            self._rate = stream.average_rate or stream.guessed_rate or self._rate
            begin = float((stream.start_time or 0) * stream.time_base)
        target = self._resources.enter_context(open_atomically(self._path))
        form = WRITABLE[self._path.suffix[1:].lower()]
        while True:
            self._file = av.open(target, "w", format=form)
            codec, rate = self._file.default_video_codec, self._rate / self._every
            self._stream = self._file.add_stream(codec, rate)
            context = self._stream.codec_context
            context.width, context.height = width // 2 * 2, height // 2 * 2  # as codecs want it
            context.time_base, context.color_range = _TICK, _LIMITED
            # Where a file does not say its colours, players guess them by its size.
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            try:
                if sound:
                    copy = self._file.add_stream_from_template(sound)
                    self._sound = _read_sound(source, sound, copy, begin)
                self._file.start_encoding()
                return
            except (av.FFmpegError, ValueError) as error:
                if not sound:
                    raise
                warnings.warn(
                    f"{self._path}: without sound, which does not fit in ({error})", stacklevel=3
                )
                sound, self._sound = None, iter(())

    def _add(self, picture: Picture) -> None:
        frame = import_extra("av").VideoFrame.from_ndarray(picture, format="rgb24")
        colours, context = import_extra("av.video.reformatter"), self._stream.codec_context
        frame = frame.reformat(
            context.width, context.height, "yuv420p",
            dst_colorspace=colours.Colorspace.ITU709, dst_color_range=colours.ColorRange.MPEG,
        )  # fmt: skip
        frame.pts, frame.time_base = round(self._seen / _TICK), _TICK
        self._mux(self._stream.encode(frame))

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # Players need it of the last one, which no other ends.
            packet.duration = round(self._every / self._rate / packet.time_base)
            self._file.mux(packet)

    def _copy_sound(self, until: float) -> None:
        """As far as the pictures are, so that players find both near each other."""
        while self._heard < until and (sound := next(self._sound, None)):
            self._heard, packet = sound
            self._file.mux(packet)


def _read_sound(source: Any, sound: Any, copy: Any, begin: float) -> Iterator[tuple[float, Any]]:
    """Packets of a stream for its copy, each with its seconds since the first picture."""
    clock, tick = Clock(begin), sound.time_base
    for packet in source.demux(sound):
        if packet.dts is not None:
            seconds = clock.place(float(packet.dts * tick), float((packet.duration or 0) * tick))
            if seconds >= 0:
                packet.stream, packet.pts = copy, round(seconds / tick)
                packet.dts = packet.pts
                yield seconds, packet
