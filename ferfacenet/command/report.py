"""What the ``ferfacenet`` command prints: lines of text, JSON and CSV about faces."""

from __future__ import annotations

import argparse
import csv
import io
import json
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
#: The columns of a face, after that of its photo.
FACE = ("x0", "y0", "x1", "y1", "score", "label", "confidence")
_BAR = 40


def doubt(faces: Iterable[_Face], least: float) -> list[_Face]:
    """The faces; the label of those that are less sure than ``least`` is "unsure"."""
    return [replace(f, label="unsure") if (f.confidence or 0.0) < least else f for f in faces]


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


def report(path: Path, faces: list[Face], columns: int, options: argparse.Namespace) -> None:
    """Print the faces of a photo in the form that is asked for."""
    rows = [describe(face) for face in faces]
    if options.json:
        say(json.dumps({"image": str(path), "faces": rows}))
    elif options.csv:
        for row, face in zip(rows, faces, strict=True):
            chances = [row["probabilities"][name] for name in face.probabilities or ()]
            say(csv_line([path, *row["box"], *(row[name] for name in FACE[4:]), *chances]))
        if not faces:
            say(csv_line([path, *[""] * (columns - 1)]))
    else:
        say("\n".join(_text(path, rows, options.top)))


def _text(path: Path, rows: list[dict[str, Any]], top: int | None) -> Iterator[str]:
    if not rows:
        yield f"{printable(path)}: no face"
    for index, row in enumerate(rows):
        x0, y0, x1, y1 = map(round, row["box"])
        number = f" {index + 1} of {len(rows)}" if len(rows) > 1 else ""
        yield f"{printable(path)}: face{number}, x {x0} to {x1}, y {y0} to {y1}: {row['label']}"
        yield from bars(row["probabilities"], top)


def csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # which quotes what is in its line ends, "\r\n"
    return line.getvalue()[:-2]


def printable(text: object) -> str:
    """On one line, with escapes for all that could steer a terminal, as file names may."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def complain(problem: object, path: Path | None = None) -> None:
    """Say on stderr what is wrong, with the name of the file if it does not say it."""
    text = f"{path}: {problem}" if path and str(path) not in str(problem) else problem
    say(f"ferfacenet: {printable(text)}", sys.stderr)


def say(text: str, file: IO[str] | None = None) -> None:
    """Print a line above the progress bar, if one is being drawn."""
    from tqdm import tqdm

    tqdm.write(text, file=file or sys.stdout)
