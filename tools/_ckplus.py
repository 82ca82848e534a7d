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
