"""The likeliest expression in each picture of a folder, to a CSV file.

  pip install "ferfacenet[faces]"
  python label_folder.py photos/ labels.csv --workers 4

A DataLoader's workers read the pictures and find the largest face in each, while the network
reads those before. Pictures that cannot be read have their error in the last column.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ferfacenet import load_pretrained, predict_proba, preprocess

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}

Item = tuple[str, Tensor | None, str]  # path; input, or None; what was wrong with it


class Photos(Dataset[Item]):
    """The pictures below a folder, prepared."""

    def __init__(self, folder: Path, mean: float, std: float) -> None:
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path = self.paths[index]
        try:
            with warnings.catch_warnings(record=True) as caught:  # "no face found, ..."
                x = preprocess(path, mean=self.mean, std=self.std)
            return str(path), x, "; ".join(str(w.message) for w in caught)
        except (ValueError, OSError) as error:
            return str(path), None, str(error)


def as_list(items: list[Item]) -> list[Item]:
    """The collate function: a batch may have pictures without a tensor."""
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--weights", default="fer2013")
    options = parser.parse_args()
    model = load_pretrained(options.weights)
    names = model.categories or ()
    photos = Photos(options.folder, model.mean, model.std)
    batches: DataLoader[Item] = DataLoader(
        photos, options.batch_size, num_workers=options.workers, collate_fn=as_list
    )
    with options.csv.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", *names, "note"])
        for batch in tqdm(batches, unit="batch"):
            inputs = [x for _, x, _ in batch if x is not None]
            rows = iter(predict_proba(model, torch.stack(inputs)) if inputs else ())
            for path, x, note in batch:
                row = next(rows).tolist() if x is not None else []
                label = names[row.index(max(row))] if row else ""
                table.writerow([path, label, *(row or [""] * len(names)), note])


if __name__ == "__main__":
    main()
