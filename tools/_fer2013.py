"""Reads FER2013 in the forms people have it, and the FER+ votes beside it."""

from __future__ import annotations

import bz2
import csv
import dataclasses
import gzip
import hashlib
import io
import lzma
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ferfacenet.model import FER2013_CATEGORIES
from ferfacenet.transforms import is_blank
from ferfacenet.weights import write_atomically

SPLITS = ("Training", "PublicTest", "PrivateTest")
VOTES = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt",
    "unknown", "NF",
)  # fmt: skip
#: FER+'s classes, in its order.
FERPLUS_CATEGORIES = VOTES[:8]
#: Of the folder of images, Kaggle's and ours.
_FOLDERS = {name: label for label, name in enumerate(FER2013_CATEGORIES)} | {
    "angry": 0, "happy": 3, "sad": 4,
}  # fmt: skip
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


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
        """The images of one of ``SPLITS``; SystemExit if there are none."""
        part = self.where(self.splits == SPLITS.index(name))
        if not len(part):
            raise SystemExit(f"the data has no {name} images")
        return part

    def fingerprint(self) -> str:
        """sha256 over images and labels: tells whether two runs saw the same data."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels, self.splits):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def varied(self) -> npt.NDArray[np.bool_]:
        """Which images, (N,), are not of one gray in what all their crops share, as those are that
        show no expression: twelve of FER2013 are plain black."""
        varied: npt.NDArray[np.bool_] = ~is_blank(torch.tensor(self.images)[:, None]).numpy()
        return varied

    def hashes(self) -> list[bytes]:
        """One digest of each image's pixels, to find byte-identical images."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.images]


def hold_out(faces: Faces, share: float, fold: int = 1) -> npt.NDArray[np.bool_]:
    """Which faces, (N,), are in the ``fold``-th ``share`` of them, by the digest of their pixels,
    so that byte-identical images are on one side and every run holds out the same ones."""
    place = np.array([int.from_bytes(d[:4], "big") / 2**32 for d in faces.hashes()])
    held: npt.NDArray[np.bool_] = ((fold - 1) * share <= place) & (place < fold * share)
    return held


def load(path: str | os.PathLike[str]) -> Faces:
    """Read FER2013 from a CSV, whose parsed arrays the user's cache folder keeps, or a folder.

    Args:
        path: ``fer2013.csv`` or ``icml_face_data.csv``, plain or as .gz, .bz2, .xz or .zip,
            or the folder with ``train/<label>/*.jpg`` and ``test/<label>/*.jpg``.

    Raises:
        SystemExit: there is nothing at ``path``, or it is not FER2013; names the first bad row
            (the header is row 0) or file.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise SystemExit(f"{path} does not exist")
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = home / "ferfacenet" / f"fer2013-{key.hexdigest()[:16]}.npz"
    try:
        with np.load(cached) as arrays:
            return Faces(**arrays)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile):
        pass  # not there yet, or torn by a crash or a full disk
    faces, buffer = _read_csv(path), io.BytesIO()
    np.savez(buffer, **vars(faces))
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cached, buffer.getvalue())
    return faces


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(path)
        members = [name for name in archive.namelist() if name.endswith(".csv")]
        if len(members) != 1:
            raise ValueError(f"expected one .csv inside, found {len(members)}")
        return io.TextIOWrapper(archive.open(members[0]), encoding="ascii", newline="")
    binary = _OPENERS.get(path.suffix, open)(path, "rb")
    return io.TextIOWrapper(binary, encoding="ascii", newline="")


def _read_csv(path: Path) -> Faces:
    images, labels, splits = bytearray(), [], []
    number = 0
    try:
        with _open_text(path) as file:
            # icml_face_data.csv has a space before each column's name but the first.
            reader = csv.DictReader(file, skipinitialspace=True)
            if sorted(reader.fieldnames or ()) != ["Usage", "emotion", "pixels"]:
                raise ValueError("the header is not emotion, pixels, Usage")
            for number, row in enumerate(reader, 1):  # noqa: B007  # the except names it
                label, split = row["emotion"], row["Usage"]
                if label not in set("0123456") or split not in SPLITS:
                    raise ValueError(f"emotion is {label!r} and Usage is {split!r}")
                image = bytes(map(int, (row["pixels"] or "").split()))
                if len(image) != 48 * 48:
                    raise ValueError(f"{len(image)} pixels in place of 2304")
                images += image
                labels.append(int(label))
                splits.append(SPLITS.index(split))
            if not labels:
                raise ValueError("there are no rows")
    except (ValueError, csv.Error, EOFError, OSError, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{path}, row {number}: {error}") from error
    pixels = np.frombuffer(bytes(images), np.uint8).reshape(-1, 48, 48)
    return Faces(pixels, np.array(labels), np.array(splits), np.arange(len(labels)))


def _read_folder(root: Path) -> Faces:
    found: list[tuple[int, int, int, Path]] = []
    for path in root.glob("*/*/*"):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            continue
        name = re.match(rf"({'|'.join(SPLITS)})_(\d+)", path.name)
        label = _FOLDERS.get(path.parent.name.lower())
        if name is None or label is None:
            raise SystemExit(
                f"{path}: expected train/<label>/Training_<number>.jpg or "
                "test/<label>/{PublicTest,PrivateTest}_<number>.jpg"
            )
        found.append((SPLITS.index(name[1]), int(name[2]), label, path))
    if not found:
        raise SystemExit(f"{root} holds no train/<label>/*.jpg or test/<label>/*.jpg")
    found.sort()
    images = []
    for *_, path in found:
        with Image.open(path) as image:
            if image.size != (48, 48):
                raise SystemExit(f"{path}: {image.size} pixels in place of 48x48")
            images.append(np.asarray(image.convert("L")))
    splits, _, labels, _ = zip(*found, strict=True)
    return Faces(np.stack(images), np.array(labels), np.array(splits), np.full(len(found), -1))


def load_votes(path: str | os.PathLike[str], faces: Faces) -> npt.NDArray[np.float32]:
    """How many people voted for each of ``VOTES`` on each of ``faces``: (N, 10) float32, zeros for
    an image without votes.

    ``path`` is FER+'s own ``fer2013new.csv``, which has a line for each of Kaggle's
    ``fer2013.csv``, or ``ferplus.csv``, which names the ``row`` of each line.

    Raises:
        SystemExit: the file is not FER+, or its rows are not those of ``faces``.
    """
    if (faces.rows < 0).any():
        raise SystemExit(f"{path} goes by the rows of the CSV, and images from a folder have none")
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            first, _, *names = file.readline().strip().split(",")
            if first not in ("row", "Usage") or tuple(names) != VOTES:
                raise ValueError("the header is not that of FER+'s fer2013new.csv")
            columns = (*range(2, 12), *([0] if first == "row" else []))
            table = np.loadtxt(file, np.int64, delimiter=",", usecols=columns, ndmin=2)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} holds no votes: {error}") from error
    rows = table[:, 10] if first == "row" else np.arange(len(table))
    votes = np.zeros((max(faces.rows.max(), rows.max()) + 1, len(VOTES)), np.float32)
    votes[rows] = table[:, :10]
    chosen: npt.NDArray[np.float32] = votes[faces.rows]
    seven = chosen[:, [VOTES.index(name) for name in FER2013_CATEGORIES]]
    agree = (seven.argmax(1) == faces.labels)[seven.any(1)].mean()
    if not agree >= 0.4:  # 62 % of FER2013's, and 18 % where rows are shifted
        raise SystemExit(
            f"{path}: the votes agree with {agree:.0%} of the labels, so they are of other rows "
            "than the data's: FER+'s fer2013new.csv fits Kaggle's fer2013.csv, row by row"
        )
    return chosen


def relabel(
    faces: Faces, votes: npt.NDArray[np.float32], least: float = 0.5
) -> tuple[Faces, npt.NDArray[np.float32]]:
    """Faces by ``FERPLUS_CATEGORIES`` in place of FER2013's labels, and what share of an image's
    ``votes`` (N, 10) each has, (N, 8).

    As the authors of FER+ do it (Barsoum et al., "Training deep networks for facial expression
    recognition with crowd-sourced label distribution", 2016): a single vote counts for nothing, and
    an image is left out unless more than ``least`` of the others are for one of the eight.
    """
    votes = np.where(votes > 1, votes, 0)
    labels, known = votes.argmax(1), len(FERPLUS_CATEGORIES)
    kept = (labels < known) & (votes.max(1) > least * votes.sum(1))
    chosen = votes[kept, :known]
    faces = dataclasses.replace(faces, labels=labels).where(kept)
    return faces, chosen / chosen.sum(1, keepdims=True)


def vote_odds(
    votes: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.float32]:
    """How much more likely each label makes the votes on each image: the sum over its ``votes``
    (N, 10) of log P(vote | label), (N, classes). P is counted on the same images, one added."""
    counts = np.ones((classes, votes.shape[1]))
    np.add.at(counts, labels, votes)
    odds: npt.NDArray[np.float32] = votes @ np.log(counts / counts.sum(1, keepdims=True)).T
    return odds.astype(np.float32)
