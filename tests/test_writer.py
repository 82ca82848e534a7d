"""Videos as they are written: times, rate, sound, colours; whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import full_disk
from videos import av, make, number, numbered

from ferfacenet.video.frames import read_frames
from ferfacenet.video.writer import WRITABLE, VideoWriter

SIX = numbered(6)
NOISE = np.random.default_rng(0).integers(0, 255, (30, 120, 160, 3), np.uint8)


def copy(source: Path, path: Path, every: int = 1) -> Path:
    with VideoWriter(path, source, every) as writer:
        for _, seconds, picture in read_frames(source, every):
            writer.write(picture, seconds)
    return path


@pytest.mark.parametrize("suffix", WRITABLE)
def test_rate_times_and_duration_are_the_sources(suffix: str, tmp_path: Path) -> None:
    sixty = make(tmp_path / "sixty.mp4", numbered(30), rate=60)
    uneven = make(tmp_path / "uneven.mkv", SIX, times=[0, 0.04, 0.4, 0.43, 0.9, 1])
    for source, every, rate in ((sixty, 1, 60), (sixty, 2, 30), (uneven, 1, None)):
        path = copy(source, tmp_path / f"out.{suffix}", every)
        with av.open(str(path)) as file:
            stream, length = file.streams.video[0], file.duration / 1e6
            assert rate is None or round(stream.average_rate) == rate
            packets = [packet for packet in file.demux(stream) if packet.size]
        read, written = list(read_frames(source, every)), list(read_frames(path))
        assert [number(p) for *_, p in written] == [number(p) for *_, p in read]
        assert [s for _, s, _ in written] == pytest.approx([s for _, s, _ in read], abs=1e-3)
        assert len(packets) == len(read)
        if rate:
            assert length == pytest.approx(read[-1][1] + 1 / rate, abs=2e-3)


@pytest.mark.parametrize(
    ("source", "target", "copied"),
    [("mp4", "mp4", True), ("mp4", "webm", False), ("webm", "webm", True), ("ts", "mov", True),
     ("flv", "mkv", True)],
)  # fmt: skip
def test_sound_is_copied_where_the_container_takes_it(
    source: str, target: str, copied: bool, tmp_path: Path
) -> None:
    codec = {"webm": "libvpx"}.get(source, "libx264")
    clip = make(tmp_path / f"clip.{source}", numbered(20), codec, sound=2.5, delay=0.2)
    if not copied:
        with pytest.warns(UserWarning, match="without sound"):
            copy(clip, tmp_path / f"out.{target}")
        return
    path = copy(clip, tmp_path / f"out.{target}")
    with av.open(str(clip)) as old, av.open(str(path)) as new:
        wanted, found = old.streams.audio[0], new.streams.audio[0]
        assert found.codec_context.sample_rate == wanted.codec_context.sample_rate
        order = [p for p in new.demux() if p.size]
        times = [float(p.pts * p.time_base) for p in order if p.stream.type == "audio"]
        assert times[0] < 0.05 and times[-1] == pytest.approx(2.3, abs=0.1)
        # A player that reads from the beginning finds sound and pictures near each other.
        first = order[: len(order) // 3]
        assert {packet.stream.type for packet in first} == {"audio", "video"}
        assert max(float(packet.pts * packet.time_base) for packet in first) < 1.2


def test_without_sound_and_without_source(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4") as writer:
        for index, picture in enumerate([SIX[0], SIX[1][:-1, :-1], numbered(3, (96, 128))[2]]):
            writer.write(picture, index / 5)
    frames = list(read_frames(tmp_path / "out.mp4"))
    assert [(round(s, 2), number(p), p.shape) for _, s, p in frames] == [
        (0.0, 0, (48, 64, 3)), (0.2, 1, (48, 64, 3)), (0.4, 2, (48, 64, 3))
    ]  # fmt: skip
    with VideoWriter(tmp_path / "odd.mp4") as writer:
        writer.write(np.zeros((47, 63, 3), np.uint8), 0)
    assert next(read_frames(tmp_path / "odd.mp4"))[2].shape == (46, 62, 3)


def test_colours_are_said_and_kept(tmp_path: Path) -> None:
    red = np.full((96, 128, 3), (200, 60, 40), np.uint8)
    for path in (tmp_path / "out.mp4", tmp_path / "out.webm"):
        with VideoWriter(path) as writer:
            writer.write(red, 0)
        with av.open(str(path)) as file:
            context = file.streams.video[0].codec_context
            assert (context.colorspace, context.color_range) == (1, 1)  # BT.709, limited
        ((_, _, shown),) = read_frames(path)
        assert np.abs(shown.astype(int) - red).max() <= 4


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_what_cannot_be_written_whole_leaves_an_older_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{suffix}"
    path.write_bytes(b"older")

    def fill() -> None:
        with full_disk(), VideoWriter(path) as writer:
            for index, picture in enumerate(NOISE):
                writer.write(picture, index / 10)

    with pytest.raises(OSError, match=f"too large.*{path.name}"):
        fill()
    with VideoWriter(path):
        pass  # a source without frames
    place = tmp_path / "folder" / path.name
    with pytest.raises(OSError, match=str(place)) as said, VideoWriter(place) as writer:
        writer.write(NOISE[0], 0)
    assert said.value.filename == str(place)  # and not that of the temporary file
    assert path.read_bytes() == b"older" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_was_written_until_an_error_can_be_played(
    kind: type[BaseException], tmp_path: Path
) -> None:
    clip = make(tmp_path / "clip.mp4", numbered(20), sound=2)
    with pytest.raises(kind), VideoWriter(tmp_path / "out.mp4", clip) as writer:  # noqa: PT012
        for index, seconds, picture in read_frames(clip):
            writer.write(picture, seconds)
            if index == 9:
                raise kind
    assert len(list(read_frames(tmp_path / "out.mp4"))) == 10
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert len(file.streams.audio) == 1 and file.duration / 1e6 < 1.2
