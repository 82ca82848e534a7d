#!/usr/bin/env bash
# Guessed: `fer` reads what is in the box of a face, so that a photo has one reading at any size.
# Found: it widens each box by 10 pixels to every side, whatever the box's size. A face 40 pixels high
# is then 44 % of what the network sees, one of 300 pixels 88 %, and a crop of 48x48 that is given as
# the face is half of it, inside plain gray. One smile is "sad" up to 60 pixels and "happy" from 150 on;
# with `offsets=(0, 0)` it is happy, by 0.9, at every size.
# Seen with fer 25.10.3, TensorFlow 2.21.0, on a photo that @vladmandic/face-api 1.7.15 brings.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --no-deps fer==25.10.3 # or it wants PyTorch as well
"$place/venv/bin/pip" install -q tensorflow==2.21.0 opencv-python-headless==4.14.0.94 pillow==12.3.0 \
    requests==2.34.2 setuptools==80.9.0
(cd "$place" && npm pack --silent @vladmandic/face-api@1.7.15 > packed && tar xzf "$(cat packed)")
TF_CPP_MIN_LOG_LEVEL=3 "$place/venv/bin/python" - "$place/package/demo/sample4.jpg" 2> "$place/log" \
    <<'END' | tee "$place/said"
import sys

import cv2
from fer.fer import FER

photo = cv2.imread(sys.argv[1])
for offsets in ((10, 10), (0, 0)):
    fer = FER(offsets=offsets)
    for size in (40, 50, 60, 150, 200, 300):
        scale = size / 241
        small = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        box = [round(scale * value) for value in (928, 193, 241, 241)]  # as its detector finds it
        (face,) = fer.detect_emotions(small, [box])
        name = max(face["emotions"], key=face["emotions"].get)
        print(f"offsets {offsets}, a face {size} pixels high: {name}")
END
diff "$place/said" - <<'END'
offsets (10, 10), a face 40 pixels high: sad
offsets (10, 10), a face 50 pixels high: sad
offsets (10, 10), a face 60 pixels high: sad
offsets (10, 10), a face 150 pixels high: happy
offsets (10, 10), a face 200 pixels high: happy
offsets (10, 10), a face 300 pixels high: happy
offsets (0, 0), a face 40 pixels high: happy
offsets (0, 0), a face 50 pixels high: happy
offsets (0, 0), a face 60 pixels high: happy
offsets (0, 0), a face 150 pixels high: happy
offsets (0, 0), a face 200 pixels high: happy
offsets (0, 0), a face 300 pixels high: happy
END
