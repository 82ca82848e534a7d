from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from ferfacenet import ImprovedVGG19, faces, predict_proba, save_pretrained
from ferfacenet.cli import main

PHOTO = ROOT / "docs" / "images" / "astronaut.jpg"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with spread-out answers, to tell images apart."""
    torch.manual_seed(0)
    model = ImprovedVGG19()
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    folder = tmp_path_factory.mktemp("weights")
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def crop(tmp_path: Path) -> Path:
    path = tmp_path / "crop.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)).save(path)
    return path


def test_the_photo_of_the_readme_is_happy(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="needs the faces extra")
    assert main([str(PHOTO)]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith(f"{PHOTO}: face 1 of 1, x 1")
    assert len(rows) == 7
    assert rows[0].split()[0] == "happiness"
    values = [float(row.split()[1]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert values[0] > 50
    assert sum(values) == pytest.approx(100, abs=0.5)
    bars = [row.count("█") for row in rows]
    assert bars == [round(40 * value / 100) for value in values]


def test_json_is_all_that_stdout_gets(
    crop: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["--json", "--weights", str(weights), "--align", "never", str(crop), str(PHOTO)]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    first, second = map(json.loads, lines)
    assert first["image"] == str(crop)
    assert second["image"] == str(PHOTO)
    (face,) = first["faces"]
    assert face["box"] is None
    probabilities = face["probabilities"]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert face["label"] == max(probabilities, key=probabilities.__getitem__)
    from ferfacenet import load_pretrained

    model = load_pretrained(weights)
    expected = predict_proba(model, crop)[0]
    assert model.categories is not None
    for name, value in zip(model.categories, expected.tolist(), strict=True):
        assert probabilities[name] == pytest.approx(value, abs=2e-6)


def test_a_bad_file_among_many_is_named_and_the_rest_done(
    crop: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    absent = tmp_path / "absent.png"
    arguments = ["--json", "--weights", str(weights), str(bad), str(crop), str(absent)]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == [str(crop)]
    assert len(err.splitlines()) == 2
    assert str(bad) in err
    assert str(absent) in err


def test_a_folder_is_every_picture_below_it(
    crop: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/a.PNG", "notes.txt"):
        (folder / name).write_bytes(crop.read_bytes())
    assert main(["--json", "--weights", str(weights), str(folder)]) == 0
    found = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert found == [str(folder / "b.png"), str(folder / "deep" / "a.PNG")]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(empty)]) == 2
    assert f"{empty}: no pictures" in capsys.readouterr().err


def test_plots(
    crop: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    out = tmp_path / "out.png"
    assert main(["--weights", str(weights), str(crop), "--plot", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > picture.height > 300
    twin = tmp_path / "twin" / "crop.png"
    twin.parent.mkdir()
    twin.write_bytes(crop.read_bytes())
    assert main(["--weights", str(weights), str(crop), str(twin), "--plot", str(out)]) == 2
    assert "name a folder" in capsys.readouterr().err
    folder = tmp_path / "plots"
    assert main(["--weights", str(weights), str(crop), str(twin), "--plot", str(folder)]) == 0
    assert len(list(folder.iterdir())) == 2


def test_tta_and_align_options_reach_the_prediction(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = set()
    for options in (["--tta", "none"], ["--tta", "flip"], ["--tta", "ten_crop"]):
        arguments = ["--json", "--weights", str(weights), "--align", "never", str(PHOTO), *options]
        assert main(arguments) == 0
        answers.add(capsys.readouterr().out)
    assert len(answers) == 3


def test_a_photo_without_a_face(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cv2", reason="needs the faces extra")
    sky = tmp_path / "sky.png"
    Image.new("RGB", (120, 90), (90, 140, 220)).save(sky)
    assert main(["--json", "--weights", str(weights), str(sky)]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["faces"]) == 1
    assert f"{sky}: no face found" in err
    assert main(["--weights", str(weights), "--align", "always", str(sky)]) == 1
    assert f"{sky}: no face found" in capsys.readouterr().err


def test_two_faces_give_two_blocks(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cv2", reason="needs the faces extra")
    with Image.open(PHOTO) as photo:
        double = Image.new("RGB", (photo.width * 2, photo.height))
        double.paste(photo, (0, 0))
        double.paste(photo, (photo.width, 0))
    path = tmp_path / "two.png"
    double.save(path)
    assert main(["--weights", str(weights), str(path), "--plot", str(tmp_path / "p.png")]) == 0
    out = capsys.readouterr().out
    assert "face 1 of 2" in out
    assert "face 2 of 2" in out
    assert len(out.splitlines()) == 16


def test_wrong_weights_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", str(tmp_path / "absent.safetensors"), str(PHOTO)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ferfacenet: ")
    assert "absent.safetensors" in err


def test_many_images_on_a_terminal_get_a_progress_bar(crop: Path, weights: Path) -> None:
    pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
    import fcntl
    import struct
    import termios

    shown = {}
    for count in (20, 2):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = "import sys; from ferfacenet.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", command, "--json", "--tta", "none", "--weights", str(weights),
             *[str(crop)] * count],
            stdout=subprocess.PIPE, stderr=slave, cwd=ROOT, check=True, text=True,
        )  # fmt: skip
        os.close(slave)
        assert len([json.loads(line) for line in done.stdout.splitlines()]) == count
        try:
            shown[count] = os.read(master, 100_000).decode()
        except OSError:  # nothing was written
            shown[count] = ""
        os.close(master)
    assert "20/20" in shown[20]
    assert "img/s" in shown[20]
    assert shown[2] == ""


def test_a_closed_pipe_and_help_are_no_tracebacks(weights: Path, crop: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from ferfacenet.cli import main; sys.exit(main())",
    ]
    script = subprocess.Popen(
        [*command, "--json", "--weights", str(weights), *[str(crop)] * 40],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert script.stdout is not None
    assert script.stderr is not None
    script.stdout.close()
    assert b"Traceback" not in script.stderr.read()
    script.wait()
    script.stderr.close()
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0
    assert "examples:" in shown.stdout


@pytest.mark.parametrize(("align", "status"), [("auto", 0), ("always", 1)])
def test_without_the_detector(
    align: str, status: int, weights: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(faces, "_local", threading.local())  # forgets its detectors
    monkeypatch.setitem(sys.modules, "cv2", None)
    photo = tmp_path / "photo.png"  # not square, or it might be a face crop
    Image.open(PHOTO).crop((0, 0, 500, 400)).save(photo)
    command = ["--align", align, "--tta", "none", "--weights", str(weights), str(photo)]
    assert main(command) == status
    said = capsys.readouterr()
    assert "ferfacenet[faces]" in said.err
    assert ("taking the centre square" in said.err) == (status == 0)
    assert len(said.out.splitlines()) == (8 if status == 0 else 0)


def test_an_interrupt_is_no_traceback(
    crop: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ferfacenet.cli.predict_proba", interrupt)
    assert main(["--weights", str(weights), str(crop)]) == 130
