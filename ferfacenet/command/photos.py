"""The ``ferfacenet`` command on photos."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ferfacenet import DetectedFace, ImprovedVGG19, plot_faces
from ferfacenet.command.inputs import Input, save_plot
from ferfacenet.command.report import Report, complain, doubt
from ferfacenet.faces.types import Limits
from ferfacenet.images import Photo, open_photo
from ferfacenet.photos import find_ahead, read_all
from ferfacenet.reading import attempt, search_ahead
from ferfacenet.transforms import take_centre


def read_photos(
    model: ImprovedVGG19, photos: Sequence[Input], plots: Mapping[Input, Path],
    report: Report, options: argparse.Namespace,
) -> bool:  # fmt: skip
    """Read photos, many at a time; returns whether all could be."""
    fine, paths = True, [Path(photo.name) for photo in photos]
    if options.align == "auto":
        limits = Limits(options.min_size, options.min_score, options.max_faces)
        found = find_ahead(paths, limits, model.mean.device)
    else:
        found = search_ahead(
            paths, open_photo, lambda opened: [attempt(_take_centre, photo) for _, photo in opened]
        )
    many = len(photos) > 1 and sys.stderr.isatty()
    bar = tqdm(total=len(photos), unit="img", disable=not many)
    with bar, closing(read_all(model, found, options.tta)) as read:
        for photo, faces in zip(photos, read, strict=True):
            bar.update()
            if isinstance(faces, Exception):
                fine = False
                complain(faces, photo.name)
                continue
            shown = doubt(faces, options.min_confidence)
            report.photo(photo.name, shown)
            if plot := plots.get(photo):
                fine &= save_plot(plot, partial(plot_faces, photo.name, shown))
    return fine


def _take_centre(photo: Photo) -> list[DetectedFace]:
    """The centre square, as if it were a face."""
    height, width = photo.pixels.shape[-2:]
    side = min(height, width)
    x, y = float((width - side) // 2), float((height - side) // 2)
    box = x, y, x + side, y + side
    return [DetectedFace(box, torch.zeros(0, 2), math.nan, take_centre(photo.pixels))]
