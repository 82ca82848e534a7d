#!/usr/bin/env bash
# Guessed: `dst_color_trc` and `dst_color_primaries` of PyAV's reformat tag a frame and leave its
# pixels alone, as their documentation says ("to tag on the output frame").
# Found: so it is with 17.1; with 18.0 the same call converts: HDR's reference white (203 nits, PQ)
# comes out as 146 of 255 from the one, and as nearly white from the other. For who wants to see HDR
# on an ordinary screen this is tone mapping for free; for who only tags, other pictures.
# Seen with av 17.1.0 (FFmpeg 8.0) and 18.0.0 (FFmpeg 8.1).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
for version in 17.1.0 18.0.0; do
    python3 -m venv "$place/$version"
    "$place/$version/bin/pip" install -q "av==$version" numpy==2.3.4
    "$place/$version/bin/python" - <<'END'
import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc

frame = av.VideoFrame(64, 48, "yuv420p10le")
for plane, value in zip(frame.planes, (64 + round(876 * 0.58), 512, 512)):
    plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
frame.colorspace, frame.color_range = 9, 1  # BT.2020, limited
frame.color_trc, frame.color_primaries = ColorTrc.SMPTE2084, ColorPrimaries.BT2020
reformat = av.video.reformatter.VideoReformatter().reformat
plain = reformat(frame, format="rgb24").to_ndarray()[24, 32]
tagged = reformat(
    frame, format="rgb24", dst_color_trc=ColorTrc.BT709, dst_color_primaries=ColorPrimaries.BT709
).to_ndarray()[24, 32]
print(av.__version__, "as it is", plain.tolist(), "tagged", tagged.tolist())
END
done | tee "$place/said"
diff "$place/said" - <<'END'
17.1.0 as it is [146, 146, 146] tagged [146, 146, 146]
18.0.0 as it is [146, 146, 146] tagged [253, 253, 253]
END
