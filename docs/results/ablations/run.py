"""Trains the paper's network with one of its open choices changed at a time, at equal budget.

  python docs/results/ablations/run.py --data fer2013.csv --limit 15000 --sizes 32

The flags are those of tools/train.py, without --out: each variant has a folder beside this file,
which keeps its config.json and metrics.jsonl, and table.md and curves.png show all of them. What
is there is not trained again, and what was stopped goes on from runs/ablations.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

HERE, RUNS = Path(__file__).parent, Path("runs/ablations")
sys.path.insert(0, str(HERE.parents[2] / "tools"))

import train  # noqa: E402
from _figures import plot_variants  # noqa: E402

#: The paper's recipe, but its learning rate falls within so few epochs.
SHARED = ["--recipe", "paper", "--schedule", "cosine", "--warmup", "0.1", "--epochs", "10"]
#: What each changes: max pooling, no hidden layer, cross-entropy, BatchNorm and dropout.
VARIANTS = {
    "baseline": [],
    "average pooling": ["--pool", "avg"],
    "hidden layer of 512": ["--hidden-features", "512"],
    "loss of formula (1)": ["--loss", "paper"],
    "no BatchNorm": ["--no-batch-norm"],
    "no dropout": ["--dropout", "0"],
    "plain VGG19": ["--arch", "vgg19"],
}


def main(arguments: list[str], results: Path = HERE) -> None:
    table = "| variant | flags | training, % | PublicTest, % |\n|---|---|---|---|\n"
    histories = {}
    for name, flags in VARIANTS.items():
        slug = name.lower().translate(str.maketrans(" ", "-", "()"))
        run, kept = RUNS / slug, results / slug
        if not (kept / "metrics.jsonl").exists():
            new = [*SHARED, *arguments, *flags, "--out", str(run)]
            train.main(["--resume", str(run)] if (run / "config.json").exists() else new)
            kept.mkdir(parents=True, exist_ok=True)
            config = json.loads((run / "config.json").read_text())
            config["data"] = Path(config["data"]).name
            (kept / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            shutil.copy(run / "metrics.jsonl", kept)
            shutil.rmtree(run)
        lines = (kept / "metrics.jsonl").read_text().splitlines()
        histories[name] = [json.loads(line) for line in lines]
        figures = [histories[name][-1][key] for key in ("train_accuracy", "public_accuracy")]
        table += (
            f"| {name} | `{' '.join(flags)}` | {' | '.join(f'{100 * f:.2f}' for f in figures)} |\n"
        )
        (results / "table.md").write_text(table)
        plot_variants(histories, results / "curves.png")
    print(table, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
