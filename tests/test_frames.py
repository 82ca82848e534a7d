"""What a video may be, and that its frames come as players show them."""

from __future__ import annotations

import io
import itertools
import os
import re
import tempfile
import threading
import wave
from collections.abc import Callable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import PEAK, encoded, run
from PIL import Image
from videos import av, make, number, numbered

from ferfacenet.video.frames import hide_password, is_video, read_frames

SIX = numbered(6)
ALL = list(range(6))


def read(source: Any, **options: Any) -> tuple[list[float], list[int], set[tuple[int, ...]], str]:
    """The times, numbers and shapes of the frames, and the error."""
    frames, error = [], ""
    try:
        frames.extend(read_frames(source, **options))
    except (ValueError, OSError) as problem:
        error = str(problem)
    times = [round(seconds, 2) for _, seconds, _ in frames]
    return times, [number(frame) for *_, frame in frames], {f.shape for *_, f in frames}, error


def joined(path: Path, *files: Path) -> Path:
    path.write_bytes(b"".join(file.read_bytes() for file in files))
    return path


def twice(path: Path, first: float, second: float) -> Path:
    """Three frames that begin at one second, and behind them three that begin at another."""
    begins = enumerate((first, second))
    parts = [make(path.with_stem(f"{i}"), SIX[3 * i :][:3], delay=begin) for i, begin in begins]
    return joined(path, *parts)


def two_streams(path: Path, side: int, default: int) -> Path:
    """A stream of three small square frames, and one of six of 64x48."""
    with av.open(str(path), "w") as file:
        sizes = (side, side), (64, 48)
        streams = [file.add_stream("libx264", 10, width=w, height=h) for w, h in sizes]
        for index, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if index == default else 0
        for stream, count in zip(streams, (3, 6), strict=True):
            for picture in numbered(count, (stream.height, stream.width)):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode(None))
    return path


def unfinished(path: Path) -> Path:
    """As a recorder leaves an AVI that cannot go back to its header."""
    data = bytearray(make(path, SIX, "mpeg4").read_bytes())
    length = data.index(b"strh") + 8 + 32
    data[length : length + 4] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def animation(path: Path, **options: Any) -> Path:
    """Six pictures, shown for 100, 300, 0, 0, 100, 100 ms."""
    first, *rest = (Image.fromarray(picture) for picture in SIX)
    durations = [100, 300, 0, 0, 100, 100]
    first.save(path, save_all=True, append_images=rest, duration=durations, **options)
    return path


Write = Callable[[Path], Path]


def six(codec: str = "libx264", **options: Any) -> Write:
    return lambda path: make(path, SIX, codec, **options)


def renamed(suffix: str, codec: str = "libx264") -> Write:
    return lambda path: make(path.with_name(f"other{suffix}"), SIX, codec).rename(path)


def two_sizes(path: Path) -> Path:
    small = make(path.with_stem("b"), numbered(6, (24, 32)))
    return joined(path, make(path.with_stem("a"), SIX), small)


def still_at_the_end(path: Path) -> Path:
    """As recorders write that nothing has moved: the last frame is empty."""
    data = bytearray(make(path, SIX, "mpeg4").read_bytes())
    sizes = data.index(b"stsz") + 16
    data[sizes + 20 : sizes + 24] = bytes(4)
    path.write_bytes(data)
    return path


def titled(path: Path) -> Path:
    """As old programs write a title, in Latin-1."""
    data = make(path, SIX, tags={"title": "cafe!"}).read_bytes()
    path.write_bytes(data.replace(b"cafe!", b"caf\xe9!"))
    return path


TENTHS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
UNEVEN = [0.0, 0.04, 0.4, 0.43, 0.9, 1.0]
STILL = [0.0, 0.1, 0.1001, 0.2, 0.3, 0.4]
SHOWN = [0.0, 0.1, 0.4, 0.5, 0.6, 0.7]  # as browsers show what has no duration: for 0.1 seconds
TWICE = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]
PIECES = {"movflags": "frag_keyframe+empty_moov"}
CODECS = {".avi": "mpeg4", ".webm": "libvpx", ".wmv": "wmv2"}
#: Files, how they are written, and the times and numbers of their frames.
ODD: dict[str, tuple[Write, list[float], list[int]]] = {
    **{
        f"longer sound{suffix}": (six(CODECS.get(suffix, "libx264"), sound=2), TENTHS, ALL)
        for suffix in (".mkv", ".webm", ".flv", ".mp4", ".mov", ".wmv", ".avi", ".ts")
    },
    **{
        f"stored in another order{suffix}": (six(bf="2"), TENTHS, ALL)
        for suffix in (".avi", ".mp4", ".mkv", ".ts", ".flv", ".h264")
    },
    "stored in another order, MPEG-4.avi": (six("mpeg4", bf="2"), TENTHS, ALL),
    "stored in another order.mpg": (
        six("mpeg2video", rate=25, bf="2"), [0.4 * time for time in TENTHS], ALL
    ),
    **{
        f"later than the sound{suffix}": (six(sound=1, delay=0.3), TENTHS, ALL)
        for suffix in (".ts", ".mp4", ".mkv")
    },
    "again from 0.ts": (lambda path: twice(path, 0, 0), TENTHS, ALL),
    "then earlier.ts": (lambda path: twice(path, 5, 0), TENTHS, ALL),
    "hours later.ts": (lambda path: twice(path, 0, 9000), TENTHS, ALL),
    "seconds later.ts": (lambda path: twice(path, 0, 5), [0, 0.1, 0.2, 4.8, 4.9, 5], ALL),
    "two sizes.ts": (two_sizes, TWICE, [*ALL, *ALL]),
    "variable rate.mp4": (six(times=UNEVEN), UNEVEN, ALL),
    "variable rate.mkv": (six(times=UNEVEN), UNEVEN, ALL),
    "times that stand still.mkv": (six(times=STILL), [0, 0.1, 0.15, 0.2, 0.3, 0.4], ALL),
    "in pieces.mp4": (six(options=PIECES, g="2"), TENTHS, ALL),
    "preview first.mp4": (lambda path: two_streams(path, 96, default=1), TENTHS, ALL),
    "small first.mkv": (lambda path: two_streams(path, 16, default=2), TENTHS, ALL),
    "title in Latin-1.avi": (titled, TENTHS, ALL),
    "unfinished.avi": (unfinished, TENTHS, ALL),
    "animation.gif": (animation, SHOWN, ALL),
    "animation.png": (animation, SHOWN, ALL),
    "animation.webp": (lambda path: animation(path, lossless=True), SHOWN, ALL),
    "animation.avif": (animation, SHOWN, ALL),
    "animation after another picture.png": (
        lambda path: animation(path, default_image=True), SHOWN[:5], ALL[1:]
    ),
    "an empty frame.mp4": (still_at_the_end, TENTHS[:5], ALL[:5]),
    "50%d.mp4": (renamed(".mp4"), TENTHS, ALL),
    "a:b.mp4": (renamed(".mp4"), TENTHS, ALL),
    "no suffix": (renamed(".mkv"), TENTHS, ALL),
    "another container's.mp4": (renamed(".webm", "libvpx"), TENTHS, ALL),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read_whole_in_order_and_at_rising_times(name: str, tmp_path: Path) -> None:
    write, times, numbers = ODD[name]
    path = write(tmp_path / name)
    assert read(path)[:2] == (pytest.approx(times, abs=0.011), numbers)
    assert read(path)[3] == "" and is_video(path)


#: How a picture is stored, for each of EXIF's orientations, and the matrix that turns it back.
STORED: dict[int, tuple[Callable[[Any], Any], tuple[int, int, int, int]]] = {
    1: (lambda p: p, (1, 0, 0, 1)),
    2: (lambda p: p[:, ::-1], (-1, 0, 0, 1)),
    3: (lambda p: p[::-1, ::-1], (-1, 0, 0, -1)),
    4: (lambda p: p[::-1], (1, 0, 0, -1)),
    5: (lambda p: p.swapaxes(0, 1), (0, 1, 1, 0)),
    6: (lambda p: np.rot90(p), (0, 1, -1, 0)),
    7: (lambda p: p[::-1, ::-1].swapaxes(0, 1), (0, -1, -1, 0)),
    8: (lambda p: np.rot90(p, -1), (0, -1, 1, 0)),
}


@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_upright_and_not_mirrored(orientation: int, tmp_path: Path) -> None:
    across, down = np.meshgrid(np.linspace(0, 200, 64), np.linspace(0, 200, 48))
    upright = np.dstack([across, down, 0 * down]).astype(np.uint8)
    turn, matrix = STORED[orientation]
    stored = np.ascontiguousarray(turn(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "7.jpg", exif=exif)
    for path in (make(tmp_path / "clip.mp4", [stored], matrix=matrix), tmp_path / "%d.jpg"):
        ((_, _, shown),) = read_frames(path)
        assert shown.shape == upright.shape and np.abs(shown.astype(int) - upright).mean() < 4


def test_images_in_sequence_with_a_gap_a_broken_and_an_empty_one(tmp_path: Path) -> None:
    for index in (*range(6), 8, 9):
        Image.fromarray(SIX[index % 6]).save(tmp_path / f"a{98 + index:03}b.png")
    data = (tmp_path / "a103b.png").read_bytes()
    (tmp_path / "a100b.png").write_bytes(b"")
    (tmp_path / "a103b.png").write_bytes(data[: len(data) // 2])
    for other in ("a1b.png", "a0101b.png", "a101b.jpg", "xa101b.png", "a-01b.png"):
        (tmp_path / other).write_bytes(b"no picture, and not of this sequence")
    times, _, _, error = read(tmp_path / "a%03db.png", fps=1)
    assert times == [0, 1, 3, 4, 8, 9] and "a%03db.png: " in error
    for wrong in ("missing before a106b.png", "a100b.png: is empty", "a103b.png: cannot be read"):
        assert wrong in error
    times, numbers, _, error = read(tmp_path / "a%03db.png", every=4, fps=2)
    assert (times, numbers) == ([0, 2, 4], [0, 4, 2]) and "2 missing" in error
    with pytest.raises(FileNotFoundError, match="c%d.png"):
        next(read_frames(tmp_path / "c%d.png"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a FIFO")
def test_what_is_no_video_or_names_other_files_is_refused_at_once(tmp_path: Path) -> None:
    clip, neighbour = make(tmp_path / "a.mp4", SIX), make(tmp_path / "b.ts", SIX)
    refused: dict[Any, str] = {
        "http://127.0.0.1:9/a.mp4": "stream=True", f"concat:{clip}|{clip}": "No such file",
        tmp_path: "folder", "/dev/zero": "device", tmp_path / "none.mp4": "No such file",
        tmp_path / "fifo.mp4": "device",
    }  # fmt: skip
    os.mkfifo(tmp_path / "fifo.mp4")
    texts = {
        "concat.mp4": f"ffconcat version 1.0\nfile {neighbour.name}\n",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{neighbour.name}\n",
        "junk.mp4": "no video",
        "empty.mp4": "",
    }
    for name, content in texts.items():
        (tmp_path / name).write_text(content)
        refused[tmp_path / name] = "no video"
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "NONE"))
        file.writeframes(bytes(8000))
    Image.fromarray(SIX[0]).save(tmp_path / "photo.jpg")
    refused |= {tmp_path / "sound.wav": "no video", tmp_path / "photo.jpg": "no video"}
    for suffix in ("gif", "png", "webp", "avif"):
        Image.fromarray(SIX[0]).save(tmp_path / f"still.{suffix}")
        refused[tmp_path / f"still.{suffix}"] = "picture, not a video"
    for source, said in refused.items():
        times, _, _, error = read(source)
        assert not times and said in error and Path(source).name in error, (source, error)
        assert not is_video(Path(source))


class _Download:
    """No more than a source needs to have."""

    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


def test_open_files_of_any_kind_and_wherever_they_stand(tmp_path: Path) -> None:
    """A web framework gives uploads as spooled files, which are open for both, at their end."""
    path, shown = make(tmp_path / "a.mkv", SIX), animation(tmp_path / "a.gif")
    data = path.read_bytes()
    with path.open("rb") as file:
        assert read(file)[:2] == (TENTHS, ALL) and not file.closed
    for source in (data, io.BytesIO(data), _Download(data)):
        assert read(source) == (TENTHS, ALL, {(48, 64, 3)}, "")
    for file, times in ((path, TENTHS), (shown, SHOWN)):
        with tempfile.SpooledTemporaryFile(1 << 20) as spooled:
            spooled.write(file.read_bytes())
            assert read(spooled) == (times, ALL, {(48, 64, 3)}, "")
    end, begin = os.pipe()
    threading.Thread(target=lambda: os.fdopen(begin, "wb").write(data)).start()
    with os.fdopen(end, "rb") as pipe:
        assert read(pipe)[:2] == (TENTHS, ALL)
    with pytest.raises(TypeError, match="a path, bytes"):
        read(path.read_text)
    with path.open(encoding="latin-1") as text, pytest.raises(TypeError, match="binary"):
        read(text)
    noise = [np.random.default_rng(i).integers(0, 255, (96, 128, 3), np.uint8) for i in range(6)]
    times, _, _, error = read(_Download(make(tmp_path / "a.mp4", noise).read_bytes()))
    assert not times and "faststart" in error, "its index comes too late"


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    assert read(make(tmp_path / "a.mp4", SIX, shape=Fraction(3, 2)))[2] == {(48, 96, 3)}
    wide = make(tmp_path / "wide.mp4", numbered(1, (540, 960)), shape=Fraction(120, 1))
    times, _, _, error = read(wide)
    assert not times and "wide.mp4: 115200x540 pixels" in error


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi", ".gif", ".png"])
def test_a_file_that_is_cut_off_is_torn(suffix: str, tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8) for i in range(30)]
    path = tmp_path / f"cut{suffix}"
    if suffix in (".gif", ".png"):
        first, *rest = map(Image.fromarray, noise)
        first.save(path, save_all=True, append_images=rest)
    else:
        make(path, noise, "mpeg4", sound=2, options={"movflags": "faststart"}, g="1")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    times, _, _, error = read(path)
    assert 2 < len(times) < 30 and "torn" in error and path.name in error


def test_what_is_transparent_is_shown_on_white(tmp_path: Path) -> None:
    red = np.full((48, 64, 4), (200, 60, 40, 128), np.uint8)
    ((_, _, shown),) = read_frames(make(tmp_path / "half.mov", [red], "qtrle", form="argb"))
    assert np.abs(shown - (red[..., :3].astype(int) + 255) / 2).max() <= 6


def test_hdr_white_is_white(tmp_path: Path) -> None:
    """BT.2408's reference white of PQ and HLG, of which a plain copy of the values is gray."""
    pytest.importorskip("av", minversion="18", reason="PyAV 17 only tags colours")
    for curve, level in ((16, 0.58), (18, 0.75)):
        frame = av.VideoFrame(128, 96, "yuv420p10le")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        for plane, value in zip(frame.planes, (round(64 + 876 * level), 512, 512), strict=True):
            plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
        path = tmp_path / f"{curve}.mkv"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("ffv1", 10, width=128, height=96)
            context = stream.codec_context
            context.pix_fmt = "yuv420p10le"
            context.colorspace = context.color_primaries = 9
            context.color_trc, context.color_range = curve, 1
            file.mux([*stream.encode(frame), *stream.encode(None)])
        ((_, _, shown),) = read_frames(path)
        assert shown.min() > 225 and np.ptp(shown) < 8


class _Clip(BaseHTTPRequestHandler):
    """Serves a clip; the first time at "/broken", no more than half of it."""

    data: ClassVar[bytes] = b""
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        begin = int(re.findall(r"\d+", self.headers.get("Range", "bytes=0-"))[0])
        cut = self.path == "/broken" and "/broken" not in self.asked
        self.asked.append(self.path)
        if self.path == "/silent":
            threading.Event().wait(3)
            return
        if self.path == "/camera":
            self.serve_pictures()
            return
        self.send_response(206 if begin else 200)
        size = len(self.data)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - begin))
        self.end_headers()
        self.wfile.write(self.data[begin : size // 2 if cut else None])

    def serve_pictures(self) -> None:
        """Five, as cameras serve a page of them, and then nothing more."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=next")
        self.end_headers()
        for picture in SIX[:5]:
            data = encoded(Image.fromarray(picture), "JPEG")
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")

    def log_message(self, *_: object) -> None: ...


def test_a_stream_is_read_only_where_the_caller_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = [np.random.default_rng(i).integers(0, 255, (96, 128, 3), np.uint8) for i in range(40)]
    monkeypatch.setattr(_Clip, "data", make(tmp_path / "a.ts", noise, crf="20").read_bytes())
    monkeypatch.setattr(_Clip, "asked", [])
    monkeypatch.setattr("ferfacenet.video.frames._SILENCE", 1.0)
    with HTTPServer(("127.0.0.1", 0), _Clip) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://user:secret@127.0.0.1:{server.server_port}"
        assert "stream=True" in read(f"{address}/a.ts")[3] and not _Clip.asked
        for path in ("/a.ts", "/broken"):
            times, _, _, error = read(f"{address}{path}", stream=True)
            assert len(times) == 40 and times == sorted(times) and not error
        assert _Clip.asked.count("/broken") > 1
        frames = read_frames(f"{address}/camera", stream=True)
        again = list(itertools.islice(frames, 12))
        frames.close()
        assert [number(picture) for *_, picture in again] == [0, 1, 2, 3, 4] * 2 + [0, 1]
        assert all(a < b for (_, a, _), (_, b, _) in itertools.pairwise(again))
        times, _, _, error = read(f"{address}/silent", stream=True)
        assert not times and "/silent: nothing has come" in error and "secret" not in error
        server.shutdown()
    for secret in ("user:a@b", "user:?#@"):
        assert hide_password(f"rtsp://{secret}@host/a@b") == "rtsp://host/a@b"
    for wrong in ("a.mp4", f"file://{tmp_path}/a.ts", f"concat:{tmp_path}/a.ts"):
        assert "http" in read(wrong, stream=True)[3]


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    slow = [np.full((96, 128, 3), index // 10, np.uint8) for index in range(1000)]
    path = make(tmp_path / "long.mp4", slow, rate=200, crf="30")
    done = run(
        PEAK
        + """
import sys, ferfacenet
model = ferfacenet.ImprovedVGG19(width=0.125)
model.categories = tuple("abcdefg")
for frame in ferfacenet.predict_video(model, sys.argv[1]):
    if frame.index == 300:
        early = peak()
print(frame.index, peak() - early)
""",
        str(path),
    )
    last, growth = map(int, done.stdout.split())
    assert last == 999 and growth < 10e6  # all frames together have 37 MB
