"""Measures how faces are found, levelled and framed: docs/results/faces.json.

  python tools/evaluate_faces.py --data fer2013.csv [--ckplus CK+48] [--photos FOLDER]
      [--without-people FOLDER]

pastes PublicTest crops of FER2013 at random places, sizes and rolls on plain pictures: the share
that ``detect_faces`` finds, the error of the roll, the accuracy on what was found beside that on
the crops; the share of enlarged crops that count as face crops; faces found in mosaics of 25.
With photos of people, of your own choice: which labels are kept when they are turned by quarters,
or cut to a square about a face; and which of their faces are found when they are small, or in a
huge picture. With photos of none: how many faces are found nevertheless. What is not measured stays
in the file as it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from _fer2013 import Faces, load
from _settings import make_parser
from evaluate import read_json, write_json
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.functional import resize
from tqdm import tqdm

from ferfacenet import (
    DetectedFace,
    ImprovedVGG19,
    detect_faces,
    load_pretrained,
    predict_faces,
    predict_proba,
    preprocess,
)
from ferfacenet.faces.framing import SMALL_CROP
from ferfacenet.files import suffixes
from ferfacenet.images import decode

Gray = npt.NDArray[np.uint8]

OUT = Path(__file__).parents[1] / "docs" / "results" / "faces.json"
SIDE = 640  # of the pictures that crops are pasted on


@dataclass(frozen=True)
class Place:
    """Where a crop is pasted: its centre and side in pixels, degrees clockwise, the ground."""

    x: float
    y: float
    size: float
    roll: float
    ground: int


def random_place(rng: np.random.Generator, roll: float) -> Place:
    """A place wholly inside the picture, 60 to 400 pixels in size."""
    size, turn = rng.uniform(60, 400), math.radians(roll)
    reach = size * (abs(math.cos(turn)) + abs(math.sin(turn))) / 2
    x, y = rng.uniform(reach, SIDE - reach, 2)
    return Place(float(x), float(y), float(size), roll, int(rng.integers(256)))


def paste(crop: Gray, place: Place) -> Gray:
    """A plain (640, 640) picture with a square crop at a place."""
    middle, size, border = (len(crop) - 1) / 2, (SIDE, SIDE), cv2.BORDER_REPLICATE
    turn = cv2.getRotationMatrix2D((middle, middle), -place.roll, place.size / len(crop))
    matrix = turn + np.array([[0, 0, place.x - 0.5 - middle], [0, 0, place.y - 0.5 - middle]])
    drawn = cv2.warpAffine(crop, matrix, size, flags=cv2.INTER_CUBIC, borderMode=border)
    inside = cv2.warpAffine(np.ones_like(crop), matrix, size, flags=cv2.INTER_NEAREST)
    return np.where(inside > 0, drawn, np.uint8(place.ground)).astype(np.uint8)


def roll_of(face: DetectedFace) -> float:
    """Degrees that the eyes of a found face are turned clockwise from level."""
    dx, dy = (face.landmarks[1] - face.landmarks[0]).tolist()
    return math.degrees(math.atan2(dy, dx))


def face_at(faces: list[DetectedFace], place: Place) -> DetectedFace | None:
    """The found face whose centre is that of what was pasted."""
    for face in faces:
        x0, y0, x1, y1 = face.box
        if math.dist(((x0 + x1) / 2, (y0 + y1) / 2), (place.x, place.y)) < 0.35 * place.size:
            return face
    return None


def search(crops: Gray, places: list[Place]) -> list[DetectedFace | None]:
    """What is found of each crop pasted at its place."""
    pairs = zip(tqdm(crops, desc="pasted"), places, strict=True)
    return [face_at(detect_faces(paste(crop, place)), place) for crop, place in pairs]


def choose_crops(
    public: Faces, count: int, rng: np.random.Generator
) -> tuple[Faces, list[Place], dict[int, list[Place]]]:
    """So many faces, and where each is pasted: turned at random, and by 0 and 20 degrees."""
    public = public.where(public.varied())
    crops = public.where(rng.permutation(len(public)) < count)
    turned = [random_place(rng, rng.uniform(-30, 30)) for _ in range(len(crops))]
    by_roll = {
        roll: [random_place(rng, roll * (-1) ** i) for i in range(len(crops))] for roll in (0, 20)
    }
    return crops, turned, by_roll


def measure_levelling(crops: Gray, places: list[Place]) -> dict[str, float]:
    """Share found at random rolls, and the roll's error against the same crop pasted level."""
    turned = search(crops, places)
    upright = search(crops, [replace(place, roll=0) for place in places])
    pairs = zip(turned, upright, places, strict=True)
    errors = [abs(roll_of(f) - roll_of(same) - p.roll) for f, same, p in pairs if f and same]
    return {
        "images": len(crops),
        "found": sum(face is not None for face in turned) / len(crops),
        "roll_error_mean": statistics.fmean(errors),
    }


def measure_expressions(
    read: Callable[[Tensor], Tensor],
    data: Faces,
    found: Mapping[int, list[DetectedFace | None]],
) -> dict[str, dict[str, float]]:
    """By roll, the accuracy on the crops that were ``found`` against that on the same crops
    themselves. ``read`` takes (N, 1, 48, 48) to probabilities (N, C)."""
    truth = torch.from_numpy(data.labels)
    right = read(torch.from_numpy(data.images)[:, None] / 255).argmax(1) == truth
    result = {}
    for roll, faces in found.items():
        kept = torch.tensor([face is not None for face in faces])
        framed = torch.stack([face.crop for face in faces if face is not None])
        correct = read(framed).argmax(1) == truth[kept]
        result[str(roll)] = {
            "found": float(kept.double().mean()),
            "accuracy_of_crops": float(right[kept].double().mean()),
            "accuracy_through_detect_faces": float(correct.double().mean()),
        }
    return result


def measure_taken(crops: Gray, side: int = 192) -> float:
    """The share of FER2013's crops, enlarged, that ``align="auto"`` sees to be face crops."""
    same = 0
    for crop in tqdm(crops, desc="face crops"):
        large = cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC)
        with suppress(ValueError):  # there is no face
            same += torch.equal(preprocess(large), preprocess(large, align=False))
    return same / len(crops)


def count_in_mosaic(folder: Path, rng: np.random.Generator) -> int:
    """How many faces are found in a picture of 5x5 CK+ faces, 128 pixels each, on gray."""
    paths = rng.choice(sorted(map(str, folder.glob("*/*.png"))), 25, replace=False)
    faces = [cv2.resize(np.array(Image.open(path)), (128, 128)) for path in paths]
    cells = np.pad(np.stack(faces), ((0, 0), (16, 16), (16, 16)), constant_values=128)
    return len(detect_faces(cells.reshape(5, 5, 160, 160).swapaxes(1, 2).reshape(800, 800)))


def read_photos(folder: Path) -> list[Tensor]:
    """The pictures of a folder, (3, H, W) uint8, shrunk to a long side of 1600."""
    photos = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes()):
        photo = decode(path)
        if (scale := 1600 / max(photo.shape[1:])) < 1:
            photo = resize(photo, [round(length * scale) for length in photo.shape[1:]])
        photos.append(photo)
    return photos


def box_after(box: tuple[float, ...], quarters: int, height: int, width: int) -> Tensor:
    """Where a box is after ``torch.rot90`` of a picture of that size."""
    x0, y0, x1, y1 = box
    for _ in range(quarters):
        x0, y0, x1, y1 = y0, width - x1, y1, width - x0
        height, width = width, height
    return torch.tensor([[x0, y0, x1, y1]])


def measure_quarter_turns(model: ImprovedVGG19, photos: list[Tensor]) -> dict[str, Any]:
    """The shares of all faces that are found, and have the same label, in turned photos."""
    count, found, kept = 0, [0] * 3, [0] * 3
    for photo in tqdm(photos, desc="turned"):
        faces = predict_faces(model, photo)
        count += len(faces)
        for quarters in (1, 2, 3):
            turned = predict_faces(model, torch.rot90(photo, quarters, (1, 2)))
            boxes = torch.tensor([face.box for face in turned]).view(-1, 4)
            for face in faces:
                overlap = box_iou(box_after(face.box, quarters, *photo.shape[1:]), boxes)[0]
                if len(turned) and overlap.max() > 0.4:
                    found[quarters - 1] += 1
                    kept[quarters - 1] += turned[int(overlap.argmax())].label == face.label
    return {
        "photos": len(photos),
        "faces": count,
        "found_at_90_180_270": [n / count for n in found],
        "label_kept_at_90_180_270": [n / count for n in kept],
    }


def square(photo: Tensor, face: DetectedFace, times: float) -> Tensor | None:
    """The square about a face of so many times its box's height, where the photo has it."""
    x0, y0, x1, y1 = face.box
    side = round((y1 - y0) * times)
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    if min(left, top) < 0 or top + side > photo.shape[1] or left + side > photo.shape[2]:
        return None
    return photo[:, top : top + side, left : left + side]


def measure_squares(model: ImprovedVGG19, photos: list[Tensor]) -> dict[str, dict[str, float]]:
    """By size, of how many squares about each photo's first face ``preprocess`` makes what has
    the label that the whole photo gives."""
    kept: dict[str, list[bool]] = {}
    for photo in tqdm(photos, desc="squares"):
        for face in predict_faces(model, photo, max_faces=1):
            for times in (1.0, 1.15, 1.3, 1.5, 1.7):
                part = square(photo, face, times)
                if part is None or part.shape[1] <= SMALL_CROP:
                    continue
                row = predict_proba(model, part, errors="coerce")[0]
                label = (model.categories or ())[int(row.argmax())]
                kept.setdefault(str(times), []).append(label == face.label)
    return {
        times: {"squares": len(right), "label_kept": sum(right) / len(right)}
        for times, right in kept.items()
    }


def measure_small(photos: list[Tensor], rng: np.random.Generator) -> dict[str, Any]:
    """The share found of faces whose boxes are so many pixels high, in pictures of 640x480, and
    how many of 17 in one of 12,000x1,500: by default, and with a ``min_size`` of 0.6 times that."""
    found = [square(photo, face, 1.5) for photo in photos for face in detect_faces(photo)[:1]]
    heads = [head for head in found if head is not None]

    def place(picture: Tensor, head: Tensor, side: int, x: int) -> None:
        y = int(rng.integers(0, picture.shape[1] - side))
        picture[:, y : y + side, x : x + side] = resize(head, [side, side])

    sizes, huge = {}, {}
    for size in (20, 24, 28, 40):
        side, right = round(size * 1.5), 0
        for head in tqdm(heads, desc=f"{size} px"):
            picture = torch.full((3, 480, 640), 110, dtype=torch.uint8)
            place(picture, head, side, int(rng.integers(0, 640 - side)))
            right += len(detect_faces(picture)) == 1
        sizes[str(size)] = right / len(heads)
    for size in (160, 100, 60):
        side, picture = round(size * 1.5), torch.full((3, 1500, 12000), 110, dtype=torch.uint8)
        for index, head in enumerate(heads[:17]):
            place(picture, head, side, 700 * index)
        small = detect_faces(picture, min_size=0.6 * size)
        huge[str(size)] = {"default": len(detect_faces(picture)), "with_min_size": len(small)}
    return {"heads": len(heads), "found_by_size": sizes, "found_of_17_in_12000x1500": huge}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, ("data",), ("ckplus",))
    add = parser.add_argument
    add("--weights", default="fer2013", help="name, folder or Hub id (%(default)s)")
    add("--photos", type=Path, help="folder of photos of people")
    add("--without-people", type=Path, help="folder of photos of none")
    add("--count", type=int, default=500, help="crops to paste (%(default)s)")
    add("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    model, rng = load_pretrained(options.weights), np.random.default_rng(0)
    data, turned, by_roll = choose_crops(load(options.data).split("PublicTest"), options.count, rng)
    found = {roll: search(data.images, places) for roll, places in by_roll.items()}
    # What needs pictures that are not given this time stays as it is.
    figures = read_json(options.out)
    figures |= {
        "pasted": measure_levelling(data.images, turned),
        "enlarged_crops_taken_as_they_are": measure_taken(data.images),
        "expressions_at_roll": measure_expressions(
            partial(predict_proba, model, precision="float32"), data, found
        ),
    }
    if options.ckplus:
        figures["mosaics_of_25"] = [count_in_mosaic(options.ckplus, rng) for _ in tqdm(range(10))]
    if options.photos:
        photos = read_photos(options.photos)
        figures["photos"] = {
            "quarter_turns": measure_quarter_turns(model, photos),
            "squares": measure_squares(model, photos),
            "small": measure_small(photos, rng),
        }
    if options.without_people:
        photos = read_photos(options.without_people)
        scores = [face.score for photo in photos for face in detect_faces(photo)]
        figures["without_people"] = {"photos": len(photos), "scores_of_faces": scores}
    write_json(options.out, figures)
    print(options.out.read_text(), end="")


if __name__ == "__main__":
    main()
