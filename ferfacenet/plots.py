"""The paper's picture: a photo beside the probabilities of its faces (VI, Figs 7 and 8); and
the frames and courses of a video."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferfacenet.faces.types import DetectedFace, Face, TrackedFace
from ferfacenet.images import Image, decode
from ferfacenet.transforms import to_rgb
from ferfacenet.video.container import Picture
from ferfacenet.weights import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# White can be read on each, and each is told from the others.
_COLOURS = (
    "#4477aa", "#cc6677", "#228833", "#aa8800", "#00a0b0", "#aa3377",
    "#777777", "#6b3a1e", "#112288", "#e25a1c", "#8855dd", "#0c4a3e",
)  # fmt: skip
_ROWS = 8  # people in a picture of courses
_NONE = "no face"


def new_figure(**options: Any) -> Figure:
    """An empty figure; where matplotlib is missing, an ImportError that names the pip line."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install matplotlib") from error
    figure = Figure(**options)
    # By this a notebook shows what ends a cell; of figures, it does so with pyplot's by itself.
    vars(figure)["_repr_png_"] = partial(_encode, figure, "png")
    return figure


def _encode(figure: Figure, kind: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=110)
    return data.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path's suffix names, whole or not at all."""
    write_atomically(path, _encode(figure, path.suffix[1:]))


def plot_faces(image: Image, faces: Sequence[Face]) -> Figure:
    """A photo with a box around each face, and the faces' probabilities as histograms: beside it
    for one or two, below it for more. Needs matplotlib.

    Args:
        image: of any kind that ``preprocess`` takes.
        faces: what ``predict_faces`` found in it; where that is nothing, the picture says so.

    Returns:
        A figure of its own, which leaves pyplot's state alone: ``figure.savefig("out.png")``.

    Raises:
        ImportError: matplotlib is missing; the message names the pip line.
        ValueError: a face has not been read, or the image cannot be.
    """
    import PIL.Image

    if not all(isinstance(face, Face) for face in faces):
        raise ValueError("the faces must have been read: predict_faces does it")
    photo = PIL.Image.fromarray(to_rgb(decode(image)).permute(1, 2, 0).numpy())
    (across, down), shape = photo.size, photo.height / photo.width
    photo.thumbnail((2000, 2000))  # matplotlib takes 50 bytes of memory for each pixel
    beside = len(faces) <= 2
    columns = 1 if beside else min(len(faces), 4)
    # In inches: a bar is as thick whatever the photo's shape.
    bars = [0.4 + 0.2 * max((len(face.probabilities) for face in faces), default=0)]
    bars *= -(-len(faces) // columns)
    widths = [5.0, 4.0][: 1 + len(faces)] if beside else [3.0] * columns
    height = min(max(shape * (5.0 if beside else sum(widths)), 3.0), 9.0)  # of the photo
    spare = max(0.1, height - sum(bars)) / 2
    heights = [spare, *bars, spare] if beside else [height, *bars]
    figure = new_figure(figsize=(sum(widths), sum(heights)), layout="constrained")
    from matplotlib.patches import Rectangle

    ratios = {"width_ratios": widths, "height_ratios": heights}
    grid = figure.add_gridspec(len(heights), len(widths), **ratios)
    left = figure.add_subplot(grid[:, 0] if beside else grid[0, :])
    left.imshow(photo, extent=(-0.5, across - 0.5, down - 0.5, -0.5))
    left.set_axis_off()
    if not faces:
        left.set_title(_NONE)
    for index, face in enumerate(faces):
        colour = _COLOURS[index % len(_COLOURS)]
        number = f"{index + 1}: " if len(faces) > 1 else ""
        x0, y0, x1, y1 = face.box
        left.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, linewidth=2))
        if number:
            left.text(
                x0, y0, str(index + 1), color="white", fontsize=11, verticalalignment="top",
                bbox={"facecolor": colour, "linewidth": 0, "pad": 1.5}, clip_on=True,
            )  # fmt: skip
        column = 1 if beside else index % columns
        axes = figure.add_subplot(grid[1 + index // columns, column])
        names, values = list(face.probabilities), list(face.probabilities.values())
        drawn = axes.barh(names, values, color=colour)
        axes.bar_label(drawn, [f"{value:.2f}" for value in values], padding=2, fontsize=8)
        axes.set(xlim=(0, 1.15), xticks=(), title=f"{number}{face.label}")
        axes.tick_params(labelsize=8, length=0)
        axes.invert_yaxis()
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def draw_faces(image: Image, faces: Sequence[DetectedFace]) -> Picture:
    """A picture with a box around each face, and above it the label, how sure it is, and the
    number of a tracked one; around a face that has not been read, the box alone; in a corner,
    where there are no faces, that there are none. Needs no matplotlib.

    Args:
        image: of any kind that ``preprocess`` takes, on which errors it raises too.
        faces: what ``predict_faces``, or for a frame ``predict_video``, found in it.

    Returns:
        (H, W, 3) uint8 RGB, a copy.
    """
    import PIL.Image
    from PIL import ImageDraw, ImageFont

    picture = PIL.Image.fromarray(to_rgb(decode(image)).permute(1, 2, 0).numpy())
    draw, side = ImageDraw.Draw(picture), min(picture.size)
    line, font = max(2, side // 200), ImageFont.load_default(max(12, side // 25))

    def write(text: str, x: float, y: float, colour: str) -> None:
        """Above that point, or in the picture."""
        _, _, right, bottom = draw.textbbox((0, 0), text, font, anchor="lt")
        x, y = min(x, picture.width - right - 2 * line), max(0, y - bottom - 2 * line)
        draw.rectangle((x, y, x + right + 2 * line, y + bottom + 2 * line), fill=colour)
        draw.text((x + line, y + line), text, "white", font, anchor="lt")

    for index, face in enumerate(faces):
        number = face.track - 1 if isinstance(face, TrackedFace) else index
        colour = _COLOURS[number % len(_COLOURS)]
        x0, y0, x1, y1 = face.box
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=line)
        if isinstance(face, Face):
            name = f"{face.track}: " if isinstance(face, TrackedFace) else ""
            write(f"{name}{face.label} {face.confidence:.0%}", x0, y0, colour)
    if not faces:
        write(_NONE, 0, 0, _COLOURS[-1])
    return np.array(picture)


def plot_tracks(
    tracks: Mapping[int, tuple[Sequence[float], Sequence[float]]], names: Sequence[str]
) -> Figure:
    """The course of each person's probabilities in a video, at most eight: by their numbers the
    seconds, and the probabilities of all names at each of these in turn."""
    shown = list(tracks.items())[:_ROWS]
    figure = new_figure(figsize=(10, 1 + 1.8 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots(max(1, len(shown)), sharex=True, squeeze=False)[:, 0]
    for ax, (number, (seconds, values)) in zip(axes, shown, strict=False):
        times, rows = np.array(seconds), np.reshape(values, (len(seconds), len(names)))
        # A line ends where the person is out of sight.
        steps = np.diff(times)
        gaps = 1 + np.flatnonzero(steps > max(0.5, 2 * float(np.median([0, *steps]))))
        times, rows = np.insert(times, gaps, np.nan), np.insert(rows, gaps, np.nan, axis=0)
        for name, row, colour in zip(names, rows.T, itertools.cycle(_COLOURS)):
            ax.plot(times, row, color=colour, label=name)
        ax.set(ylim=(-0.03, 1.03), ylabel=f"person {number}")
    axes[-1].set_xlabel("seconds")
    if not shown:
        axes[-1].set_title(_NONE)
    else:
        lines, labels = axes[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside upper center", ncols=len(names))
    return figure
