"""Measures how networks read faces that light, lenses, sensors and files have spoilt.

  python tools/robustness.py --data fer2013.csv --votes fer2013new.csv --peers

asks the bundled weights for FER2013 and FER+, by centre and mirror, for PublicTest: untouched, in
each way of STRENGTHS, and found again in pictures that it is pasted on, as tools/evaluate_faces.py
does it. Weights with FER+'s classes are measured by its labels, on the images that have one. With
--peers fer is asked for the same pixels, if that is installed. docs/results/robustness.json gets
what was measured of each as soon as it is; that of others stays in it.

An image that degrading has made one plain colour has no answer, and counts as wrong.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import _pages
import numpy as np
import numpy.typing as npt
import torch
from _degrade import degrade
from _fer2013 import FERPLUS_CATEGORIES, Faces, load, load_votes, relabel
from _settings import load_init, make_parser, name_of
from benchmark import make_fer
from evaluate import (
    PRECISIONS,
    calibration,
    measured_by,
    read_json,
    record_command,
    votes_for,
    write_json,
)
from evaluate_faces import choose_crops, measure_expressions, search
from release import registry_entry
from torch import Tensor
from tqdm import tqdm

import ferfacenet
from ferfacenet import list_pretrained, predict_proba
from ferfacenet.model import FER2013_CATEGORIES

#: Faces (N, 1, 48, 48) in [0, 1] to probabilities (N, C), NaN where there is no answer.
Reader: TypeAlias = Callable[[Tensor], Tensor]

#: The benchmark: changing it makes all that was measured before worthless.
STRENGTHS: dict[str, tuple[float, float, float]] = {
    "gain": (0.5, 0.2, 0.1), "contrast": (0.5, 0.3, 0.15), "clipped": (1.5, 2, 2.5),
    "gamma": (0.5, 2, 3), "offset": (0.2, -0.2, 0.4), "shadow": (0.5, 0.3, 0.15),
    "blur": (0.5, 1, 2), "motion blur": (3, 5, 9), "enlarged": (100, 200, 400),
    "shrunk": (32, 24, 16), "JPEG": (60, 30, 10), "noise": (0.03, 0.06, 0.12),
    "shot noise": (200, 60, 20), "framing": (0, 1, 2), "covered": (0, 1, 2),
}  # fmt: skip
#: What the strengths of kinds are called that have no more or less.
WORDS = {"framing": ("scaled", "shifted", "turned"), "covered": ("eyes", "mouth", "mask")}

HOME = Path(ferfacenet.__file__).with_name("weights")
CHUNK = 512  # faces at once; what a generator draws goes by it
SURE = 0.5  # confidence from which an answer counts as sure


def degraded(x: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Each kind and strength, and faces (N, 1, 48, 48) in that way: the same in every run."""
    for number, (kind, strengths) in enumerate(STRENGTHS.items()):
        for place, strength in enumerate(strengths):
            generator = torch.Generator().manual_seed(len(strengths) * number + place)
            parts = [degrade(part, kind, strength, generator) for part in x.split(CHUNK)]
            yield kind, WORDS[kind][place] if kind in WORDS else f"{strength:g}", torch.cat(parts)


def score(probabilities: Tensor, labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Shares of all images, but for ``ece`` and the mean ``confidence``, which are of those that
    have an answer."""
    found, read = probabilities.double().numpy(), ~probabilities.isnan().any(1).numpy()
    answers = np.where(read, found.argmax(1), -1)
    right, sure = answers == labels, np.where(read, found.max(1), 0) >= SURE
    figures = {
        "accuracy": right.mean(),
        "confidence": found[read].max(1).mean(),
        "ece": calibration(found[read], labels[read])[0],
        "ece_if_calibrated": ece_if_calibrated(found[read]),
        "sure": sure.mean(),
        "sure_and_right": (sure & right).mean(),
    }
    return {key: round(float(value), 5) for key, value in figures.items()}


def ece_if_calibrated(probabilities: npt.NDArray[np.float64], draws: int = 20) -> float:
    """The mean calibration error where labels are drawn from the ``probabilities`` themselves."""
    drawn = np.random.default_rng(0).random((draws, len(probabilities), 1))
    ends = probabilities.cumsum(1)
    labels = (drawn > ends[:, :-1]).sum(2)
    return fmean(calibration(probabilities, one)[0] for one in labels)


def relabelled(public: Faces, votes: Path | None) -> Faces:
    """By FER+'s labels, if there are ``votes``; -1 for what has none."""
    if not votes:
        return public
    agreed, _ = relabel(public, load_votes(votes, public))
    labels = np.full_like(public.labels, -1)
    labels[np.isin(public.rows, agreed.rows)] = agreed.labels
    return dataclasses.replace(public, labels=labels)


def measure(read: Reader, faces: Faces, title: str) -> dict[str, Any]:
    """All are degraded, also those without a label: so the others look the same by any labels."""
    kept = faces.labels >= 0
    x, labels = torch.from_numpy(faces.images)[:, None] / 255, faces.labels[kept]
    untouched = score(read(x[kept]), labels)
    kinds: dict[str, dict[str, Any]] = {kind: {} for kind in STRENGTHS}
    bar = tqdm(degraded(x), desc=title, total=sum(map(len, STRENGTHS.values())))
    for kind, strength, spoilt in bar:
        bar.set_postfix_str(f"{kind} {strength}")
        kinds[kind][strength] = score(read(spoilt[kept]), labels)
    every = [found for of in kinds.values() for found in of.values()]
    mean = {key: round(fmean(of[key] for of in every), 5) for key in untouched}
    return {"images": len(labels), "untouched": untouched, "mean": mean, "kinds": kinds}


def read_by_fer() -> Reader:
    """An ImportError says what it lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = make_fer()
    return lambda x: torch.tensor(call((x[:, 0] * 255).round().to(torch.uint8).numpy()))


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, ("data",), ("votes",))
    add = parser.add_argument
    help = "registered names or folders (all for FER2013 and FER+)"
    add("--weights", nargs="*", metavar="NAME", help=help)
    add("--peers", action="store_true", help="fer as well")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="(%(default)s)")
    add("--every", type=int, default=1, help="only every so many images (%(default)s)")
    add("--count", type=int, default=500, help="crops to paste (%(default)s)")
    out = _pages.ROOT / "docs" / "results" / "robustness.json"
    add("--out", type=Path, default=out, help="(%(default)s)")
    options = parser.parse_args(arguments)
    if options.every < 1 or options.count < 1:
        parser.error("--every and --count are from 1")
    names = options.weights
    if names is None:
        both = (FER2013_CATEGORIES, FERPLUS_CATEGORIES)
        names = [name for name, of in list_pretrained().items() if of.categories in both]
    models = {name: load_init(name, "--weights") for name in names}
    folders = {name: Path(name) if Path(name).is_dir() else HOME / name for name in names}
    # Now, since the files may be others when their turn comes.
    digests = {name: registry_entry(folders[name])["config_sha256"] for name in names}
    votes = {name: votes_for(model, options.votes) for name, model in models.items()}
    public = load(options.data).split("PublicTest")
    public = public.where(public.varied())
    crops, _, places = choose_crops(public, options.count, np.random.default_rng(0))
    pasted = {roll: search(crops.images, where) for roll, where in places.items()}

    def add_set(title: str, read: Reader, faces: Faces, **of: Any) -> None:
        some = faces.where(np.arange(len(faces)) % options.every == 0)
        of |= measure(read, some, title)
        crops, _, _ = choose_crops(faces, options.count, np.random.default_rng(0))
        kept = crops.labels >= 0
        found = {roll: list(compress(faces, kept)) for roll, faces in pasted.items()}
        of["found_again"] = measure_expressions(read, crops.where(kept), found)
        of["command"] = record_command("robustness.py", arguments)
        write_json(options.out, read_json(options.out) | {title: of})

    for name, model in models.items():
        read = partial(predict_proba, model, errors="coerce", precision=options.precision)
        own = {"config_sha256": digests[name]} | measured_by(options.precision)
        add_set(name_of(name), read, relabelled(public, votes[name]), **own)
    if options.peers:
        try:
            read_fer = read_by_fer()
        except ImportError as error:
            tqdm.write(f"fer is left out: {error}")
        else:
            add_set("fer", read_fer, public, version=version("fer"))


if __name__ == "__main__":
    main()
