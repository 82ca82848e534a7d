"""The ``ferfacenet`` command: the expressions in photos and videos, as bars, JSON lines, CSV or
plots."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import ferfacenet
from ferfacenet.command.report import Report, complain

_EXAMPLE = """\
examples:
  ferfacenet photo.jpg                    the probabilities as bars, one block a face
  ferfacenet photo.jpg --plot out.png     and the photo with its histograms
  ferfacenet --json holiday/ > out.jsonl  every photo in a folder, one JSON object a line
  ferfacenet clip.mp4 --plot out.mp4      a video, who is in it and how they look
  ferfacenet --camera 0 --json            a camera, one JSON object a face and line, until Ctrl-C

The exit status is 0, also where there is no face; 1 if something could not be read (all else is
still done), or 2 if the command itself is wrong.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    for name in ("stdout", "stderr"):  # closed, as some programs start others
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name that the console cannot show
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    options = _parser().parse_args(arguments)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with suppress(ValueError):  # in a thread, which gets no signals
            signal.signal(signal.SIGTERM, _terminate)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: complain(message)
            return _main(options)
    except OSError as error:  # of the output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader, head for instance, has seen enough
            return 0
        complain(error)
        return 1
    except KeyboardInterrupt as error:
        complain("interrupted")
        return 128 + int((error.args or (signal.SIGINT,))[0])
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # timeout(1) sends it twice
    raise KeyboardInterrupt(signal.SIGTERM)


def _main(options: argparse.Namespace) -> int:
    try:
        _check(options)
        from ferfacenet.command.inputs import find_inputs, plot_paths

        inputs, fine = find_inputs(options)
        plots = plot_paths(options.plot, inputs)
        model = ferfacenet.load_pretrained(options.weights, device=options.device)
        if options.align == "auto":
            from ferfacenet.faces.yunet import load_detector

            load_detector(model.mean.device)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        complain(error)
        return 2
    from ferfacenet.command.photos import read_photos
    from ferfacenet.command.videos import read_video

    report = Report(options, model.categories or (), {video for _, video in inputs})
    for video, group in groupby(inputs, attrgetter("video")):
        if not video:
            fine &= read_photos(model, list(group), plots, report, options)
            continue
        for item in group:
            fine &= read_video(model, item, plots.get(item), report, options)
    return int(not fine)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ferfacenet",
        description="Read the expressions of all faces in photos or videos.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    # fmt: off
    add("files", nargs="*", metavar="FILE",
        help="photos, videos, folders of them, and images in sequence as frames/%%04d.png")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true",
                      help="one JSON object a photo and line, or a face in a frame and line")
    form.add_argument("--csv", action="store_true", help="one line a face, under a header")
    add("--plot", type=Path, metavar="OUT",
        help="draw the photo with its histograms: a picture file, or a folder for many; of a video "
        "OUT.mp4, .mov, .mkv or .webm with boxes, and OUT-course.png, each person's course")
    add("--top", type=int, metavar="N", help="show the N likeliest expressions only, as bars")
    add("--min-score", type=float, default=0.6, metavar="S",
        help="the least the detector is sure of a face, to 1 (%(default)s)")
    add("--min-size", type=float, metavar="PX",
        help="side of the smallest face (19, or more in a picture above 2.3 megapixels)")
    add("--max-faces", type=int, metavar="N", help="at most so many faces of each picture")
    add("--min-confidence", type=float, default=0.0, metavar="P",
        help='the label of a face that is less sure than this is "unsure"')
    add("--weights", default="fer2013",
        help="name, folder, .safetensors file or Hub id (%(default)s)")
    add("--tta", choices=("flip", "ten_crop", "none"), default="flip",
        help="views of each face that are averaged (%(default)s)")
    add("--align", choices=("auto", "never"), default="auto",
        help="auto: find the faces; never: take the centre square of each picture for one")
    add("--camera", type=int, metavar="N", help="read a camera, until Ctrl-C")
    add("--stream", metavar="URL", help="read rtsp:// or http://, until Ctrl-C or its end")
    add("--every", type=int, default=1, metavar="N", help="every Nth frame of a video only")
    add("--smooth", type=float, default=0.5, metavar="SECONDS",
        help="a person's probabilities in a video are averaged over so long; 0: not (%(default)s)")
    add("--fps", type=float, metavar="N", help="frames a second of images in sequence (25)")
    add("--device", default="cpu", help="for instance cuda (%(default)s)")
    add("--version", action="version", version=f"%(prog)s {ferfacenet.__version__}")
    # fmt: on
    return parser


def _check(options: argparse.Namespace) -> None:
    from ferfacenet.faces.types import Limits

    Limits(options.min_size, options.min_score, options.max_faces)
    options.tta = None if options.tta == "none" else options.tta
    for name, least in {"top": 1, "every": 1, "fps": 0.001, "smooth": 0}.items():
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if not 0 <= options.min_confidence <= 1:
        raise ValueError(f"--min-confidence must be from 0 to 1, got {options.min_confidence}")
