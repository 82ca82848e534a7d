"""What the ``ferfacenet`` command prints: lines of text, JSON and CSV about faces."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from ferfacenet import Face, TrackedFace

_Face = TypeVar("_Face", bound="Face")
# Of each person, by number: the seconds, and as many probabilities for each as there are names.
Tracks: TypeAlias = dict[int, "tuple[array[float], array[float]]"]

_KEYS = ("track", "box", "score", "label", "confidence", "probabilities", "raw")
_BAR = 40


class Report:
    """Prints what is found in the form that is asked for. ``names`` are the expressions;
    ``kinds`` holds True if there are videos, and False if there are photos."""

    def __init__(self, options: argparse.Namespace, names: Sequence[str], kinds: set[bool]) -> None:
        self._json, self._csv, self._top = options.json, options.csv, options.top
        self._names, self._mixed = names, len(kinds) > 1
        face = ["x0", "y0", "x1", "y1", "score", "label", "confidence", *names]
        start = ["file" if self._mixed else "video", "frame", "seconds", "track"]
        video = [*start, *face, *(f"raw {name}" for name in names)]
        self._columns = video if True in kinds else ["image", *face]
        if self._csv:
            self._table(self._columns, [])

    def photo(self, name: str, faces: Sequence[Face]) -> None:
        rows = [face.to_dict() for face in faces]
        if self._json:
            say(json.dumps({"image": name, "faces": rows}))
        elif self._csv:
            self._table([name, *[""] * 3 * self._mixed], rows)
        else:
            blocks = []
            for index, row in enumerate(rows):
                x0, y0, x1, y1 = map(round, row["box"])
                number = f" {index + 1} of {len(rows)}" if len(rows) > 1 else ""
                title = f"face{number}, x {x0} to {x1}, y {y0} to {y1}: {row['label']}"
                blocks.append((title, row["probabilities"]))
            self._bars(name, blocks)

    def frame(self, name: str, index: int, seconds: float, faces: Sequence[TrackedFace]) -> None:
        """A line for each face of a video's frame, or one for a frame without; no text."""
        start = {"video": name, "frame": index, "seconds": round(seconds, 3)}
        rows = [face.to_dict() for face in faces]
        if self._json:
            for row in rows or [dict.fromkeys(_KEYS)]:
                say(json.dumps(start | row))
        elif self._csv:
            self._table([*start.values()], rows)

    def video(self, name: str, tracks: Tracks) -> None:
        """Each person's mean probabilities, as text only."""
        blocks, step = [], len(self._names)
        for number, (times, values) in tracks.items():
            chances = {n: sum(values[i::step]) / len(times) for i, n in enumerate(self._names)}
            span = f"{times[0]:.1f} to {times[-1]:.1f} s, {len(times)} frames"
            ranked = dict(sorted(chances.items(), key=lambda chance: -chance[1]))
            blocks.append((f"person {number}, {span}: {next(iter(ranked))}", ranked))
        if not self._json and not self._csv:
            self._bars(name, blocks)

    def _bars(self, name: str, blocks: Sequence[tuple[str, dict[str, float]]]) -> None:
        """Under each title a line for each of the first expressions."""
        lines = [] if blocks else [f"{printable(name)}: no face"]
        block = "█" if "█".encode(sys.stdout.encoding or "ascii", "ignore") else "#"
        for title, chances in blocks:
            lines.append(f"{printable(name)}: {title}")
            width = max(map(len, chances))
            for key, value in islice(chances.items(), self._top):
                bar = f"{100 * value:5.1f} %  {block * round(_BAR * value)}"
                lines.append(f"  {key:<{width}} {bar}".rstrip())
        say("\n".join(lines))

    def _table(self, start: list[Any], rows: Sequence[dict[str, Any]]) -> None:
        """A line for each face, or one for none, whose cells are in the order of JSON's keys."""
        for row in rows or [{}]:
            cells = start.copy()
            for value in row.values():
                parts = [value[name] for name in self._names] if isinstance(value, dict) else value
                cells += parts if isinstance(parts, list) else [parts]
            line = io.StringIO()
            csv.writer(line).writerow(cells + [""] * (len(self._columns) - len(cells)))
            say(line.getvalue()[:-2])  # the writer quotes what is in its line ends, "\r\n"


def doubt(faces: Iterable[_Face], least: float) -> list[_Face]:
    """The faces; the label of those that are less sure than ``least`` is "unsure"."""
    return [replace(f, label="unsure") if f.confidence < least else f for f in faces]


def printable(text: object) -> str:
    """On one line, with escapes for all that could steer a terminal, as file names may."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def complain(problem: object, name: object = None) -> None:
    """Say on stderr what is wrong, with the name of the file if it does not say it."""
    text = f"{name}: {problem}" if name and str(name) not in str(problem) else problem
    say(f"ferfacenet: {printable(text)}", sys.stderr)


def say(text: str, file: IO[str] | None = None) -> None:
    """Print a line above the progress bar, if one is being drawn."""
    tqdm.write(text, file=file or sys.stdout)
