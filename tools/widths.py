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
from pathlib import Path

import _pages
import train
from _fer2013 import load
from _figures import plot_widths
from benchmark import PEERS, Bench, describe_machine, time_peers
from evaluate import choose, crop_logits, evaluate, write_json
from release import keep_run

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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--data", type=Path, required=True, help="fer2013.csv, as tools/train.py takes it")
    add("--votes", type=Path, required=True, help="FER+'s fer2013new.csv")
    add("--out", type=Path, default=Path("runs/widths"), help="folder of the runs (%(default)s)")
    add("--epochs", type=int, default=6, help="of each (%(default)s)")
    add("--widths", type=float, nargs="+", default=[0.125, 0.25, 0.375, 0.5])
    add("--peers", action="store_true", help="time onnxruntime and fer as well")
    add("--seconds", type=float, default=2.0, help="at least so long for a time (%(default)s)")
    # fmt: on
    options = parser.parse_args(arguments)
    folders = train_all(options)
    options.weights, options.device, options.largest = ["fer2013", *folders], "cpu", 128
    bench = Bench(options)
    packages = time_peers(bench, PEERS if options.peers else {})
    part, fresh = choose(load(options.data), "PublicTest")
    for (name, model), row in zip(bench.models.items(), packages, strict=False):
        found = evaluate(part, fresh, model, crop_logits(model, part.images, name))
        row["ten_crop"] = found["accuracy"]["ten_crop"]
        row["ten_crop_deduplicated"] = found["accuracy_deduplicated"]["ten_crop"]
        row["package"], row["width"] = f"width {model.width:g}", model.width
        row["parameters"] = sum(p.numel() for p in model.parameters())
    for folder, width in zip(folders, options.widths, strict=True):
        keep_run(Path(folder).parent, f"widths/{width:g}")
    out = _pages.ROOT / "docs" / "results" / "widths"
    write_json(out / "widths.json", describe_machine(bench.device) | {"rows": packages})
    plot_widths(packages, out / "widths.png")
    print("python tools/release.py writes the pages anew")


if __name__ == "__main__":
    main()
