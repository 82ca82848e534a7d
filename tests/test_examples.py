"""The scripts in docs/examples, each run as its docstring says."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_model import sharp

from ferfacenet import detect_faces, load_pretrained, predict_proba, preprocess, save_pretrained
from ferfacenet.model import FER2013_CATEGORIES
from ferfacenet.transforms import normalise

EXAMPLES = ROOT / "docs" / "examples"
ASTRONAUT = ROOT / "docs" / "images" / "astronaut.jpg"

cv2 = pytest.importorskip("cv2", reason="needs the faces extra")


def environment(**more: str) -> dict[str, str]:
    """The package of this checkout, also in processes that the example starts."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | more


def run(name: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=environment(**more),
    )  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that tells different pictures apart, if not expressions."""
    folder = tmp_path_factory.mktemp("weights")
    save_pretrained(sharp(num_classes=7), folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, another in a folder below, a face crop, a broken file, and what is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    shutil.copy(ASTRONAUT, folder / "a.jpg")
    photo = cv2.imread(str(ASTRONAUT))
    (folder / "below").mkdir()
    cv2.imwrite(str(folder / "below" / "b.png"), photo[:300, 60:390, ::-1] // 2 + 60)
    cv2.imwrite(str(folder / "crop.png"), cv2.resize(photo[67:172, 172:277], (48, 48)))
    (folder / "broken.jpg").write_bytes(ASTRONAUT.read_bytes()[:2000])
    (folder / "notes.txt").write_text("no picture")
    return folder


#: Those of the photos that can be read, with the name of the one that cannot.
READABLE, BROKEN = ("a.jpg", "below/b.png", "crop.png"), "broken.jpg"


@pytest.fixture(scope="module")
def expected(photos: Path, weights: Path) -> dict[str, np.ndarray]:
    model = load_pretrained(weights)
    rows = predict_proba(model, [photos / name for name in READABLE]).numpy()
    assert len({tuple(row.round(2)) for row in rows}) == 3, "the same for all would show nothing"
    return dict(zip(READABLE, rows, strict=True))


def test_every_example_is_tested_and_says_what_to_install() -> None:
    tested = Path(__file__).read_text() + (ROOT / "tools" / "export_onnx.py").read_text()
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text()
        assert re.match(r'"""[^"]*\n *pip install .*\n', text), path.name
        assert len(text.splitlines()) <= 82, path.name
        assert path.name in tested or path.stem + ":app" in tested, path.name


# ----------------------------------------------------------------------------------- service


@pytest.fixture(scope="module")
def service(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running service."""
    for name in ("fastapi", "uvicorn", "httpx", "python_multipart"):
        pytest.importorskip(name, reason="needs the examples extra")
    log = tmp_path_factory.mktemp("service") / "log"
    command = [sys.executable, "-m", "uvicorn", "fastapi_service:app"]
    command += ["--app-dir", str(EXAMPLES), "--port", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stderr=subprocess.STDOUT,
            stdout=output,
            env=environment(FERFACENET_WEIGHTS=str(weights)),
        )
    try:
        for _ in range(600):
            found = re.search(r"running on (http://[\d.:]+)", log.read_text())
            if found or process.poll() is not None:
                break
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        assert found, log.read_text()
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)


def post(service: str, data: bytes, field: str = "photo") -> Any:
    import httpx

    with httpx.Client(trust_env=False, timeout=120) as client:
        return client.post(f"{service}/faces", files={field: ("photo.jpg", data)})


def answer(weights: Path, data: bytes) -> list[dict[str, Any]]:
    """What the service must say of a photo's faces."""
    model = load_pretrained(weights)
    faces = detect_faces(data)
    crops = torch.stack([face.crop for face in faces])
    rows = predict_proba(model, normalise(crops, model.mean, model.std)).tolist()
    named = [dict(zip(FER2013_CATEGORIES, row, strict=True)) for row in rows]
    return [
        {
            "box": pytest.approx(face.box, abs=0.01),
            "label": max(row, key=row.__getitem__),
            "probabilities": pytest.approx(row, abs=1e-4),
        }
        for face, row in zip(faces, named, strict=True)
    ]


def test_fastapi_service_answers_two_at_once(service: str, weights: Path, photos: Path) -> None:
    uploads = [(photos / name).read_bytes() for name in ("a.jpg", "below/b.png")]
    right = [answer(weights, data) for data in uploads]
    assert all(len(faces) == 1 for faces in right)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda data: post(service, data), uploads * 2))
    assert [reply.status_code for reply in answers] == [200] * 4
    assert [reply.json()["faces"] for reply in answers] == right * 2


def test_fastapi_service_refuses_what_is_no_photo(service: str, photos: Path) -> None:
    reply = post(service, (photos / BROKEN).read_bytes())
    assert reply.status_code == 400
    assert "cannot be read as an image" in reply.json()["detail"]
    assert post(service, b"").status_code == 400
    assert post(service, b"some text").status_code == 400
    assert post(service, b"a photo in the wrong field", field="file").status_code == 422
    assert post(service, bytes(21 * 2**20)).status_code == 413


def test_fastapi_service_finds_no_face_in_a_wall(service: str) -> None:
    wall = cv2.imencode(".png", np.full((120, 160, 3), 200, np.uint8))[1].tobytes()
    reply = post(service, wall)
    assert (reply.status_code, reply.json()) == (200, {"faces": []})


# ------------------------------------------------------------------------------------- video


def frames(path: Path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    found = []
    while (read := video.read())[0]:
        found.append(read[1])
    return found


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_video_to_csv(tmp_path: Path, weights: Path, suffix: str) -> None:
    """Four frames of a face that moves to the right, then two of a wall."""
    photo = cv2.imread(str(ASTRONAUT))
    source = tmp_path / f"talk{suffix}"
    codec = "MJPG" if suffix == ".avi" else "mp4v"
    video = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*codec), 10.0, (320, 240))
    walls = [np.full((240, 320, 3), 200, np.uint8)] * 2
    pictures = [photo[20:260, 90 - 8 * i : 410 - 8 * i] for i in range(4)] + walls
    for picture in pictures:
        video.write(np.ascontiguousarray(picture))
    video.release()
    table, annotated = tmp_path / "talk.csv", tmp_path / f"annotated{suffix}"
    done = run(
        "video_to_csv.py", source, "--csv", table, "--video", annotated, "--weights", weights
    )
    assert done.returncode == 0, done.stderr
    assert "6/6" in done.stderr, "no progress bar"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], float(row["seconds"])) for row in rows] == [
        ("0", 0.0), ("1", 0.1), ("2", 0.2), ("3", 0.3)
    ]  # fmt: skip
    assert np.diff([float(row["x0"]) for row in rows]) == pytest.approx(8, abs=4)
    read = frames(source)
    model = load_pretrained(weights)
    for row, frame in zip(rows, read, strict=False):
        (face,) = detect_faces(np.ascontiguousarray(frame[:, :, ::-1]))
        crop = normalise(face.crop, model.mean, model.std)[None]
        wanted = predict_proba(model, crop, tta="flip")[0].tolist()
        assert [float(row[name]) for name in FER2013_CATEGORIES] == pytest.approx(wanted, abs=1e-3)
        assert row["label"] == FER2013_CATEGORIES[int(np.argmax(wanted))]
    drawn = frames(annotated)
    assert [frame.shape for frame in drawn] == [(240, 320, 3)] * 6
    changed = [np.abs(a.astype(int) - b).max() for a, b in zip(drawn, read, strict=True)]
    assert min(changed[:4]) > 100 > 30 > max(changed[4:])


def test_video_to_csv_names_what_it_cannot_read(tmp_path: Path) -> None:
    outputs = ("--csv", tmp_path / "a.csv", "--video", tmp_path / "a.mp4")
    done = run("video_to_csv.py", tmp_path / "none.mp4", *outputs)
    assert done.returncode == 1
    assert "none.mp4: cannot be read as a video" in done.stderr
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------- folders


def check_labels(rows: dict[str, dict[str, Any]], expected: dict[str, np.ndarray]) -> None:
    """One row a picture, each with its probabilities; the broken one with its error."""
    assert set(rows) == {*READABLE, BROKEN}
    assert "cannot be read as an image" in rows[BROKEN]["note"]
    assert rows[BROKEN]["label"] == ""
    for name, wanted in expected.items():
        found = [float(rows[name][category]) for category in FER2013_CATEGORIES]
        assert found == pytest.approx(wanted.tolist(), abs=1e-3)
        assert rows[name]["label"] == FER2013_CATEGORIES[int(wanted.argmax())]
        assert rows[name]["note"] == ""


@pytest.mark.parametrize("workers", [0, 2])
def test_label_folder(
    photos: Path, weights: Path, expected: dict[str, np.ndarray], tmp_path: Path, workers: int
) -> None:
    table = tmp_path / "labels.csv"
    options = ("--workers", workers, "--batch-size", 3, "--weights", weights)
    done = run("label_folder.py", photos, table, *options)
    assert done.returncode == 0, done.stderr
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    check_labels({str(Path(r["path"]).relative_to(photos)): r for r in rows}, expected)


def test_ray_label(
    photos: Path, weights: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """On a Ray of this machine's own, which the script starts."""
    pytest.importorskip("ray.data", reason="needs the examples extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    # Ray's sockets need a shorter path than tmp_path, and its last processes still write there.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        more = {"RAY_TMPDIR": folder, "HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        options = ("--weights", weights, "--cpus", 0.5)  # there may be only one core
        done = run("ray_label.py", photos, tmp_path / "labels", *options, **more)
    assert done.returncode == 0, done.stderr
    rows = parquet.read_table(tmp_path / "labels").to_pylist()
    check_labels({str(Path(r["path"]).relative_to(photos)): r for r in rows}, expected)


# --------------------------------------------------------------------------------- own classes


def test_finetune_learns_three_own_classes(tmp_path: Path) -> None:
    """Faces with a bright top, a bright bottom, and neither: the bundled network's head
    knows none of them."""
    rng = np.random.default_rng(0)
    for kind in ("bottom", "neither", "top"):
        folder = tmp_path / "photos" / kind
        folder.mkdir(parents=True)
        for index in range(10):
            image = rng.integers(0, 100, (48, 48), np.uint8)
            image[{"bottom": slice(24, 48), "top": slice(0, 24), "neither": slice(0)}[kind]] += 120
            cv2.imwrite(str(folder / f"{index}.png"), image)
    done = run("finetune.py", tmp_path / "photos", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"bottom, neither, top: (.*)% of 6 held-out pictures right\n", done.stdout)
    assert found, done.stdout
    assert float(found[1]) > 80, "chance is 33 %"
    model = load_pretrained(tmp_path / "out")
    assert model.categories == ("bottom", "neither", "top")
    pictures = sorted((tmp_path / "photos" / "top").iterdir())
    names = [model.categories[i] for i in predict_proba(model, pictures).argmax(1).tolist()]
    assert names.count("top") >= 8
    assert preprocess(pictures[0]).shape == (1, 48, 48)
