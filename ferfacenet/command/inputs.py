"""What the ``ferfacenet`` command reads, each file as what it is, and where its plots go."""

from __future__ import annotations

import argparse
import glob
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image

from ferfacenet.command.report import complain
from ferfacenet.files import MAX_BYTES, is_url, suffixes
from ferfacenet.plots import new_figure
from ferfacenet.video.container import import_extra
from ferfacenet.video.frames import ANIMATIONS, hide_password, is_sequence, is_video
from ferfacenet.video.writer import WRITABLE

_VIDEO = re.compile(r"\.(3gp|avi|flv|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|ogv|webm|wmv)", re.IGNORECASE)


class Input(NamedTuple):
    """Something to read: what it is called; the path of a file, what stdin held, the number of a
    camera or the address of a stream; and where its plot goes, if one is wanted."""

    name: str
    source: Any
    video: bool = False
    plot: Path | None = None

    def written(self) -> list[Path]:
        """The plot, and of a video beside it the picture of each person's course."""
        plot = [self.plot] if self.plot else []
        return plot + [one.with_name(f"{one.stem}-course.png") for one in plot if self.video]


def find_inputs(options: argparse.Namespace) -> tuple[list[Input], bool]:
    """What is to be read, in the order given; and whether all folders could be looked through."""
    inputs, fine = list[Input](), True
    if options.camera is not None:
        inputs.append(Input(f"camera {options.camera}", options.camera, True))
    if options.stream is not None:
        inputs.append(Input(hide_password(options.stream), options.stream, True))
    with suppress(ImportError):  # the photos of iPhones, where somebody has installed it
        import pillow_heif

        pillow_heif.register_heif_opener()
    for name in options.files:
        fine &= _find(name, inputs, options.plot)
    if videos := [item.name for item in inputs if item.video]:
        if options.align == "never":
            raise ValueError(f"{videos[0]}: --align never is for photos, and this is a video")
        import_extra("av" if options.camera is None else "cv2")
    return inputs, fine


def _find(name: str, inputs: list[Input], plots: Path | None) -> bool:
    """Add what a FILE stands for, without what is in the folder for plots; returns whether all of
    it could be seen."""
    if name in ("-", "/dev/stdin"):
        if sys.stdin is None or sys.stdin.isatty():
            raise ValueError("-: no photo on stdin; give it one: ferfacenet - < photo.jpg")
        data = io.BytesIO(sys.stdin.buffer.read(MAX_BYTES + 1))
        data.name = "stdin"
        inputs.append(Input(data.name, data))
    elif is_url(name):
        remedy = "download it first, or read a stream with --stream URL"
        raise ValueError(f"{name}: must be a path, not a URL: {remedy}")
    elif os.path.isdir(name):  # noqa: PTH112  # Path's raises where a folder is locked
        return _find_inside(Path(name), inputs, plots)
    elif os.path.isfile(name):  # noqa: PTH113
        inputs.append(_input(Path(name)))
    elif os.path.exists(name):  # noqa: PTH110  # a pipe that nobody writes to would be waited for
        complain("is a pipe or a device: give what it holds on stdin, as -", name)
        return False
    else:  # Windows' shells, for instance, leave *.jpg as it is
        found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
        inputs += [_input(Path(one)) for one in found or [name]]
    return True


def _find_inside(folder: Path, inputs: list[Input], plots: Path | None) -> bool:
    """Add the photos and videos below a folder, by name, but for earlier plots."""
    errors, known = list[OSError](), suffixes()
    walk = os.walk(folder, onerror=errors.append)
    inside = sorted(Path(place, name) for place, _, names in walk for name in names)
    if plots and (place := plots.resolve()) != folder.resolve():
        inside = [path for path in inside if place not in path.resolve().parents]
    # macOS leaves ._photo.jpg beside photo.jpg on other file systems.
    visible = (path for path in inside if path.name[:2] != "._")
    found = [_input(p) for p in visible if p.suffix.lower() in known or _VIDEO.fullmatch(p.suffix)]
    if not found and not errors:
        raise ValueError(f"{folder}: no photos or videos in this folder")
    for error in errors:
        complain(error)
    readable = found if find_spec("av") else [item for item in found if not item.video]
    others = set(inside) - {item.source for item in readable}
    if skipped := Counter(path.suffix.lower() or path.name for path in others):
        note = f"{folder}: other files skipped: {skipped.total()} ({', '.join(sorted(skipped))})"
        note += "; pip install pillow-heif to read .heic" if ".heic" in skipped else ""
        videos = "; pip install av opencv-python-headless scipy to read videos"
        complain(note + videos * (readable != found))
    inputs += readable
    return not errors


def _input(path: Path) -> Input:
    """A file as what it is: a video by the end of its name, or by what is in it."""
    video = bool(_VIDEO.fullmatch(path.suffix)) or is_sequence(path)
    if not video and os.path.isfile(path):  # noqa: PTH113  # Path's raises
        unknown = path.suffix.lower() not in suffixes() and find_spec("av")
        video = is_animated(path) or bool(unknown and is_video(path))
    return Input(str(path), path, video)


def is_animated(path: Path) -> bool:
    """Whether a file is a picture of several frames that are shown in turn."""
    try:
        with PIL.Image.open(path, formats=ANIMATIONS) as picture:
            return bool(getattr(picture, "is_animated", False))
    except Exception:  # decoders raise nearly anything on broken data
        return False


def place_plots(out: Path, inputs: Sequence[Input]) -> list[Input]:
    """The inputs, each with where its plot goes."""
    known: Iterable[str] = new_figure().canvas.get_supported_filetypes()
    if out.suffix and not out.is_dir():
        if len(inputs) != 1:
            raise ValueError(f"--plot {out}: for {len(inputs)} files name a folder")
        known = WRITABLE if inputs[0].video else known
        if out.suffix[1:].lower() not in known:
            raise ValueError(f"--plot {out}: the name must end in one of {', '.join(known)}")
        return [inputs[0]._replace(plot=out)]
    out.mkdir(parents=True, exist_ok=True)
    stems, placed = Counter(Path(item.name).stem.casefold() for item in set(inputs)), list[Input]()
    for item in inputs:
        path = Path(item.name)
        # Files of one name in different folders get the whole path as their name.
        whole = "_".join(path.relative_to(path.anchor).parts)
        name = path.stem if stems[path.stem.casefold()] == 1 else whole
        placed.append(item._replace(plot=out / f"{name}{'.mp4' if item.video else '.png'}"))
    return placed


def check_written(output: Path | None, inputs: Iterable[Input]) -> None:
    """A ValueError if a file cannot be written, or would go over one that is read or written."""
    if output and output.exists() and not output.is_file():
        raise ValueError(f"--output {output}: is a folder or a device")
    written = [path for item in set(inputs) for path in item.written()]
    used = {_identity(item.source) for item in inputs if isinstance(item.source, Path)}
    for path in [*written, output] if output else written:
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
        if _identity(path) in used:
            raise ValueError(f"{path} is to be read or written: name another place")
        used.add(_identity(path))


def _identity(path: Path) -> str:
    """The same for all names of a file; some systems ignore their case."""
    return str(path.resolve()).casefold()
