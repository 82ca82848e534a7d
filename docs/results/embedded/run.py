"""The folder that tools/export_onnx.py writes, beside the package: answers, sizes, times.

  python docs/results/embedded/run.py --data fer2013.csv --photos FOLDER

writes embedded.json and prints its table. Answers are compared on PublicTest, two views each, and
on the faces of the photos in FOLDER, which may be any. Times are medians over processes of their
own, in turns; a first answer is that of a whole process. Makes a fresh environment, whose size is
measured; that needs a package index.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
import venv
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "tools"))

import _pages  # noqa: E402
import export_onnx  # noqa: E402
from _fer2013 import load  # noqa: E402
from _settings import make_parser  # noqa: E402
from benchmark import describe_machine  # noqa: E402
from evaluate import measured_by, write_json  # noqa: E402

from ferfacenet import ImprovedVGG19, load_pretrained, predict_faces, predict_proba  # noqa: E402
from ferfacenet.files import suffixes  # noqa: E402

ROUNDS, SECONDS = 3, 2.0
NEEDS = ["numpy", "pillow", "onnxruntime"]

# What a process times that can read a photo and a crop: each photo, and the crop. It prints
# milliseconds.
TIMED = f"""
import json, time
from statistics import median

def timed(call):
    call()
    started, times = time.perf_counter(), []
    while not times or time.perf_counter() - started < {SECONDS}:
        begun = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - begun))
    return median(times)

crop = np.random.default_rng(0).random((1, 1, 48, 48), np.float32)
times = dict((photo.split("/")[-1], timed(lambda: read(photo))) for photo in sys.argv[3:])
print(json.dumps(times | dict([("one crop", timed(lambda: read_crop(crop)))])))
"""
PACKAGE = f"""
import sys
import numpy as np
import torch
from ferfacenet import load_pretrained, predict_faces, predict_proba
model = load_pretrained(sys.argv[1])
read = lambda photo: predict_faces(model, photo)
read_crop = lambda crop: predict_proba(model, torch.from_numpy(crop))
{TIMED}"""
FOLDER = f"""
import sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from face_reader import FaceReader
reader = FaceReader()
read = reader.predict_faces
read_crop = lambda crop: reader.run("network", faces=crop)
{TIMED}"""


def time_both(weights: str, folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of the package and of the folder."""
    photos = [str(path) for path in export_onnx.PHOTOS]
    first = {
        "package": ["-m", "ferfacenet", "--json", "--weights", weights, photos[0]],
        "folder": [str(folder / "face_reader.py"), photos[0]],
    }
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for kind, code in (("package", PACKAGE), ("folder", FOLDER)):
            command = [sys.executable, "-c", code, weights, str(folder), *photos]
            told = json.loads(subprocess.check_output(command))
            begun = time.perf_counter()
            subprocess.check_output([sys.executable, *first[kind]])
            told["first answer"] = 1000 * (time.perf_counter() - begun)
            for name, value in told.items():
                times[name, kind].append(value)
    names = dict.fromkeys(name for name, _ in times)
    return {name: {kind: round(median(times[name, kind]), 2) for kind in first} for name in names}


def compare_crops(model: ImprovedVGG19, folder: Path, data: Path) -> dict[str, Any]:
    """On PublicTest's images that are not of one colour."""
    faces = load(data)
    public = faces.where((faces.splits == 1) & faces.varied())
    x = torch.from_numpy(public.images)[:, None] / 255
    session = export_onnx.open_session((folder / "network.onnx").read_bytes())
    found = np.concatenate([session.run(None, {"faces": part.numpy()})[0] for part in x.split(100)])
    like = predict_proba(model, x, precision="float32").numpy()
    largest = np.abs(found - like).max(1)
    right = [float((rows.argmax(1) == public.labels).mean()) for rows in (like, found)]
    return {
        "images": len(public), "float32": right[0], "folder": right[1],
        "same_label": float((found.argmax(1) == like.argmax(1)).mean()),
        "difference_median": float(np.median(largest)),
        "difference_95": float(np.quantile(largest, 0.95)),
    }  # fmt: skip


def compare_photos(model: ImprovedVGG19, folder: Path, photos: Path) -> dict[str, Any]:
    """On the faces of some photos."""
    sys.path.insert(0, str(folder))
    reader = importlib.import_module("face_reader").FaceReader()
    counts = defaultdict[str, int](int)
    differences = []
    for photo in sorted(path for path in photos.rglob("*") if path.suffix.lower() in suffixes()):
        try:
            faces = [face.to_dict() for face in predict_faces(model, photo, precision="float32")]
            mine = reader.predict_faces(photo)
        except ValueError:
            continue
        counts["photos"] += 1
        counts["faces"] += len(faces)
        counts["faces_of_the_folder"] += len(mine)
        for face in faces:
            apart = [max(abs(np.subtract(face["box"], other["box"]))) for other in mine]
            if not apart or min(apart) > (face["box"][2] - face["box"][0]) / 4:
                continue
            other, chances = mine[int(np.argmin(apart))], face["probabilities"]
            counts["found_again"] += 1
            side = max(face["box"][2] - face["box"][0], face["box"][3] - face["box"][1])
            counts["boxes_alike"] += bool(min(apart) <= max(1.0, side / 100))
            counts["same_label"] += face["label"] == other["label"]
            change = [abs(chances[name] - other["probabilities"][name]) for name in chances]
            differences.append(max(change))
    return {**counts, "difference_median": float(np.median(differences))}


def environment_size(folder: Path) -> float:
    """Megabytes of a fresh environment with what the folder needs, and with the folder."""
    with tempfile.TemporaryDirectory() as place:
        venv.create(place, with_pip=True)
        subprocess.check_call([f"{place}/bin/pip", "install", "-q", *NEEDS])
        photo = export_onnx.PHOTOS[0]
        subprocess.check_call([f"{place}/bin/python", folder / "face_reader.py", photo])
        parts = [*Path(place).rglob("*"), *folder.iterdir()]
        return sum(part.stat().st_size for part in parts if part.is_file()) / 1e6


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, ("data",))
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--weights", nargs="+", default=["photos", "fer2013-small", "fer2013"])
    options = parser.parse_args(arguments)
    result: dict[str, Any] = describe_machine(torch.device("cpu")) | measured_by()
    result["rows"] = []
    with tempfile.TemporaryDirectory() as place:
        for weights in options.weights:
            folder = Path(place) / weights
            export_onnx.main(["--weights", weights, "--out", str(folder)])
            model = load_pretrained(weights)
            row: dict[str, Any] = {
                "weights": weights,
                "megabytes": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
                "publictest": compare_crops(model, folder, options.data),
                "ms": time_both(weights, folder),
            }
            if not result["rows"]:
                row["photos"] = compare_photos(model, folder, options.photos)
                result["environment_megabytes"] = environment_size(folder)
            result["rows"].append(row)
            print(json.dumps(row, indent=2))
    write_json(HERE / "embedded.json", result)
    print(_pages.embedded())


if __name__ == "__main__":
    main()
