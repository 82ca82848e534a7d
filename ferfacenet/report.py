"""What the ``ferfacenet`` command prints: lines of text, JSON and CSV about faces."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ferfacenet import Face

_Face = TypeVar("_Face", bound="Face")
_BAR = 40


def doubt(faces: Iterable[_Face], least: float) -> list[_Face]:
    """The faces; the label of those that are less sure than ``least`` is "unsure"."""
    return [
        replace(face, label="unsure") if (face.confidence or 0.0) < least else face
        for face in faces
    ]


def describe(face: Face) -> dict[str, Any]:
    """A face as JSON has it."""
    return {
        "box": [round(end, 1) for end in face.box],
        "score": None if math.isnan(face.score) else round(face.score, 4),
        "label": face.label,
        "confidence": round(face.confidence or 0.0, 6),
        "probabilities": ranked(face.probabilities or {}),
    }


def ranked(chances: Mapping[str, float]) -> dict[str, float]:
    """Probabilities to six digits, the likeliest first."""
    return {name: round(chances[name], 6) for name in sorted(chances, key=lambda n: -chances[n])}


def bars(chances: Mapping[str, float], top: int | None) -> Iterator[str]:
    """A line for each of the likeliest expressions."""
    encoding = sys.stdout.encoding or "ascii"
    block = "█" if "█".encode(encoding, "ignore") else "#"
    width = max(map(len, chances))
    for name, value in islice(ranked(chances).items(), top):
        yield f"  {name:<{width}} {100 * value:5.1f} %  {block * round(_BAR * value)}".rstrip()


def csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def complain(path: Path, error: Exception) -> None:
    """Say on stderr what is wrong with a file, with its name."""
    text = str(error)
    say(f"ferfacenet: {text if str(path) in text else f'{path}: {text}'}", sys.stderr)


def say(text: str, file: IO[str] | None = None) -> None:
    """Print a line above the progress bar, if one is being drawn."""
    from tqdm import tqdm

    tqdm.write(text, file=file or sys.stdout)
