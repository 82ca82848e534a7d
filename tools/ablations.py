"""Trains the paper's network with one of its open choices changed at a time, at equal budget.

  python tools/ablations.py --data fer2013.csv --runs runs/ablations --out docs/results/ablations

What else is given goes to tools/train.py and holds for every variant, as --sizes 32. --out gets a
folder per variant, its config.json and metrics.jsonl, and table.md and curves.png of all that are
there. A variant that is there is not trained again, and one that was stopped goes on from its
checkpoint in --runs, which is deleted when the variant is done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import train
from figures import plot_variants
from networks import build

from ferfacenet.hub import write_atomically

#: The paper's recipe, but its learning rate falls within so few epochs.
SHARED = [
    "--recipe", "paper", "--schedule", "cosine", "--warmup", "0.1", "--epochs", "10",
]  # fmt: skip
BASE = "baseline"
#: What each variant changes in the network of ``BASE``: max pooling, no hidden layer, softmax
#: cross-entropy, BatchNorm and dropout.
VARIANTS = {
    BASE: [],
    "average pooling": ["--pool", "avg"],
    "hidden layer of 512": ["--hidden-features", "512"],
    "loss of formula (1)": ["--loss", "paper"],
    "no BatchNorm": ["--no-batch-norm"],
    "no dropout": ["--dropout", "0"],
    "plain VGG19": ["--arch", "vgg19"],
}


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The run's metrics.jsonl; empty where there is none."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def parameters(config: dict[str, Any]) -> int:
    network = build(
        *(config[name] for name in ("arch", "pool", "hidden_features", "batch_norm", "dropout"))
    )
    return sum(parameter.numel() for parameter in network.parameters())


def table(out: Path) -> str:
    """A Markdown table of the variants in ``out``; the first row is what the others change."""
    rows = [
        "| variant | flags | parameters, M | training, % | PublicTest, % | points |",
        "|---|---|---|---|---|---|",
    ]
    base = read_lines(out / slug(BASE))[-1]["public_accuracy"]
    for name, flags in VARIANTS.items():
        lines = read_lines(out / slug(name))
        if not lines:
            continue
        last, flag = lines[-1], f"`{' '.join(flags)}`" if flags else ""
        million = parameters(json.loads((out / slug(name) / "config.json").read_text())) / 1e6
        public = last["public_accuracy"]
        points = "" if name == BASE else f"{100 * (public - base):+.2f}"
        rows.append(
            f"| {name} | {flag} | {million:.1f} "
            f"| {100 * last['train_accuracy']:.2f} | {100 * public:.2f} | {points} |"
        )
    return "\n".join(rows) + "\n"


def slug(name: str) -> str:
    return name.lower().translate(str.maketrans(" ", "-", "()"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="fer2013.csv, as for tools/train.py")
    parser.add_argument("--runs", type=Path, required=True, help="folder for unfinished runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    given, passed_on = parser.parse_known_args(arguments)
    for name, flags in VARIANTS.items():
        run, kept = given.runs / slug(name), given.out / slug(name)
        if (kept / "metrics.jsonl").exists():
            continue
        print(f"{name}: {run}", file=sys.stderr)
        if (run / "config.json").exists():
            command = ["--resume", str(run)]
        else:
            command = ["--data", given.data, "--out", str(run), *SHARED, *passed_on, *flags]
        train.main(command)
        config = json.loads((run / "config.json").read_text()) | {"data": given.data}
        kept.mkdir(parents=True, exist_ok=True)
        write_atomically(kept / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        write_atomically(kept / "metrics.jsonl", (run / "metrics.jsonl").read_bytes())
        shutil.rmtree(run)
        write_atomically(given.out / "table.md", table(given.out).encode())
        histories = {name: read_lines(given.out / slug(name)) for name in VARIANTS}
        plot_variants(
            {name: lines for name, lines in histories.items() if lines}, given.out / "curves.png"
        )
    print(table(given.out), end="")


if __name__ == "__main__":
    main()
