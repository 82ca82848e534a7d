"""Small videos that tests write: a face that moves before a wall, whole and torn."""

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


def write(
    path: Path, pictures: list[np.ndarray[Any, Any]], times: list[int] | None = None, **options: str
) -> Path:
    """A video of the pictures, at 20 frames a second or with times in milliseconds."""
    codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
    with av.open(str(path), "w", options=options) as file:
        settings = {"crf": "10", "g": "6"}
        stream = file.add_stream(codec, rate=20, height=240, width=320, options=settings)
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = times[index] if times else 50 * index, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
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
