#!/usr/bin/env bash
# Guessed: OrtValue.ortvalue_from_numpy on a CPU shares the array's memory, as its documentation says
# ("a copy ... only if the device is NOT cpu"), so that the buffer is filled anew for each frame.
# Found: for an array whose memory is not in one piece it makes a copy without a word, and every later
# frame is read as the first: a crop of a larger buffer, a plane of each picture of a batch, RGB pixels
# turned to planes. One picture's plane, whole rows, or one channel turned to planes are shared.
# Source: the docstring; nothing known on the copy.
# Seen with onnxruntime 1.32.0 and numpy 2.3.4.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q onnxruntime==1.32.0 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import numpy as np
from onnxruntime import OrtValue


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


views = {
    "a whole buffer": zeros(4, 1, 48, 48),
    "rows 2 to 46 of a picture": zeros(1, 1, 48, 48)[:, :, 2:46],
    "the middle 44 x 44 of it": zeros(1, 1, 48, 48)[:, :, 2:46, 2:46],
    "the first plane of one picture": zeros(1, 3, 48, 48)[:, :1],
    "the first plane of four": zeros(4, 3, 48, 48)[:, :1],
    "grey pixels turned to planes": zeros(1, 48, 48, 1).transpose(0, 3, 1, 2),
    "RGB pixels turned to planes": zeros(1, 48, 48, 3).transpose(0, 3, 1, 2),
}
for name, view in views.items():
    value = OrtValue.ortvalue_from_numpy(view)
    view[:] = 1
    print(f"{name}: {'shared' if value.numpy().all() else 'copied, the new frame is unseen'}")
END
diff "$place/said" - <<'END'
a whole buffer: shared
rows 2 to 46 of a picture: shared
the middle 44 x 44 of it: copied, the new frame is unseen
the first plane of one picture: shared
the first plane of four: copied, the new frame is unseen
grey pixels turned to planes: shared
RGB pixels turned to planes: copied, the new frame is unseen
END
