"""The command on videos: what it prints and writes, and with which exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import python_path, sharp
from PIL import Image
from videos import shift, torn, write, write_clip

from ferfacenet import ImprovedVGG19, load_pretrained, predict_video, save_pretrained
from ferfacenet.command.cli import main
from ferfacenet.video.frames import read_frames

Capture = pytest.CaptureFixture[str]


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
    return write_clip(tmp_path_factory.mktemp("clips"))


def ask(weights: Path, *arguments: object, status: int = 0) -> None:
    assert main(["--weights", str(weights), *map(str, arguments)]) == status


def test_without_the_extra_the_remedy_is_named(
    clip: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    ask(weights, clip, status=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install" in line


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
