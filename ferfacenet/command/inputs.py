"""What the ``ferfacenet`` command reads, each file as what it is, and where its plots go."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import PIL.Image

from ferfacenet.command.report import complain
from ferfacenet.images import suffixes
from ferfacenet.plots import new_figure, save_figure
from ferfacenet.video.container import import_extra
from ferfacenet.video.frames import ANIMATIONS, hide_password, is_sequence, is_video
from ferfacenet.video.writer import WRITABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VIDEO = re.compile(r"\.(3gp|avi|flv|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|ogv|webm|wmv)", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z\d+.,-]+:", re.IGNORECASE)  # as FFmpeg's concat:a|b, too; not C:


class Input(NamedTuple):
    """A file by its path, or a camera or stream by what it is called."""

    name: str
    video: bool


def find_inputs(options: argparse.Namespace) -> tuple[list[Input], bool]:
    """What is to be read, in the order given; and whether all folders could be looked through."""
    sources = options.files or None, options.camera, options.stream
    if sum(source is not None for source in sources) != 1:
        raise ValueError("name files, a --camera or a --stream, one of these")
    inputs, fine = list[Input](), True
    if options.camera is not None:
        inputs.append(Input(f"camera {options.camera}", True))
    if options.stream is not None:
        inputs.append(Input(hide_password(options.stream), True))
    with suppress(ImportError):  # the photos of iPhones, where somebody has installed it
        import pillow_heif

        pillow_heif.register_heif_opener()
    for name in options.files:
        if os.path.isdir(name):  # noqa: PTH112  # Path's raises where a folder is locked
            inside, whole = _find_inside(Path(name))
            inputs += inside
            fine &= whole
        elif _URL.match(name) and not os.path.exists(name):  # noqa: PTH110  # raises
            raise ValueError(f"{name}: no such file; a URL is given as --stream URL")
        else:
            inputs.append(_input(Path(name)))
    if videos := [name for name, video in inputs if video]:
        if options.align == "never":
            raise ValueError(f"{videos[0]}: --align never is for photos, and this is a video")
        import_extra("av" if options.camera is None else "cv2")
    return inputs, fine


def _find_inside(folder: Path) -> tuple[list[Input], bool]:
    """The photos and videos below a folder, by name; and whether all of it could be seen."""
    errors, known = list[OSError](), suffixes()
    walk = os.walk(folder, onerror=errors.append)
    inside = sorted(Path(place, name) for place, _, names in walk for name in names)
    # macOS leaves ._photo.jpg beside photo.jpg on other file systems.
    visible = (path for path in inside if path.name[:2] != "._")
    found = [_input(p) for p in visible if p.suffix.lower() in known or _VIDEO.fullmatch(p.suffix)]
    if not found and not errors:
        raise ValueError(f"{folder}: no photos or videos in this folder")
    for error in errors:
        complain(error)
    inputs = found if find_spec("av") else [item for item in found if not item.video]
    others = set(inside) - {Path(name) for name, _ in inputs}
    if skipped := Counter(path.suffix.lower() or path.name for path in others):
        note = f"{folder}: other files skipped: {skipped.total()} ({', '.join(sorted(skipped))})"
        note += "; pip install pillow-heif to read .heic" if ".heic" in skipped else ""
        complain(note + ('; pip install ".[video]" to read videos' if inputs != found else ""))
    return inputs, not errors


def _input(path: Path) -> Input:
    """A file as what it is: a video by the end of its name, or by what is in it."""
    video: bool | None = bool(_VIDEO.fullmatch(path.suffix)) or is_sequence(path)
    if not video and os.path.isfile(path):  # noqa: PTH113  # Path's raises
        video = is_animated(path)
        if video is None and path.suffix.lower() not in suffixes():
            try:
                video = is_video(path)
            except ImportError as error:  # it may be no video either
                complain(error, path)
    return Input(str(path), bool(video))


def is_animated(path: Path) -> bool | None:
    """Whether a picture has several frames that are shown in turn; None if it is no picture."""
    kinds = PIL.Image.registered_extensions()
    formats = {kinds[suffix] for suffix in suffixes()} & PIL.Image.OPEN.keys()
    try:
        with PIL.Image.open(path, formats=[*formats]) as picture:
            return picture.format in ANIMATIONS and getattr(picture, "is_animated", False)
    except Exception:  # decoders raise nearly anything on broken data
        return None


def plot_paths(out: Path | None, inputs: Sequence[Input]) -> dict[Input, Path]:
    """Where the plot of each photo or video goes, over nothing that is read or written besides;
    empty if none is wanted."""
    if out is None:
        return {}
    known: Collection[str] = new_figure().canvas.get_supported_filetypes()
    if out.suffix and not out.is_dir():
        if len(inputs) != 1:
            raise ValueError(f"--plot {out}: for {len(inputs)} files name a folder")
        known = WRITABLE if inputs[0].video else known
        if out.suffix[1:].lower() not in known:
            raise ValueError(f"--plot {out}: the name must end in one of {', '.join(known)}")
        if not out.parent.is_dir():
            raise ValueError(f"--plot {out}: there is no folder {out.parent}")
        plots = {inputs[0]: out}
    else:
        out.mkdir(parents=True, exist_ok=True)
        plots = _plots_inside(out, inputs)
    used = {_identity(Path(name)) for name, _ in inputs}
    for path in (path for item, plot in plots.items() for path in _written(item, plot)):
        if _identity(path) in used:
            raise ValueError(f"--plot {out}: {path} is to be read or written: name another place")
        used.add(_identity(path))
    return plots


def _plots_inside(out: Path, inputs: Sequence[Input]) -> dict[Input, Path]:
    plots, used, copies = dict[Input, Path](), set[str](), Counter[str]()
    stems = Counter(Path(name).stem.casefold() for name, _ in set(inputs))  # one may come twice
    for item in dict.fromkeys(inputs):
        path, suffix = Path(item.name), ".mp4" if item.video else ".png"
        # Files of one name in different folders get the whole path as their name.
        alone = stems[path.stem.casefold()] == 1
        base = path.stem if alone else "_".join(path.relative_to(path.anchor).parts)
        plot = out / f"{base}{suffix}"
        # Some systems ignore the case of names.
        while used & (names := {str(name).casefold() for name in _written(item, plot)}):
            copies[base.casefold()] += 1
            plot = out / f"{base} ({copies[base.casefold()] + 1}){suffix}"
        used |= names
        plots[item] = plot
    return plots


def _written(item: Input, plot: Path) -> list[Path]:
    return [plot, course_path(plot)] if item.video else [plot]


def course_path(plot: Path) -> Path:
    """Where the picture of each person's course goes, beside a video that is written."""
    return plot.with_name(f"{plot.stem}-course.png")


def _identity(path: Path) -> object:
    """The same for all names of one file."""
    try:
        return path.stat().st_dev, path.stat().st_ino
    except OSError:
        return path.resolve()


def save_plot(plot: Path, draw: Callable[[], Figure]) -> bool:
    """Whether a figure could be drawn and written; if not, it is said why."""
    try:
        save_figure(draw(), plot)
    except (ValueError, OSError) as error:
        complain(error, plot)
        return False
    return True
