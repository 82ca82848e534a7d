#!/usr/bin/env bash
# Guessed: estimateAffinePartial2D lays the five landmarks of a slightly turned head on a template as
# least squares do, within a pixel of 112; that it drops outliers can only help.
# Found: what a head's turn does to a nose is an outlier to its RANSAC, which allows 3 pixels of the
# template. At 15 degrees the nose is dropped, from 30 on all but one eye and the opposite corner of
# the mouth, through which the face is then laid: an upright head comes out tilted by 4 and by 9
# degrees. The pixels are the template's, so one of 48 still keeps four landmarks where one of 112
# keeps two, and one of 448 keeps two at 15 degrees. method=LMEDS keeps all five and agrees with
# scikit-image's least squares.
# Seen with opencv-python-headless 5.0.0.93 and 4.14.0.94 alike, and scikit-image 0.26.0.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place"
"$place/bin/pip" install -q opencv-python-headless==5.0.0.93 scikit-image==0.26.0 numpy==2.3.4
"$place/bin/python" - <<'END' | tee "$place/said"
import cv2
import numpy as np
from skimage.transform import SimilarityTransform

# eyes, nose and corners of the mouth in a face 112 wide, and how far they stand out towards us
flat = np.array([(38, 52), (74, 52), (56, 72), (42, 92), (70, 92)], float)
depth = np.array([0, 0, 25, 5, 5])
for turn in (15, 30, 45):
    angle = np.radians(turn)
    x, y = (flat - flat.mean(0)).T
    seen = 200 + 2 * np.column_stack([x * np.cos(angle) + depth * np.sin(angle), y])  # upright
    for side in (48, 112, 448):
        template = flat * side / 112
        squares = SimilarityTransform.from_estimate(seen, template)
        said = []
        for name, method in (("RANSAC", cv2.RANSAC), ("LMEDS", cv2.LMEDS)):
            matrix, kept = cv2.estimateAffinePartial2D(seen, template, method=method)
            tilt = np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]) - squares.rotation)
            moved = matrix @ [*seen.mean(0), 1] - squares(seen.mean(0))[0]
            share = 100 * np.hypot(*moved) / side
            said.append(f"{name} keeps {kept.sum()}, tilt {tilt + 0.01:.0f}, shift {share:.0f} %")
        print(f"turned by {turn}, template {side}: " + "; ".join(said))
END
diff "$place/said" - <<'END'
turned by 15, template 48: RANSAC keeps 5, tilt 0, shift 0 %; LMEDS keeps 5, tilt 0, shift 0 %
turned by 15, template 112: RANSAC keeps 4, tilt 0, shift 1 %; LMEDS keeps 5, tilt 0, shift 0 %
turned by 15, template 448: RANSAC keeps 2, tilt -1, shift 1 %; LMEDS keeps 5, tilt 0, shift 0 %
turned by 30, template 48: RANSAC keeps 4, tilt 0, shift 2 %; LMEDS keeps 5, tilt 0, shift 0 %
turned by 30, template 112: RANSAC keeps 2, tilt -4, shift 2 %; LMEDS keeps 5, tilt 0, shift 0 %
turned by 30, template 448: RANSAC keeps 2, tilt -4, shift 2 %; LMEDS keeps 5, tilt 0, shift 0 %
turned by 45, template 48: RANSAC keeps 2, tilt -9, shift 3 %; LMEDS keeps 5, tilt 0, shift 0 %
turned by 45, template 112: RANSAC keeps 2, tilt -9, shift 3 %; LMEDS keeps 5, tilt 0, shift 0 %
turned by 45, template 448: RANSAC keeps 2, tilt -9, shift 3 %; LMEDS keeps 5, tilt 0, shift 0 %
END
