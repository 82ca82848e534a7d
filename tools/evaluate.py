"""Measures a network on a split of FER2013 or FER+: accuracies, per class, confusion, calibration.

  python tools/evaluate.py --data fer2013.csv --weights fer2013 --out runs/eval

writes evaluation.json, confusion.png and reliability.png into --out. With --fit-temperature the
temperature is fitted on the split first. With --holdout 0.05 the images that tools/train.py
--holdout 0.05 keeps out are a split of their own. With --against runs/release/weights-float32 the
images are counted on which the decisions of two weights differ, and the mean Kullback-Leibler
divergence is taken of their probabilities by the default views, in nats. tools/release.py does all
but that for weights that are to be bundled.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from _fer2013 import FERPLUS_CATEGORIES, SPLITS, Faces, hold_out, load, load_votes, relabel
from _figures import plot_confusion, plot_reliability
from _settings import load_init, make_parser
from scipy.optimize import minimize_scalar
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, predict_proba
from ferfacenet.fast import Precision, fast_forward
from ferfacenet.model import FER2013_CATEGORIES
from ferfacenet.transforms import TTA, views
from ferfacenet.weights import write_atomically

BINS = 15
#: "auto" is another on another processor.
PRECISIONS: tuple[Precision, Precision] = ("float32", "bfloat16")
#: What each ``tta`` averages of the ten crops, of which 4 and 9 are the centre and its mirror.
VIEWS = {"flip": [4, 9], "ten_crop": [*range(10)], "none": [4]}


def predict(
    model: ImprovedVGG19, images: npt.NDArray[np.uint8], tta: TTA | None, title: str,
    precision: Precision = "float32",
) -> Tensor:  # fmt: skip
    """``predict_proba`` of (N, 48, 48) faces, with a progress bar: (N, C)."""
    x = torch.tensor(images)[:, None] / 255
    parts = tqdm(x.split(256), desc=title, leave=False, disable=not sys.stderr.isatty())
    return torch.cat([predict_proba(model, part, tta=tta, precision=precision) for part in parts])


@torch.no_grad()
def crop_logits(
    model: ImprovedVGG19,
    images: npt.NDArray[np.uint8],
    title: str = "crops",
    precision: Precision = "float32",
) -> Tensor:
    """The logits of the ten crops of (N, 48, 48) faces, (N, 10, C), as ``predict_proba`` has them
    but for the temperature."""
    forward = fast_forward(model.eval(), precision) or model
    torch.backends.cudnn.allow_tf32 = False  # a GPU's float32 has three digits by it
    parts = []
    x = (torch.tensor(images)[:, None] / 255).split(64)
    for part in tqdm(x, desc=title, leave=False, disable=not sys.stderr.isatty()):
        crops = views(part, "ten_crop")
        logits = forward(crops.flatten(0, 1).to(model.mean.device)) * model.temperature
        parts.append(logits.float().cpu().unflatten(0, crops.shape[:2]).transpose(0, 1))
    return torch.cat(parts)


def average(logits: Tensor, temperature: float) -> Tensor:
    """What ``predict_proba`` makes of the logits of some views, (N, V, C) to (N, C)."""
    return (logits / temperature).softmax(-1).mean(1)


def answers_by_views(logits: Tensor, temperature: float) -> dict[str, Tensor]:
    """The ``average`` (N, C) of each way to take views of the ten crops' logits, (N, 10, C)."""
    return {name: average(logits[:, which], temperature) for name, which in VIEWS.items()}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which the views' mean probabilities have the least log loss, of those
    between 0.14 and 7.3."""

    def loss(exponent: float) -> float:
        chosen = average(logits.double(), float(np.exp(exponent)))[range(len(labels)), labels]
        return float(-chosen.clamp_min(1e-12).log().mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))


def calibration(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
) -> tuple[float, list[npt.NDArray[np.float64]]]:
    """Expected calibration error over 15 equal bins of confidence, and each bin's mean
    confidence, accuracy and share of the images."""
    confidence = probabilities.max(1)
    right = (probabilities.argmax(1) == labels).astype(float)
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    full = np.maximum(count, 1)
    mean = np.bincount(index, confidence, BINS) / full
    accuracy = np.bincount(index, right, BINS) / full
    share = count / len(labels)
    return float((share * np.abs(mean - accuracy)).sum()), [mean, accuracy, share]


def cross_fitted_ece(logits: Tensor, labels: Tensor) -> float:
    """Calibration error when each half's temperature is fitted on the other half."""
    halves = torch.arange(len(labels)) % 2 == 0
    probabilities = logits.new_empty(logits.shape[0], logits.shape[2])
    for mask in (halves, ~halves):
        probabilities[mask] = average(logits[mask], fit_temperature(logits[~mask], labels[~mask]))
    return round(calibration(probabilities.double().numpy(), labels.numpy())[0], 6)


def choose(
    faces: Faces, split: str, holdout: float = 0.0, votes: Path | None = None
) -> tuple[Faces, npt.NDArray[np.bool_]]:
    """The images to measure on, by FER+'s labels where there are ``votes``, and which of them do
    not occur, byte for byte, in Training."""
    known = set[bytes]()
    if holdout:  # has no twin in the rest of Training
        part = faces.split("Training")
        part = part.where(hold_out(part, holdout))
    else:
        part = faces.split(split)
        if split != "Training":
            known.update(faces.where(faces.splits == SPLITS.index("Training")).hashes())
    if votes:
        part, _ = relabel(part, load_votes(votes, part))
    return part, np.array([digest not in known for digest in part.hashes()])


def votes_for(model: ImprovedVGG19, votes: Path | None) -> Path | None:
    """The ``votes`` if they are what ``model`` is measured by; SystemExit if they are missing, or
    the data have no labels for it."""
    if model.categories == FER2013_CATEGORIES:
        return None
    if model.categories != FERPLUS_CATEGORIES:
        raise SystemExit(
            f"these weights have other classes than FER2013 or FER+: {model.categories}"
        )
    if not votes:
        raise SystemExit("these weights have the classes of FER+: --votes is needed, its votes")
    return votes


def evaluate(
    part: Faces,
    fresh: npt.NDArray[np.bool_],
    model: ImprovedVGG19,
    logits: Tensor,
    fit: bool = False,
    decide_at: float | None = None,
) -> dict[str, Any]:
    """All figures of a split: by each way to take views, with and without the images that are not
    ``fresh``; confusion and classes by the default way. ``logits`` are those of the ten crops.
    With ``fit`` the model's temperature is fitted to them first, for the default way. Decisions are
    those at the model's temperature, or at ``decide_at``.

    An image of one gray throughout counts as wrong, whatever the network says of it, and not at
    all where probabilities are judged and in the confusion matrix."""
    varied = part.varied()
    default, labels = logits[varied][:, VIEWS["flip"]], torch.tensor(part.labels[varied])
    if fit:
        fitted = fit_temperature(default, labels)
        if abs(math.log(fitted)) > 1.99:  # nearly all answers are right, or they say nothing
            warnings.warn(
                f"the temperature is at the bound of its fit, {fitted:.3f}: these {len(labels)} "
                "images do not tell how sure the network may be",
                stacklevel=2,
            )
        model.temperature.fill_(fitted)
    names = model.categories or ()
    temperature = round(model.temperature.item(), 4)
    answers = answers_by_views(logits, temperature)
    decisive = answers_by_views(logits, decide_at) if decide_at else answers
    decided = {
        name: np.where(varied, found.argmax(1).numpy(), -1) for name, found in decisive.items()
    }
    right = {name: found == part.labels for name, found in decided.items()}
    classes = range(len(names))
    scores = precision_recall_fscore_support(
        part.labels, decided["flip"], labels=classes, zero_division=0
    )
    keys = ("precision", "recall", "f1", "support")
    by_class = zip(*(column.tolist() for column in scores), strict=True)
    found = {
        "images": len(part),
        "images_deduplicated": int(fresh.sum()),
        "temperature": temperature,
        "accuracy": {name: float(of.mean()) for name, of in right.items()},
        "accuracy_deduplicated": {name: float(of[fresh].mean()) for name, of in right.items()},
        "ece": {
            name: round(calibration(found[varied].double().numpy(), labels.numpy())[0], 6)
            for name, found in answers.items()
        },
        "macro_f1": float(scores[2].mean()),
        "per_class": {
            name: dict(zip(keys, row, strict=True))
            for name, row in zip(names, by_class, strict=True)
        },
        "confusion": confusion_matrix(part.labels, decided["flip"], labels=classes).tolist(),
    }
    return found | {"ece_cross_fitted": cross_fitted_ece(default, labels)} if fit else found


def draw(result: dict[str, Any], part: Faces, logits: Tensor, folder: Path) -> None:
    """Write confusion.png and reliability.png of what ``evaluate`` found."""
    plot_confusion(
        np.array(result["confusion"]), list(result["per_class"]), folder / "confusion.png"
    )
    varied = part.varied()
    found = average(logits[varied][:, VIEWS["flip"]], result["temperature"])
    error, bins = calibration(found.double().numpy(), part.labels[varied])
    title = f"{result['split']}, centre and mirror: calibration error {error:.3f}"
    plot_reliability(bins, title, folder / "reliability.png")


def count_differences(logits: Sequence[Tensor], temperatures: Sequence[float]) -> dict[str, int]:
    """On how many images two networks' (N, 10, C) logits decide differently, by views, each at its
    temperature, as ``predict_proba`` decides."""
    one, other = map(answers_by_views, logits, temperatures)
    return {name: int((one[name].argmax(1) != other[name].argmax(1)).sum()) for name in VIEWS}


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, ("data",), ("votes",))
    add = parser.add_argument
    add("--weights", default="fer2013", help="name, folder or Hub id (%(default)s)")
    add("--split", choices=SPLITS, default="PublicTest", help="(%(default)s)")
    help = "not on a split, but on the share of Training that tools/train.py keeps out"
    add("--holdout", type=float, default=0.0, metavar="SHARE", help=help)
    add("--against", metavar="WEIGHTS", help="other weights, to compare with")
    add("--out", type=Path, required=True, help="folder for the results")
    add("--device", default="cpu", help="(%(default)s)")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="(%(default)s)")
    add("--fit-temperature", action="store_true", help="fit it on the split")
    options = parser.parse_args(arguments)
    if not 0 <= options.holdout < 1:
        parser.error("--holdout is a share, from 0 to 1")
    model = load_init(options.weights, "--weights").to(options.device)
    other = load_init(options.against, "--against") if options.against else None
    if other and other.categories != model.categories:
        raise SystemExit(f"--against {options.against}: other classes than --weights has")
    votes = votes_for(model, options.votes)
    part, fresh = choose(load(options.data), options.split, options.holdout, votes)
    logits = crop_logits(model, part.images, precision=options.precision)
    split = f"Hold-out {options.holdout:g} of Training" if options.holdout else options.split
    result = {"split": split} | evaluate(part, fresh, model, logits, options.fit_temperature)
    if other:
        found = crop_logits(other.to(options.device), part.images, "other crops", options.precision)
        pair = [of[part.varied()] for of in (logits, found)]
        temperatures = [network.temperature.item() for network in (model, other)]
        result["decisions_that_differ"] = count_differences(pair, temperatures)
        said, wanted = (
            average(of[:, VIEWS["flip"]], t) for of, t in zip(pair, temperatures, strict=True)
        )
        result["kl_divergence"] = float(F.kl_div(said.log(), wanted, reduction="batchmean"))
    result |= measured_by(options.precision)
    result["command"] = record_command("evaluate.py", arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(result, part, logits, options.out)
    write_json(options.out / "evaluation.json", result)
    print(json.dumps(result, indent=2))


def measured_by(precision: Precision = "float32") -> dict[str, Any]:
    """What figures hang on besides data and weights, for the JSON that keeps them."""
    names = ("torch", "numpy", "scikit-learn", "pillow")
    return {"precision": precision, "versions": {name: version(name) for name in names}}


def read_json(path: Path) -> dict[str, Any]:
    """What ``write_json`` wrote; nothing where there is no file yet."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def record_command(script: str, arguments: list[str] | None) -> str:
    """The command line as documents quote it: of files elsewhere, the name alone."""
    words = sys.argv[1:] if arguments is None else arguments
    words = [re.sub(r"(^|=)(?:/|\.\./)(?:.*/)?(?=.)", r"\1", word) for word in words]
    return shlex.join(["python", f"tools/{script}", *words])


if __name__ == "__main__":
    main()
