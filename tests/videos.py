"""Small videos that tests write: a face that moves before a wall, whole and torn; and odd ones."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PHOTO
from PIL import Image

av = pytest.importorskip("av", reason="needs the video extra")
WALL = np.full((240, 320, 3), 200, np.uint8)


def shift(x: int) -> np.ndarray[Any, Any]:
    """(240, 320, 3) of a photo's one face before a wall, so far to the right."""
    picture = WALL.copy()
    with Image.open(PHOTO) as photo:
        picture[20:220, 50 + x : 230 + x] = np.asarray(photo.convert("RGB"))[20:220, 140:320]
    return picture


def write(path: Path, pictures: list[np.ndarray[Any, Any]], **options: str) -> Path:
    """A video of the pictures, 20 a second, that can be cut within."""
    codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
    return make(path, pictures, codec, rate=20, options=options, crf="10", g="6")


def numbered(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray[Any, Any]]:
    """Gray pictures of which each tells its number by its brightness, 20 levels a step from 20."""
    return [np.full((*size, 3), 20 + 20 * (index % 11), np.uint8) for index in range(count)]


def number(picture: np.ndarray[Any, Any]) -> int:
    return round((float(picture.mean()) - 20) / 20)


def make(
    path: Path,
    pictures: list[np.ndarray[Any, Any]],
    codec: str = "libx264",
    *,
    times: list[float] | None = None,
    rate: int = 10,
    sound: float = 0.0,
    delay: float = 0.0,
    matrix: tuple[int, int, int, int] | None = None,
    form: str = "yuv420p",
    shape: Fraction | None = None,
    tags: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """A video of pictures at a rate, or at times in seconds, after ``delay`` seconds; with so many
    of sound from 0 on; to be turned by a, b, c, d of a display matrix."""
    with av.open(str(path), "w", options=options or {}) as file:
        height, width = pictures[0].shape[:2]
        crf = {"crf": "5"} if codec.startswith("libx26") else {}
        video = file.add_stream(codec, rate, width=width, height=height, options=crf | settings)
        video.codec_context.pix_fmt, video.codec_context.sample_aspect_ratio = form, shape or 1
        kind = {".webm": "libopus", ".avi": "mp2"}.get(path.suffix, "aac")
        audio = file.add_stream(kind, 48000, layout="mono") if sound else None
        file.metadata.update(tags or {})
        if times:
            video.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture), format="rgba" if picture.shape[2] == 4 else "rgb24"
            )
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
            frame.pts = round(((times[index] if times else index / rate) + delay) / frame.time_base)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if audio:
            step = audio.codec_context.frame_size or 1024
            for begin in range(0, round(48000 * sound), step):
                kind = {"libopus": "s16"}.get(kind, audio.codec_context.format.name)
                quiet = np.zeros((1, step), {"s": np.int16, "f": np.float32}[kind[0]])
                piece = av.AudioFrame.from_ndarray(quiet, format=kind, layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 48000, begin, Fraction(1, 48000)
                file.mux(audio.encode(piece))
            file.mux(audio.encode(None))
    if matrix:  # which a phone writes into the header of the track
        data, (a, b, c, d) = path.read_bytes(), (part << 16 for part in matrix)
        place = data.index(b"tkhd") + 4 + 40
        turn = b"".join(part.to_bytes(4, "big", signed=True) for part in (a, b, 0, c, d))
        path.write_bytes(data[:place] + turn + data[place + 20 :])
    return path


def write_clip(folder: Path) -> Path:
    """A face that moves to the right in twenty frames, then four of a wall."""
    pictures = [*(shift(2 * i) for i in range(20)), *[WALL] * 4]
    return write(folder / "clip.mp4", pictures, movflags="faststart")


def torn(clip: Path, tmp_path: Path) -> Iterator[Path]:
    """The clip cut off, and with a hole."""
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    hole = len(data) * 2 // 3
    (tmp_path / "hole.mp4").write_bytes(data[:hole] + bytes(900) + data[hole + 900 :])
    yield from (tmp_path / "cut.mp4", tmp_path / "hole.mp4")
