#!/usr/bin/env bash
# Guessed: of a face that reaches over the edge of a picture, as on portraits that are cut tightly,
# `facial-emotion-recognition` reads what is in the picture, or says that it cannot.
# Found: its detector (facenet-pytorch's MTCNN) gives such a box negative corners, and the package
# takes these for indices, which count from the other side: it reads a strip at the picture's lower
# right, or nothing at all, and draws a label for that in the face's place. A smile is "Angry" when
# the hair is cut off, for a picture of no rows.
# Seen with facial-emotion-recognition 0.3.4, facenet-pytorch 2.6.0, PyTorch 2.2.2.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q facenet-pytorch==2.6.0 opencv-python-headless==4.11.0.86 \
    scikit-image==0.26.0 setuptools==80.9.0
"$place/venv/bin/pip" install -q --no-deps facial-emotion-recognition==0.3.4
"$place/venv/bin/python" - 2> "$place/log" <<'END' | tee "$place/said"
import contextlib
import io
from functools import partial

import cv2
import numpy as np
import torch
from skimage.data import astronaut

torch.load = partial(torch.load, map_location="cpu")  # without it device="cpu" needs a GPU
from facial_emotion_recognition import EmotionRecognition

with contextlib.redirect_stdout(io.StringIO()):
    package = EmotionRecognition(device="cpu")
read = package._predict
cuts = {"whole": (0, 300, 0, 300), "hair cut off": (80, 300, 120, 340), "tight": (80, 170, 180, 270)}
for name, (top, bottom, left, right) in cuts.items():
    picture = cv2.resize(astronaut()[top:bottom, left:right, ::-1], None, fx=2, fy=2)
    (box,), _ = package.mtcnn.detect(picture)

    def listen(face, name=name, box=box):
        label = read(face)
        corner = ["inside" if value >= 0 else "outside" for value in box[:2]]
        print(f"{name}: left {corner[0]}, top {corner[1]}, reads {face.shape}, says {label}")
        return label

    package._predict = listen
    package.recognise_emotion(np.ascontiguousarray(picture))
END
diff "$place/said" - <<'END'
whole: left inside, top inside, reads (225, 174), says Happy
hair cut off: left inside, top outside, reads (0, 186), says Angry
tight: left outside, top outside, reads (79, 27), says Sad
END
