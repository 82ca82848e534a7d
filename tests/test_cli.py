"""The command: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PHOTO, faces, python_path, sharp
from PIL import Image

from ferfacenet import load_pretrained, predict_proba, save_pretrained
from ferfacenet.cli import main

COMMAND = [sys.executable, "-c", "import sys; from ferfacenet.cli import main; sys.exit(main())"]
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
    pytest.importorskip("cv2", reason="needs the faces extra")
    assert main([str(PHOTO)]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith(f"{PHOTO}: face 1 of 1, x 1")
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
    assert face["box"] is None and face["score"] is None
    model = load_pretrained(weights)
    assert model.categories is not None
    expected = dict(zip(model.categories, predict_proba(model, crop)[0].tolist(), strict=True))
    assert face["probabilities"] == pytest.approx(expected, abs=2e-6)
    assert face["label"] == max(expected, key=expected.__getitem__)


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
    answers, err = ask(weights, capsys, bad, crop, absent, status=1)
    assert [answer["image"] for answer in answers] == [str(crop)]
    first, second = err.splitlines()
    assert str(bad) in first and str(absent) in second


def test_a_folder_is_every_picture_below_it(
    crop: Path, weights: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder, empty = tmp_path / "folder", tmp_path / "empty"
    for path in (folder / "deep", empty):
        path.mkdir(parents=True)
    for name in ("b.png", "deep/a.PNG", "notes.txt"):
        (folder / name).write_bytes(crop.read_bytes())
    answers, _ = ask(weights, capsys, folder)
    assert [answer["image"] for answer in answers] == [f"{folder}/b.png", f"{folder}/deep/a.PNG"]
    assert f"{empty}: no pictures" in ask(weights, capsys, empty, status=2)[1]


def test_plots(crop: Path, weights: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib", reason="needs the plot extra")
    out, folder, twin = tmp_path / "out.png", tmp_path / "plots", tmp_path / "twin" / "crop.png"
    ask(weights, capsys, crop, "--plot", out)
    with Image.open(out) as picture:
        assert picture.width > picture.height > 300
    twin.parent.mkdir()
    twin.write_bytes(crop.read_bytes())
    assert "folder" in ask(weights, capsys, crop, twin, "--plot", out, status=2)[1]
    ask(weights, capsys, crop, twin, "--plot", folder)
    assert len(list(folder.iterdir())) == 2  # though both are called crop.png


def test_photos_with_no_face_one_and_two(weights: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("cv2", reason="needs the faces extra")
    sky, two = tmp_path / "sky.png", tmp_path / "two.png"
    Image.new("RGB", (120, 90), (90, 140, 220)).save(sky)
    with Image.open(PHOTO) as photo:
        double = Image.new("RGB", (photo.width * 2, photo.height))
        double.paste(photo, (0, 0))
        double.paste(photo, (photo.width, 0))
    double.save(two)
    answers, err = ask(weights, capsys, sky, PHOTO, two)
    assert [len(answer["faces"]) for answer in answers] == [1, 1, 2]
    assert f"{sky}: no face found" in err
    assert f"{sky}: no face found" in ask(weights, capsys, "--align", "always", sky, status=1)[1]
    assert main(["--weights", str(weights), str(two)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 and "face 1 of 2" in lines[0] and "face 2 of 2" in lines[8]


@pytest.mark.usefixtures("without_detector")
def test_without_the_detector(weights: Path, tmp_path: Path, capsys: Capture) -> None:
    photo = tmp_path / "photo.png"  # not square, or it might be a face crop
    Image.open(PHOTO).crop((0, 0, 500, 400)).save(photo)
    answers, err = ask(weights, capsys, photo)
    assert len(answers) == 1 and "pip install" in err and "centre square" in err
    answers, err = ask(weights, capsys, "--align", "always", photo, status=1)
    assert not answers and "pip install" in err


def test_a_wrong_command_is_one_line(crop: Path, tmp_path: Path, capsys: Capture) -> None:
    for options in (["--weights", str(tmp_path / "absent.safetensors")], ["--device", "abacus"]):
        assert main([*options, str(crop)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("ferfacenet: ") and options[1].split("/")[-1] in line


def test_an_interrupt_is_no_traceback(
    crop: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ferfacenet.cli.predict_proba", interrupt)
    assert main(["--weights", str(weights), str(crop)]) == 130


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
