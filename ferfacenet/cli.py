"""The ``ferfacenet`` command: the expressions in photos, as bars, JSON lines, CSV or plots."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ferfacenet
from ferfacenet.report import bars, complain, csv_line, describe, doubt, say

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
_FACE = ("x0", "y0", "x1", "y1", "score", "label", "confidence")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name that the console cannot show
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    options = _parser().parse_args(arguments)
    try:
        try:
            _check(options)
            videos = _videos(options)
            paths = videos or list(_expand(options.images))
            plots = _plot_paths(options.plot, paths, bool(videos))
            model = ferfacenet.load_pretrained(options.weights, device=options.device)
            if options.align == "auto":
                from ferfacenet.detector import load_detector

                load_detector(model.mean.device)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            print(f"ferfacenet: {error}", file=sys.stderr)
            return 2
        if videos:
            from ferfacenet.cli_video import run_videos

            return run_videos(model, videos, plots, options)
        return _run(model, paths, plots, options)
    except OSError as error:  # of the output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader, head for instance, has seen enough
            return 0
        print(f"ferfacenet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ferfacenet: interrupted", file=sys.stderr)
        return 130


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
    from ferfacenet.frames import import_extra

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


def _expand(images: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, folders as the pictures below them, by name."""
    from ferfacenet.images import suffixes

    with suppress(ImportError):  # the photos of iPhones, where somebody has installed it
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = suffixes()
    for image in images:
        if not image.is_dir():
            yield image
            continue
        inside = sorted(path for path in image.rglob("*") if path.is_file())
        # macOS leaves ._photo.jpg beside photo.jpg on other file systems.
        pictures = [p for p in inside if p.suffix.lower() in known and p.name[:2] != "._"]
        if not pictures:
            raise ValueError(f"{image}: no pictures in this folder")
        if skipped := Counter(p.suffix.lower() or p.name for p in set(inside) - set(pictures)):
            note = f"{image}: other files skipped: {skipped.total()} ({', '.join(sorted(skipped))})"
            hint = "; pip install pillow-heif to read .heic" if ".heic" in skipped else ""
            print(f"ferfacenet: {note}{hint}", file=sys.stderr)
        yield from pictures


def _plot_paths(out: Path | None, paths: Sequence[Path], video: bool) -> dict[Path, Path]:
    """Where the plot of each picture or video goes; empty if none is wanted."""
    if out is None:
        return {}
    from ferfacenet.frames import WRITABLE
    from ferfacenet.plots import new_figure

    known: Iterable[str] = new_figure().canvas.get_supported_filetypes()
    known = WRITABLE if video else known
    if out.suffix and not out.is_dir():
        if len(paths) > 1:
            raise ValueError(f"--plot {out}: for {len(paths)} files name a folder")
        if out.suffix[1:].lower() not in known:
            raise ValueError(f"--plot {out}: the name must end in one of {', '.join(known)}")
        if not out.parent.is_dir():
            raise ValueError(f"--plot {out}: there is no folder {out.parent}")
        plots = {paths[0]: out}
    else:
        out.mkdir(parents=True, exist_ok=True)
        names, suffix = [path.stem for path in paths], ".mp4" if video else ".png"
        # Files of one name in different folders get the whole path as their name.
        plots = {
            path: out / f"{path.stem if names.count(path.stem) == 1 else _flat(path)}{suffix}"
            for path in paths
        }
    inputs = {path.resolve() for path in paths}
    if lost := [plot for plot in plots.values() if plot.resolve() in inputs]:
        raise ValueError(f"--plot {out}: {lost[0]} is to be read: name another file or folder")
    return plots


def _flat(path: Path) -> str:
    return "_".join(part for part in path.parts if part not in (path.root, path.anchor))


def _run(
    model: ImprovedVGG19,
    paths: Sequence[Path],
    plots: dict[Path, Path],
    options: argparse.Namespace,
) -> int:
    from tqdm import tqdm

    from ferfacenet.inference import read_faces

    tta = None if options.tta == "none" else options.tta
    failed, left = False, iter(paths)

    def find(path: Path) -> list[Face] | Exception:
        try:
            return _find(path, model, options)
        except (ValueError, OSError) as error:
            return error

    header = ["image", *_FACE, *(model.categories or ())]
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
                complain(path, faces)
            read = iter(read_faces(model, [face for _, faces in found for face in faces], tta))
            for path, faces in found:
                same = doubt(islice(read, len(faces)), options.min_confidence)
                _report(path, same, len(header), options)
                if plot := plots.get(path):
                    try:
                        ferfacenet.plot_faces(path, same).savefig(plot, dpi=110)
                    except (ValueError, OSError) as error:
                        failed = True
                        complain(plot, error)
    return int(failed)


def _find(path: Path, model: ImprovedVGG19, options: argparse.Namespace) -> list[Face]:
    import torch

    from ferfacenet.faces import find_faces
    from ferfacenet.images import decode

    pixels = decode(path)
    if options.align == "auto":
        return find_faces(
            pixels, options.min_size, options.min_score, options.max_faces, model.mean.device
        )
    height, width = pixels.shape[-2:]
    side = min(height, width)
    x, y = (width - side) // 2, (height - side) // 2
    crop = ferfacenet.preprocess(pixels, align=False)
    box = tuple(map(float, (x, y, x + side, y + side)))
    return [ferfacenet.Face(box, torch.zeros(0, 2), math.nan, crop)]  # type: ignore[arg-type]


def _report(path: Path, faces: list[Face], columns: int, options: argparse.Namespace) -> None:
    rows = [describe(face) for face in faces]
    if options.json:
        say(json.dumps({"image": str(path), "faces": rows}))
    elif options.csv:
        for row, face in zip(rows, faces, strict=True):
            chances = [row["probabilities"][name] for name in face.probabilities or ()]
            say(csv_line([path, *row["box"], *(row[name] for name in _FACE[4:]), *chances]))
        if not faces:
            say(csv_line([path, *[""] * (columns - 1)]))
    else:
        say("\n".join(_text(path, rows, options.top)))


def _text(path: Path, rows: list[dict[str, Any]], top: int | None) -> Iterator[str]:
    if not rows:
        yield f"{path}: no face"
    for index, row in enumerate(rows):
        x0, y0, x1, y1 = map(round, row["box"])
        number = f" {index + 1} of {len(rows)}" if len(rows) > 1 else ""
        yield f"{path}: face{number}, x {x0} to {x1}, y {y0} to {y1}: {row['label']}"
        yield from bars(row["probabilities"], top)
