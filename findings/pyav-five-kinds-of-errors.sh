#!/usr/bin/env bash
# Guessed: whatever is the matter with a file, PyAV raises an av.FFmpegError, and nothing else needs to
# be caught; reading a file a second time gives no frames.
# Found: FFmpegError covers what FFmpeg says: for bytes that are no video it is a ValueError too, for
# files that are not there an OSError, for an odd width in H.264 neither. What PyAV finds itself is no
# FFmpegError: a sound file has IndexError where its video is asked for (streams.best("video") is None
# instead), a container that was closed AssertionError, an encoder that is not built in
# UnknownCodecError, a codec that the container does not take ValueError. Reading on past the end is
# EOFError, not an empty loop.
# Seen with av 18.1.0 (FFmpeg 8.1); IndexError for sound reached others as "tuple index out of range"
# (issue 407 of SYSTRAN/faster-whisper).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q av==18.1.0 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import io
import wave
from collections.abc import Callable

import av
import numpy as np


def write(container: str, codec: str, width: int) -> bytes:
    data = io.BytesIO()
    with av.open(data, "w", format=container) as file:
        stream = file.add_stream(codec, 25, width=width, height=48)
        picture = np.zeros((48, width, 3), np.uint8)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return data.getvalue()


def told(what: str, call: Callable[[], object]) -> None:
    try:
        print(f"{what}: {call()}")
    except Exception as error:
        bases = [b for b in (av.FFmpegError, ValueError, OSError, LookupError) if isinstance(error, b)]
        print(f"{what}: {type(error).__name__}, is", " and ".join(b.__name__ for b in bases) or "neither")


def opened(data: bytes) -> av.container.InputContainer:
    return av.open(io.BytesIO(data))


sound = io.BytesIO()
with wave.open(sound, "wb") as file:
    file.setparams((1, 2, 8000, 0, "NONE", ""))
    file.writeframes(bytes(1600))
video = write("mp4", "libx264", 48)
read, closed = opened(video), opened(video)
list(read.decode(video=0))
closed.close()
told("no video's bytes", lambda: opened(bytes(1000)))
told("no such file", lambda: av.open("missing.mp4"))
told("a sound's video", lambda: list(opened(sound.getvalue()).decode(video=0)))
told("a sound's best video", lambda: opened(sound.getvalue()).streams.best("video"))
told("read a second time", lambda: list(read.decode(video=0)))
told("read after closing", lambda: list(closed.decode(video=0)))
told("an encoder that is not there", lambda: write("mp4", "libtheora", 48))
told("H.264 in WebM", lambda: write("webm", "libx264", 48))
told("H.264, 47 pixels wide", lambda: write("mp4", "libx264", 47))
END
diff "$place/said" - <<'END'
no video's bytes: InvalidDataError, is FFmpegError and ValueError
no such file: FileNotFoundError, is FFmpegError and OSError
a sound's video: IndexError, is LookupError
a sound's best video: None
read a second time: EOFError, is FFmpegError
read after closing: AssertionError, is neither
an encoder that is not there: UnknownCodecError, is ValueError
H.264 in WebM: ValueError, is ValueError
H.264, 47 pixels wide: ExternalError, is FFmpegError
END
