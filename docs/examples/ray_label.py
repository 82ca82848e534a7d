"""The likeliest expression in each picture of a folder, over a cluster with Ray Data.

  pip install ".[examples]"     (on every machine of the cluster)
  python ray_label.py photos/ labels/ --actors 3

The folders may be anything that Ray reads and writes, such as s3://bucket/photos. The result is
a folder of Parquet files. Without a cluster Ray starts one on this machine. Leave it a core: if
the actors take all there are, Ray waits for one to read the pictures with, for ever. Pictures
that cannot be read, or have no face, have an empty label.
"""

import argparse
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from ferfacenet import load_pretrained, predict_proba

SUFFIXES = ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"]


class Labeller:
    """What each actor is: it loads the model once, and then labels one batch after another."""

    def __init__(self, weights: str) -> None:
        self.model = load_pretrained(weights)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = predict_proba(self.model, batch["bytes"], errors="coerce").numpy()
        names = np.array(self.model.categories)
        labels = np.where(np.isnan(rows).any(1), "", names[rows.argmax(1)])
        return {"path": batch["path"], "label": labels, **dict(zip(names, rows.T, strict=True))}


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
