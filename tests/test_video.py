"""Videos: frames, times, people who keep their numbers, and the command on them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PEAK, PHOTO, PORTRAITS, python_path, run, sharp
from PIL import Image

from ferfacenet import (
    FaceTracker,
    ImprovedVGG19,
    VideoFrame,
    load_pretrained,
    predict_faces,
    predict_video,
    save_pretrained,
)
from ferfacenet.command.cli import main
from ferfacenet.video.frames import VideoWriter, read_frames

av = pytest.importorskip("av", reason="needs the video extra")
Capture = pytest.CaptureFixture[str]
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small weights by which views of one face have different answers."""
    folder = tmp_path_factory.mktemp("weights")
    save_pretrained(sharp(width=0.125), folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def model(weights: Path) -> ImprovedVGG19:
    return load_pretrained(weights)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face that moves to the right in twenty frames, then four of a wall."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return write(path, [*(shift(2 * i) for i in range(20)), *[WALL] * 4], movflags="faststart")


def test_each_frame_is_read_as_a_photo_is(clip: Path, model: ImprovedVGG19) -> None:
    frames = list(predict_video(model, clip, smooth=0))
    assert [frame.index for frame in frames] == list(range(24))
    assert [frame.seconds for frame in frames] == pytest.approx([0.05 * i for i in range(24)])
    assert [len(frame.faces) for frame in frames] == [1] * 20 + [0] * 4
    for frame in frames[:20:6]:
        (face,), (photo,) = frame.faces, predict_faces(model, frame.image)
        side = photo.box[2] - photo.box[0]
        assert face.track == 1 and face.box == pytest.approx(photo.box, abs=0.1 * side)
        assert (face.landmarks - photo.landmarks).abs().max() < 0.03 * side
        assert (face.crop - photo.crop).abs().mean() < 0.06
        assert face.probabilities == face.raw
        assert sum(face.raw.values()) == pytest.approx(1, abs=1e-5)
        assert face.label == max(face.raw, key=face.raw.__getitem__)
    moved = frames[18].faces[0].box[0] - frames[0].faces[0].box[0]
    assert moved == pytest.approx(36, abs=4)


@pytest.mark.parametrize("smooth", [0.2, math.inf])
def test_probabilities_are_smoothed_over_the_past(
    clip: Path, model: ImprovedVGG19, smooth: float
) -> None:
    total, mean = 0.0, np.zeros(7)
    for frame in predict_video(model, clip, smooth=smooth, every=2):
        for face in frame.faces:
            total = 1 + total * math.exp(-0.1 / smooth)
            mean += (np.array(list(face.raw.values())) - mean) / total
            assert face.probabilities is not None and face.confidence is not None
            assert list(face.probabilities.values()) == pytest.approx(mean.tolist(), abs=1e-6)
            assert face.label == list(face.raw)[int(mean.argmax())]
            assert face.confidence == pytest.approx(mean.max(), abs=1e-6)
            assert frame.index == 0 or face.raw != face.probabilities


def test_people_keep_their_numbers_until_a_cut(model: ImprovedVGG19) -> None:
    with Image.open(PORTRAITS) as photo:
        pair = np.asarray(photo.convert("RGB"))
    alone = pair.copy()
    left, right = sorted(face.box for face in predict_faces(model, pair))
    x0, y0, x1, y1 = map(round, right)
    alone[y0 - 30 : y1 + 30, x0 - 30 : x1 + 30] = 128  # something passes before one of the two
    tracker = FaceTracker(model)

    def see(picture: np.ndarray[Any, Any], seconds: float) -> list[tuple[int, bool]]:
        faces = tracker.update(picture, seconds)
        return sorted((face.track, face.box[0] < (left[2] + right[0]) / 2) for face in faces)

    both = see(pair, 0)
    assert {number for number, _ in both} == {1, 2} and {side for _, side in both} == {True, False}
    (stays,) = (seen for seen in both if seen[1])
    assert see(np.roll(pair, 10, 1), 0.04) == both
    assert see(alone, 0.08) == [stays]
    assert see(pair, 0.6) == both
    assert see(alone, 0.64) == [stays]
    assert [number for number, _ in see(pair, 4)] == [stays[0], 3]  # gone for too long
    with Image.open(PHOTO) as photo:
        other = np.asarray(photo.convert("RGB").resize((pair.shape[1], pair.shape[0])))
    assert min(see(other, 4.04))[0] == 4


def test_of_two_people_on_one_face_one_is_out_of_sight(model: ImprovedVGG19) -> None:
    """Two who come together are not both found on the one that is left."""
    face = shift(0)[20:200, 50:230]

    def picture(gap: int) -> np.ndarray[Any, Any]:
        canvas = np.full((240, 480, 3), 120, np.uint8)
        for x in (150 + gap, 150 - gap):
            canvas[30:210, x : x + 180] = face
        return canvas

    tracker = FaceTracker(model)
    assert len(tracker.update(picture(90), 0)) == 2
    for step, gap in enumerate(range(80, -1, -10)):
        found = tracker.update(picture(gap), 0.04 * (step + 1))
    assert len(found) == 1


def test_at_most_so_many_faces_and_none_twice(model: ImprovedVGG19) -> None:
    one, all_of_them = FaceTracker(model, max_faces=1), FaceTracker(model)
    for step in range(4):
        assert [face.track for face in one.update(PORTRAITS, 0.3 * step)] == [1]
        assert len(all_of_them.update(PORTRAITS, 0.3 * step)) == 2


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_variable_rate_gives_right_times(suffix: str, tmp_path: Path) -> None:
    times = [0, 40, 400, 430, 1000]
    path = write(tmp_path / f"clip{suffix}", [shift(i) for i in range(5)], times)
    assert [round(1000 * seconds) for _, seconds, _ in read_frames(path)] == times
    second = list(read_frames(path, every=2))
    assert [index for index, _, _ in second] == [0, 2, 4]
    written = VideoWriter(tmp_path / f"out{suffix}")
    for _, seconds, picture in second:
        written.write(picture[:-1, :-1], seconds)  # odd sizes, which codecs do not take
    written.close()
    again = list(read_frames(tmp_path / f"out{suffix}"))
    assert [round(1000 * seconds) for _, seconds, _ in again] == [0, 400, 1000]
    assert np.abs(again[0][2].astype(int) - second[0][2][:238, :318]).mean() < 6


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    """What phones do: the matrix in the file's track header turns by a quarter."""
    picture = shift(0)
    data = write(tmp_path / "clip.mp4", [picture]).read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    minus, zero = (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4)
    # Columns of the matrix that turns by 90 degrees clockwise.
    turn = zero + one + zero + minus + zero + zero
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data[:place] + turn + data[place + 24 :])
    ((_, _, shown),) = read_frames(turned)
    assert shown.shape == (320, 240, 3)
    assert np.abs(shown.astype(int) - np.rot90(picture, -1)).mean() < 6


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=20, height=240, width=320)
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        frame = av.VideoFrame.from_ndarray(shift(0), format="rgb24")
        file.mux([*stream.encode(frame), *stream.encode(None)])
    ((_, _, shown),) = read_frames(tmp_path / "clip.mp4")
    assert shown.shape == (240, 480, 3)


def test_images_in_sequence(tmp_path: Path, model: ImprovedVGG19) -> None:
    for index in range(3):
        Image.fromarray(shift(4 * index)).save(tmp_path / f"{index + 1001:05}.png")
    frames = list(predict_video(model, tmp_path / "%05d.png", fps=10))
    assert [round(frame.seconds, 3) for frame in frames] == [0, 0.1, 0.2]
    assert (frames[2].image == shift(8)).all() and len(frames[2].faces) == 1


def test_what_is_no_video(tmp_path: Path, model: ImprovedVGG19) -> None:
    sound, junk = tmp_path / "sound.wav", tmp_path / "junk.mp4"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "NONE"))
        file.writeframes(bytes(8000))
    junk.write_text("no video")
    for path, said in ((sound, "no video in this file"), (junk, "cannot be read")):
        with pytest.raises(ValueError, match=f"{path.name}: .*{said}"):
            next(predict_video(model, path))
    with pytest.raises(FileNotFoundError, match="none.mp4"):
        next(predict_video(model, tmp_path / "none.mp4"))
    options: tuple[dict[str, Any], ...] = (
        {"every": 0}, {"smooth": -1}, {"min_score": 2}, {"max_faces": 0}, {"tta": "ten"}
    )  # fmt: skip
    for option in options:
        with pytest.raises(ValueError, match=next(iter(option))):
            list(predict_video(model, write(tmp_path / "clip.mp4", [shift(0)]), **option))


def torn(clip: Path, tmp_path: Path) -> Iterator[Path]:
    """The clip cut off, and with a hole."""
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    hole = len(data) * 2 // 3
    (tmp_path / "hole.mp4").write_bytes(data[:hole] + bytes(900) + data[hole + 900 :])
    yield from (tmp_path / "cut.mp4", tmp_path / "hole.mp4")


def test_a_torn_file_gives_what_can_be_read(clip: Path, tmp_path: Path) -> None:
    for path in torn(clip, tmp_path):
        seen: list[object] = []
        with pytest.raises(ValueError, match=f"{path.name}: torn"):
            seen.extend(read_frames(path))
        assert 5 < len(seen) < 24


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    writer = VideoWriter(path)
    for index in range(2000):
        writer.write(np.full((96, 128, 3), index % 200, np.uint8), index / 200)
    writer.close()
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
    assert last == 1999 and growth < 10e6  # all frames together have 74 MB


def test_a_camera(clip: Path, model: ImprovedVGG19, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the camera's place; there is none on the machines that test."""
    cv2 = pytest.importorskip("cv2", reason="needs the video extra")
    capture = cv2.VideoCapture
    sources = {3: [str(clip)]}
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: capture(*sources.get(number, [])))
    seen: list[VideoFrame] = []
    with pytest.raises(ValueError, match="camera 3"):
        seen.extend(predict_video(model, 3, every=5))
    times = [frame.seconds for frame in seen]
    assert len(seen) == 5 and times == sorted(times) and times[0] < 1
    (face,), (photo,) = seen[1].faces, predict_faces(model, shift(10))
    assert face.box == pytest.approx(photo.box, abs=8)
    with pytest.raises(ValueError, match="camera 4"):
        next(predict_video(model, 4))


def test_without_the_extra_the_remedy_is_named(
    clip: Path,
    weights: Path,
    model: ImprovedVGG19,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    for name in ("av", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)
    for source in (clip, 0):
        with pytest.raises(ImportError, match=r"pip install.*video"):
            next(predict_video(model, source))
    assert main(["--weights", str(weights), str(clip)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install" in line


def ask(weights: Path, *arguments: object, status: int = 0) -> None:
    assert main(["--weights", str(weights), *map(str, arguments)]) == status


def test_json_and_csv_have_a_line_for_each_face_and_for_each_frame_without(
    clip: Path, weights: Path, model: ImprovedVGG19, capsys: Capture
) -> None:
    ask(weights, "--json", clip, "--every", 3)
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    ask(weights, "--csv", clip, "--every", 3)
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["frame"] for row in rows] == list(range(0, 24, 3)) and not said.err
    for row, cells, frame in zip(rows, table, predict_video(model, clip, every=3), strict=True):
        assert row["seconds"] == pytest.approx(frame.seconds, abs=1e-3)
        assert row["video"] == cells["video"] == str(clip)
        assert float(cells["seconds"]) == row["seconds"]
        if not frame.faces:
            assert [row["track"], row["box"], row["probabilities"]] == [None] * 3
            assert cells["track"] == cells["label"] == cells["raw fear"] == ""
            continue
        (face,) = frame.faces
        assert row["track"] == int(cells["track"]) == 1
        assert row["box"] == [float(cells[end]) for end in ("x0", "y0", "x1", "y1")]
        assert row["label"] == cells["label"] == face.label
        for name, value in face.raw.items():
            assert row["raw"][name] == float(cells[f"raw {name}"]) == pytest.approx(value, abs=1e-6)
            assert float(cells[name]) == row["probabilities"][name]
    assert [row["track"] for row in rows[-1:]] == [None]


def test_names_that_would_steer_a_terminal_or_a_parser(
    clip: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    odd, absent = tmp_path / "\x1b[31m a\nb\r.mp4", tmp_path / "\x1b\n.mp4"
    odd.symlink_to(clip)
    ask(weights, "--csv", "--every", 10, odd)
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out, newline=""))
    assert {row[0] for row in rows} == {str(odd)} and {*map(len, rows)} == {len(header)}
    ask(weights, "--every", 10, odd, absent, status=1)
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "person 1" in said.out
    assert all(line.isprintable() for text in said for line in text.split("\n"))


def test_a_summary_of_each_person(clip: Path, weights: Path, capsys: Capture) -> None:
    ask(weights, clip, "--top", 2)
    title, *chances = capsys.readouterr().out.splitlines()
    assert title.startswith(f"{clip}: person 1, 0.0 to 0.9 s, 20 frames: ") and len(chances) == 2
    assert title.split()[-1] == chances[0].split()[0]


def test_plots(clip: Path, weights: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    ask(weights, clip, "--plot", tmp_path / "out.mp4", "--min-confidence", 1)
    plain, drawn = list(read_frames(clip)), list(read_frames(tmp_path / "out.mp4"))
    assert [round(t, 3) for _, t, _ in drawn] == [round(t, 3) for _, t, _ in plain]
    changes = [np.abs(a[2].astype(int) - b[2]).max() for a, b in zip(plain, drawn, strict=True)]
    assert min(changes[:20]) > 100 > 40 > max(changes[20:])
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 900
    for out, said in ((tmp_path / "out.gif", "mp4"), (tmp_path / "no" / "out.mp4", "no folder")):
        ask(weights, clip, "--plot", out, status=2)
        assert said in capsys.readouterr().err


def test_a_torn_file_and_an_absent_one_among_others(
    clip: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = next(torn(clip, tmp_path))
    ask(weights, "--json", path, tmp_path / "none.mp4", clip, "--every", 4, status=1)
    said = capsys.readouterr()
    seen = [json.loads(line)["video"] for line in said.out.splitlines()]
    assert seen.count(str(path)) >= 2 and seen.count(str(clip)) == 6
    first, second = said.err.splitlines()
    assert f"{path}: torn" in first and "none.mp4" in second


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name files"), (["--camera", 0, "a.mp4"], "not both"),
        (["a.mp4", "b.jpg"], "separate"),
        (["a.mp4", "--every", 0], "--every"), (["a.mp4", "--smooth", -1], "--smooth"),
        (["a.mp4", "--fps", 0], "--fps"), (["a.mp4", "--align", "never"], "--align"),
        (["--camera", 0, "--align", "never"], "--align"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(
    arguments: list[object], said: str, weights: Path, capsys: Capture
) -> None:
    ask(weights, *arguments, status=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_whole_files(kind: int, weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    clip = write(tmp_path / "long.mp4", [shift(i % 20) for i in range(300)])
    out = tmp_path / "out.mp4"
    code = "import sys; from ferfacenet.command.cli import main; sys.exit(main())"
    arguments = ["--json", "--weights", weights, clip, "--plot", out]
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": python_path()},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(10)]
        process.send_signal(kind)
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + kind and errors == "ferfacenet: interrupted\n"
    rows = [json.loads(line) for line in [*lines, *rest.splitlines()]]
    assert 10 <= len(rows) < 300
    assert len(list(read_frames(out))) in (len(rows), len(rows) - 1)
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 900
