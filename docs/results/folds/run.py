"""What networks say that have not seen a fifth of Training, alone and together.

  python docs/results/folds/run.py --data fer2013.csv

writes folds.json: by ten crops the accuracy of each of the answers that lie here (``--fold`` of
tools/train.py) on PublicTest, on the fold that it has not seen and on what it has learned, and on
PublicTest that of their mean probabilities and the mean of those alone.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "tools"))

from _fer2013 import load  # noqa: E402
from _settings import make_parser  # noqa: E402
from evaluate import write_json  # noqa: E402


def main(arguments: list[str] | None = None, folder: Path = HERE) -> None:
    options = make_parser(__doc__, needed=("data",)).parse_args(arguments)
    faces = load(options.data)
    training, public_labels = faces.split("Training"), faces.split("PublicTest").labels
    fingerprint = training.fingerprint()
    folds, together = {}, np.zeros((len(public_labels), 7))
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as answers:
            if str(answers["fingerprint"]) != fingerprint:
                raise SystemExit(f"{path}: answers about other images than {options.data}'s")
            right = answers["training"].argmax(1) == training.labels
            public, unseen = np.exp(np.float64(answers["public"])), answers["unseen"]
            fold = str(answers["fold"])
        together += public
        folds[fold] = {
            "public": float(np.mean(public.argmax(1) == public_labels)),
            "unseen": float(right[unseen].mean()),
            "learned": float(right[~unseen].mean()),
        }
    alone = float(np.mean([figures["public"] for figures in folds.values()]))
    mean = float(np.mean(together.argmax(1) == public_labels))
    result = {"folds": folds, "mean of these alone": alone, "their mean": mean}
    write_json(folder / "folds.json", result)
    print(result)


if __name__ == "__main__":
    main()
