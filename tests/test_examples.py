"""The scripts in docs/examples, each run as its docstring says."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PHOTO, ROOT, encoded, python_path
from PIL import Image

from ferfacenet import ImprovedVGG19, detect_faces, load_pretrained, predict_proba
from ferfacenet.fast import prefers_bfloat16
from ferfacenet.model import FER2013_CATEGORIES

EXAMPLES = ROOT / "docs" / "examples"
READABLE, BROKEN = ("ä.jpg", "below/b.png", "crop.png"), ("broken.jpg", "empty.jpg", "wall.png")


def run_example(name: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": python_path()} | more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, another in a folder below, a face crop, a broken file, an empty one, a photo without
    a face, and what is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    shutil.copy(PHOTO, folder / "ä.jpg")
    (folder / "below").mkdir()
    with Image.open(PHOTO) as photo:
        part = photo.convert("RGB").crop((60, 0, 390, 300))
        Image.eval(part, lambda value: value // 2 + 60).save(folder / "below" / "b.png")
        photo.crop((172, 67, 277, 172)).resize((48, 48)).save(folder / "crop.png")
    (folder / "broken.jpg").write_bytes(PHOTO.read_bytes()[:2000])
    (folder / "empty.jpg").touch()
    Image.new("RGB", (160, 120), (200, 200, 200)).save(folder / "wall.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def check_labels(rows: dict[str, dict[str, Any]], photos: Path, model: ImprovedVGG19) -> None:
    """One row a picture, each with its probabilities; those that cannot be read without."""
    assert set(rows) == {*READABLE, *BROKEN}
    assert {rows[name]["label"] for name in BROKEN} == {""}
    wanted = predict_proba(model, [photos / name for name in READABLE]).numpy()
    assert len({tuple(row.round(2)) for row in wanted}) == 3, "the same for all would show nothing"
    # Other batches are rounded otherwise, where bfloat16 is the faster.
    near = 5e-3 if prefers_bfloat16(torch.device("cpu")) else 1e-3
    for name, row in zip(READABLE, wanted, strict=True):
        found = [float(rows[name][category]) for category in FER2013_CATEGORIES]
        assert found == pytest.approx(row.tolist(), abs=near)
        assert rows[name]["label"] == FER2013_CATEGORIES[int(row.argmax())]


def test_label_folder(photos: Path, weights: Path, model: ImprovedVGG19, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0"}  # a system whose encoding lacks the name's letter
    done = run_example("label_folder.py", photos, table, "--weights", weights, **plain)
    assert done.returncode == 0, done.stderr
    with table.open(newline="", encoding="utf-8") as file:
        rows = {str(Path(row["path"]).relative_to(photos)): row for row in csv.DictReader(file)}
    check_labels(rows, photos, model)


def test_ray_label(photos: Path, weights: Path, model: ImprovedVGG19, tmp_path: Path) -> None:
    """On a Ray of this machine's own, which the script starts."""
    pytest.importorskip("ray.data", reason="needs the examples extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    # Ray's sockets need a shorter path than tmp_path, and its last processes still write there.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        more = {"RAY_TMPDIR": folder, "HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        options = ("--weights", weights, "--cpus", 0.5)  # there may be only one core
        done = run_example("ray_label.py", photos, tmp_path / "labels", *options, **more)
    assert done.returncode == 0, done.stderr
    rows = parquet.read_table(tmp_path / "labels").to_pylist()
    check_labels({str(Path(r["path"]).relative_to(photos)): r for r in rows}, photos, model)


@pytest.fixture
def service(weights: Path) -> Iterator[tuple[str, int]]:
    """The address of the running service, and its process."""
    for name in ("fastapi", "uvicorn", "httpx", "python_multipart"):
        pytest.importorskip(name, reason="needs the examples extra")
    command = ["uvicorn", "fastapi_service:app", "--app-dir", str(EXAMPLES), "--port", "0"]
    own = {"PYTHONPATH": python_path(), "FERFACENET_WEIGHTS": str(weights)}
    with subprocess.Popen(
        [sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True, env=os.environ | own
    ) as process:
        assert process.stderr is not None
        log = ""
        while not (found := re.search(r"running on (http://[\d.:]+)", log)):
            line = process.stderr.readline()
            assert line, log
            log += line
        yield found[1], process.pid
        process.terminate()


def upload(address: str, data: bytes, field: str = "photo") -> Any:
    import httpx

    with httpx.Client(trust_env=False, timeout=120) as client:
        return client.post(f"{address}/faces", files={field: ("photo.jpg", data)})


def test_fastapi_service(service: tuple[str, int], photos: Path, model: ImprovedVGG19) -> None:
    post = partial(upload, service[0])
    uploads = [(photos / name).read_bytes() for name in ("ä.jpg", "below/b.png")] * 2
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(post, uploads))
    for data, reply in zip(uploads, replies, strict=True):
        (face,), (found,) = detect_faces(data), reply.json()["faces"]
        row = predict_proba(model, face.crop[None])[0]
        assert found["box"] == pytest.approx(face.box, abs=0.06)
        chances = dict(zip(FER2013_CATEGORIES, row.tolist(), strict=True))
        assert found["probabilities"] == pytest.approx(chances, abs=1e-4)
        assert found["label"] == FER2013_CATEGORIES[int(row.argmax())]
    assert post((photos / "wall.png").read_bytes()).json() == {"faces": []}
    broken = post((photos / "broken.jpg").read_bytes())
    assert broken.status_code == 400 and "image" in broken.json()["detail"]
    assert post(b"a photo in the wrong field", field="file").status_code == 422
    assert post(bytes(21 * 2**20)).status_code == 413


def test_fastapi_service_bounds_the_memory_of_large_photos(service: tuple[str, int]) -> None:
    address, process = service
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        pytest.skip("needs /proc, which says how much memory a process has had")

    def peak(*sides: int) -> int:
        """The most KiB that the service has held, after photos of one colour at once."""
        pictures = [encoded(Image.new("RGB", (side, side), (90, 140, 220))) for side in sides]
        with ThreadPoolExecutor(len(sides)) as pool:
            replies = list(pool.map(partial(upload, address), pictures))
        assert [reply.json() for reply in replies] == [{"faces": []}] * len(sides)
        return int(status.read_text().split("VmHWM:")[1].split()[0])

    least = peak(300)
    one = peak(3500) - least
    assert peak(*[3500] * 8) - least < 5 * one


def test_finetune_cuts_each_picture_at_a_place_of_its_own() -> None:
    finetune = runpy.run_path(str(EXAMPLES / "finetune.py"))
    torch.manual_seed(0)
    places = torch.arange(48.0)[:, None] * 48 + torch.arange(48.0)  # a pixel's value is its place
    crops = finetune["augment"](places.expand(200, 1, 48, 48))
    assert crops.shape == (200, 1, 44, 44)
    corners = torch.minimum(crops[:, 0, 0, 0], crops[:, 0, 0, -1])
    assert len(set(corners.tolist())) == 25
    assert 50 < (crops[:, 0, 0, 0] > crops[:, 0, 0, -1]).sum() < 150


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Faces with a bright top or a bright bottom: the bundled networks' heads know neither."""
    rng = np.random.default_rng(0)
    for kind, half in {"bottom": slice(24, 48), "top": slice(0, 24)}.items():
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for index in range(10):
            image = rng.integers(0, 100, (48, 48), np.uint8)
            image[half] += 120
            Image.fromarray(image).save(tmp_path / "photos" / kind / f"{index}.png")
    return tmp_path / "photos"


def test_finetune_learns_own_classes(classes: Path, photos: Path, tmp_path: Path) -> None:
    """One of them has a single picture; among the others is what is none, or has no face."""
    (classes / "astronaut").mkdir()
    shutil.copy(PHOTO, classes / "astronaut")
    (classes / "top" / "Thumbs.db").write_bytes(b"rubbish")
    for name in ("broken.jpg", "wall.png"):
        shutil.copy(photos / name, classes / "bottom")
    out, options = tmp_path / "out", ("--epochs", 15, "--weights", "fer2013-small")
    done = run_example("finetune.py", classes, out, *options)
    assert done.returncode == 0, done.stderr
    skipped = re.findall(r"skipped: .*photos/(\S+): ", done.stderr)
    assert skipped == ["bottom/broken.jpg", "bottom/wall.png", "top/Thumbs.db"]
    summary, title, names, *rows = done.stdout.splitlines()
    assert summary == f"{out}: 3 classes, 17 pictures learned, 3 skipped"
    assert title.endswith("% of 4 held-out pictures right; read as:")
    assert names.split() == [row.split()[0] for row in rows] == ["astronaut", "bottom", "top"]
    cells = [[int(cell) for cell in row.split()[1:]] for row in rows]
    assert [sum(row) for row in cells] == [0, 2, 2]
    model = load_pretrained(str(out))
    assert model.categories == ("astronaut", "bottom", "top")
    source = json.loads((out / "config.json").read_text())["trained_on"]
    assert source == "17 pictures of our own, from the weights fer2013-small"
    pictures = sorted(path for path in classes.glob("*/*") if re.match(r"\d", path.name))
    labels = predict_proba(model, pictures).argmax(1).tolist()
    assert labels[:10].count(1) >= 9 and labels[10:].count(2) >= 9


def test_finetune_says_what_it_cannot_do(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    finetune = runpy.run_path(str(EXAMPLES / "finetune.py"))["main"]

    def run(folder: Path) -> None:
        options = [str(tmp_path / "out"), "--epochs", "1", "--weights", "fer2013-small"]
        monkeypatch.setattr(sys, "argv", ["finetune.py", str(folder), *options])
        finetune()

    for folder in (classes / "gone", classes / "top"):
        with pytest.raises(SystemExit, match=f"{folder.name}: has to be a folder of two folders"):
            run(folder)
    for path in classes.glob("*/[1-9].png"):
        path.unlink()
    run(classes)
    assert "none held out to measure on" in capsys.readouterr().out
    (classes / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty: no picture with a face"):
        run(classes)
