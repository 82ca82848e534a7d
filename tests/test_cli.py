"""The command: what it prints, where, and with which exit status."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PHOTO, PORTRAITS, faces, python_path, run, sharp
from PIL import Image

from ferfacenet import load_pretrained, predict_faces, predict_proba, save_pretrained
from ferfacenet.command.cli import main
from ferfacenet.command.inputs import Input, plot_paths

COMMAND = [sys.executable, "-m", "ferfacenet"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small weights by which two pictures, and two views of one, have different answers."""
    folder = tmp_path_factory.mktemp("weights")
    save_pretrained(sharp(width=0.25), folder, dtype=torch.float32)
    return folder


@pytest.fixture
def crop(tmp_path: Path) -> Path:
    path = tmp_path / "crop.png"
    Image.fromarray((faces(1)[0, 0] * 255).byte().numpy()).save(path)
    return path


def ask(weights: Path, capture: Capture, *arguments: Any, status: int = 0) -> tuple[Any, str]:
    """What the command answers as JSON, line by line, and what it says on stderr."""
    assert main(["--json", "--weights", str(weights), *map(str, arguments)]) == status
    said = capture.readouterr()
    return [json.loads(line) for line in said.out.splitlines()], said.err


def test_the_photo_of_the_readme(capsys: Capture) -> None:
    assert main([str(PHOTO)]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith(f"{PHOTO}: face, x 1") and title.endswith(": happiness")
    values = [float(row.split()[1]) for row in rows]
    assert len(values) == 7 and values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(100, abs=0.5)
    assert [row.count("█") for row in rows] == pytest.approx([v * 0.4 for v in values], abs=0.6)


def test_json_is_what_predict_proba_says_by_default(
    crop: Path, weights: Path, capsys: Capture
) -> None:
    (first, second), err = ask(weights, capsys, "--align", "never", crop, PHOTO)
    assert (first["image"], second["image"], err) == (str(crop), str(PHOTO), "")
    (face,) = first["faces"]
    assert face["box"] == [0, 0, 48, 48] and face["score"] is None
    model = load_pretrained(weights)
    assert model.categories is not None
    expected = dict(zip(model.categories, predict_proba(model, crop)[0].tolist(), strict=True))
    assert face["probabilities"] == pytest.approx(expected, abs=2e-6)
    assert face["label"] == max(expected, key=expected.__getitem__)
    assert face["confidence"] == pytest.approx(max(expected.values()), abs=2e-6)


def test_the_views_that_are_asked_for(weights: Path, capsys: Capture) -> None:
    answers = [
        str(ask(weights, capsys, "--align", "never", PHOTO, *options)[0])
        for options in ([], ["--tta", "flip"], ["--tta", "ten_crop"], ["--tta", "none"])
    ]
    assert answers[0] == answers[1] and len(set(answers)) == 3


def test_a_bad_file_among_many_is_named_and_the_rest_done(
    crop: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    bad, absent = tmp_path / "bad.jpg", tmp_path / "absent.png"
    bad.write_text("no picture")
    answers, err = ask(weights, capsys, "--align", "never", bad, crop, absent, crop, status=1)
    assert [answer["image"] for answer in answers] == [str(crop)] * 2
    first, second = err.splitlines()
    assert str(bad) in first and str(absent) in second


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


def test_no_two_photos_share_a_plot(
    crop: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    monkeypatch.chdir(tmp_path)
    names = {
        "a_b/c.png": "a_b_c.png.png",
        "a/b/c.png": "a_b_c.png (2).png",
        "a_b_c.png (2).png": "a_b_c.png (2) (2).png",
        "d.png": "d.png.png",
        "d.bmp": "d.bmp.png",
        "Only.png": "Only.png",
    }
    for index, name in enumerate(names):
        photo = tmp_path / name
        photo.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("L", (48, 48), 40 * index)
        picture.putpixel((40, 40), 255)  # of one plain colour it would be refused
        picture.save(photo)
    ask(weights, capsys, "--align", "never", *names, "Only.png", "--plot", "plots")
    assert {path.name for path in Path("plots").iterdir()} == set(names.values())
    corners = [Image.open(Path("plots", plot)).getpixel((60, 160)) for plot in names.values()]
    assert corners == [(40 * index,) * 3 + (255,) for index in range(len(names))]
    cases = [Input(name, False) for name in ("a/Photo.jpg", "b/photo.jpg", "A/photo.jpg")]
    plots = [str(plot).lower() for plot in plot_paths(Path("plots"), cases).values()]
    assert len(set(plots)) == 3


def test_the_time_to_name_plots_grows_as_their_number(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")

    def seconds(count: int) -> float:
        photos = [Input(f"{index}/photo.jpg", False) for index in range(count)]
        begin = time.process_time()
        assert len(set(plot_paths(tmp_path, photos).values())) == count
        return time.process_time() - begin

    few = min(seconds(500) for _ in range(3))
    assert min(seconds(8000) for _ in range(2)) < 30 * few


def test_a_folder_that_is_locked_is_named_and_the_rest_done(
    crop: Path, weights: Path, tmp_path: Path
) -> None:
    photos = [tmp_path / "folder" / name for name in ("a.png", "locked/b.png", "open/c.png")]
    for photo in photos:
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(crop.read_bytes())
    locked, alone = photos[1].parent, tmp_path / "alone"
    alone.mkdir()
    for folder in (locked, alone):
        folder.chmod(0)
    # Root may read all, unless it gives up its right to.
    caps = "-dac_override,-dac_read_search"
    drop = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"] if os.geteuid() == 0 else []
    if drop and not shutil.which("setpriv"):
        pytest.skip("root can read every folder, and there is no setpriv to change that")
    if subprocess.run([*drop, "ls", str(locked)], capture_output=True).returncode == 0:
        pytest.skip("this user can read every folder")
    done = subprocess.run(
        [*drop, *COMMAND, "--json", "--align", "never", "--weights", str(weights),
         *map(str, (photos[0].parent, alone, photos[1], crop))],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": python_path()},
    )  # fmt: skip
    assert done.returncode == 1
    read = [json.loads(line)["image"] for line in done.stdout.splitlines()]
    assert read == [str(photos[0]), str(photos[2]), str(crop)]
    said = done.stderr.splitlines()
    assert len(said) == 3 and all("Permission denied" in line for line in said)
    for line, path in zip(said, (locked, alone, photos[1]), strict=True):
        assert str(path) in line


def test_plots(crop: Path, weights: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    out, folder, twin = tmp_path / "out.png", tmp_path / "plots", tmp_path / "twin" / "crop.png"
    ask(weights, capsys, PORTRAITS, "--plot", out)
    with Image.open(out) as picture:
        assert picture.width > picture.height > 200
    absent = tmp_path / "absent.jpg"
    for wrong, said in ((tmp_path / "no" / "a.png", "no folder"), (tmp_path / "a.xyz", "png")):
        (line,) = ask(weights, capsys, absent, "--plot", wrong, status=2)[1].splitlines()
        assert str(wrong) in line and said in line
    twin.parent.mkdir()
    twin.write_bytes(crop.read_bytes())
    assert "folder" in ask(weights, capsys, crop, twin, "--plot", out, status=2)[1]
    ask(weights, capsys, crop, twin, "--plot", folder)
    assert len(list(folder.iterdir())) == 2  # though both are called crop.png
    ask(weights, capsys, crop, "--plot", tmp_path / "single")
    assert (tmp_path / "single" / "crop.png").is_file()
    for same in (crop, crop.parent):
        assert "is to be read" in ask(weights, capsys, crop, "--plot", same, status=2)[1]
    assert crop.read_bytes() == twin.read_bytes()


def test_a_plot_that_cannot_be_written_is_named_and_the_rest_done(
    crop: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    second, taken = tmp_path / "second.png", tmp_path / "plots" / "crop.png"
    second.write_bytes(crop.read_bytes())
    taken.mkdir(parents=True)
    answers, err = ask(weights, capsys, crop, second, "--plot", taken.parent, status=1)
    assert len(answers) == 2 and str(taken) in err and err.count("\n") == 1
    assert (taken.parent / "second.png").is_file()


@pytest.mark.parametrize("death", [False, True])
def test_an_older_plot_outlives_a_full_disk_and_a_death(
    death: bool, crop: Path, weights: Path, tmp_path: Path
) -> None:
    """A limit on the size of files is such a disk, and its signal, if it is not ignored, a death in
    the middle of writing."""
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    pytest.importorskip("resource", reason="needs limits of processes")
    plot = tmp_path / "plots" / "out.png"
    plot.parent.mkdir()
    plot.write_bytes(b"older")
    code = f"""
import resource, signal, sys
import matplotlib.font_manager  # which may write a cache
from ferfacenet.command.cli import main
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
signal.signal(signal.SIGXFSZ, signal.{"SIG_DFL" if death else "SIG_IGN"})
sys.exit(main())
"""
    done = run(code, "--align", "never", "--weights", str(weights), str(crop), "--plot", str(plot))
    assert done.returncode == (-signal.SIGXFSZ if death else 1), done.stderr
    assert death or (str(plot) in done.stderr and done.stderr.count("\n") == 1)
    assert plot.read_bytes() == b"older"
    left = [path.name for path in plot.parent.iterdir() if path != plot]
    assert len(left) <= death and all(name.startswith(".") for name in left)


def test_a_termination_ends_as_an_interrupt_does(crop: Path, weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    photos, plots = tmp_path / "photos", tmp_path / "plots"
    photos.mkdir()
    plots.mkdir()
    for index in range(200):
        (photos / f"{index:03}.png").write_bytes(crop.read_bytes())
        (plots / f"{index:03}.png").write_bytes(b"older")
    arguments = ["--json", "--align", "never", "--weights", weights, photos, "--plot", plots]
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": python_path()},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as timeout(1) may
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == 143 and errors == "ferfacenet: interrupted\n"
    assert 3 <= len([json.loads(line) for line in [*lines, *rest.splitlines()]]) < 200
    drawn = [plot for plot in plots.iterdir() if plot.read_bytes() != b"older"]
    assert 2 <= len(drawn) < 200 and len(list(plots.iterdir())) == 200
    for plot in drawn:
        Image.open(plot).load()


def test_photos_with_no_face_one_and_two(weights: Path, tmp_path: Path, capsys: Capture) -> None:
    sky, one = tmp_path / "sky.png", tmp_path / "one.png"
    Image.new("RGB", (120, 90), (90, 140, 220)).save(sky)
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


def test_what_is_asked_of_faces(weights: Path, capsys: Capture) -> None:
    def count(*options: object) -> int:
        return len(ask(weights, capsys, PORTRAITS, *options)[0][0]["faces"])

    assert [count("--max-faces", 1), count("--min-size", 150), count("--min-score", 0.99)] == [
        1,
        1,
        0,
    ]
    (answer,), _ = ask(weights, capsys, PORTRAITS, "--min-confidence", 1)
    assert {face["label"] for face in answer["faces"]} == {"unsure"}
    for option in ("--max-faces", "--min-size", "--min-score", "--top"):
        (line,) = ask(weights, capsys, PORTRAITS, option, -1, status=2)[1].splitlines()
        assert option.removeprefix("--").replace("-", "_") in line.replace("-", "_")


def test_csv(weights: Path, tmp_path: Path, capsys: Capture) -> None:
    sky = tmp_path / "a sky, blue.png"
    Image.new("RGB", (120, 90), (90, 140, 220)).save(sky)
    (answer,), _ = ask(weights, capsys, PORTRAITS)
    assert main(["--csv", "--weights", str(weights), str(PORTRAITS), str(sky)]) == 0
    *rows, none = csv.DictReader(capsys.readouterr().out.splitlines())
    for row, face in zip(rows, answer["faces"], strict=True):
        assert row["image"] == str(PORTRAITS) and row["label"] == face["label"]
        assert [float(row[end]) for end in ("x0", "y0", "x1", "y1")] == face["box"]
        assert {name: float(row[name]) for name in face["probabilities"]} == face["probabilities"]
    assert none.pop("image") == str(sky) and set(none.values()) == {""}


def test_names_that_would_steer_a_terminal_or_a_parser(
    crop: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    odd = tmp_path / '\x1b[31m a\nb\rc\r\nd\t\x0b\x0c\x1c\x85\u2028\u202e  ;,"e.png'
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
    assert main([*options, *names, str(bad), str(odd / "absent")]) == 1
    said = capsys.readouterr()
    assert [text.count("\n") for text in said] == [2 * 8, 3]
    assert all(line.isprintable() for text in said for line in text.split("\n"))
    assert "brightest pixel" in said.err and "not an image" in said.err
    assert main([*options, "--weights", str(odd), str(odd)]) == 2
    said = capsys.readouterr()
    assert all(line.isprintable() for line in said.err.split("\n"))


def test_a_console_without_blocks_and_names_that_it_cannot_show(
    weights: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "\u6f22.jpg"
    photo.write_bytes(PHOTO.read_bytes())
    command = [*COMMAND, "--weights", str(weights), str(photo)]
    environment = os.environ | {"PYTHONPATH": python_path(), "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0 and not done.stderr
    assert b"\\u6f22.jpg: face" in done.stdout and b"##" in done.stdout


def test_help_and_version_do_not_wait_for_torch() -> None:
    for option in ("--help", "--version"):
        code = f"""
import sys
sys.modules["torch"] = None
from ferfacenet.command.cli import main
main([{option!r}])
"""
        done = run(code)
        assert done.returncode == 0 and not done.stderr
        assert "ferfacenet" in done.stdout


def test_a_wrong_command_is_one_line(crop: Path, tmp_path: Path, capsys: Capture) -> None:
    for options in (
        ["--weights", str(tmp_path / "absent.safetensors")],
        ["--device", "abacus"],
        ["--min-confidence", "7"],
    ):
        assert main([*options, str(crop)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("ferfacenet: ") and options[1].split("/")[-1] in line
    assert main(["x" * 5000]) in (1, 2)  # what some versions of Python cannot even look for
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupt_is_no_traceback(
    crop: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("ferfacenet.load_pretrained", "ferfacenet.photos.find_faces"):
        monkeypatch.setattr(place, interrupt)
        assert main(["--weights", str(weights), str(crop)]) == 130
        assert capsys.readouterr().err == "ferfacenet: interrupted\n"
        monkeypatch.undo()


def test_a_closed_pipe_is_no_traceback(weights: Path, crop: Path) -> None:
    command = [*COMMAND, "--json", "--weights", str(weights), *[str(crop)] * 40]
    environment = os.environ | {"PYTHONPATH": python_path()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_closed_outputs_are_no_traceback(weights: Path, crop: Path) -> None:
    """Some programs start others without."""
    command = shlex.join([*COMMAND, "--weights", str(weights), str(crop), str(crop)])
    environment = os.environ | {"PYTHONPATH": python_path()}
    for closed, lines in ((">&-", 0), ("--json 2>&-", 2)):
        done = subprocess.run(
            f"{command} {closed}", shell=True, capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == lines
