"""The ``ferfacenet`` command on videos and cameras."""

from __future__ import annotations

import argparse
import json
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from ferfacenet import ImprovedVGG19
from ferfacenet.command.report import (
    bars,
    complain,
    csv_line,
    describe,
    doubt,
    printable,
    ranked,
    say,
)
from ferfacenet.plots import draw_faces, plot_tracks, save_figure
from ferfacenet.video.frames import count_frames, read_frames
from ferfacenet.video.tracker import FaceTracker, TrackedFace
from ferfacenet.video.writer import VideoWriter

_COLUMNS = ("video", "frame", "seconds", "track", "x0", "y0", "x1", "y1", "score", "label")
_KEYS = ("track", "box", "score", "label", "confidence", "probabilities", "raw")

# Of each person, by number: the seconds, and as many probabilities for each as there are names.
Tracks: TypeAlias = dict[int, "tuple[array[float], array[float]]"]


def run_videos(
    model: ImprovedVGG19, videos: list[Path], plots: dict[Path, Path], options: argparse.Namespace
) -> int:
    """Read videos, or the camera, one after another; returns the exit status."""
    failed = False
    names = list(model.categories or ())
    if options.csv:
        say(csv_line([*_COLUMNS, "confidence", *names, *(f"raw {name}" for name in names)]))
    for path in videos:
        tracker = FaceTracker(
            model, smooth=options.smooth, tta=None if options.tta == "none" else options.tta,
            min_size=options.min_size, min_score=options.min_score, max_faces=options.max_faces,
        )  # fmt: skip
        try:
            _run(tracker, names, path, plots.get(path), options)
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            failed = True
            complain(error, path)
    return int(failed)


def _run(
    tracker: FaceTracker, names: list[str], path: Path, plot: Path | None,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    count, tracks = 0, Tracks()
    source = path if options.camera is None else options.camera
    total = None if isinstance(source, int) else count_frames(source)
    total = total and total // options.every
    shown, begin = sys.stderr.isatty(), time.monotonic()
    bar = tqdm(total=total, unit="frame", disable=not shown)
    try:
        with ExitStack() as stack:
            stack.enter_context(bar)
            frames = stack.enter_context(closing(read_frames(source, options.every, options.fps)))
            sound = path if options.camera is None else None
            writer = stack.enter_context(VideoWriter(plot, sound, options.every)) if plot else None
            for index, seconds, image in frames:
                faces = doubt(tracker.update(image, seconds), options.min_confidence)
                for face in faces:
                    times, values = tracks.setdefault(face.track, (array("d"), array("d")))
                    times.append(seconds)
                    values.extend((face.probabilities or {}).values())
                if options.json or options.csv:
                    start = {"video": str(path), "frame": index, "seconds": round(seconds, 3)}
                    for line in _lines(start, faces, names, options.csv):
                        say(line)
                if writer:
                    writer.write(draw_faces(image, faces), seconds)
                rate = seconds / (time.monotonic() - begin)
                bar.set_postfix_str(f"{rate:.2f}x real time", refresh=False)
                bar.update()
                count += 1
    finally:  # also after Ctrl-C, or where the file is torn
        longest = dict(sorted(tracks.items(), key=lambda item: -len(item[1][0])))
        if plot:
            save_figure(plot_tracks(longest, names), plot.with_suffix(".png"))
        if not options.json and not options.csv and count:
            say("\n".join(_summary(path, longest, names, options.top)))


def _lines(
    start: dict[str, Any], faces: list[TrackedFace], names: list[str], table: bool
) -> Iterator[str]:
    """A line for each face of a frame, or one for a frame without."""
    rows = [{"track": face.track, **describe(face), "raw": ranked(face.raw)} for face in faces]
    if not table:
        for row in rows or [dict.fromkeys(_KEYS)]:
            yield json.dumps(start | row)
        return
    for row in rows:
        cells = [row["track"], *row["box"], row["score"], row["label"], row["confidence"]]
        chances = [row[kind][name] for kind in ("probabilities", "raw") for name in names]
        yield csv_line([*start.values(), *cells, *chances])
    if not rows:
        yield csv_line([*start.values(), *[""] * (8 + 2 * len(names))])


def _summary(path: Path, tracks: Tracks, names: list[str], top: int | None) -> Iterator[str]:
    """Each person's mean probabilities as bars, who was seen longest first."""
    if not tracks:
        yield f"{printable(path)}: no face"
    for number, (times, values) in tracks.items():
        count = len(times)
        chances = {name: sum(values[i :: len(names)]) / count for i, name in enumerate(names)}
        span = f"{times[0]:.1f} to {times[-1]:.1f} s, {count} frames"
        yield f"{printable(path)}: person {number}, {span}: {next(iter(ranked(chances)))}"
        yield from bars(chances, top)
