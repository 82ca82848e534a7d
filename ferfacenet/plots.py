"""The paper's probability histogram of a photo (VI, Figs 7 and 8). Needs the ``plot`` extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#4477aa", "#cc6677", "#228833", "#ddaa33", "#66ccee", "#aa3377", "#777777")


def plot_probabilities(
    photo: Tensor,
    probabilities: Tensor,
    categories: Sequence[str],
    boxes: Sequence[tuple[float, float, float, float]] = (),
) -> Figure:
    """The photo, with a box around each face, beside a histogram for each face.

    Args:
        photo: (1 or 3, H, W) float in [0, 1], as ``ferfacenet.images.read_image`` gives.
        probabilities: (F, num_classes) float, one row a face, F at least 1.
        categories: names of the columns.
        boxes: (x0, y0, x1, y1) of each face in pixels of ``photo``; none to draw no boxes.

    Returns:
        A figure of its own, which leaves pyplot's state alone: ``figure.savefig("out.png")``.

    Raises:
        ImportError: matplotlib is missing; the message names the pip line.
        ValueError: there are no faces, or not as many boxes as rows.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ImportError('plotting needs matplotlib: pip install ".[plot]"') from error
    count = len(probabilities)
    if not count or (boxes and len(boxes) != count):
        raise ValueError(f"{count} rows of probabilities and {len(boxes)} boxes do not go together")
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.5 + 3.6 * columns, max(4.2, 2.8 * rows)), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1.3] + [1] * columns)
    left = figure.add_subplot(grid[:, 0])
    left.imshow(photo.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    left.set_axis_off()
    for index, row in enumerate(probabilities.tolist()):
        best = max(range(len(row)), key=row.__getitem__)
        colour = _COLOURS[index % len(_COLOURS)]
        number = f"{index + 1}: " if count > 1 else ""
        if boxes:
            x0, y0, x1, y1 = boxes[index]
            left.add_patch(
                Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2)
            )
            left.text(
                x0, y0, f"{number}{categories[best]}", color="white", fontsize=9,
                verticalalignment="bottom", bbox={"facecolor": colour, "linewidth": 0, "pad": 2},
            )  # fmt: skip
        axes = figure.add_subplot(grid[index // columns, 1 + index % columns])
        bars = axes.bar(range(len(row)), row, color=colour)
        axes.bar_label(bars, [f"{value:.2f}" for value in row], fontsize=8)
        axes.set_xticks(range(len(row)), categories, rotation=45, ha="right")
        axes.set(ylim=(0, 1.08), ylabel="probability", title=f"{number}{categories[best]}")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
