"""The foremost face of a photo, without PyTorch: by the two ONNX files of tools/export_onnx.py.

  pip install numpy pillow onnxruntime
  python onnx_face.py ferfacenet.onnx yunet.onnx photo.jpg

Pixels go in as they are, in [0, 1]; the categories are in the first file's metadata.
"""

import json
import math
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network, detector = (onnxruntime.InferenceSession(path) for path in sys.argv[1:3])
photo = ImageOps.exif_transpose(Image.open(sys.argv[3])).convert("RGB")


def see(picture, least):
    """What the detector sees with so high a score, (n, 15): two corners of a box, five landmarks,
    and the score, the foremost last."""
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
    pixels = np.pad(pixels, [(0, 0), *((0, -length % 32) for length in pixels.shape[1:])])
    (rows,) = detector.run(None, {"pictures": pixels[None]})[0]
    rows = rows[rows[:, 14] >= least]
    area = (rows[:, 2:4] - rows[:, :2]).prod(1)
    return rows[(rows[:, 14] * area**0.5).argsort()]


def measure(row):
    """The middle and side of a face's box, and the degrees that its eyes are turned from level."""
    x, y = row[6:8] - row[4:6]
    side = math.sqrt((row[2:4] - row[:2]).prod())
    return (row[:2] + row[2:4]) / 2, side, math.degrees(math.atan2(y, x))


def cut(middle, roll, side, size):
    """A square of the photo, turned upright, and what takes its coordinates to the photo's."""
    turn = math.radians(roll)
    axes = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    fine = max(1, round(side / size))  # drawn finer and then averaged, or small views would alias
    axes *= side / size
    corner = middle - axes.sum(1) * size / 2
    matrix = np.hstack([axes / fine, corner[:, None]]).ravel()
    square = (size * fine, size * fine)
    view = photo.transform(square, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return view.reduce(fine), lambda points: points @ axes.T + corner


# The whole photo at 640 pixels, then twice from close by: upright, and tilted to both sides.
scale = max(photo.size) / 640
found = see(photo.resize([max(1, round(length / scale)) for length in photo.size]), 0.6)
if not len(found):
    sys.exit(f"{sys.argv[3]}: no face")
middle, side, roll = measure(found[-1][:14] * scale)
for tilts in ([0], [-8, 8]):
    looks = []
    for tilt in tilts:
        view, to_photo = cut(middle, roll + tilt, side * 256 / 180, 256)
        for row in see(view, 0.4)[-1:]:
            place, length, turned = measure(row)
            looks.append([*to_photo(place), length * side / 180, roll + tilt + turned])
    if looks:
        x, y, side, roll = np.mean(looks, 0)
        middle = np.array([x, y])

# The face as FER2013 frames its own, in gray: the box is 95 % of the frame, a bit above its middle.
side, turn = side / 0.95, math.radians(roll)
middle = middle + 0.01 * side * np.array([-math.sin(turn), math.cos(turn)])
face, _ = cut(middle, roll, side, max(48, min(480, round(side))))
face = face.convert("F").resize((48, 48), Image.Resampling.BICUBIC)  # which oversteps 0 and 255
(row,) = network.run(None, {"faces": np.clip(face, 0, 255)[None, None] / np.float32(255)})[0]
names = json.loads(network.get_modelmeta().custom_metadata_map["categories"])
print(json.dumps(dict(zip(names, row.tolist(), strict=True))))
