"""Reads CK+48: <label>/S<subject>_<sequence>_<frame>.png, the last frames of each sequence."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

#: The label order of the weights, and each label's folder name in CK+48.
FOLDERS = {
    "anger": "anger", "contempt": "contempt", "disgust": "disgust", "fear": "fear",
    "happiness": "happy", "sadness": "sadness", "surprise": "surprise",
}  # fmt: skip
CATEGORIES = tuple(FOLDERS)

#: How many sequences of each label one of the ``public_folds`` tests, in the order of their code.
_TESTED = {
    "anger": 4, "disgust": 6, "fear": 3, "happiness": 7, "sadness": 3, "surprise": 8, "contempt": 2,
}  # fmt: skip
#: How many frames of each label CK+48 has, in the order of ``CATEGORIES``.
_COUNTS = [135, 54, 177, 75, 207, 84, 249]


@dataclass(frozen=True)
class Frames:
    """The frames of CK+48, ordered by label and name: ``names`` as
    ``anger/S010_004_00000017.png``, ``images`` (N, 48, 48) uint8, ``labels`` (N,) int64 into
    ``CATEGORIES``, ``subjects`` (N,) str."""

    names: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    subjects: npt.NDArray[np.str_]

    def fingerprint(self) -> str:
        """A digest that changes with any name, label or pixel."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(self.images.tobytes())
        return digest.hexdigest()


def load(folder: str | Path) -> Frames:
    """All frames below ``folder``; SystemExit names a label without frames, or a file that is
    none."""
    names, images, labels, subjects = [], [], [], []
    for label, name in enumerate(FOLDERS.values()):
        paths = sorted((Path(folder) / name).glob("*"))
        if not paths:
            raise SystemExit(f"{folder}/{name} holds no frames: --data is the folder CK+48")
        for path in paths:
            match = re.fullmatch(r"(S\d+)_\d+_\d+\.png", path.name)
            if not match:
                raise SystemExit(f"{path} is not named S<subject>_<sequence>_<frame>.png")
            try:
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("L"))
            except OSError as error:
                raise SystemExit(f"{path} cannot be read: {error}") from error
            if pixels.shape != (48, 48):
                raise SystemExit(f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, not 48x48")
            names.append(f"{name}/{path.name}")
            images.append(pixels)
            labels.append(label)
            subjects.append(match[1])
    return Frames(tuple(names), np.stack(images), np.array(labels), np.array(subjects))


def public_folds(frames: Frames) -> list[npt.NDArray[np.int64]]:
    """The frames that each of ten folds tests, 99 each, as the public VGG19 code cuts CK+48
    (WuJie1010/Facial-Expression-Recognition.Pytorch on GitHub).

    A fold takes the next whole sequences of every label, the tenth the last ones. A tenth of a
    label's sequences is seldom whole, so that 24 frames are in no test and 33 in two; fear has too
    few for nine folds, and its ninth goes on into the label behind it. SystemExit if the frames
    are not those of CK+48.
    """
    counts = np.bincount(frames.labels, minlength=len(CATEGORIES)).tolist()
    if counts != _COUNTS:
        raise SystemExit(
            f"--protocol public is for the {sum(_COUNTS)} frames of CK+48, by label {_COUNTS}; "
            f"--data has {counts}"
        )
    own = [np.flatnonzero(frames.labels == CATEGORIES.index(label)) for label in _TESTED]
    line, ends = np.concatenate(own), np.cumsum([len(of) for of in own])
    folds = []
    for fold in range(10):
        parts = []
        for indices, end, sequences in zip(own, ends, _TESTED.values(), strict=True):
            size = 3 * sequences
            first = end - size if fold == 9 else end - len(indices) + fold * size
            parts.append(line[first : first + size])
        folds.append(np.concatenate(parts))
    return folds
