"""The ``ferfacenet`` command on photos."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from ferfacenet import DetectedFace, ImprovedVGG19, plot_faces
from ferfacenet.command.inputs import Input, save_plot
from ferfacenet.command.report import Report, complain, doubt
from ferfacenet.faces import enough_pixels, find_faces
from ferfacenet.faces.types import Limits
from ferfacenet.images import decode, open_photo
from ferfacenet.inference import read_faces
from ferfacenet.transforms import take_centre

# Images whose faces are read together, and threads that look for them.
_CHUNK, _THREADS = 16, min(4, os.cpu_count() or 1)


def read_photos(
    model: ImprovedVGG19, photos: Sequence[Input], plots: Mapping[Input, Path],
    report: Report, options: argparse.Namespace,
) -> bool:  # fmt: skip
    """Read photos, many at a time; returns whether all could be."""
    fine, left = True, iter(photos)
    many = len(photos) > 1 and sys.stderr.isatty()
    bar = tqdm(total=len(photos), unit="img", disable=not many)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(left, _CHUNK)):
            found = []
            searches = [pool.submit(_find, Path(p.name), model, options) for p in chunk]
            for photo, search in zip(chunk, searches, strict=True):
                try:
                    found.append((photo, search.result()))
                except (ValueError, OSError) as error:
                    fine = False
                    complain(error, photo.name)
                bar.update()
            unread = [face for _, seen in found for face in seen]
            read = iter(read_faces(model, unread, options.tta))
            for photo, seen in found:
                same = doubt(islice(read, len(seen)), options.min_confidence)
                report.photo(photo.name, same)
                if plot := plots.get(photo):
                    fine &= save_plot(plot, partial(plot_faces, photo.name, same))
    return fine


def _find(path: Path, model: ImprovedVGG19, options: argparse.Namespace) -> list[DetectedFace]:
    if options.align == "auto":
        limits = Limits(options.min_size, options.min_score, options.max_faces)
        photo = open_photo(path, enough_pixels(limits))
        (faces,) = find_faces([photo], limits, model.mean.device)
        return faces
    pixels = decode(path)
    height, width = pixels.shape[-2:]
    side = min(height, width)
    x, y = float((width - side) // 2), float((height - side) // 2)
    box = x, y, x + side, y + side
    return [DetectedFace(box, torch.zeros(0, 2), math.nan, take_centre(pixels))]
