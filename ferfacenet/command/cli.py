"""The ``ferfacenet`` command: the expressions in photos, as bars, JSON lines, CSV or plots."""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import ferfacenet
from ferfacenet.command.report import FACE, complain, csv_line, doubt, report, say

if TYPE_CHECKING:
    from ferfacenet import Face, ImprovedVGG19

_EXAMPLE = """\
examples:
  ferfacenet photo.jpg                    the probabilities as bars, one block a face
  ferfacenet photo.jpg --plot out.png     and the photo with its histograms
  ferfacenet --json holiday/ > out.jsonl  every photo in a folder, one JSON object a line
  ferfacenet clip.mp4 --plot out.mp4      a video, who is in it and how they look
  ferfacenet --camera 0 --json            a camera, one JSON object a face and line

The exit status is 0, also where there is no face; 1 if something could not be read (all else is
still done), or 2 if the command itself is wrong.
"""
#: What is taken for a video; folders stand for the pictures in them.
_VIDEO = re.compile(r"\.(3gp|avi|flv|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|ogv|webm|wmv)$", re.IGNORECASE)
#: Images whose faces are read together, and threads that look for them.
_CHUNK, _THREADS = 16, min(4, os.cpu_count() or 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
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
        videos = _videos(options)
        paths, failed = (videos, False) if videos else _expand(options.images)
        plots = _plot_paths(options.plot, paths, bool(videos))
        model = ferfacenet.load_pretrained(options.weights, device=options.device)
        if options.align == "auto":
            from ferfacenet.detector import load_detector

            load_detector(model.mean.device)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        complain(error)
        return 2
    if videos:
        from ferfacenet.command.videos import run_videos

        return run_videos(model, videos, plots, options)
    return _run(model, paths, plots, options) or int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ferfacenet",
        description="Read the expressions of all faces in photos or videos.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    # fmt: off
    add("images", nargs="*", type=Path, metavar="FILE",
        help="photos and folders of photos; or videos, and images in sequence as frames/%%04d.png")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true",
                      help="one JSON object a picture and line, or a face in a frame and line")
    form.add_argument("--csv", action="store_true", help="one line a face, under a header")
    add("--plot", type=Path, metavar="OUT",
        help="draw the photo with its histograms: a picture file, or a folder for many images; of "
        "a video, an .mp4, .mov, .mkv or .webm with boxes, and a .png of each person's course")
    add("--top", type=int, metavar="N", help="show the N likeliest expressions only, as bars")
    add("--min-score", type=float, default=0.6, metavar="S",
        help="the least the detector is sure of a face, to 1 (%(default)s)")
    add("--min-size", type=float, metavar="PX",
        help="side of the smallest face (20, or more in a picture above 2.5 megapixels)")
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
    add("--every", type=int, default=1, metavar="N", help="every Nth frame of a video only")
    add("--smooth", type=float, default=0.5, metavar="SECONDS",
        help="a person's probabilities in a video are averaged over so long; 0: not (%(default)s)")
    add("--fps", type=float, metavar="N", help="frames a second of images in sequence (25)")
    add("--device", default="cpu", help="for instance cuda (%(default)s)")
    add("--version", action="version", version=f"%(prog)s {ferfacenet.__version__}")
    # fmt: on
    return parser


def _check(options: argparse.Namespace) -> None:
    from ferfacenet.faces import check_limits

    check_limits(options.min_size, options.min_score, options.max_faces)
    for name, least in {"top": 1, "every": 1, "fps": 0.001, "smooth": 0}.items():
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if not 0 <= options.min_confidence <= 1:
        raise ValueError(f"--min-confidence must be from 0 to 1, got {options.min_confidence}")


def _videos(options: argparse.Namespace) -> list[Path]:
    """The videos that are to be read, or the camera under a name; none if it is pictures."""
    from ferfacenet.video.container import import_extra

    files: list[Path] = options.images
    if (options.camera is None) == (not files):
        raise ValueError("name files, or a --camera" + (", not both" if files else ""))
    videos = [
        file
        for file in files
        if _VIDEO.search(file.name) or (re.search(r"%\d*d", file.name) and not file.exists())
    ]
    if options.camera is not None:
        videos = [Path(f"camera {options.camera}")]
    elif videos and len(videos) < len(files):
        raise ValueError(f"{videos[0]} is a video: give photos and videos to separate commands")
    if videos and options.align == "never":
        raise ValueError("--align never is for photos: in videos faces are always looked for")
    if videos:
        import_extra("av" if options.camera is None else "cv2")
    return videos


def _expand(images: Sequence[Path]) -> tuple[list[Path], bool]:
    """Files, and the pictures below folders, by name; and whether a folder could not be read."""
    from ferfacenet.images import suffixes

    with suppress(ImportError):  # the photos of iPhones, where somebody has installed it
        import pillow_heif

        pillow_heif.register_heif_opener()
    known, paths, failed = suffixes(), list[Path](), False
    for image in images:
        if not os.path.isdir(image):  # noqa: PTH112  # Path's raises where a folder is locked
            paths.append(image)
            continue
        errors = list[OSError]()
        walk = os.walk(image, onerror=errors.append)
        inside = sorted(Path(folder, name) for folder, _, names in walk for name in names)
        # macOS leaves ._photo.jpg beside photo.jpg on other file systems.
        pictures = [p for p in inside if p.suffix.lower() in known and p.name[:2] != "._"]
        if not pictures and not errors:
            raise ValueError(f"{image}: no pictures in this folder")
        for error in errors:
            complain(error)
        if skipped := Counter(p.suffix.lower() or p.name for p in set(inside) - set(pictures)):
            note = f"{image}: other files skipped: {skipped.total()} ({', '.join(sorted(skipped))})"
            hint = "; pip install pillow-heif to read .heic" if ".heic" in skipped else ""
            complain(f"{note}{hint}")
        paths += pictures
        failed = failed or bool(errors)
    return paths, failed


def _plot_paths(out: Path | None, paths: Sequence[Path], video: bool) -> dict[Path, Path]:
    """Where the plot of each picture or video goes; empty if none is wanted."""
    if out is None:
        return {}
    from ferfacenet.plots import new_figure
    from ferfacenet.video.writer import WRITABLE

    known: Iterable[str] = new_figure().canvas.get_supported_filetypes()
    known = WRITABLE if video else known
    if out.suffix and not out.is_dir():
        if len(paths) != 1:
            raise ValueError(f"--plot {out}: for {len(paths)} files name a folder")
        if out.suffix[1:].lower() not in known:
            raise ValueError(f"--plot {out}: the name must end in one of {', '.join(known)}")
        if not out.parent.is_dir():
            raise ValueError(f"--plot {out}: there is no folder {out.parent}")
        plots = {paths[0]: out}
    else:
        out.mkdir(parents=True, exist_ok=True)
        plots, suffix = {}, ".mp4" if video else ".png"
        stems = Counter(path.stem.casefold() for path in set(paths))  # one may be given twice
        used: dict[str, int] = {}  # how many plots want a name; some systems ignore its case
        for path in dict.fromkeys(paths):
            # Files of one name in different folders get the whole path as their name.
            alone = stems[path.stem.casefold()] == 1
            name = base = path.stem if alone else "_".join(path.relative_to(path.anchor).parts)
            while name.casefold() in used:
                used[base.casefold()] += 1
                name = f"{base} ({used[base.casefold()]})"
            used[name.casefold()] = 1
            plots[path] = out / f"{name}{suffix}"
    inputs = {path.resolve() for path in paths}
    if lost := [plot for plot in plots.values() if plot.resolve() in inputs]:
        raise ValueError(f"--plot {out}: {lost[0]} is to be read: name another file or folder")
    return plots


def _run(
    model: ImprovedVGG19, paths: list[Path], plots: dict[Path, Path], options: argparse.Namespace
) -> int:
    from tqdm import tqdm

    from ferfacenet.inference import read_faces
    from ferfacenet.plots import save_figure

    tta = None if options.tta == "none" else options.tta
    failed, left = False, iter(paths)
    find = partial(_find, model=model, options=options)
    header = ["image", *FACE, *(model.categories or ())]
    if options.csv:
        say(csv_line(header))
    many = len(paths) > 1 and sys.stderr.isatty()
    bar = tqdm(total=len(paths), unit="img", disable=not many, file=sys.stderr)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(left, _CHUNK)):
            found = []
            for path, faces in zip(chunk, pool.map(find, chunk), strict=True):
                bar.update()
                if isinstance(faces, list):
                    found.append((path, faces))
                    continue
                failed = True
                complain(faces, path)
            read = iter(read_faces(model, [face for _, faces in found for face in faces], tta))
            for path, faces in found:
                same = doubt(islice(read, len(faces)), options.min_confidence)
                report(path, same, len(header), options)
                if plot := plots.get(path):
                    try:
                        save_figure(ferfacenet.plot_faces(path, same), plot)
                    except (ValueError, OSError) as error:
                        failed = True
                        complain(error, plot)
    return int(failed)


def _find(
    path: Path, model: ImprovedVGG19, options: argparse.Namespace
) -> list[Face] | ValueError | OSError:
    """The faces in a photo, or why it cannot be read."""
    import torch

    from ferfacenet.faces import find_faces
    from ferfacenet.images import decode
    from ferfacenet.transforms import take_centre

    try:
        pixels = decode(path)
        if options.align == "auto":
            limits = options.min_size, options.min_score, options.max_faces
            return find_faces(pixels, *limits, model.mean.device)
        crop = take_centre(pixels)
    except (ValueError, OSError) as error:
        return error
    height, width = pixels.shape[-2:]
    side = min(height, width)
    x, y = (width - side) // 2, (height - side) // 2
    box = tuple(map(float, (x, y, x + side, y + side)))
    return [ferfacenet.Face(box, torch.zeros(0, 2), math.nan, crop)]  # type: ignore[arg-type]
