#!/usr/bin/env bash
# Guessed: a picture of which half is missing is marked corrupt, however many threads decode it.
# Found: by one thread it is, with threads that share the slices of a picture it is not. So whether a
# program that asks `frame.is_corrupt` notices a file that was cut off hangs on the machine's cores;
# with thread_type "AUTO", which PyAV's documentation recommends for speed, it is now so, now so.
# Seen with av 18.1.0 (FFmpeg 8.1), H.264 in AVI.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q av==18.1.0 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import io

import av
import numpy as np

random, data = np.random.default_rng(0), io.BytesIO()
with av.open(data, "w", format="avi") as file:
    stream = file.add_stream("libx264", 10, width=320, height=240)
    for _ in range(20):
        picture = random.integers(0, 255, (240, 320, 3), dtype=np.uint8)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    file.mux(stream.encode(None))
part = data.getvalue()[: len(data.getvalue()) * 6 // 10]
for kind, threads in (("NONE", 1), ("SLICE", 2), ("SLICE", 4)):
    with av.open(io.BytesIO(part)) as file:
        stream = file.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = kind, threads
        marks = [frame.is_corrupt for frame in file.decode(stream)]
    print(f"{kind}, {threads}: {len(marks)} frames, corrupt: {sum(marks)}")
END
diff "$place/said" - <<'END'
NONE, 1: 12 frames, corrupt: 1
SLICE, 2: 12 frames, corrupt: 0
SLICE, 4: 12 frames, corrupt: 0
END
