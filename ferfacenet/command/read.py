"""The ``ferfacenet`` command's reading of photos, videos, cameras and streams."""

from __future__ import annotations

import argparse
import math
import sys
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from ferfacenet import DetectedFace, FaceTracker, ImprovedVGG19, draw_faces, plot_faces
from ferfacenet.command.inputs import Input, is_animated
from ferfacenet.command.report import Report, Tracks, complain, doubt
from ferfacenet.faces.types import Limits
from ferfacenet.images import Photo, open_photo
from ferfacenet.photos import find_ahead, read_all
from ferfacenet.plots import plot_tracks, save_figure
from ferfacenet.reading import attempt, search_ahead
from ferfacenet.transforms import take_centre
from ferfacenet.video.frames import count_frames, read_frames
from ferfacenet.video.writer import VideoWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_photos(
    model: ImprovedVGG19, photos: Sequence[Input], report: Report, options: argparse.Namespace
) -> bool:
    """Read photos, many at a time; returns whether all could be."""
    fine, files = True, [photo.source for photo in photos]
    if options.align == "auto":
        limits = Limits(options.min_size, options.min_score, options.max_faces)
        found = find_ahead(files, limits, model.mean.device)
    else:
        found = search_ahead(
            files, open_photo, lambda opened: [attempt(_take_centre, photo) for _, photo in opened]
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
            for plot in photo.written():
                fine &= _save_plot(plot, partial(plot_faces, photo.source, shown))
    return fine


def _take_centre(photo: Photo) -> list[DetectedFace]:
    """The centre square, as if it were a face."""
    height, width = photo.pixels.shape[-2:]
    side = min(height, width)
    x, y = float((width - side) // 2), float((height - side) // 2)
    box = x, y, x + side, y + side
    return [DetectedFace(box, torch.zeros(0, 2), math.nan, take_centre(photo.pixels))]


def read_video(
    model: ImprovedVGG19, video: Input, report: Report, options: argparse.Namespace
) -> bool:
    """Read a video to its end, or as far as that can be; returns whether it could."""
    tracker = FaceTracker(
        model, smooth=options.smooth, tta=options.tta,
        min_size=options.min_size, min_score=options.min_score, max_faces=options.max_faces,
    )  # fmt: skip
    fine, count, tracks, shown = True, 0, Tracks(), sys.stderr.isatty()
    plot, file = video.plot, video.source if isinstance(video.source, Path) else None
    try:
        with ExitStack() as stack:
            # Sequences and animations have no sound, and are not for FFmpeg.
            sound = file if file and file.is_file() and not is_animated(file) else None
            writer = plot and stack.enter_context(VideoWriter(plot, sound, options.every))
            total = count_frames(file) if file and shown else None
            total = total and -(-total // options.every)
            bar = stack.enter_context(tqdm(total=total, unit="frame", disable=not shown))
            streamed = isinstance(video.source, str)
            frames = read_frames(video.source, options.every, options.fps, stream=streamed)
            for index, seconds, image in stack.enter_context(closing(frames)):
                faces = doubt(tracker.update(image, seconds), options.min_confidence)
                for face in faces:
                    times, values = tracks.setdefault(face.track, (array("d"), array("d")))
                    times.append(seconds)
                    values.extend(face.probabilities.values())
                report.frame(video.name, index, seconds, faces)
                if writer:
                    writer.write(draw_faces(image, faces), seconds)
                bar.update()
                count += 1
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        fine = False
        complain(error, video.name)
    except KeyboardInterrupt:
        if file:
            raise
        complain("interrupted")  # as a camera or a stream ends
    finally:  # also after Ctrl-C, or where the file is torn
        if count:
            longest = dict(sorted(tracks.items(), key=lambda track: -len(track[1][0])))
            report.video(video.name, longest)
            for course in video.written()[1:]:
                draw = partial(plot_tracks, longest, model.categories or ())
                fine &= _save_plot(course, draw)
    return fine


def _save_plot(plot: Path, draw: Callable[[], Figure]) -> bool:
    """Whether a figure could be drawn and written; if not, it is said why."""
    try:
        save_figure(draw(), plot)
    except (ValueError, OSError) as error:
        complain(error, plot)
        return False
    return True
