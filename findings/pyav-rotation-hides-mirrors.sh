#!/usr/bin/env bash
# Guessed: PyAV's `frame.rotation` is 0 for a video that is only to be mirrored, as selfie cameras
# write it, so that who turns by it shows a mirror image at worst.
# Found: a mirror from left to right is reported as half a turn, one from top to bottom as none, and
# both diagonal ones as quarter turns; so who turns by it shows a selfie on its head. The whole of it
# is in side_data["DISPLAYMATRIX"].
# Seen with av 18.1.0 (FFmpeg 8.1), MP4.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q av==18.1.0 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import io

import av
import numpy as np

kinds = {
    "upright": (1, 0, 0, 1), "left and right swapped": (-1, 0, 0, 1),
    "half a turn": (-1, 0, 0, -1), "top and bottom swapped": (1, 0, 0, -1),
    "mirrored about the diagonal": (0, 1, 1, 0), "about the other": (0, -1, -1, 0),
}
for name, (a, b, c, d) in kinds.items():
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as file:
        stream = file.add_stream("libx264", 10, width=64, height=48)
        stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with av.open(io.BytesIO(data.getvalue())) as file:
        frame = next(file.decode(video=0))
        matrix = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)[[0, 1, 3, 4]] // 65536 \
            if "DISPLAYMATRIX" in frame.side_data else None
    print(f"{name}: rotation {frame.rotation}, matrix {matrix}")
END
diff "$place/said" - <<'END'
upright: rotation 0, matrix None
left and right swapped: rotation -180, matrix [-1  0  0  1]
half a turn: rotation -180, matrix [-1  0  0 -1]
top and bottom swapped: rotation 0, matrix [ 1  0  0 -1]
mirrored about the diagonal: rotation -90, matrix [0 1 1 0]
about the other: rotation 90, matrix [ 0 -1 -1  0]
END
