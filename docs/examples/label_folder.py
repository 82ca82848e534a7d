"""The likeliest expression in each picture of a folder, to a CSV file.

  pip install ".[examples]"
  python label_folder.py photos/ labels.csv

The foremost face of each picture is found by threads while the network reads those before.
Pictures that cannot be read, or have no face, have an empty line.
"""

import argparse
import csv
from pathlib import Path

from tqdm import tqdm

from ferfacenet import load_pretrained, predict_proba

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--weights", default="fer2013")
    options = parser.parse_args()
    model = load_pretrained(options.weights)
    paths = sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    rows = predict_proba(model, tqdm(paths, unit="picture"), errors="coerce")
    with options.csv.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", *model.categories])
        for path, row in zip(paths, rows, strict=True):
            if row.isnan().any():
                table.writerow([path, *[""] * (1 + len(row))])
            else:
                table.writerow([path, model.categories[row.argmax()], *row.tolist()])


if __name__ == "__main__":
    main()
