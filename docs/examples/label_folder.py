"""The expression of the foremost face in each picture of a folder, to a CSV file.

  pip install ".[examples]"
  python label_folder.py photos/ labels.csv

Threads find the faces while the network reads those before; each line is written as it is known.
Pictures that cannot be read, or have no face, have an empty line. Pictures that are faces cut out
already are for predict_proba, as in ray_label.py.
"""

import argparse
import csv
from pathlib import Path

from tqdm import tqdm

from ferfacenet import load_pretrained, predict_faces

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--weights", default="fer2013")
    options = parser.parse_args()
    model = load_pretrained(options.weights)
    paths = sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    photos = predict_faces(model, tqdm(paths, unit="picture"), max_faces=1, errors="coerce")
    # Names that are no text keep their bytes.
    with options.csv.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", *model.categories])
        for path, faces in zip(paths, photos, strict=True):
            cells = [""] * (1 + len(model.categories))
            for face in faces or ():
                cells = [face.label, *face.probabilities.values()]
            table.writerow([path, *cells])


if __name__ == "__main__":
    main()
