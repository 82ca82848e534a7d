"""The likeliest expression in each picture of a folder, over a cluster with Ray Data.

  pip install "ferfacenet[faces]" "ray[data]"     (on every machine of the cluster)
  python ray_label.py photos/ labels/ --actors 3

The folders may be anything that Ray reads and writes, such as s3://bucket/photos. The result is
a folder of Parquet files. Without a cluster Ray starts one on this machine. Leave it a core: if
the actors take all there are, Ray waits for one to read the pictures with, for ever.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

SUFFIXES = ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"]


class Labeller:
    """What each actor is: it loads the model once, and then labels one batch after another."""

    def __init__(self, weights: str) -> None:
        import ferfacenet

        self.ferfacenet = ferfacenet
        self.model = ferfacenet.load_pretrained(weights)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        names = self.model.categories or ()
        rows = np.full((len(batch["path"]), len(names)), np.nan, np.float32)
        notes = np.full(len(rows), "", object)
        inputs = {}
        for index, data in enumerate(batch["bytes"]):
            try:
                mean, std = self.model.mean, self.model.std
                inputs[index] = self.ferfacenet.preprocess(data, mean=mean, std=std)
            except ValueError as error:
                notes[index] = str(error)
        if inputs:
            x = torch.stack(list(inputs.values()))
            rows[list(inputs)] = self.ferfacenet.predict_proba(self.model, x).numpy()
        best = np.nan_to_num(rows, nan=-1.0).argmax(1)
        labels = [names[i] if not notes[n] else "" for n, i in enumerate(best)]
        columns = dict(zip(names, rows.T, strict=True))
        return {"path": batch["path"], "label": np.array(labels), **columns, "note": notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos")
    parser.add_argument("labels")
    parser.add_argument("--actors", type=int, default=1, help="copies of the model")
    parser.add_argument("--cpus", type=float, default=1, help="cores set aside for each")
    parser.add_argument("--weights", default="fer2013")
    options = parser.parse_args()
    photos = ray.data.read_binary_files(
        options.photos, include_paths=True, file_extensions=SUFFIXES
    )
    labelled = photos.map_batches(
        Labeller,
        fn_constructor_args=(options.weights,),
        compute=ActorPoolStrategy(size=options.actors),
        num_cpus=options.cpus,
        batch_size=64,
    )
    labelled.write_parquet(options.labels)


if __name__ == "__main__":
    main()
