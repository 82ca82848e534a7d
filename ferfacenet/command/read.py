"""The ``ferfacenet`` command's reading of photos, videos, cameras and streams."""

from __future__ import annotations

import argparse
import math
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from ferfacenet import DetectedFace, ImprovedVGG19, draw_faces, plot_faces, predict_video
from ferfacenet.command.inputs import Input, is_animated
from ferfacenet.command.report import Report, Tracks, complain, doubt
from ferfacenet.images import Photo, open_photo
from ferfacenet.photos import find_ahead, read_all
from ferfacenet.plots import plot_tracks, save_figure
from ferfacenet.reading import attempt, search_ahead
from ferfacenet.transforms import take_centre
from ferfacenet.video.frames import count_frames
from ferfacenet.video.writer import VideoWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_photos(
    model: ImprovedVGG19, photos: Sequence[Input], report: Report, options: argparse.Namespace
) -> bool:
    """Read photos, many at a time; returns whether all could be."""
    fine, files = True, [photo.source for photo in photos]
    if options.align == "auto":
        found = find_ahead(files, options.limits, model.mean.device)
    else:
        found = search_ahead(
            files, open_photo, lambda opened: [attempt(_take_centre, photo) for _, photo in opened]
        )
    # None: the bar is shown where stderr is a terminal.
    bar = tqdm(total=len(photos), unit="img", disable=None if len(photos) > 1 else True)
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
    fine, frame, tracks, plot = True, None, Tracks(), video.plot
    file = video.source if isinstance(video.source, Path) else None
    frames = predict_video(
        model, video.source, stream=isinstance(video.source, str), every=options.every,
        fps=options.fps, smooth=options.smooth, tta=options.tta, **asdict(options.limits),
    )  # fmt: skip
    try:
        with ExitStack() as stack:
            # Sequences and animations have no sound, and are not for FFmpeg.
            sound = file if file and file.is_file() and not is_animated(file) else None
            writer = plot and stack.enter_context(VideoWriter(plot, sound, options.every))
            total = count_frames(file) if file else None
            total = total and math.ceil(total / options.every)
            bar = stack.enter_context(tqdm(total=total, unit="frame", disable=None))
            for frame in stack.enter_context(closing(frames)):
                faces = doubt(frame.faces, options.min_confidence)
                for face in faces:
                    times, values = tracks.setdefault(face.track, (array("d"), array("d")))
                    times.append(frame.seconds)
                    values.extend(face.probabilities.values())
                report.frame(video.name, frame.index, frame.seconds, faces)
                if writer:
                    writer.write(draw_faces(frame.image, faces), frame.seconds)
                bar.update()
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
        if frame:
            longest = dict(sorted(tracks.items(), key=lambda track: -len(track[1][0])))
            report.video(video.name, longest)
            for course in video.written()[1:]:
                draw = partial(plot_tracks, longest, model.categories)
                fine &= _save_plot(course, draw)
    return fine


def _save_plot(plot: Path, draw: Callable[[], Figure]) -> bool:
    """Whether a figure could be drawn and written; if not, it is said why."""
    failure = attempt(lambda: save_figure(draw(), plot))
    if failure:
        complain(failure, plot)
    return not failure
