#!/usr/bin/env bash
# Guessed: of a video that was cut off in the middle (a download that broke off, a full disk) the last
# picture is marked corrupt or an error is raised, in MKV as in any other container.
# Found: the container decides. MKV and WebM end as if they were whole wherever the cut lies: no mark,
# no error, the picture that was cut through left out, and the length that of the whole file, so that
# the last picture's time is the one sign. MP4 raises InvalidDataError, in the loop after the pictures
# before the cut, or at once where its index lies at the end; AVI marks a picture or raises, FLV
# raises; those three miss only a cut that lies nearly between two pictures. MPEG-TS marks a picture
# at some cuts and says nothing at others.
# Seen with av 18.1.0 (FFmpeg 8.1), one thread.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q av==18.1.0 numpy==2.3.4
"$place/bin/python" - "$place" <<'END' | tee "$place/said"
import io
import sys
from pathlib import Path

import av
import numpy as np

picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


def whole(container: str, codec: str, **options: str) -> bytes:
    path = Path(sys.argv[1]) / "video"
    with av.open(str(path), "w", format=container, options=options) as file:
        stream = file.add_stream(codec, 25, width=64, height=48)
        stream.thread_count = 1
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, i, 1), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path.read_bytes()


def read(data: bytes) -> tuple[str, bool]:
    """How reading ends, and whether the length is still that of the whole."""
    marks, length = 0, None
    try:
        with av.open(io.BytesIO(data)) as file:
            length = file.duration
            file.streams.video[0].thread_count = 1
            for frame in file.decode(video=0):
                marks += frame.is_corrupt
    except av.FFmpegError as error:
        return type(error).__name__, length is not None
    return "a mark" if marks else "no sign", (length or 0) > 1.9e6


files = {
    "MKV": whole("matroska", "libx264"),
    "WebM": whole("webm", "libvpx-vp9"),
    "MP4, index first": whole("mp4", "libx264", movflags="faststart"),
    "MP4, fragments": whole("mp4", "libx264", movflags="frag_keyframe+empty_moov"),
    "MP4, index last": whole("mp4", "libx264"),
    "MPEG-TS": whole("mpegts", "libx264"),
    "AVI": whole("avi", "libx264"),
    "FLV": whole("flv", "libx264"),
}
for name, data in files.items():
    ends = [read(data[: len(data) * part // 100]) for part in range(40, 80)]
    silent = sum(sign == "no sign" for sign, _ in ends) / len(ends)
    often = "always" if silent == 1 else "seldom or never" if silent < 0.4 else "often"
    said = ", ".join(sorted({sign for sign, _ in ends} - {"no sign"})) or "none"
    print(f"{name}: no sign {often}, signs: {said}", end="")
    print("; the length of the whole" if all(length for _, length in ends) else "")
END
diff "$place/said" - <<'END'
MKV: no sign always, signs: none; the length of the whole
WebM: no sign always, signs: none; the length of the whole
MP4, index first: no sign seldom or never, signs: InvalidDataError; the length of the whole
MP4, fragments: no sign seldom or never, signs: InvalidDataError; the length of the whole
MP4, index last: no sign seldom or never, signs: InvalidDataError
MPEG-TS: no sign often, signs: a mark
AVI: no sign seldom or never, signs: InvalidDataError, a mark
FLV: no sign seldom or never, signs: InvalidDataError; the length of the whole
END
