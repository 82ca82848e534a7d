"""Measures how faces are found, levelled and framed: the figures of docs/results.md.

  python tools/eval_faces.py --data fer2013.csv [--weights fer2013] [--ckplus CK+48]

pastes PublicTest crops of FER2013 at random places, sizes and rolls on plain pictures and looks
for them with ``detect_faces``: share found, error of the roll, and, with --weights, the accuracy
of the expressions read from what was found, against that on the crops themselves. Then the share of
the crops, enlarged, that count as face crops; mosaics of 25 faces; and the time that a photo's
face takes against that of its ten-crop prediction.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from fer2013 import load
from tqdm import tqdm

from ferfacenet import Face, ImprovedVGG19, detect_faces, load_pretrained, predict_proba, preprocess
from ferfacenet.transforms import normalise, read_image

Gray = npt.NDArray[np.uint8]

PHOTO = Path(__file__).parents[1] / "docs" / "images" / "astronaut.jpg"
SIDE = 640
SIZES, ROLLS = (60, 400), (-30, 30)
#: Centres nearer than this share of the pasted side are the face that was pasted.
NEAR = 0.35


@dataclass(frozen=True)
class Place:
    """Where a crop is pasted: its centre and side in pixels, degrees clockwise, the ground."""

    x: float
    y: float
    size: float
    roll: float
    ground: int


def random_place(rng: np.random.Generator, roll: float | None = None) -> Place:
    """A place wholly inside a 640x640 picture; a given roll, or one within 30 degrees."""
    size = rng.uniform(*SIZES)
    turned = float(rng.uniform(*ROLLS)) if roll is None else roll
    turn = math.radians(turned)
    reach = size * (abs(math.cos(turn)) + abs(math.sin(turn))) / 2
    x, y = rng.uniform(reach, SIDE - reach, 2)
    return Place(float(x), float(y), float(size), turned, int(rng.integers(256)))


def paste(crop: Gray, place: Place, side: int = SIDE) -> Gray:
    """A plain (side, side) picture with a square crop at a place, as an ordinary photo would
    show it: upscaled, turned, edges and all."""
    turn, scale = math.radians(place.roll), place.size / len(crop)
    axes = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) * scale
    middle = (len(crop) - 1) / 2
    start = np.array([place.x, place.y]) - 0.5 - axes @ (middle, middle)
    matrix = np.column_stack([axes, start])
    drawn = cv2.warpAffine(
        crop, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    inside = cv2.warpAffine(np.ones_like(crop), matrix, (side, side), flags=cv2.INTER_NEAREST)
    return np.where(inside > 0, drawn, np.uint8(place.ground)).astype(np.uint8)


def roll_of(face: Face) -> float:
    """Degrees that the eyes of a found face are turned clockwise from level."""
    dx, dy = (face.landmarks[1] - face.landmarks[0]).tolist()
    return math.degrees(math.atan2(dy, dx))


def face_at(faces: list[Face], place: Place) -> Face | None:
    """The found face whose centre is that of what was pasted."""
    for face in faces:
        x0, y0, x1, y1 = face.box
        if math.hypot((x0 + x1) / 2 - place.x, (y0 + y1) / 2 - place.y) < NEAR * place.size:
            return face
    return None


def search(crops: Gray, places: list[Place], label: str) -> list[Face | None]:
    """What is found of each crop pasted at its place."""
    pairs = tqdm(list(zip(crops, places, strict=True)), desc=label, leave=False, disable=None)
    return [face_at(detect_faces(paste(crop, place)), place) for crop, place in pairs]


def found_and_levelled(crops: Gray, rng: np.random.Generator) -> dict[str, float]:
    """Share found at random rolls, and the roll's error against the same crop pasted level."""
    places = [random_place(rng) for _ in crops]
    level = [Place(p.x, p.y, p.size, 0.0, p.ground) for p in places]
    turned, upright = search(crops, places, "turned"), search(crops, level, "level")
    errors = [
        abs(roll_of(face) - roll_of(same) - place.roll)
        for face, same, place in zip(turned, upright, places, strict=True)
        if face is not None and same is not None
    ]
    return {
        "images": len(crops),
        "found": sum(face is not None for face in turned) / len(crops),
        "found_level": sum(face is not None for face in upright) / len(crops),
        "roll_error_mean": statistics.fmean(errors),
        "roll_error_median": statistics.median(errors),
    }


def expressions(
    model: ImprovedVGG19, crops: Gray, labels: npt.NDArray[np.int64], rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Ten-crop accuracy through ``detect_faces`` against that of the same crops themselves."""
    given = normalise(torch.from_numpy(crops)[:, None].float() / 255, model.mean, model.std)
    truth = torch.from_numpy(labels)
    right = predict_proba(model, given).argmax(1) == truth
    result = {}
    for name, rolls in {"0": (0.0,), "20": (-20.0, 20.0)}.items():
        places = [random_place(rng, rolls[i % len(rolls)]) for i in range(len(crops))]
        faces = search(crops, places, f"{name} degrees")
        kept = torch.tensor([i for i, face in enumerate(faces) if face is not None])
        framed = torch.stack([face.crop for face in faces if face is not None])
        read = predict_proba(model, normalise(framed, model.mean, model.std)).argmax(1)
        correct = read == truth[kept]
        result[name] = {
            "found": len(kept) / len(crops),
            "accuracy_of_crops": right[kept].float().mean().item(),
            "accuracy_through_detect_faces": correct.float().mean().item(),
            "accuracy_of_all_crops": right.float().mean().item(),
            "accuracy_missed_counted_wrong": correct.sum().item() / len(crops),
        }
    return result


def taken_as_they_are(crops: Gray, side: int = 192) -> float:
    """The share of FER2013's crops, enlarged, that ``align="auto"`` sees to be face crops."""
    same = 0
    for crop in tqdm(crops, desc="face crops", leave=False, disable=None):
        large = cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            auto = preprocess(large)
        same += not said and torch.equal(auto, preprocess(large, align=False))
    return same / len(crops)


def mosaic(faces: list[Gray], cell: int = 128, gap: int = 32) -> Gray:
    """A square number of faces in a picture, each ``cell`` wide, on gray."""
    across = math.isqrt(len(faces))
    step = cell + gap
    picture = np.full((across * step + gap, across * step + gap), 128, np.uint8)
    for place, face in enumerate(faces):
        y, x = (gap + step * index for index in divmod(place, across))
        picture[y : y + cell, x : x + cell] = cv2.resize(
            face, (cell, cell), interpolation=cv2.INTER_CUBIC
        )
    return picture


def mosaics_of_ckplus(folder: Path, count: int, rng: np.random.Generator) -> list[int]:
    """How many faces are found in each of several mosaics of 25 CK+ faces."""
    paths = sorted(folder.glob("*/*.png"))
    result = []
    for _ in tqdm(range(count), desc="mosaics", leave=False, disable=None):
        chosen = rng.choice(len(paths), 25, replace=False)
        faces = [(read_image(paths[i])[0] * 255).byte().numpy() for i in chosen]
        result.append(len(detect_faces(mosaic(faces))))
    return result


def photo_640x480() -> Gray:
    """The shipped portrait in a 640x480 picture."""
    portrait = (read_image(PHOTO).permute(1, 2, 0) * 255).byte().numpy()
    small = cv2.resize(portrait, (480, 480), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(small, 0, 0, 80, 80, cv2.BORDER_REPLICATE).astype(np.uint8)


def times(model: ImprovedVGG19, rounds: int = 15) -> dict[str, float]:
    """Milliseconds of ``detect_faces`` on a photo and of the ten-crop prediction that follows,
    run in turns: the median of the wall clock's and the least of the processor's."""
    picture = photo_640x480()
    face = normalise(detect_faces(picture)[0].crop, model.mean, model.std)[None]
    parts: dict[str, Callable[[], object]] = {
        "detect": lambda: detect_faces(picture),
        "predict": lambda: predict_proba(model, face),
    }
    wall: dict[str, list[float]] = {name: [] for name in parts}
    cpu: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            part()
            wall[name].append((time.perf_counter() - wall_start) * 1e3)
            cpu[name].append((time.process_time() - cpu_start) * 1e3)
    return {f"{name}_wall_ms": statistics.median(wall[name]) for name in parts} | {
        f"{name}_cpu_ms": min(cpu[name]) for name in parts
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="FER2013, as train.py takes it")
    parser.add_argument("--weights", help="also measure the expressions and the times with these")
    parser.add_argument("--ckplus", type=Path, help="folder CK+48, for the mosaics")
    parser.add_argument("--count", type=int, default=500, help="crops to paste (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args(argv)

    rng = np.random.default_rng(arguments.seed)
    data = load(arguments.data).split("PublicTest")
    chosen = rng.permutation(len(data))[: arguments.count]
    crops, labels = data.images[chosen], data.labels[chosen]
    figures: dict[str, Any] = {
        "pasted": found_and_levelled(crops, rng),
        "enlarged_crops_taken_as_they_are": taken_as_they_are(crops),
    }
    if arguments.ckplus:
        figures["mosaics_of_25"] = mosaics_of_ckplus(arguments.ckplus, 10, rng)
    if arguments.weights:
        model = load_pretrained(arguments.weights)
        figures["expressions_at_roll"] = expressions(model, crops, labels, rng)
        figures["times"] = times(model)
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
