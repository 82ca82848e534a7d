"""The ``ferfacenet`` command on videos, cameras and streams."""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ferfacenet import FaceTracker, ImprovedVGG19, draw_faces
from ferfacenet.command.inputs import Input, course_path, is_animated, save_plot
from ferfacenet.command.report import Report, Tracks, complain, doubt
from ferfacenet.plots import plot_tracks
from ferfacenet.video.frames import count_frames, read_frames
from ferfacenet.video.writer import VideoWriter


def read_video(
    model: ImprovedVGG19, video: Input, plot: Path | None, report: Report,
    options: argparse.Namespace,
) -> bool:  # fmt: skip
    """Read a video to its end, or as far as that can be; returns whether it could."""
    tracker = FaceTracker(
        model, smooth=options.smooth, tta=options.tta,
        min_size=options.min_size, min_score=options.min_score, max_faces=options.max_faces,
    )  # fmt: skip
    fine, count, tracks = True, 0, Tracks()
    file = Path(video.name) if options.files else None
    source = file or (options.camera if options.stream is None else options.stream)
    shown, begin = sys.stderr.isatty(), time.monotonic()
    try:
        with ExitStack() as stack:
            # Sequences and animations have no sound, and are not for FFmpeg.
            sound = file if file and file.is_file() and not is_animated(file) else None
            writer = plot and stack.enter_context(VideoWriter(plot, sound, options.every))
            total = count_frames(file) if file and shown else None
            total = total and -(-total // options.every)
            bar = stack.enter_context(tqdm(total=total, unit="frame", disable=not shown))
            streamed = options.stream is not None
            frames = read_frames(source, options.every, options.fps, stream=streamed)
            for index, seconds, image in stack.enter_context(closing(frames)):
                faces = doubt(tracker.update(image, seconds), options.min_confidence)
                for face in faces:
                    times, values = tracks.setdefault(face.track, (array("d"), array("d")))
                    times.append(seconds)
                    values.extend(face.probabilities.values())
                report.frame(video.name, index, seconds, faces)
                if writer:
                    writer.write(draw_faces(image, faces), seconds)
                rate = seconds / (time.monotonic() - begin)
                bar.set_postfix_str(f"{rate:.2f}x real time", refresh=False)
                bar.update()
                count += 1
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        fine = False
        complain(error, video.name)
    finally:  # also after Ctrl-C, or where the file is torn
        if count:
            longest = dict(sorted(tracks.items(), key=lambda track: -len(track[1][0])))
            report.video(video.name, longest)
            if plot:
                draw = partial(plot_tracks, longest, model.categories or ())
                fine &= save_plot(course_path(plot), draw)
    return fine
