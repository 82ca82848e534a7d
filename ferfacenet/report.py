"""What the ``ferfacenet`` command prints: lines of text, JSON and CSV about faces."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ferfacenet import Face

_BAR = 40


def describe(face: Face, least: float = 0.0) -> dict[str, Any]:
    """A face as JSON has it; its label is "unsure" where its confidence is below ``least``."""
    confidence = face.confidence or 0.0
    return {
        "box": [round(end, 1) for end in face.box],
        "score": None if math.isnan(face.score) else round(face.score, 4),
        "label": face.label if confidence >= least else "unsure",
        "confidence": round(confidence, 6),
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


def say(text: str, file: IO[str] | None = None) -> None:
    """Print a line above the progress bar, if one is being drawn."""
    from tqdm import tqdm

    tqdm.write(text, file=file or sys.stdout)
