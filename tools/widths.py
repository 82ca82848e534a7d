"""Thins fer2013 to several widths, trains each for the same epochs, and measures what each gives
for its time.

  python tools/widths.py --data fer2013.csv --votes fer2013new.csv --peers

A width is a run of tools/train.py --recipe small in a folder of --out, made if it is not there; all
see the same images, and the teacher is asked once for all. Accuracies are those on PublicTest.
Times are predict_proba's for single crops and, with --peers, those of onnxruntime and fer (those
installed), which take turns in one run, on a machine that should be idle. All goes to
docs/results/widths.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import _pages
import numpy as np
import torch
import train
from _fer2013 import Faces, load
from _figures import plot_widths
from _settings import make_parser
from benchmark import Bench, Images, Reader, describe_machine, make_fer
from evaluate import choose, crop_logits, evaluate, write_json
from release import keep_run
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba

HOW = "--recipe small --embedding-weight 0 --lr 0.02 --rounds 3 --calm 0.2"


def train_all(options: argparse.Namespace) -> list[str]:
    """The folder of each width's weights."""
    answers: train.Answers = {}
    folders = []
    for width in options.widths:
        run = options.out / f"{width:g}"
        if not (run / "weights").is_dir():
            own = ["--width", width, "--epochs", options.epochs, "--out", run]
            files = ["--data", options.data, "--votes", options.votes]
            train.main([*HOW.split(), *map(str, own + files)], answers)
        folders.append(str(run / "weights"))
    return folders


def read(model: ImprovedVGG19, images: Images) -> torch.Tensor:
    return predict_proba(model, torch.from_numpy(images)[:, None] / 255, tta=None)


def make_onnxruntime() -> Reader:
    """The full network on one crop, as tools/export_onnx.py writes it."""
    import onnxruntime
    from export_onnx import export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(export(load_pretrained("fer2013"), None), options)
    return lambda images: session.run(None, {"faces": images[:, None] / np.float32(255)})[0]


def accuracy(reader: Reader, public: Faces) -> float:
    shown = public.where(public.varied())  # one of one gray counts as wrong
    parts = np.array_split(shown.images, 1 + len(shown) // 128)
    answers = np.concatenate([np.asarray(reader(part)).argmax(1) for part in parts])
    return int((answers == shown.labels).sum()) / len(public)


def find_peers() -> dict[str, Reader]:
    """Those that are installed."""
    found: dict[str, Reader] = {}
    for name, make in {"onnxruntime": make_onnxruntime, "fer": make_fer}.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = make()
        except ImportError as error:
            tqdm.write(f"{name} is left out: {error}")
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, ("data", "votes"))
    add = parser.add_argument
    # fmt: off
    add("--out", type=Path, default=Path("runs/widths"), help="folder of the runs (%(default)s)")
    add("--epochs", type=int, default=6, help="of each (%(default)s)")
    add("--widths", type=float, nargs="+", default=[0.125, 0.25, 0.375, 0.5])
    add("--peers", action="store_true", help="time onnxruntime and fer as well")
    add("--seconds", type=float, default=2.0, help="at least so long for a time (%(default)s)")
    # fmt: on
    options = parser.parse_args(arguments)
    folders = train_all(options)
    options.weights, options.device, options.largest = ["fer2013", *folders], "cpu", 128
    bench, peers = Bench(options), find_peers() if options.peers else {}
    readers = {name: partial(read, model) for name, model in bench.models.items()} | peers
    images = np.random.default_rng(0).integers(0, 256, (bench.largest, 48, 48), np.uint8)
    times = {
        f"ms_{count}": bench.time(
            "crops", str(count), {name: partial(of, images[:count]) for name, of in readers.items()}
        )
        for count in (1, len(images))
    }
    part, fresh = choose(load(options.data), "PublicTest")
    rows: list[dict[str, Any]] = []
    for name in readers:
        row: dict[str, Any] = {key: of[name] for key, of in times.items()}
        if name in peers:
            row |= {"package": name, "accuracy": accuracy(peers[name], part)}
        else:
            model = bench.models[name]
            found = evaluate(part, fresh, model, crop_logits(model, part.images, name))
            row |= {
                "package": f"width {model.width:g}",
                "width": model.width,
                "parameters": sum(p.numel() for p in model.parameters()),
                "accuracy": found["accuracy"]["none"],
                "ten_crop": found["accuracy"]["ten_crop"],
                "ten_crop_deduplicated": found["accuracy_deduplicated"]["ten_crop"],
            }
        rows.append(row)
    for folder, width in zip(folders, options.widths, strict=True):
        keep_run(Path(folder).parent, f"widths/{width:g}")
    out = _pages.ROOT / "docs" / "results" / "widths"
    write_json(out / "widths.json", describe_machine(bench.device) | {"rows": rows})
    plot_widths(rows, out / "widths.png")
    print("python tools/release.py writes the pages anew")


if __name__ == "__main__":
    main()
