"""The command on videos: what it prints and writes, and with which exit status."""

from __future__ import annotations

import contextlib
import csv
import functools
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PHOTO, PORTRAITS, full_disk, unix
from PIL import Image
from videos import av, make, shift, torn, write

from ferfacenet import ImprovedVGG19, predict_video
from ferfacenet.command import read
from ferfacenet.command.cli import main
from ferfacenet.video.frames import read_frames

Capture = pytest.CaptureFixture[str]


def ask(weights: Path, *arguments: object, status: int = 0) -> None:
    assert main(["--weights", str(weights), *map(str, arguments)]) == status


def read_as(text: str) -> list[tuple[str, str]]:
    """What was read by lines of JSON, in turn: "image" or "video", and its name."""
    rows = [next(iter(json.loads(line).items())) for line in text.splitlines()]
    return [row for row, _ in itertools.groupby(rows)]


def animate(path: Path, count: int = 3) -> Path:
    """A picture in which a face moves to the right; of one frame it is no animation."""
    first, *others = (Image.fromarray(shift(20 * index)) for index in range(count))
    first.save(path, save_all=True, append_images=others, **{"duration": 100} if others else {})
    return path


def test_photos_and_videos_are_each_read_as_what_they_are(
    clip: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    bare, photo = tmp_path / "shot:12.xyz", tmp_path / "\x1b[31m shot:12"
    bare.write_bytes(clip.read_bytes())
    photo.write_bytes(PHOTO.read_bytes())
    absent, torn_one = tmp_path / "absent.jpg", next(torn(clip, tmp_path))
    first = tmp_path / "frames" / "01.png"
    first.parent.mkdir()
    Image.fromarray(shift(0)).save(first)
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.MP4", "deep/d.mov", "._b.mp4", "notes.txt", "bare"):
        (folder / name).write_bytes(clip.read_bytes())
    (folder / "a.jpg").write_bytes(PHOTO.read_bytes())
    animate(folder / "c.gif")
    animate(folder / "e.gif", 1)
    phone, pages = animate(tmp_path / "photo.mpo"), animate(tmp_path / "pages.tiff")
    pages = pages.rename(tmp_path / "pages")
    given = {
        PHOTO: "image", clip: "video", PORTRAITS: "image", photo: "image", absent: "",
        torn_one: "video", bare: "video", first.with_stem("%02d"): "video", first: "image",
        phone: "image", pages: "image", folder: "",
    }  # fmt: skip
    kinds = [(kind, str(path)) for path, kind in given.items() if kind]
    inside = {"a.jpg": "image", "b.MP4": "video", "c.gif": "video", "deep/d.mov": "video"}
    kinds += [(kind, f"{folder}/{name}") for name, kind in (inside | {"e.gif": "image"}).items()]
    ask(weights, "--json", "--every", 12, *given, status=1)
    said = capsys.readouterr()
    assert read_as(said.out) == kinds
    skipped, no_file, ends = said.err.splitlines()
    assert "other files skipped: 3 (.mp4, .txt, bare)" in skipped
    assert str(absent) in no_file and f"{torn_one}: torn" in ends


def test_a_table_of_both_has_the_columns_of_videos(
    clip: Path, weights: Path, capsys: Capture
) -> None:
    tables = list[list[dict[str, str]]]()
    for given in ([PHOTO, clip], [PHOTO], [clip]):
        ask(weights, "--csv", "--every", 23, *given)
        tables.append(list(csv.DictReader(capsys.readouterr().out.splitlines())))
    (photo, *frames), (alone,), videos = tables
    assert [*photo] == ["file", *list(videos[0])[1:]] and photo.pop("file") == alone.pop("image")
    assert frames == [{"file": row.pop("video")} | row for row in videos] and len(frames) == 2
    assert {name: photo.pop(name) for name in alone} == alone and {*photo.values()} == {""}


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "avif", "sequence"])
def test_pictures_that_are_shown_in_turn_are_a_video(
    kind: str, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    moving, still, out = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}", tmp_path / "out.mp4"
    if kind == "sequence":
        moving, still = tmp_path / "%02d.png", tmp_path / "02.png"
        for index in range(3):
            Image.fromarray(shift(20 * index)).save(tmp_path / f"{index:02}.png")
    else:
        animate(moving)
        animate(still, 1)
    ask(weights, "--json", moving, "--fps", 10, "--plot", out)
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [frame["seconds"] for frame in frames] == [0, 0.1, 0.2]
    xs = [frame["box"][0] - frames[0]["box"][0] for frame in frames]
    assert xs == pytest.approx([0, 20, 40], abs=4)
    assert [round(seconds, 3) for _, seconds, _ in read_frames(out)] == [0, 0.1, 0.2]
    assert (tmp_path / "out-course.png").is_file()
    ask(weights, "--json", still)
    assert read_as(capsys.readouterr().out) == [("image", str(still))]


def test_a_phones_photo_is_no_video(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """FFmpeg finds a stream of one frame in HEIC, which Pillow does not know by itself."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with Image.open(PHOTO) as photo:
        photo.save(tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes().replace(b"ftypavif", b"ftypheic")
    for name in ("phone.heic", "bare"):
        (tmp_path / name).write_bytes(data)
        ask(weights, tmp_path / name, status=1)
        assert "is HEIC: pip install pillow-heif" in capsys.readouterr().err


def test_without_the_extra_photos_are_read_as_ever_and_the_remedy_is_named(
    clip: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for name in ("av", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (folder / "a.jpg", tmp_path / "photo"):
        path.write_bytes(PHOTO.read_bytes())
    junk = tmp_path / "junk.jpg"
    junk.write_text("no picture")
    ask(weights, "--json", folder, tmp_path / "photo", junk, status=1)
    said = capsys.readouterr()
    assert said.out.count("\n") == 2
    assert said.err.count("\n") == 1 and "pip" not in said.err and str(junk) in said.err
    for video in (clip, animate(tmp_path / "a.gif")):
        ask(weights, PHOTO, video, status=2)
        (line,) = capsys.readouterr().err.splitlines()
        assert "pip install" in line and "video" in line
    (folder / "b.mp4").write_bytes(clip.read_bytes())
    ask(weights, "--json", folder)
    said = capsys.readouterr()
    assert said.out.count("\n") == 1 and "skipped: 1 (.mp4); pip install" in said.err


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
    changes = [np.abs(a[2].astype(int) - b[2]) for a, b in zip(plain, drawn, strict=True)]
    assert min(change[60:].max() for change in changes[:20]) > 100
    nobody = np.array(changes[20:])
    assert nobody[:, :30].max() > 80 > 40 > nobody[:, 60:].max()  # "no face" in a corner
    with Image.open(tmp_path / "out-course.png") as picture:
        assert picture.width > 900
    for out, said in ((tmp_path / "out.gif", "mp4"), (tmp_path / "no" / "out.mp4", "no folder")):
        ask(weights, clip, "--plot", out, status=2)
        assert said in capsys.readouterr().err


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(file: Path) -> Iterator[str]:
    """The address at which a file is sent."""
    handler = functools.partial(Quiet, directory=file.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_address[1]}/{file.name}"
        server.shutdown()


def test_a_stream_to_its_end(weights: Path, tmp_path: Path, capsys: Capture) -> None:
    file = write(tmp_path / "clip.ts", [shift(2 * index) for index in range(12)])
    ask(weights, "--csv", file)
    header, *rows = csv.reader(capsys.readouterr().out.splitlines())
    with served(file) as place:
        ask(weights, "--csv", "--stream", f"http://me:secret@{place}")
        said = capsys.readouterr()
    again, *streamed = csv.reader(said.out.splitlines())
    assert again == header and [row[1:] for row in streamed] == [row[1:] for row in rows]
    assert {row[0] for row in streamed} == {f"http://{place}"} and not said.err
    ask(weights, "--stream", f"http://me:secret@{place}", status=1)  # nobody serves it any longer
    (line,) = capsys.readouterr().err.splitlines()
    assert f"http://{place}" in line and "secret" not in line


@pytest.mark.parametrize(
    ("live", "kind"), [(True, signal.SIGINT), (False, signal.SIGINT), (False, signal.SIGTERM)]
)
def test_an_interrupt_leaves_whole_files_and_is_the_end_of_a_stream(
    live: bool, kind: signal.Signals, weights: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Capture,
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    file, out, lines = (tmp_path / name for name in ("clip.ts", "out.mp4", "out.jsonl"))
    write(file, [shift(0)] * 12)
    draw, calls = read.draw_faces, itertools.count(1)

    def drawn(*arguments: Any) -> Any:
        if next(calls) == 8:
            signal.raise_signal(kind)
        return draw(*arguments)

    monkeypatch.setattr(read, "draw_faces", drawn)
    with served(file) as place:
        source = ["--stream", f"http://{place}"] if live else [file]
        status = 0 if live else 128 + kind
        ask(weights, "--json", *source, "--plot", out, "-o", lines, status=status)
    assert capsys.readouterr() == ("", "ferfacenet: interrupted\n")
    assert lines.exists() == live
    assert not live or read_as(lines.read_text()) == [("video", f"http://{place}")]
    assert not live or lines.read_text().count("\n") == 8
    assert len(list(read_frames(out))) == 7
    names = {"clip.ts", "out.mp4", "out-course.png"}
    assert {path.name for path in tmp_path.iterdir() if path != lines} == names


@unix
def test_fifos_are_errors_at_once_and_the_rest_done(
    weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    pipes = [tmp_path / name for name in ("pipe", "pipe.mp4", "pipe.gif")]
    for pipe in pipes:
        os.mkfifo(pipe)
    ask(weights, "--json", *pipes, PHOTO, status=1)
    said = capsys.readouterr()
    assert said.out.count("\n") == 1
    for pipe, line in zip(pipes, said.err.splitlines(), strict=True):
        assert f"{pipe}: is a pipe or a device" in line


def test_a_plot_leaves_older_files_where_it_fails_and_what_is_beside_it(
    clip: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    outs = [tmp_path / name for name in ("out.mp4", "out-course.png", "out.png")]
    junk, random = tmp_path / "junk.mp4", np.random.default_rng(0)
    junk.write_text("no video")
    noise = [random.integers(0, 255, (240, 320, 3), np.uint8) for _ in range(8)]
    large = write(tmp_path / "large.mp4", noise)
    for older in (False, True):
        for path in outs if older else ():
            path.write_bytes(b"older")
        for source in (tmp_path / "absent.mp4", junk):
            ask(weights, source, "--plot", outs[0], status=1)
            assert str(source) in capsys.readouterr().err
            assert {*tmp_path.iterdir()} == {junk, large, *(outs if older else ())}
            assert not older or {path.read_bytes() for path in outs} == {b"older"}
    with full_disk():
        ask(weights, "--json", large, "--plot", outs[0], status=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert outs[0].read_bytes() == b"older" and str(outs[0]) in line
    ask(weights, clip, "--plot", outs[0], "--every", 12)
    assert [path.read_bytes() == b"older" for path in outs] == [False, False, True]
    assert {*tmp_path.iterdir()} == {junk, large, *outs}


def test_no_plot_goes_over_what_is_read_or_written(
    clip: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    plots, video = tmp_path / "plots", tmp_path / "a.mp4"
    photo, moving = tmp_path / "deep" / "a-course.png", animate(tmp_path / "b-course.png")
    for folder in (plots, photo.parent):
        folder.mkdir()
    video.write_bytes(clip.read_bytes())
    Image.fromarray(shift(0)).save(photo)
    (plots / "hard.mp4").hardlink_to(video)
    (plots / "a-course.png").symlink_to(photo)
    (tmp_path / "soft.mp4").symlink_to(video)
    (tmp_path / "twin-course.png").symlink_to("twin.mp4")
    before = {path: path.read_bytes() for path in (video, photo, moving)}
    for arguments in (
        [video, "--plot", video], [video, "--plot", tmp_path / "soft.mp4"],
        [moving, "--plot", tmp_path / "b.mp4"], [video, photo, "--plot", plots],
        [video, "--plot", tmp_path / "twin.mp4"],
        [video, "--plot", tmp_path / "c.mp4", "--output", tmp_path / "c-course.png"],
    ):  # fmt: skip
        ask(weights, *arguments, status=2)
        (line,) = capsys.readouterr().err.splitlines()
        assert "is to be read" in line
    ask(weights, video, "--plot", plots / "hard.mp4", "--every", 12)  # takes that name alone
    assert {path: path.read_bytes() for path in before} == before


def test_a_progress_bar_knows_how_many_frames_there_are(
    clip: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ask(weights, clip, "--every", 5)
    assert "| 5/5 [" in capsys.readouterr().err


def test_the_sound_of_a_file_is_kept(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    path = make(tmp_path / "clip.mp4", [shift(index) for index in range(10)], sound=1)
    ask(weights, path, "--plot", tmp_path / "out.mp4", "--every", 4)
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert len(file.streams.audio) == 1
