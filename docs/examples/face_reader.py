"""Finds and reads every face of a photo without PyTorch.

  pip install numpy "pillow>=10.1" "onnxruntime>=1.19"
  python face_reader.py photo.jpg ...

prints a line of JSON for each photo, as `ferfacenet --json` does. In a program:

  from face_reader import FaceReader
  for face in FaceReader().predict_faces("photo.jpg"):
      print(face["box"], face["label"], face["confidence"], face["probabilities"])

Needs Python 3.10 and the files that tools/export_onnx.py writes beside it. It does what ferfacenet
does in `predict_faces`, with its numbers, which stand in config.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

Array: TypeAlias = npt.NDArray[Any]

FOLDER = Path(__file__).parent
#: The numbers of the search; ferfacenet/faces/search.py and framing.py say what each is for.
NUMBERS = SimpleNamespace(**json.loads((FOLDER / "config.json").read_text())["search"])
#: By EXIF's orientation.
TURNS = dict(zip((2, 4, 8, 3, 6, 5, 7), (Image.Transpose(way) for way in range(7)), strict=True))
UNTURNED = np.eye(2, 3)


def load(photo: Any) -> Any:
    """What a file holds; a picture or an array as it is."""
    if isinstance(photo, (str, Path)):
        return Path(photo).read_bytes()
    photo = photo.read() if hasattr(photo, "read") else photo
    return bytes(photo) if isinstance(photo, (bytearray, memoryview)) else photo


def decode(photo: bytes | Image.Image | Array, enough: float = math.inf) -> tuple[Array, float]:
    """(height, width, 3) uint8 RGB, turned as EXIF says, what is transparent on white; and by what
    its sides are divided: a large JPEG is decoded reduced, if ``enough`` pixels are left."""
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.shape[2:] != (3,) or not photo.size:
            raise ValueError(f"an array must be (h, w, 3) uint8, not {photo.shape} {photo.dtype}")
        return photo, 1.0
    try:
        scale, turn_back = 1.0, None
        if isinstance(photo, bytes):
            Image.init()
            formats = [kind for kind in NUMBERS.formats if kind in Image.OPEN]
            photo = Image.open(BytesIO(photo), formats=formats)
            width, share = photo.width, math.sqrt(enough / (photo.width * photo.height))
            if share < 1 and photo.format in ("JPEG", "MPO"):
                photo.draft(None, (math.ceil(width * share), math.ceil(photo.height * share)))
            scale = width / photo.width
        if photo.width * photo.height > NUMBERS.max_pixels:
            raise ValueError(f"more than {NUMBERS.max_pixels} pixels; shrink it")
        if photo.mode[0] in "IF":
            raise ValueError(f"its mode is {photo.mode}; save it with 8 bits")
        with suppress(Exception):  # a broken EXIF block leaves the picture readable
            turn_back = TURNS[photo.getexif()[0x0112]]
        photo = photo if turn_back is None else photo.transpose(turn_back)
        if photo.has_transparency_data:
            clear = photo.convert("LA" if photo.mode == "La" else photo.mode).convert("RGBA")
            photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), clear)
        return np.asarray(photo.convert("RGB")), scale
    except Exception as error:  # decoders raise nearly anything on broken data
        raise ValueError(f"cannot be read as an image ({error})") from error


@dataclass(frozen=True, eq=False)
class Pose:
    """How a face stands: landmarks (5, 2), the middle (2,) and the side of its upright box, and
    its box in the picture as it is (4,), in pixels of the picture; the score."""

    points: Array
    middle: Array
    side: float
    box: Array
    score: float

    @classmethod
    def read(cls, row: Array, matrix: Array = UNTURNED) -> Pose:
        """What the detector says of a face in a view with that (2, 3) matrix."""
        points = np.concatenate([[(row[:2] + row[2:4]) / 2], row[4:14].reshape(5, 2)])
        points = points @ matrix[:, :2].T + matrix[:, 2]
        area = float((row[2:4] - row[:2]).prod() * np.linalg.det(matrix[:, :2]))
        return cls(points[1:], points[0], math.sqrt(area), row[:4], float(row[14]))

    @property
    def roll(self) -> float:
        """Degrees that the line of the eyes is turned clockwise from level."""
        x, y = self.points[1] - self.points[0]
        return math.degrees(math.atan2(y, x))

    def scaled(self, scale: float) -> Pose:
        """In pixels of which there are ``scale`` in one of these."""
        points, middle, box = self.points * scale, self.middle * scale, self.box * scale
        return Pose(points, middle, self.side * scale, box, self.score)

    def turned(self, degrees: float) -> Pose:
        """With landmarks that are turned clockwise about the middle."""
        return replace(self, points=(self.points - self.middle) @ turn(degrees).T + self.middle)

    def upright(self, followed: float) -> Pose:
        """Turned to where the line from the eyes to the mouth would be if it had followed the
        head's roll, beyond quarter turns, not by that share but wholly."""
        x, y = self.points[3:].mean(0) - self.points[:2].mean(0)
        lean = math.degrees(math.atan2(-x, y))
        beyond = math.remainder(lean, 90) / followed
        roll = 90 * round(lean / 90) + max(-45.0, min(45.0, beyond))
        return self.turned(roll - self.roll)

    def seen_as(self, looks: Sequence[Pose], followed: float) -> Pose:
        """The mean of several looks at this face whose eyes follow its roll by that share."""
        points, middle = (np.mean([getattr(p, n) for p in looks], 0) for n in ("points", "middle"))
        side = sum(look.side for look in looks) / len(looks)
        corners = (self.box.reshape(2, 2) - self.middle) * (side / self.side) + middle
        mean = Pose(points, middle, side, corners.flatten(), self.score)
        return mean.turned(math.remainder(mean.roll - self.roll, 360) * (1 / followed - 1))

    def distance(self, other: Pose) -> float:
        """How far it is from another, in the other's sides, and in size."""
        apart = math.dist(self.middle, other.middle) / other.side
        return apart + abs(math.log(self.side / other.side))


def turn(degrees: float) -> Array:
    """(2, 2): turns points clockwise."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


class FaceReader:
    """The networks of a folder, each of which takes so many threads, or with 0 all cores."""

    def __init__(self, folder: str | Path = FOLDER, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait for the next network would keep this one's from a core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {
            name: onnxruntime.InferenceSession(Path(folder) / f"{name}.onnx", options)
            for name in ("detector", "network", "resize", "view", "frame")
        }
        about = self._sessions["network"].get_modelmeta().custom_metadata_map
        self.categories: list[str] = json.loads(about["categories"])

    def run(self, name: str, **feed: Any) -> Array:
        return np.asarray(self._sessions[name].run(None, feed)[0])

    def predict_faces(
        self, photo: Any, *, min_size: float | None = None,
        min_score: float = NUMBERS.min_score, max_faces: int | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The faces, by score times the root of their area, the greatest first: of each its "box"
        in pixels, "score", "label", "confidence" and "probabilities". No face: an empty list. What
        cannot be read raises ValueError or OSError.

        Args:
            photo: a path, bytes, an open binary file, a PIL image or an array (h, w, 3) uint8 RGB.
            min_size: the longer side of the smallest box, in pixels; None: a share of the photo's.
            min_score: the least of the detector's confidence, in [0, 1].
            max_faces: how many are returned at most; None for all.
        """
        most = math.inf if max_faces is None else max_faces
        if not ((min_size is None or min_size >= 1) and 0 < min_score <= 1 and most >= 1):
            raise ValueError("min_size and max_faces start at 1, min_score is in (0, 1]")
        enough = math.inf if min_size else (NUMBERS.smallest * NUMBERS.smallest_share) ** 2
        picture, scale = decode(photo := load(photo), enough)
        share = math.sqrt(picture[..., 0].size) / NUMBERS.smallest_share
        least = min_size or max(NUMBERS.smallest_box / scale, share)
        poses = Search(self.run, picture, least, min_score).find(most)
        if scale > 1 and any(pose.side < NUMBERS.enough_for_crop for pose in poses):
            poses = [pose.scaled(scale) for pose in poses]
            picture, scale = decode(photo)
        crops, faces = Search(self.run, picture, least, min_score).frame(poses), []
        rows = self.run("network", faces=np.concatenate(crops)).tolist() if crops else []
        for pose, row in zip(poses, rows, strict=False):
            box = pose.box.clip(0, [*picture.shape[1::-1]] * 2) * scale
            ranked = sorted(zip(row, self.categories, strict=True), key=lambda one: -one[0])
            chances = {name: round(chance, 6) for chance, name in ranked}
            face = {"box": box.round(1).tolist(), "score": round(min(1.0, pose.score), 4)}
            face |= {"label": ranked[0][1], "confidence": round(ranked[0][0], 6)}
            faces.append(face | {"probabilities": chances})
        return faces


class Search:
    """The search for the faces of one picture, (height, width, 3) uint8."""

    def __init__(self, run: Any, picture: Array, min_size: float, min_score: float) -> None:
        self.run, self.picture, self.min_size, self.min_score = run, picture, min_size, min_score
        self.height, self.width = picture.shape[:2]

    def find(self, most: float) -> list[Pose]:
        """All faces, by score times size."""
        long = max(self.height, self.width)
        scale = max(NUMBERS.smallest / self.min_size, min(1, NUMBERS.least / long))
        fine = self._draw(self.picture, scale)
        whole = max(fine.shape) <= NUMBERS.whole
        first = fine if whole else self._draw(fine, NUMBERS.small / long)
        rows, quarters = self._look(first, [0]), {0}
        areas = (rows[:, 2:4] - rows[:, :2]).prod(1)
        filled = areas.max(initial=0) >= (NUMBERS.portrait * long) ** 2
        # In a portrait all stand, one of them so large that nobody lies beside.
        if not (filled and (rows[:, 14] >= NUMBERS.upright).all()):
            small = self._draw(first, min(1, NUMBERS.small / long))
            turned = self._look(small, [0, 1, 2, 3] if whole else [1, 2, 3])
            turned = self._distinct(turned if whole else np.concatenate([rows, turned]))
            quarters |= {int(row[15]) for row in turned if row[14] >= NUMBERS.sure}
            rows = np.concatenate([rows, turned]) if whole else turned
        others = sorted(quarters - {0} if whole else quarters)
        rows = np.concatenate([rows, self._look(fine, others)])
        if not (rows[:, 14] >= NUMBERS.sure).any():
            for side in NUMBERS.others:
                if not 0.8 < side / max(fine.shape) < 1.25:
                    other = self._draw(self.picture, side / long)
                    rows = np.concatenate([rows, self._look(other, [0])])
        return self._confirm(self._distinct(rows), most)

    def _see(self, views: Array) -> list[Array]:
        """What the detector sees in (n, height, width, 3), from 0 to 255: of each (m, 15)."""
        least = np.array([max(0.1, self.min_score - NUMBERS.weaker)], np.float32)
        rows = self.run("detector", pictures=views.astype(np.float32, copy=False), least=least)
        rows = rows[np.isfinite(rows).all(1)].astype(float)
        return [rows[rows[:, 0] == index, 1:] for index in range(len(views))]

    def _draw(self, like: Array, scale: float) -> Array:
        """The picture at a scale, made of one that is drawn already."""
        scale = min(scale, NUMBERS.max_upscale)
        size = [max(1, round(length * scale)) for length in self.picture.shape[:2]]
        same = list(like.shape[:2]) == size
        return like if same else self.run("resize", pixels=like, size=np.array(size, np.int64))

    def _look(self, drawn: Array, quarters: Sequence[int]) -> Array:
        """What is seen of the picture as it is drawn when it is turned anticlockwise by quarters;
        (n, 16): box, landmarks and score in the picture's pixels, and the quarters."""
        height, width = drawn.shape[:2]
        part = NUMBERS.parts[height * width > NUMBERS.much]
        # What is small in squares, in which a quarter turn changes nothing else.
        least = NUMBERS.small if max(width, height) <= NUMBERS.small else 0
        found = [np.zeros((0, 16))]

        def spans(length: int) -> list[tuple[int, int]]:
            starts = range(0, max(1, length - NUMBERS.overlap), part - NUMBERS.overlap)
            return [(start, min(length, start + part)) for start in starts]

        for quarter in quarters:
            turned = np.rot90(drawn, quarter)
            for (top, bottom), (left, right) in product(*map(spans, turned.shape[:2])):
                tile = turned[top:bottom, left:right]
                sides = [max(least, length) + 2 * NUMBERS.border for length in tile.shape[:2]]
                sides = [-(-side // NUMBERS.step) * NUMBERS.step for side in sides]
                down, across = (sides[0] - bottom + top) // 2, (sides[1] - right + left) // 2
                view = np.full((1, *sides, 3), 128, np.uint8)
                view[0, down:, across:][: bottom - top, : right - left] = tile
                (rows,) = self._see(view)
                x, y = rows[:, 0:14:2] + (left - across), rows[:, 1:14:2] + (top - down)
                # What the edge of a part cuts is whole in the next, or in the look in small.
                kept = (x[:, 0] >= left + NUMBERS.cut) | (left == 0)
                kept &= (y[:, 0] >= top + NUMBERS.cut) | (top == 0)
                kept &= (x[:, 1] <= right - NUMBERS.cut) | (right == turned.shape[1])
                kept &= (y[:, 1] <= bottom - NUMBERS.cut) | (bottom == turned.shape[0])
                x, y, scores = x[kept], y[kept], rows[kept, 14:] - NUMBERS.turned * (quarter > 0)
                x, y = ((x, y), (width - y, x), (width - x, height - y), (y, height - x))[quarter]
                points = np.stack([x * (self.width / width), y * (self.height / height)], 2)
                ends, marks = points[:, :2], points[:, 2:].reshape(-1, 10)
                quarters_of = np.full(len(x), quarter)
                found.append(np.c_[ends.min(1), ends.max(1), marks, scores, quarters_of])
        return np.concatenate(found)

    def _distinct(self, rows: Array) -> Array:
        """Those of some rows that are of different faces, the best score first."""
        taken: list[Array] = []
        for row in rows[np.argsort(-rows[:, 14], kind="stable")]:
            same = {True: NUMBERS.same_box, False: NUMBERS.same_turned}
            if all(_cover(row, other) < same[row[15] == other[15]] for other in taken):
                taken.append(row)
        return np.array(taken).reshape(-1, 16)

    def _confirm(self, rows: Array, most: float) -> list[Pose]:
        """Those of some sightings that are faces when they are looked at from close by."""
        large = (rows[:, 2:4] - rows[:, :2]).max(1) >= NUMBERS.nearly * self.min_size
        sightings = [Pose.read(row[:15]).upright(NUMBERS.followed) for row in rows[large]]
        sightings.sort(key=lambda pose: -pose.score * pose.side)
        found: list[Pose] = []
        for index, sighting in enumerate(sightings):
            if index % NUMBERS.first == 0 and len(found) >= most:
                break
            pose = self._look_close(sighting, NUMBERS.level)
            sure = (pose.box[2:] - pose.box[:2]).max() >= self.min_size
            if sure and pose.score >= self.min_score and not _is_among(pose, found):
                found.append(pose)
        found.sort(key=lambda pose: -pose.score * pose.side)
        return found[: int(min(most, len(found)))]

    def _look_close(self, pose: Pose, level: float) -> Pose:
        """The mean of what is seen in the close views of a face, if it is seen again in them; if
        it is turned by more than ``level``, of what is seen in the next ones."""
        size = NUMBERS.close_view
        side = size * max(pose.side / NUMBERS.close_face, 1 / NUMBERS.max_upscale)
        rolls = [pose.roll + tilt for tilt in NUMBERS.tilts]
        views, matrices = self._cut("view", pose.middle, rolls, side, size)
        near = []
        for rows, matrix in zip(self._see(views), matrices, strict=True):
            found = [Pose.read(row, matrix) for row in rows]
            near += sorted(found, key=lambda look: look.distance(pose))[:1]
        near = [look for look in near if look.distance(pose) < NUMBERS.same]
        # What is not seen again counts only if it was evident.
        before = pose.score if pose.score >= NUMBERS.evident else 0.0
        pose = replace(pose, score=max(before, *(look.score for look in near), 0.0))
        now = pose.seen_as(near, NUMBERS.followed_close) if near else pose
        rolled = abs(math.remainder(now.roll - pose.roll, 360)) > level
        return self._look_close(now, math.inf) if rolled else now

    def _cut(
        self, graph: str, middle: Array, rolls: Sequence[float], side: float, size: int
    ) -> tuple[Array, list[Array]]:
        """Squares of the picture ``side`` pixels wide about ``middle``, turned by ``rolls``, drawn
        by that graph at ``size`` by ``size``; and the matrices that take their coordinates to the
        picture's."""
        reach, lengths = side * 0.75 + 2, np.array([self.width, self.height])
        start = np.floor(middle - reach).clip(0, lengths - 1).astype(int)
        end = np.maximum(np.ceil(middle + reach).clip(None, lengths), start + 1).astype(int)
        part = self.picture[start[1] : end[1], start[0] : end[0]]
        small = [max(1, round(length * min(1.0, size / side))) for length in part.shape[:2]]
        extent = np.array(part.shape[1::-1], float)[:, None]
        shift = (middle - start)[:, None] * 2 / extent - 1
        axes = [turn(roll) * side for roll in rolls]
        theta = np.array([np.hstack([axis / extent, shift]) for axis in axes], np.float32)
        sizes = {"size": np.array(small, np.int64), "side": np.array([size], np.int64)}
        views = self.run(graph, pixels=part, theta=theta, **sizes)
        return views, [np.c_[axis / size, middle - axis.sum(1) / 2] for axis in axes]

    def frame(self, poses: Sequence[Pose]) -> list[Array]:
        """(1, 1, 48, 48) float32 in [0, 1] each: the faces levelled and framed as FER2013's are; of
        a picture that is such a crop itself, the whole, turned upright by quarters."""
        if poses and self._is_crop(poses[0]):
            roll, middle = 90.0 * round(poses[0].roll / 90), np.full(2, self.width / 2)
            return [self._cut("frame", middle, [roll], self.width, self.width)[0]]
        faces = []
        for pose in poses:
            side = pose.side / NUMBERS.box_share
            middle = pose.middle + NUMBERS.drop * side * turn(pose.roll)[:, 1]
            size = max(NUMBERS.size, min(NUMBERS.max_frame, round(side)))
            faces.append(self._cut("frame", middle, [pose.roll], side, size)[0])
        return faces

    def _is_crop(self, pose: Pose) -> bool:
        """Whether the picture is itself framed on this face as FER2013's pictures are."""
        if self.height != self.width or self.width <= NUMBERS.small_crop:
            return bool(self.height == self.width)
        large = pose.side >= NUMBERS.crop_share * self.width
        central = abs(pose.middle / self.width - 0.5).max() <= NUMBERS.crop_shift
        level = abs((pose.roll + 45) % 90 - 45) <= NUMBERS.crop_roll
        return bool(large and central and level and np.ptp(self.picture, 2).max() == 0)


def _cover(first: Array, second: Array) -> float:
    """How much of the smaller of two boxes is in the other."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:4], second[2:4])
    areas = [float((box[2:4] - box[:2]).prod()) for box in (first, second)]
    return float((high - low).clip(0).prod()) / min(areas)


def _is_among(pose: Pose, others: Sequence[Pose]) -> bool:
    """Whether one of the others is near to a face, or lies in it, or it in the other."""
    own, *squares = (np.r_[p.middle - p.side / 2, p.middle + p.side / 2] for p in (pose, *others))
    covered = any(_cover(own, square) >= NUMBERS.same_box for square in squares)
    return covered or any(pose.distance(other) < NUMBERS.same for other in others)


def main(names: Sequence[str]) -> int:
    reader, status = FaceReader(), 0
    for name in names:
        try:
            print(json.dumps({"image": name, "faces": reader.predict_faces(name)}))
        except (ValueError, OSError) as error:
            status = 1
            print(f"{name}: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
