"""Reads FER2013 in the forms people have it, and the FER+ votes beside it.

Run by hand it prints what the file holds: python tools/fer2013.py fer2013.csv
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

SPLITS = ("Training", "PublicTest", "PrivateTest")
VOTES = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt",
    "unknown", "NF",
)  # fmt: skip
_FOLDERS = {
    name: label
    for label, names in enumerate(
        (
            ("angry", "anger"),
            ("disgust",),
            ("fear",),
            ("happy", "happiness"),
            ("sad", "sadness"),
            ("surprise",),
            ("neutral",),
        )
    )
    for name in names
}
_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": gzip.open,  # type: ignore[dict-item]  # binary mode is its default
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_CACHE_VERSION = 1


@dataclass(frozen=True)
class Faces:
    """Images of FER2013 in the file's order.

    ``images`` (N, 48, 48) uint8; ``labels`` (N,) int64 in FER2013's order; ``splits`` (N,)
    indices into ``SPLITS``; ``rows`` (N,) the row in the CSV, counted from 0, or -1 where
    the images came from a folder.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    splits: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: npt.NDArray[np.bool_]) -> Faces:
        return Faces(self.images[mask], self.labels[mask], self.splits[mask], self.rows[mask])

    def split(self, name: str) -> Faces:
        """The images of one split; ``ValueError`` if there are none."""
        if name not in SPLITS:
            raise ValueError(f"no split is called {name!r}; there are {', '.join(SPLITS)}")
        part = self.where(self.splits == SPLITS.index(name))
        if not len(part):
            raise ValueError(f"the data has no {name} images")
        return part

    def fingerprint(self) -> str:
        """sha256 over images and labels: tells whether two runs saw the same data."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels, self.splits):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def hashes(self) -> list[bytes]:
        """One digest of each image's pixels, to find byte-identical images."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.images]


def hold_out(faces: Faces, share: float) -> tuple[Faces, Faces]:
    """Split off ``share`` of the faces by the digest of their pixels, so that byte-identical
    images are on one side and every run holds out the same ones."""
    kept = [int.from_bytes(digest[:4], "big") / 2**32 >= share for digest in faces.hashes()]
    mask = np.array(kept)
    return faces.where(mask), faces.where(~mask)


def load(path: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> Faces:
    """Read FER2013 from a CSV or a folder of images.

    Args:
        path: ``fer2013.csv`` or ``icml_face_data.csv``, plain or as .gz, .bz2, .xz or .zip,
            or the folder with ``train/<label>/*.jpg`` and ``test/<label>/*.jpg``.
        cache: folder that keeps the parsed arrays; by default the user's cache folder.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: the data is not FER2013, with the number of the first bad row (the
            header is row 0) or the name of the first bad file.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    stat = path.stat()
    key = hashlib.sha256(
        f"{_CACHE_VERSION} {path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()
    ).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = Path(cache or home / "ferfacenet") / f"fer2013-{key}.npz"
    names = ("images", "labels", "splits", "rows")
    if cached.is_file():
        try:
            with np.load(cached, allow_pickle=False) as arrays:
                return Faces(*(arrays[name] for name in names))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            cached.unlink()  # torn by a crash or a full disk; the CSV is still there
    faces = _read_csv(path)
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as temporary:
        np.savez(temporary, allow_pickle=False, **{name: getattr(faces, name) for name in names})
    Path(temporary.name).replace(cached)
    return faces


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(path)
        members = [name for name in archive.namelist() if name.endswith(".csv")]
        if len(members) != 1:
            raise ValueError(f"{path}: expected one .csv inside, found {len(members)}")
        return io.TextIOWrapper(archive.open(members[0]), encoding="ascii", newline="")
    opener = _OPENERS.get(path.suffix)
    binary = opener(path) if opener else path.open("rb")
    return io.TextIOWrapper(binary, encoding="ascii", newline="")


def _read_csv(path: Path) -> Faces:
    images, labels, splits = bytearray(), [], []
    number = 0
    with _open_text(path) as file:
        # icml_face_data.csv has a space before each column's name but the first.
        reader = csv.reader(file, skipinitialspace=True)
        try:
            header = next(reader, [])
            if sorted(header) != ["Usage", "emotion", "pixels"]:
                raise ValueError("the header is not emotion, pixels, Usage")
            emotion, pixels, usage = map(header.index, ("emotion", "pixels", "Usage"))
            for number, row in enumerate(reader, 1):  # noqa: B007  # the except names it
                if len(row) != 3:
                    raise ValueError(f"{len(row)} columns in place of 3 (a torn file?)")
                if row[usage] not in SPLITS:
                    raise ValueError(f"Usage is {row[usage]!r}, not one of {', '.join(SPLITS)}")
                if row[emotion] not in set("0123456"):
                    raise ValueError(f"emotion is {row[emotion]!r}, not 0 to 6")
                try:
                    image = bytes(map(int, row[pixels].split()))
                except ValueError:
                    raise ValueError("a pixel is not a whole number from 0 to 255") from None
                if len(image) != 48 * 48:
                    raise ValueError(f"{len(image)} pixels in place of 2304")
                images += image
                labels.append(int(row[emotion]))
                splits.append(SPLITS.index(row[usage]))
        except (ValueError, csv.Error, EOFError, OSError, lzma.LZMAError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    if not labels:
        raise ValueError(f"{path} has a header and no rows")
    return Faces(
        np.frombuffer(bytes(images), np.uint8).reshape(-1, 48, 48),
        np.array(labels),
        np.array(splits),
        np.arange(len(labels)),
    )


def _read_folder(root: Path) -> Faces:
    found: list[tuple[int, int, Path, int]] = []
    for path in root.glob("*/*/*"):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            continue
        name = re.match(rf"({'|'.join(SPLITS)})_(\d+)", path.name)
        label = _FOLDERS.get(path.parent.name.lower())
        if name is None or label is None:
            raise ValueError(
                f"{path}: expected train/<label>/Training_<number>.jpg or "
                "test/<label>/{PublicTest,PrivateTest}_<number>.jpg"
            )
        found.append((SPLITS.index(name[1]), int(name[2]), path, label))
    if not found:
        raise ValueError(f"{root} holds no train/<label>/*.jpg or test/<label>/*.jpg")
    found.sort()
    images = np.empty((len(found), 48, 48), np.uint8)
    for index, (*_, path, _) in enumerate(found):
        with Image.open(path) as image:
            if image.size != (48, 48):
                raise ValueError(f"{path}: {image.size} pixels in place of 48x48")
            images[index] = np.asarray(image.convert("L"))
    return Faces(
        images,
        np.array([label for *_, label in found]),
        np.array([split for split, *_ in found]),
        np.full(len(found), -1),
    )


def load_votes(path: str | os.PathLike[str], faces: Faces) -> npt.NDArray[np.float32]:
    """How many voted for each of ``VOTES`` on each of ``faces``, (N, 10) float32, by the file of
    FER+; all zeros for an image without votes."""
    table = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, *range(2, 12)), dtype=np.int64)
    votes = np.zeros((max(faces.rows.max(), table[:, 0].max()) + 1, len(VOTES)), np.float32)
    votes[table[:, 0]] = table[:, 1:]
    if (faces.rows < 0).any():
        raise ValueError("FER+ votes go by the row of the CSV; images from a folder have none")
    chosen: npt.NDArray[np.float32] = votes[faces.rows]
    return chosen


def vote_odds(
    votes: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.float32]:
    """How much more likely each label makes the votes on each image: the sum over its ``votes``
    (N, 10) of log P(vote | label), (N, classes). P is counted on the same images, one added."""
    counts = np.ones((classes, votes.shape[1]))
    np.add.at(counts, labels, votes)
    odds: npt.NDArray[np.float32] = votes @ np.log(counts / counts.sum(1, keepdims=True)).T
    return odds.astype(np.float32)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    faces = load(sys.argv[1])
    for name in SPLITS:
        mask = faces.splits == SPLITS.index(name)
        counts = np.bincount(faces.labels[mask], minlength=7)
        print(f"{name}: {mask.sum()} images, per label {counts}")
    pixels = faces.split("Training").images / 255
    print(f"Training pixels: mean {pixels.mean():.4f}, standard deviation {pixels.std():.4f}")


if __name__ == "__main__":
    main()
