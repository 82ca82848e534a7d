"""Measures a network on a split of FER2013: accuracies, per class, confusion, calibration.

  python tools/evaluate.py --data fer2013.csv --weights fer2013 --out runs/eval

writes evaluation.json, confusion.csv, confusion.png and reliability.png into --out. With
--fit-temperature the temperature is fitted on the split first, and with --store it and the
figures are written into the config.json of --weights, which must then be a folder. With
--holdout 0.05 the images that tools/train.py --holdout 0.05 keeps out are a split of their own.
With --against runs/release/weights-float32 the decisions of two weights are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from fer2013 import SPLITS, Faces, hold_out, load
from figures import plot_reliability
from scipy.optimize import minimize_scalar
from scores import per_class, save_confusion
from torch import Tensor
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba
from ferfacenet.fast import Precision
from ferfacenet.hub import CONFIG_FILE, WeightsConfig, write_atomically
from ferfacenet.inference import TTA
from ferfacenet.transforms import normalise, ten_crop

BINS = 15
#: Each ``tta`` mode, by its name in a result.
TTAS: dict[str, TTA | None] = {"ten_crop": "ten_crop", "flip": "flip", "single": None}


def prepare(model: ImprovedVGG19, images: npt.NDArray[np.uint8]) -> Tensor:
    """(N, 48, 48) uint8 to what ``preprocess`` makes of each, (N, 1, 48, 48) float32."""
    return normalise(torch.tensor(images)[:, None].float() / 255, model.mean, model.std)


def predict(
    model: ImprovedVGG19, x: Tensor, tta: TTA | None, label: str, precision: Precision = "auto"
) -> Tensor:
    """``predict_proba`` in parts, with a progress bar."""
    parts = tqdm(x.split(256), desc=label, leave=False, disable=not sys.stderr.isatty())
    return torch.cat([predict_proba(model, part, tta=tta, precision=precision) for part in parts])


@torch.no_grad()
def crop_logits(model: ImprovedVGG19, x: Tensor) -> Tensor:
    """Logits of each crop, (N, 10, C), before any temperature."""
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for part in tqdm(x.split(64), desc="logits", leave=False, disable=not sys.stderr.isatty()):
        crops = ten_crop(part).flatten(0, 1).to(device, memory_format=torch.channels_last)
        parts.append(model(crops).float().cpu().unflatten(0, (10, -1)).transpose(0, 1))
    return torch.cat(parts)


def calibrated(logits: Tensor, temperature: float) -> Tensor:
    """What ``predict_proba`` makes of the logits of ten crops, (N, 10, C) to (N, C)."""
    return (logits / temperature).softmax(-1).mean(1)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature at which the ten-crop probabilities have the least log loss."""

    def loss(exponent: float) -> float:
        chosen = calibrated(logits.double(), float(np.exp(exponent)))[range(len(labels)), labels]
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
        temperature = fit_temperature(logits[~mask], labels[~mask])
        probabilities[mask] = calibrated(logits[mask], temperature)
    return calibration(probabilities.double().numpy(), labels.numpy())[0]


def new_pixels(part: Faces, training: Faces) -> npt.NDArray[np.bool_]:
    """Which images of ``part`` do not occur, byte for byte, among ``training``."""
    known = set(training.hashes())
    return np.array([digest not in known for digest in part.hashes()])


def choose(faces: Faces, split: str, holdout: float) -> tuple[Faces, npt.NDArray[np.bool_]]:
    """The images to measure on, and which of them do not occur in what was trained on."""
    if holdout:  # has no twin in the rest of Training
        part = hold_out(faces.split("Training"), holdout)[1]
        return part, np.ones(len(part), bool)
    part = faces.split(split)
    if split == "Training" or not (faces.splits == SPLITS.index("Training")).any():
        return part, np.ones(len(part), bool)
    return part, new_pixels(part, faces.split("Training"))


def evaluate(
    model: ImprovedVGG19,
    part: Faces,
    fresh: npt.NDArray[np.bool_],
    split: str,
    precision: Precision = "auto",
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All figures of one split, with and without those images that are not ``fresh``, and the
    (N, C) probabilities by the names of ``TTAS``."""
    x = prepare(model, part.images)
    names = list(model.categories or map(str, range(model.num_classes)))
    result: dict[str, Any] = {
        "split": split,
        "images": len(part),
        "images_deduplicated": int(fresh.sum()),
        "temperature": model.temperature,
        "accuracy": {},
        "accuracy_deduplicated": {},
        "ece": {},
    }
    answers = {name: predict(model, x, tta, name, precision) for name, tta in TTAS.items()}
    for name, found in answers.items():
        right = found.argmax(1).numpy() == part.labels
        result["accuracy"][name] = float(right.mean())
        result["accuracy_deduplicated"][name] = float(right[fresh].mean())
        result["ece"][name] = calibration(found.double().numpy(), part.labels)[0]
    predicted = answers["ten_crop"].argmax(1).tolist()
    result |= per_class(part.labels.tolist(), predicted, names)
    return result, answers


def quoted(result: dict[str, Any]) -> dict[str, float]:
    """A result's accuracies, as the weights' config.json names them."""
    return {
        f"{result['split']} {name} accuracy": round(value, 5)
        for name, value in result["accuracy"].items()
    }


def store(folder: Path, model: ImprovedVGG19, result: dict[str, Any]) -> None:
    """Put the temperature and the figures into a weights folder's config.json."""
    config = WeightsConfig.from_json((folder / CONFIG_FILE).read_bytes())
    config = dataclasses.replace(
        config, temperature=model.temperature, metrics=config.metrics | quoted(result)
    )
    write_atomically(folder / CONFIG_FILE, config.to_json())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--data", type=Path, required=True, help="fer2013.csv or the folder")
    parser.add_argument("--weights", default="fer2013", help="name, folder or Hub id")
    parser.add_argument("--split", choices=SPLITS, default="PublicTest")
    parser.add_argument("--holdout", type=float, default=0.0, metavar="SHARE",
                        help="not on a split, but on this share of Training, as kept out by "
                        "tools/train.py --holdout SHARE")
    parser.add_argument("--against", metavar="WEIGHTS",
                        help="other weights, to count the images on which the decisions differ")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto",
                        help="what predict_proba computes in")
    parser.add_argument("--fit-temperature", action="store_true", help="fit it on the split")
    parser.add_argument("--store", action="store_true", help="write into --weights' config.json")
    # fmt: on
    options = parser.parse_args(arguments)
    if not 0 <= options.holdout < 1:
        parser.error("--holdout is a share, from 0 to 1")
    folder = Path(options.weights)
    if options.store and not (folder / CONFIG_FILE).is_file():
        parser.error("--store needs a folder with config.json as --weights")
    model = load_pretrained(options.weights, device=options.device)
    faces = load(options.data)
    name = f"Hold-out {options.holdout:g} of Training" if options.holdout else options.split
    part, fresh = choose(faces, options.split, options.holdout)
    extra: dict[str, Any] = {}
    if options.fit_temperature:
        labels = torch.from_numpy(part.labels)
        logits = crop_logits(model, prepare(model, part.images))
        model.temperature = round(fit_temperature(logits, labels), 4)
        extra["ece_cross_fitted"] = cross_fitted_ece(logits, labels)
    result, answers = evaluate(model, part, fresh, name, options.precision)
    result |= extra
    if options.against:
        other = load_pretrained(options.against, device=options.device)
        x = prepare(other, part.images)
        result["against"] = options.against
        result["decisions_that_differ"] = {
            mode: int((answers[mode].argmax(1) != found.argmax(1)).sum())
            for mode, tta in TTAS.items()
            for found in [predict(other, x, tta, mode, options.precision)]
        }
    result["command"] = shlex.join(["python", "tools/evaluate.py", *(arguments or sys.argv[1:])])

    options.out.mkdir(parents=True, exist_ok=True)
    probabilities = answers["ten_crop"]
    predicted = probabilities.argmax(1).tolist()
    save_confusion(part.labels.tolist(), predicted, list(result["per_class"]), options.out)
    error, bins = calibration(probabilities.double().numpy(), part.labels)
    title = f"{name}, ten crops: calibration error {error:.3f}"
    plot_reliability(bins, title, options.out / "reliability.png")
    text = json.dumps(result, indent=2)
    write_atomically(options.out / "evaluation.json", (text + "\n").encode())
    if options.store:
        store(folder, model, result)
    print(text)


if __name__ == "__main__":
    main()
