"""The command: what it prints and writes of photos, where, and with which exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PHOTO, PORTRAITS, faces, full_disk, run, unix
from PIL import Image

from ferfacenet import list_pretrained, load_pretrained, predict_faces, predict_proba
from ferfacenet.command import read
from ferfacenet.command.cli import main

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture
def crop(tmp_path: Path) -> Path:
    path = tmp_path / "crop.png"
    Image.fromarray((faces(1)[0, 0] * 255).byte().numpy()).save(path)
    return path


@pytest.fixture
def sky(tmp_path: Path) -> Path:
    """A photo without a face."""
    path = tmp_path / "a sky, blue.png"
    Image.new("RGB", (120, 90), (90, 140, 220)).save(path)
    return path


def ask(weights: Path, capture: Capture, *arguments: Any, status: int = 0) -> tuple[Any, str]:
    """What the command answers as JSON, line by line, and what it says on stderr."""
    assert main(["--json", "--weights", str(weights), *map(str, arguments)]) == status
    said = capture.readouterr()
    return [json.loads(line) for line in said.out.splitlines()], said.err


def give(data: bytes, patch: Patch) -> None:
    """Let this be on stdin."""
    patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_the_photo_of_the_readme(capsys: Capture) -> None:
    assert main([str(PHOTO)]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith(f"{PHOTO}: face, x 1") and title.endswith(": happiness")
    values = [float(row.split()[1]) for row in rows]
    assert len(values) == 7 and values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(100, abs=0.5)
    assert [row.count("█") for row in rows] == pytest.approx([v * 0.4 for v in values], abs=0.6)


def test_json_is_what_predict_proba_says_in_the_views_that_are_asked_for(
    crop: Path, weights: Path, capsys: Capture
) -> None:
    model, tta = load_pretrained(weights), {"flip": "flip", "ten_crop": "ten_crop", "none": None}
    for name, views in [("flip", {}), *((name, {"tta": tta[name]}) for name in tta)]:
        options = ["--tta", name] if views else []
        (first, second), err = ask(weights, capsys, "--align", "never", crop, PHOTO, *options)
        assert (first["image"], second["image"], err) == (str(crop), str(PHOTO), "")
        (face,) = first["faces"]
        assert face["box"] == [0, 0, 48, 48] and face["score"] is None
        chances = predict_proba(model, crop, **views)[0].tolist()
        expected = dict(zip(model.categories, chances, strict=True))
        assert face["probabilities"] == pytest.approx(expected, abs=2e-6)
        assert face["label"] == max(expected, key=expected.__getitem__)
        assert face["confidence"] == pytest.approx(max(chances), abs=2e-6)


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_photo_from_stdin(
    name: str, weights: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    give(PORTRAITS.read_bytes(), monkeypatch)
    (read, other), err = ask(weights, capsys, name, PORTRAITS, "--plot", tmp_path / "plots")
    assert read["image"] == "stdin" and read["faces"] == other["faces"] and not err
    assert len(read["faces"]) == 2
    plots = [tmp_path / "plots" / name for name in ("stdin.png", "portraits.png")]
    assert plots[0].read_bytes() == plots[1].read_bytes()


@unix
def test_a_stdin_that_holds_no_photo_is_one_error(
    weights: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    give(b"no photo", monkeypatch)
    answers, err = ask(weights, capsys, "-", PHOTO, "-", status=1)
    first, second = err.splitlines()
    assert len(answers) == 1 and "stdin: is not an image" in first and "stdin: is empty" in second
    with open(os.openpty()[1]) as terminal:  # noqa: PTH123
        for stdin in (terminal, None):
            monkeypatch.setattr(sys, "stdin", stdin)
            (line,) = ask(weights, capsys, "-", status=2)[1].splitlines()
            assert "no photo on stdin" in line


def test_a_folder_is_every_picture_below_it(
    crop: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder, empty = tmp_path / "folder", tmp_path / "empty"
    for path in (folder / "deep", empty):
        path.mkdir(parents=True)
    pictures = ("b.png", "c.jfif", "d.jpe", "deep/a.PNG")
    for name in (*pictures, "notes.txt", "._b.png", "phone.HEIC"):
        (folder / name).write_bytes(crop.read_bytes())
    answers, err = ask(weights, capsys, folder)
    assert [answer["image"] for answer in answers] == [f"{folder}/{name}" for name in pictures]
    assert "other files skipped: 3 (.heic, .png, .txt); pip install pillow-heif" in err
    assert f"{empty}: no photos" in ask(weights, capsys, empty, status=2)[1]
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    for _ in range(2):  # plots of the first time are no photos of the second
        answers, _ = ask(weights, capsys, folder, "--plot", folder / "plots")
        assert len(answers) == len(pictures)


def test_patterns_that_a_shell_leaves_as_they_are(
    crop: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    names = ("a.png", "b1.png", "b[1].png", "deep/c.png")
    for name in names:
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(crop.read_bytes())
    for pattern, found in {"?.png": names[:1], "b[1].png": names[2:3], "**/*.png": names}.items():
        answers, err = ask(weights, capsys, tmp_path / "p" / pattern)
        assert [answer["image"] for answer in answers] == [f"{tmp_path}/p/{one}" for one in found]
        assert not err


def test_a_folder_that_is_locked_is_named_and_the_rest_done(
    crop: Path, weights: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    photos = [tmp_path / "folder" / name for name in ("a.png", "locked/b.png", "open/c.png")]
    for photo in photos:
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(crop.read_bytes())
    locked, scan = photos[1].parent, os.scandir

    def scandir(path: Any) -> Any:  # root, whom CI may run this as, can read every folder
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for alone, seen in ((False, photos[::2]), (True, [])):
        folder = locked if alone else photos[0].parent
        answers, err = ask(weights, capsys, folder, crop, status=1)
        assert [answer["image"] for answer in answers] == [*map(str, seen), str(crop)]
        assert err == f"ferfacenet: [Errno 13] Permission denied: '{locked}'\n"


def test_plots(crop: Path, weights: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    out, folder = tmp_path / "out.png", tmp_path / "plots"
    ask(weights, capsys, PORTRAITS, "--plot", out)
    with Image.open(out) as picture:
        assert picture.width > picture.height > 200
    ask(weights, capsys, crop, "--plot", folder)
    assert [path.name for path in folder.iterdir()] == ["crop.png"]
    absent = tmp_path / "absent.jpg"
    for wrong, said in ((tmp_path / "no" / "a.png", "no folder"), (tmp_path / "a.xyz", "png")):
        (line,) = ask(weights, capsys, absent, "--plot", wrong, status=2)[1].splitlines()
        assert str(wrong) in line and said in line
    assert "name a folder" in ask(weights, capsys, crop, out, "--plot", out, status=2)[1]
    before = crop.read_bytes()
    for same in (crop, crop.parent):
        assert "is to be read" in ask(weights, capsys, crop, "--plot", same, status=2)[1]
    assert crop.read_bytes() == before


def test_no_two_photos_share_a_plot(
    weights: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    monkeypatch.chdir(tmp_path)
    names = {"a/c.png": "a_c.png.png", "b/C.png": "b_C.png.png", "d.bmp": "d.png"}
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture = Image.new("L", (48, 48), 40 * index)
        picture.putpixel((40, 40), 255)  # of one plain colour it would be refused
        picture.save(name)
    ask(weights, capsys, "--align", "never", *names, "d.bmp", "--plot", "plots")
    corners = {p.name: Image.open(p).getpixel((60, 160)) for p in Path("plots").iterdir()}
    assert corners == {plot: (40 * i,) * 3 + (255,) for i, plot in enumerate(names.values())}
    Path("A").mkdir(exist_ok=True)  # which some systems take for the folder a
    shutil.copy("a/c.png", "A/c.png")
    err = ask(weights, capsys, "a/c.png", "A/c.png", "--plot", "plots", status=2)[1]
    assert "_c.png.png is to be read or written" in err


def test_a_plot_that_cannot_be_written_is_named_and_the_rest_done(
    crop: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    pytest.importorskip("resource", reason="needs limits of processes")
    taken, older = tmp_path / "plots" / "crop.png", tmp_path / "plots" / "astronaut.png"
    second = tmp_path / "second.png"
    second.write_bytes(crop.read_bytes())
    taken.mkdir(parents=True)
    older.write_bytes(b"older")
    with full_disk():  # for a photo, but not for a crop
        answers, err = ask(weights, capsys, crop, PHOTO, second, "--plot", taken.parent, status=1)
    first, last = err.splitlines()
    assert len(answers) == 3 and str(taken) in first and str(older) in last
    assert older.read_bytes() == b"older"
    assert {path.name for path in taken.parent.iterdir()} == {older.name, taken.name, second.name}


@unix
def test_output_is_a_file_with_what_stdout_would_have(
    sky: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    out, absent = tmp_path / "out", tmp_path / "absent*.jpg"
    given = ["--weights", str(weights), str(sky), str(absent), str(PORTRAITS)]
    for form in (["--json"], ["--csv"], []):
        assert main([*form, *given]) == 1
        said = capsys.readouterr()
        assert said.err == f"ferfacenet: [Errno 2] No such file or directory: '{absent}'\n"
        assert main([*form, *given, "--output", str(out)]) == 1
        assert capsys.readouterr() == ("", said.err)
        assert out.read_text() == said.out and said.out.count("\n") > 1
    assert "█" in said.out
    out.write_text("older")
    assert main(["--csv", *given[:2], str(absent), "-o", str(out)]) == 1
    assert out.read_text() == "older"  # nothing could be read
    capsys.readouterr()
    for wrong, why in (
        (sky, "is to be read"), (tmp_path / "no" / "out", "no folder"),
        (tmp_path, "is a folder or a device"), (Path("/dev/null"), "is a folder or a device"),
    ):  # fmt: skip
        err = ask(weights, capsys, sky, "-o", wrong, "--device", "abacus", status=2)[1]
        assert f"{wrong}" in err and why in err  # before the device is looked for


IMPORT = """
import signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            print("torch is looked for")

sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
from ferfacenet.command.cli import main
main(["--list"])
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_ctrl_c_ends_the_process_while_torch_is_imported() -> None:
    done = run(IMPORT)
    assert not done.stderr and done.stdout.startswith("torch is looked for\nfer2013:")


@unix
@pytest.mark.parametrize("kinds", [[signal.SIGINT], [signal.SIGTERM] * 2])  # as timeout(1) may
def test_an_interrupt_leaves_whole_plots_and_an_older_output(
    kinds: list[signal.Signals], crop: Path, weights: Path, tmp_path: Path,
    monkeypatch: Patch, capsys: Capture,
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    plots, out = tmp_path / "plots", tmp_path / "out.jsonl"
    photos = [tmp_path / f"{index:02}.png" for index in range(12)]
    plots.mkdir()
    for path in photos:
        path.write_bytes(crop.read_bytes())
    for path in (out, *(plots / path.name for path in photos)):
        path.write_bytes(b"older")
    draw, calls = read.plot_faces, iter(range(3))

    def drawn(*arguments: Any) -> Any:
        for kind in kinds if next(calls, None) is None else ():
            signal.raise_signal(kind)
        return draw(*arguments)

    monkeypatch.setattr(read, "plot_faces", drawn)
    options, status = ["--align", "never", "--plot", plots, "-o", out], 128 + kinds[0]
    answers, err = ask(weights, capsys, *photos, *options, status=status)
    assert err == "ferfacenet: interrupted\n" and not answers and out.read_bytes() == b"older"
    drawn_ones = [plot for plot in plots.iterdir() if plot.read_bytes() != b"older"]
    assert len(drawn_ones) == 3 and len(list(plots.iterdir())) == 12
    for plot in drawn_ones:
        Image.open(plot).load()
    assert not list(tmp_path.glob(".*"))


def test_photos_with_no_face_one_and_two(
    sky: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    one = tmp_path / "one.png"
    Image.open(PHOTO).save(one)
    answers, err = ask(weights, capsys, sky, one, PORTRAITS)
    assert [len(answer["faces"]) for answer in answers] == [0, 1, 2] and not err
    read = predict_faces(load_pretrained(weights), PORTRAITS)
    for found, face in zip(answers[2]["faces"], read, strict=True):
        assert found["box"] == pytest.approx(face.box, abs=0.06)
        assert (found["label"], round(face.score, 4)) == (face.label, found["score"])
    assert main(["--weights", str(weights), "--top", "3", str(sky), str(PORTRAITS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[0] == f"{sky}: no face"
    assert "face 1 of 2" in lines[1] and "face 2 of 2" in lines[5]
    assert main(["--csv", "--weights", str(weights), str(PORTRAITS), str(sky)]) == 0
    *rows, none = csv.DictReader(capsys.readouterr().out.splitlines())
    for row, found in zip(rows, answers[2]["faces"], strict=True):
        assert row["image"] == str(PORTRAITS) and row["label"] == found["label"]
        assert [float(row[end]) for end in ("x0", "y0", "x1", "y1")] == found["box"]
        assert {name: float(row[name]) for name in found["probabilities"]} == found["probabilities"]
    assert none.pop("image") == str(sky) and set(none.values()) == {""}


def test_what_is_asked_of_faces(weights: Path, capsys: Capture) -> None:
    def labels(*options: object) -> list[str]:
        ((answer,), _) = ask(weights, capsys, PORTRAITS, *options)
        return [face["label"] for face in answer["faces"]]

    assert len(labels("--max-faces", 1)) == len(labels("--min-size", 150)) == 1
    assert labels("--min-score", 0.99) == []
    assert labels("--min-confidence", 1) == ["unsure"] * 2


def test_names_that_would_steer_a_terminal_or_a_parser(
    crop: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    odd = tmp_path / '\x1b[31m a\nb\t\x0b\x0c\x1c\x85\u2028\u202e  ;,"e.png'
    bad, dark = odd.with_suffix(".jpg"), odd.with_suffix(".bmp")
    odd.write_bytes(crop.read_bytes())
    bad.write_text("no picture")
    shades = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) + 1791  # up to 4095
    Image.fromarray(shades).save(dark, "PNG")  # of which a warning is given
    options = ["--align", "never", "--weights", str(weights)]
    names = [str(odd), str(dark)]
    assert main(["--csv", *options, *names]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [row[0] for row in rows] == ["image", *names] and len({*map(len, rows)}) == 1
    answers, _ = ask(weights, capsys, "--align", "never", *names)
    assert [answer["image"] for answer in answers] == names
    unknown = "x" * 5000  # what some versions of Python cannot even look for
    assert main([*options, *names, str(bad), str(odd / "absent"), unknown]) == 1
    said = capsys.readouterr()
    assert [text.count("\n") for text in said] == [2 * 8, 4]
    assert all(line.isprintable() for text in said for line in text.split("\n"))
    assert "brightest pixel" in said.err and "not an image" in said.err
    assert main([*options, "--weights", str(odd), str(odd)]) == 2
    said = capsys.readouterr()
    assert all(line.isprintable() for line in said.err.split("\n"))


def test_a_console_without_blocks_and_names_that_it_cannot_show(
    weights: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    photo, shown = tmp_path / "\u6f22.jpg", io.BytesIO()
    photo.write_bytes(PHOTO.read_bytes())
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "cp1252"))
    assert main(["--weights", str(weights), str(photo)]) == 0
    assert b"\\u6f22.jpg: face" in shown.getvalue() and b"##" in shown.getvalue()


@unix
def test_outputs_that_are_closed_or_full(
    weights: Path, crop: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["--json", "--align", "never", "--weights", str(weights), str(crop)]
    for file, status, said in ((writer, 0, ""), ("/dev/full", 1, "No space left")):
        with open(file, "w") as stdout:  # noqa: PTH123  # its end raises where Python's would
            monkeypatch.setattr(sys, "stdout", stdout)
            assert main(arguments) == status
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == status
    for name in ("stdout", "stderr"):  # as some programs start others
        monkeypatch.setattr(sys, name, None)
    assert main([*arguments, "absent.jpg"]) == 1
    monkeypatch.undo()
    with full_disk():
        err = ask(weights, capsys, *arguments, *[crop] * 350, "-o", tmp_path / "out", status=1)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["crop.png"] and err.count("\n") == 1


def test_help_and_version_do_not_wait_for_torch() -> None:
    code = """
import runpy, sys
sys.modules["torch"] = sys.modules["numpy"] = None
runpy.run_module("ferfacenet", run_name="__main__")
"""
    for option, said in {"--help": "videos:\n  --every N", "--version": "ferfacenet 0."}.items():
        done = run(code, option)
        assert done.returncode == 0 and not done.stderr and said in done.stdout


def test_the_list_of_weights(tmp_path: Path, capsys: Capture) -> None:
    known, out = list_pretrained(), tmp_path / "weights.jsonl"
    assert main(["--list"]) == 0
    for line, (name, info) in zip(capsys.readouterr().out.splitlines(), known.items(), strict=True):
        assert line.startswith(f"{name}: ") and ", ".join(info.categories) in line
        assert f"{info.size / 1e6:.1f} MB" in line and " flip accuracy " in line
    assert main(["--list", "--json", "-o", str(out)]) == 0
    rows = {row.pop("name"): row for row in map(json.loads, out.read_text().splitlines())}
    assert rows == json.loads(json.dumps({name: asdict(info) for name, info in known.items()}))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name files"), (["--camera", "0", "a.mp4"], "one of these"),
        (["--camera", "0", "--stream", "http://a"], "one of these"),
        (["a.png", "--list"], "one of these"),
        (["https://a/b.jpg"], "download it first"), (["rtsp://a/live"], "--stream URL"),
        (["a.png", "--weights", "absent.safetensors"], "absent.safetensors"),
        (["a.png", "--weights", "fer2014"], "fer2013"), (["a.png", "--device", "abacus"], "abacus"),
        (["a.png", "--min-confidence", "7"], "--min-confidence"), (["a.png", "--top=-1"], "--top"),
        (["a.png", "--max-faces", "0"], "max_faces"), (["a.png", "--min-size=-1"], "min_size"),
        (["a.png", "--min-score", "0"], "min_score"), (["a.mp4", "--every", "0"], "--every"),
        (["a.mp4", "--smooth=-1"], "--smooth"), (["a.mp4", "--fps", "0"], "--fps"),
        (["a.mp4", "--align", "never"], "--align"), (["--camera=0", "--align=never"], "--align"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(arguments: list[str], said: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ferfacenet: ") and said in line and len(line) < 300


def test_a_gpu_is_taken_where_there_is_one(crop: Path, weights: Path, capsys: Capture) -> None:
    there = torch.cuda.is_available() or torch.backends.mps.is_available()
    (auto,), err = ask(weights, capsys, "--align", "never", crop, "--device", "auto")
    (cpu,), quiet = ask(weights, capsys, "--align", "never", crop, "--device", "cpu")
    assert auto["faces"][0]["probabilities"] == pytest.approx(
        cpu["faces"][0]["probabilities"], abs=2e-2
    )
    assert err.startswith("ferfacenet: reading on ") == there and not quiet
