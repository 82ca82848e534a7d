#!/usr/bin/env bash
# Guessed: a key point that goes through torchvision's v2 transforms beside its picture stays on the
# spot that it marks, to a tenth of a pixel, whatever the transform.
# Found: flips take a point's numbers for middles of pixels, turns and sizes for distances from the
# picture's edge; the documentation names neither. So no way of counting suits all: with middles, half
# a turn leaves an eye one pixel off in both directions, and 48 pixels made 224 move it by 1.8; with
# distances, a flip is off by one. Boxes count from the edge throughout.
# Seen with torchvision 0.29.1 and torch 2.14.1, where _geometry.py has horizontal_flip_keypoints
# subtract from the width less one, and the affine kernels turn about half the width.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import torch
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, Image, KeyPoints

side, x, y = 48, 14.0, 18.0
j, i = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
picture = Image(torch.exp(-((i - x) ** 2 + (j - y) ** 2) / 8)[None])  # a soft dot, its middle at x, y
size = {"canvas_size": (side, side)}
middles = KeyPoints([[x, y]], **size)  # 0 is the middle of the first pixel
edges = KeyPoints([[x + 0.5, y + 0.5]], **size)  # 0 is the picture's edge
box = BoundingBoxes([[x - 2.5, y - 2.5, x + 3.5, y + 3.5]], format="XYXY", **size)
transforms = {
    "flip left and right": F.horizontal_flip,
    "flip top and bottom": F.vertical_flip,
    "a quarter turn": lambda it: F.rotate(it, 90),
    "half a turn": lambda it: F.rotate(it, 180),
    "48 to 224 pixels": lambda it: F.resize(it, [224, 224]),
}
for name, transform in transforms.items():
    dot = transform(picture)[0]
    j, i = torch.meshgrid(*map(torch.arange, dot.shape), indexing="ij")
    middle = torch.stack([(dot * i).sum(), (dot * j).sum()]) / dot.sum()
    off = {
        "middles": transform(middles)[0] - middle,
        "edges": transform(edges)[0] - 0.5 - middle,
        "box": transform(box)[0].reshape(2, 2).mean(0) - 0.5 - middle,
    }
    said = (f"{n} " + " ".join(f"{round(v, 1) + 0.0:+.1f}" for v in o.tolist()) for n, o in off.items())
    print(f"{name}: off by", ", ".join(said))
END
diff "$place/said" - <<'END'
flip left and right: off by middles +0.0 +0.0, edges -1.0 +0.0, box +0.0 +0.0
flip top and bottom: off by middles +0.0 +0.0, edges +0.0 -1.0, box +0.0 +0.0
a quarter turn: off by middles +0.0 +1.0, edges +0.0 +0.0, box +0.0 +0.0
half a turn: off by middles +1.0 +1.0, edges +0.0 +0.0, box +0.0 +0.0
48 to 224 pixels: off by middles -1.8 -1.8, edges +0.0 +0.0, box +0.0 +0.0
END
