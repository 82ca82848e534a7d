"""Reads CK+48: <label>/S<subject>_<sequence>_<frame>.png, the last frames of each sequence."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ferfacenet.transforms import SIZE

#: The label order of the weights, and each label's folder name in CK+48.
FOLDERS = {
    "anger": "anger",
    "contempt": "contempt",
    "disgust": "disgust",
    "fear": "fear",
    "happiness": "happy",
    "sadness": "sadness",
    "surprise": "surprise",
}
CATEGORIES = tuple(FOLDERS)

_NAME = re.compile(r"(?P<subject>S\d+)_(?P<sequence>\d+)_\d+\.png")


@dataclass(frozen=True)
class Frames:
    """The frames of CK+48, ordered by name: ``names`` as ``anger/S010_004_00000017.png``,
    ``images`` (N, 48, 48) uint8, ``labels`` (N,) int64 into ``CATEGORIES``, ``subjects`` and
    ``sequences`` (N,) str."""

    names: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    subjects: npt.NDArray[np.str_]
    sequences: npt.NDArray[np.str_]

    def fingerprint(self) -> str:
        """A digest that changes with any name, label or pixel."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(self.images.tobytes())
        return digest.hexdigest()


def load(folder: str | Path) -> Frames:
    """All frames below ``folder``.

    Raises:
        SystemExit: a label's folder is missing, or a file is not a frame; its path is named.
    """
    folder = Path(folder)
    names, images, labels, subjects, sequences = [], [], [], [], []
    for label, name in enumerate(FOLDERS.values()):
        if not (folder / name).is_dir():
            raise SystemExit(
                f"{folder / name} is no folder: CK+48 has one for each of {[*FOLDERS.values()]}"
            )
        for path in sorted((folder / name).iterdir()):
            match = _NAME.fullmatch(path.name)
            if not match:
                raise SystemExit(f"{path} is not named S<subject>_<sequence>_<frame>.png")
            try:
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("L"))
            except (OSError, UnidentifiedImageError) as error:
                raise SystemExit(f"{path} cannot be read: {error}") from error
            if pixels.shape != (SIZE, SIZE):
                raise SystemExit(f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, not 48x48")
            names.append(f"{name}/{path.name}")
            images.append(pixels)
            labels.append(label)
            subjects.append(match["subject"])
            sequences.append(f"{match['subject']}_{match['sequence']}")
        if not labels or labels[-1] != label:
            raise SystemExit(f"{folder / name} is empty")
    return Frames(
        tuple(names), np.stack(images), np.array(labels), np.array(subjects), np.array(sequences)
    )
