"""The ``ferfacenet`` command: the expressions in photos, as bars, JSON lines, CSV or plots."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import ferfacenet

if TYPE_CHECKING:
    from ferfacenet import Face, ImprovedVGG19

_EXAMPLE = """\
examples:
  ferfacenet photo.jpg                    the probabilities as bars, one block a face
  ferfacenet photo.jpg --plot out.png     and the photo with its histograms
  ferfacenet --json holiday/ > out.jsonl  every photo in a folder, one JSON object a line

The exit status is 0, also where there is no face; 1 if an image could not be read (the others
are still done), or 2 if the command itself is wrong.
"""
#: Images whose faces are read together, and threads that look for them.
_CHUNK, _THREADS = 16, min(4, os.cpu_count() or 1)
_BAR = 40
_FACE = ("x0", "y0", "x1", "y1", "score", "label", "confidence")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name that the console cannot show
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        try:
            _check(options)
            paths = list(_expand(options.images))
            plots = _plot_paths(options.plot, paths)
            model = ferfacenet.load_pretrained(options.weights, device=options.device)
            if options.align == "auto":
                from ferfacenet.detector import load_detector

                load_detector(model.mean.device)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            print(f"ferfacenet: {error}", file=sys.stderr)
            return 2
        return _run(model, paths, plots, options)
    except BrokenPipeError:  # the reader, head for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("ferfacenet: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ferfacenet",
        description="Read the expressions of all faces in photos.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    # fmt: off
    add("images", nargs="+", type=Path, metavar="IMAGE", help="file or folder")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a picture and line")
    form.add_argument("--csv", action="store_true", help="one line a face, under a header")
    add("--plot", type=Path, metavar="OUT",
        help="draw the photo with its histograms: a picture file, or a folder for many images")
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
    add("--device", default="cpu", help="for instance cuda (%(default)s)")
    add("--version", action="version", version=f"%(prog)s {ferfacenet.__version__}")
    # fmt: on
    return parser


def _check(options: argparse.Namespace) -> None:
    from ferfacenet.faces import check_limits

    check_limits(options.min_size, options.min_score, options.max_faces)
    if options.top is not None and options.top < 1:
        raise ValueError(f"--top must be at least 1, got {options.top}")


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


def _plot_paths(out: Path | None, paths: Sequence[Path]) -> dict[Path, Path]:
    """Where the plot of each picture goes; empty if none is wanted."""
    if out is None:
        return {}
    from ferfacenet.plots import new_figure

    known = new_figure().canvas.get_supported_filetypes()
    if len(paths) == 1 and not out.is_dir():
        if out.suffix[1:].lower() not in known:
            raise ValueError(f"--plot {out}: the name must end in one of {', '.join(known)}")
        if not out.parent.is_dir():
            raise ValueError(f"--plot {out}: there is no folder {out.parent}")
        return {paths[0]: out}
    if out.suffix and not out.is_dir():
        raise ValueError(f"--plot {out}: for {len(paths)} images name a folder")
    out.mkdir(parents=True, exist_ok=True)
    names = [path.stem for path in paths]
    # Pictures of one name in different folders get the whole path as their name.
    return {
        path: out / f"{path.stem if names.count(path.stem) == 1 else _flat(path)}.png"
        for path in paths
    }


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

    header = ["image", *_FACE, *(model.categories or map(str, range(model.num_classes)))]
    if options.csv:
        _say(_csv_line(header))
    many = len(paths) > 1 and sys.stderr.isatty()
    bar = tqdm(total=len(paths), unit="img", disable=not many, file=sys.stderr)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(left, _CHUNK)):
            found = {}
            for path, faces in zip(chunk, pool.map(find, chunk), strict=True):
                bar.update()
                if isinstance(faces, list):
                    found[path] = faces
                    continue
                failed = True
                text = str(faces)
                _say(f"ferfacenet: {text if str(path) in text else f'{path}: {text}'}", sys.stderr)
            together = read_faces(model, [face for faces in found.values() for face in faces], tta)
            read = iter(together)
            for path, faces in found.items():
                same = list(islice(read, len(faces)))
                _report(path, same, len(header), plots.get(path), options)
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


def _report(
    path: Path, faces: list[Face], columns: int, plot: Path | None, options: argparse.Namespace
) -> None:
    faces = [
        replace(face, label="unsure") if (face.confidence or 0) < options.min_confidence else face
        for face in faces
    ]
    if options.json:
        _say(json.dumps({"image": str(path), "faces": [_describe(face) for face in faces]}))
    elif options.csv:
        for face in faces:
            row = _describe(face)
            chances = [round(value, 6) for value in (face.probabilities or {}).values()]
            _say(_csv_line([path, *row["box"], *(row[name] for name in _FACE[4:]), *chances]))
        if not faces:
            _say(_csv_line([path, *[""] * (columns - 1)]))
    else:
        _say("\n".join(_bars(path, faces, options.top)))
    if plot:
        ferfacenet.plot_faces(path, faces).savefig(plot, dpi=110)


def _describe(face: Face) -> dict[str, Any]:
    ranked = sorted((face.probabilities or {}).items(), key=lambda item: -item[1])
    return {
        "box": [round(end, 1) for end in face.box],
        "score": None if math.isnan(face.score) else round(face.score, 4),
        "label": face.label,
        "confidence": round(face.confidence or 0, 6),
        "probabilities": {name: round(value, 6) for name, value in ranked},
    }


def _bars(path: Path, faces: list[Face], top: int | None) -> Iterator[str]:
    if not faces:
        yield f"{path}: no face"
    encoding = sys.stdout.encoding or "ascii"
    block = "█" if "█".encode(encoding, "ignore") else "#"
    for index, face in enumerate(faces):
        x0, y0, x1, y1 = map(round, face.box)
        number = f" {index + 1} of {len(faces)}" if len(faces) > 1 else ""
        yield f"{path}: face{number}, x {x0} to {x1}, y {y0} to {y1}: {face.label}"
        chances = _describe(face)["probabilities"]
        width = max(map(len, chances))
        for name, value in islice(chances.items(), top):
            bar = block * round(_BAR * value)
            yield f"  {name:<{width}} {100 * value:5.1f} %  {bar}".rstrip()


def _csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _say(text: str, file: IO[str] | None = None) -> None:
    """Print a line above the progress bar, if one is being drawn."""
    from tqdm import tqdm

    tqdm.write(text, file=file or sys.stdout)
