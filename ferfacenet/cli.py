"""The ``ferfacenet`` command: the expressions in photos, as bars, JSON lines or plots."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ferfacenet import (
    Face,
    ImprovedVGG19,
    WeightsError,
    __version__,
    detect_faces,
    load_pretrained,
    predict_proba,
    preprocess,
)
from ferfacenet.images import decode, read_image, suffixes
from ferfacenet.transforms import SIZE

_EXAMPLE = """\
examples:
  ferfacenet photo.jpg                    the probabilities as bars, one block a face
  ferfacenet photo.jpg --plot out.png     and the photo beside its histogram
  ferfacenet --json holiday/ > out.jsonl  every photo in a folder, one JSON object a line

The exit status is 0, 1 if an image could not be read (the others are still done), or 2 if
the command itself is wrong. Faces are found with the extra: pip install ".[faces]"
"""
#: Images whose faces are predicted together.
_CHUNK = 16
_BAR = 40


@dataclass(frozen=True)
class _Reading:
    """A picture with what is to be predicted in it; ``faces`` is empty where the picture
    itself, or its centre square, is the one face."""

    path: Path
    faces: list[Face]
    inputs: Tensor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        paths = list(_expand(options.images))
        plots = _plot_paths(options.plot, paths)
        model = load_pretrained(options.weights, device=options.device)
    except (ValueError, WeightsError, RuntimeError) as error:
        print(f"ferfacenet: {error}", file=sys.stderr)
        return 2
    try:
        return _run(model, paths, plots, options)
    except BrokenPipeError:  # the reader, head for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ferfacenet",
        description="Read the expressions of the faces in photos.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="file or folder")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--plot", type=Path, metavar="OUT",
        help="draw the photo beside its histogram: a picture file, or a folder for many images",
    )  # fmt: skip
    parser.add_argument(
        "--weights",
        default="fer2013",
        help="name, folder, .safetensors file or Hub id (%(default)s)",
    )
    parser.add_argument(
        "--tta", choices=("flip", "ten_crop", "none"), default="flip",
        help="views of each face that are averaged (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--align", choices=("auto", "always", "never"), default="auto",
        help="find and level faces: always; never (take the centre square); or auto, unless the "
        "image already is a face crop (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="for instance cuda (%(default)s)")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _expand(images: Sequence[Path]) -> Iterator[Path]:
    """Files as they are, folders as the pictures below them, by name."""
    for image in images:
        if not image.is_dir():
            yield image
            continue
        inside = sorted(p for p in image.rglob("*") if p.suffix.lower() in suffixes())
        if not inside:
            raise ValueError(f"{image}: no pictures in this folder")
        yield from inside


def _plot_paths(out: Path | None, paths: Sequence[Path]) -> dict[Path, Path]:
    """Where the plot of each picture goes; empty if none is wanted."""
    if out is None:
        return {}
    if len(paths) == 1 and not out.is_dir():
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
    tta = None if options.tta == "none" else options.tta
    failed = False
    left = iter(paths)
    from tqdm import tqdm

    many = len(paths) > _CHUNK and sys.stderr.isatty()
    with tqdm(total=len(paths), unit="img", disable=not many, file=sys.stderr) as bar:
        while chunk := list(islice(left, _CHUNK)):
            readings = []
            for path in chunk:
                try:
                    readings.append(_read(path, options.align))
                except (ValueError, OSError, ImportError) as error:
                    failed = True
                    text = str(error)
                    text = text if str(path) in text else f"{path}: {text}"
                    _say(f"ferfacenet: {text}", sys.stderr)
            if readings:
                inputs = torch.cat([reading.inputs for reading in readings])
                rows = predict_proba(model, inputs, tta=tta)
                counts = [len(reading.inputs) for reading in readings]
                for reading, found in zip(readings, rows.split(counts), strict=True):
                    _report(reading, found, model, options.json)
                    if reading.path in plots:
                        _plot(reading, found, model, plots[reading.path])
            bar.update(len(chunk))
    return int(failed)


def _read(path: Path, align: str) -> _Reading:
    photo = decode(path)
    height, width = photo.shape[-2:]

    def as_it_is() -> _Reading:
        return _Reading(path, [], preprocess(photo, align=False)[None])

    if align == "never" or (align == "auto" and height == width == SIZE):
        return as_it_is()
    try:
        faces = detect_faces(photo)
    except ImportError as error:
        if align == "always":
            raise
        if height != width:
            _say(f"ferfacenet: {path}: {error}; taking the centre square", sys.stderr)
        return as_it_is()
    if not faces and align == "always":
        raise ValueError("no face found")
    if not faces:
        _say(f"ferfacenet: {path}: no face found, taking the centre square", sys.stderr)
        return as_it_is()
    if align == "auto" and height == width and len(faces) == 1:
        # It may be a face crop, which preprocess takes as it is.
        return _Reading(path, faces, preprocess(photo)[None])
    return _Reading(path, faces, torch.stack([face.crop for face in faces]))


def _report(reading: _Reading, rows: Tensor, model: ImprovedVGG19, as_json: bool) -> None:
    names = _names(model)
    found: list[dict[str, Any]] = []
    for index, row in enumerate(rows.tolist()):
        face = reading.faces[index] if reading.faces else None
        ranked = sorted(zip(names, row, strict=True), key=lambda item: -item[1])
        found.append(
            {
                "box": [round(value, 1) for value in face.box] if face else None,
                "score": round(face.score, 4) if face else None,
                "label": ranked[0][0],
                "probabilities": {name: round(value, 6) for name, value in ranked},
            }
        )
    if as_json:
        _say(json.dumps({"image": str(reading.path), "faces": found}))
        return
    lines = []
    for index, item in enumerate(found):
        title = str(reading.path)
        if item["box"]:
            x0, y0, x1, y1 = map(round, item["box"])
            title += f": face {index + 1} of {len(found)}, x {x0} to {x1}, y {y0} to {y1}"
        lines.append(title)
        width = max(map(len, names))
        for name, value in item["probabilities"].items():
            lines.append(f"  {name:<{width}} {100 * value:5.1f} %  {'█' * round(_BAR * value)}")
    _say("\n".join(line.rstrip() for line in lines))


def _names(model: ImprovedVGG19) -> tuple[str, ...]:
    return model.categories or tuple(map(str, range(model.num_classes)))


def _plot(reading: _Reading, rows: Tensor, model: ImprovedVGG19, out: Path) -> None:
    from ferfacenet.plots import plot_probabilities

    boxes = [face.box for face in reading.faces]
    figure = plot_probabilities(read_image(reading.path), rows, _names(model), boxes)
    figure.savefig(out, dpi=110)


def _say(text: str, file: IO[str] | None = None) -> None:
    """Print a line above the progress bar, if one is being drawn."""
    from tqdm import tqdm

    tqdm.write(text, file=file or sys.stdout)
