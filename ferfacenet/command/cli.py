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
from contextlib import nullcontext, suppress
from itertools import groupby
from pathlib import Path

import ferfacenet
from ferfacenet.command.report import Report, complain, list_weights, write_to

_EXAMPLE = """\
examples:
  ferfacenet photo.jpg                    the probabilities as bars, one block a face
  ferfacenet photo.jpg --plot out.png     and the photo with its histograms
  ferfacenet --json holiday/ -o out.json  every photo in a folder, one JSON object a line
  cat photo.jpg | ferfacenet -            a photo from stdin
  ferfacenet clip.mp4 --plot out.mp4      a video, who is in it and how they look
  ferfacenet --camera 0 --json            a camera, one JSON object a face and line, until Ctrl-C

The exit status is 0, also where there is no face; 1 if something could not be read (all else is
still done), or 2 if the command itself is wrong.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, in the main thread; returns the exit status."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, as some programs start others
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):  # a file name that the console cannot show
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    options = _parser().parse_args(arguments)
    _import_reading()
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: complain(message)
            return _main(options)
    except OSError as error:  # of the output
        if not options.output:  # or what is left for stdout fails again when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader, head for instance, has seen enough
            return 0
        complain(error, options.output)
        return 1
    except KeyboardInterrupt as error:
        complain("interrupted")
        return 128 + int((error.args or (signal.SIGINT,))[0])
    finally:
        signal.signal(signal.SIGTERM, before)


def _import_reading() -> None:
    """Import what takes seconds while Ctrl-C ends the process by itself: what C++ is initialising
    then drops Python's KeyboardInterrupt, or dies of it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # it may be ignored, as by nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    import ferfacenet.command.read  # noqa: F401

    signal.signal(signal.SIGINT, before)


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # timeout(1) sends it twice
    raise KeyboardInterrupt(signal.SIGTERM)


def _main(options: argparse.Namespace) -> int:
    try:
        _check(options)
        from ferfacenet.command.inputs import check_written, find_inputs, place_plots

        inputs, fine = find_inputs(options)
        inputs = place_plots(options.plot, inputs) if options.plot and inputs else inputs
        check_written(options.output, inputs)
        output = write_to(options.output) if options.output else nullcontext()
        if options.list:
            with output:
                list_weights(options.json)
            return 0
        model = ferfacenet.load_pretrained(options.weights, device=options.device)
        device = model.mean.device
        if options.device == "auto" and device.type != "cpu":
            complain(f"reading on {device}")
        if options.align == "auto":
            from ferfacenet.faces.yunet import load_detector

            load_detector(device)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        complain(error)
        return 2
    from ferfacenet.command.read import read_photos, read_video

    with suppress(_NothingReadError), output:
        videos = [item.video for item in inputs]
        report = Report(options, model.categories, not all(videos), any(videos))
        for video, group in groupby(inputs, lambda item: item.video):
            if not video:
                fine &= read_photos(model, list(group), report, options)
                continue
            for item in group:
                fine &= read_video(model, item, report, options)
        if not (fine or report.count):
            raise _NothingReadError  # by which an older --output stays
    return int(not fine)


class _NothingReadError(Exception):
    pass


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ferfacenet",
        usage="%(prog)s [options] FILE ... | --camera N | --stream URL | --list",
        description="Read the expressions of all faces in photos or videos.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    add = parser.add_argument_group("what is read").add_argument
    add("files", nargs="*", metavar="FILE",
        help="photos, videos, folders, images in sequence as frames/%%04d.png, - for stdin's photo")
    add("--camera", type=int, metavar="N", help="a camera by its number, until Ctrl-C")
    add("--stream", metavar="URL", help="rtsp:// or http://, until Ctrl-C or its end")
    add("--list", action="store_true", help="none of these, but which --weights there are")

    group = parser.add_argument_group("what is written")
    form, add = group.add_mutually_exclusive_group().add_argument, group.add_argument
    form("--json", action="store_true", help="one JSON object a line: a photo, or a frame's face")
    form("--csv", action="store_true", help="one line a face, under a header")
    add("-o", "--output", type=Path, metavar="OUT", help="in place of stdout (-); whole or absent")
    add("--plot", type=Path, metavar="OUT",
        help="draw the photo with its histograms: a picture file, or a folder for many; of a video "
        "OUT.mp4, .mov, .mkv or .webm with boxes, and OUT-course.png, each person's course")
    add("--top", type=int, metavar="N", help="show the N likeliest expressions only, as bars")
    add("--min-confidence", type=float, default=0, metavar="P",
        help='the label of a face that is less sure than this is "unsure"')

    add = parser.add_argument_group("how faces are found").add_argument
    add("--min-score", type=float, default=0.6, metavar="S", help="least score, to 1 (%(default)s)")
    add("--min-size", type=float, metavar="PX",
        help="side of the smallest face (19, or more in a picture above 2.3 megapixels)")
    add("--max-faces", type=int, metavar="N", help="at most so many faces of each picture")
    add("--align", choices=("auto", "never"), default="auto",
        help="never: take the centre square of each picture for one (%(default)s)")

    add = parser.add_argument_group("how they are read").add_argument
    add("--weights", default="fer2013", help="name, folder, .safetensors or Hub id (%(default)s)")
    add("--tta", choices=("flip", "ten_crop", "none"), default="flip",
        help="views of each face that are averaged (%(default)s)")
    add("--device", default="auto", help="for instance cpu or cuda; auto: a GPU if there is one")

    add = parser.add_argument_group("videos").add_argument
    add("--every", type=int, default=1, metavar="N", help="every Nth frame only")
    add("--smooth", type=float, default=0.5, metavar="SECONDS",
        help="a person's probabilities are averaged over so long; 0: not (%(default)s)")
    add("--fps", type=float, metavar="N", help="frames a second of images in sequence (25)")
    version = f"%(prog)s {ferfacenet.__version__}"
    parser.add_argument("--version", action="version", version=version)
    # fmt: on
    return parser


def _check(options: argparse.Namespace) -> None:
    from ferfacenet.faces.types import Limits

    options.limits = Limits(options.min_size, options.min_score, options.max_faces)
    options.tta = None if options.tta == "none" else options.tta
    options.output = None if options.output == Path("-") else options.output
    for name, least in {"top": 1, "every": 1, "fps": 0.001, "smooth": 0}.items():
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if not 0 <= options.min_confidence <= 1:
        raise ValueError(f"--min-confidence must be from 0 to 1, got {options.min_confidence}")
    sources = options.files, options.camera is not None, options.stream is not None, options.list
    if sum(map(bool, sources)) != 1:
        raise ValueError("name files, a --camera, a --stream or --list: one of these; see --help")
