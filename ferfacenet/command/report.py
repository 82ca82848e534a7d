"""What the ``ferfacenet`` command prints, by tqdm, which does so above a progress bar: lines of
text, JSON and CSV about faces."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from array import array
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tqdm import tqdm

import ferfacenet

if TYPE_CHECKING:
    from ferfacenet import Face, TrackedFace

_Face = TypeVar("_Face", bound="Face")
# By a person's number: the seconds at which they are seen, and the probabilities of all expressions
# at the first of these, at the second and so on, one after another.
Tracks: TypeAlias = dict[int, "tuple[array[float], array[float]]"]

# Where there is no face: what each face has, empty.
_NOBODY = dict.fromkeys(("track", "box", "score", "label", "confidence", "probabilities", "raw"))
_BOX = ("x0", "y0", "x1", "y1")
_BAR = 40  # blocks for 100 %


class Report:
    """Prints what is found, in the form that the options ask for."""

    def __init__(
        self, options: argparse.Namespace, names: Sequence[str], photos: bool, videos: bool
    ) -> None:
        """``names`` are the expressions; ``photos`` and ``videos`` whether there are any."""
        self._options, self._names = options, names
        both = options.csv and photos and videos  # of which one table has one first column
        self.count = 0  # photos and frames that were read
        self._photo, self._video = ("file", "file") if both else ("image", "video")
        columns = [self._photo, *_BOX, "score", "label", "confidence", *names]
        if videos:
            raw = [f"raw {name}" for name in names]
            columns = [self._video, "frame", "seconds", "track", *columns[1:], *raw]
        self._table = csv.DictWriter(sys.stdout, columns, "", "ignore", lineterminator="\n")
        if options.csv:
            self._table.writeheader()

    def photo(self, name: str, faces: Sequence[Face]) -> None:
        self.count += 1
        start, rows = {self._photo: name}, [face.to_dict() for face in faces]
        if self._options.json:
            tqdm.write(json.dumps(start | {"faces": rows}))
        elif self._options.csv:
            self._cells(start, rows or [_NOBODY])
        else:
            blocks = []
            for number, row in enumerate(rows, 1):
                x0, y0, x1, y1 = map(round, row["box"])
                which = f" {number} of {len(rows)}" if len(rows) > 1 else ""
                title = f"face{which}, x {x0} to {x1}, y {y0} to {y1}: {row['label']}"
                blocks.append((title, row["probabilities"]))
            self._bars(name, blocks)

    def frame(self, name: str, index: int, seconds: float, faces: Sequence[TrackedFace]) -> None:
        """A line for each face of a video's frame, or one for a frame without; no text."""
        self.count += 1
        start = {self._video: name, "frame": index, "seconds": round(seconds, 3)}
        rows = [face.to_dict() for face in faces] or [_NOBODY]
        if self._options.csv:
            self._cells(start, rows)
        for row in rows if self._options.json else ():
            tqdm.write(json.dumps(start | row))

    def video(self, name: str, tracks: Tracks) -> None:
        """Each person's mean probabilities, as text only."""
        if self._options.json or self._options.csv:
            return
        blocks, step = [], len(self._names)
        for number, (times, values) in tracks.items():
            means = [sum(values[index::step]) / len(times) for index in range(step)]
            chances = dict(sorted(zip(self._names, means, strict=True), key=lambda pair: -pair[1]))
            span = f"{times[0]:.1f} to {times[-1]:.1f} s, {len(times)} frames"
            blocks.append((f"person {number}, {span}: {next(iter(chances))}", chances))
        self._bars(name, blocks)

    def _bars(self, name: str, blocks: Sequence[tuple[str, dict[str, float]]]) -> None:
        """Under each title a line for each of the first expressions."""
        block = "█" if "█".encode(sys.stdout.encoding or "ascii", "ignore") else "#"
        width = max(map(len, self._names), default=0)
        for title, chances in blocks or [("no face", {})]:
            tqdm.write(f"{printable(name)}: {title}")
            for key, value in islice(chances.items(), self._options.top):
                bar = block * round(_BAR * value)
                tqdm.write(f"  {key:<{width}} {100 * value:5.1f} %  {bar}".rstrip())

    def _cells(self, start: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            box = dict(zip(_BOX, row["box"] or (), strict=False))
            raw = {f"raw {name}": value for name, value in (row.get("raw") or {}).items()}
            with tqdm.external_write_mode():
                self._table.writerow(start | row | box | (row["probabilities"] or {}) | raw)


def list_weights(as_json: bool) -> None:
    """A line for each of the registered weights; as text with the figures of the default views."""
    for name, info in ferfacenet.list_pretrained().items():
        figures = [f"{key} {value:.1%}" for key, value in info.metrics.items() if " flip " in key]
        size = f"{info.parameters / 1e6:.1f} M parameters, {info.size / 1e6:.1f} MB"
        text = f"{name}: {', '.join(info.categories)}; {size}; {', '.join(figures)}"
        tqdm.write(json.dumps({"name": name} | asdict(info)) if as_json else text)


@contextmanager
def write_to(path: Path) -> Generator[None]:
    """Let what is printed go to a file, which appears when all is printed."""
    from ferfacenet.weights import open_atomically  # needs torch, for which --help does not wait

    with open_atomically(path) as file:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", "\n", write_through=True)
        with redirect_stdout(text):
            yield
        text.detach()  # or it would close the file, which is not at its place yet


def doubt(faces: Iterable[_Face], least: float) -> list[_Face]:
    """The faces; the label of those that are less sure than ``least`` is "unsure"."""
    return [replace(f, label="unsure") if f.confidence < least else f for f in faces]


def printable(text: object) -> str:
    """On one line, with escapes for all that could steer a terminal, as file names may."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def complain(problem: object, name: object = None) -> None:
    """Say on stderr what is wrong, with the name of the file if it does not say it."""
    text = f"{name}: {problem}" if name and str(name) not in str(problem) else problem
    tqdm.write(f"ferfacenet: {printable(text)}", sys.stderr)
