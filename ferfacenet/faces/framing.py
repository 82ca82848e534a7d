"""How a face stands in a picture, and from that the crop that FER2013 would have made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ferfacenet.faces.types import DetectedFace
from ferfacenet.transforms import SIZE, resize, to_gray

# FER2013's framing, measured on 3,923 training crops: the side of the face's box, in sides of the
# frame, and how far the frame's centre is below the box's, in the same.
_BOX_SHARE, _DROP = 0.95, 0.01
# The frame is drawn at the picture's own resolution, but at most this, before the one resizing.
_MAX_FRAME = 192

# A square picture up to this size is taken for a face crop. A larger one is if it is gray, its
# face's box has at least _CROP_SHARE of its side, the two centres are at most _CROP_SHIFT of the
# side apart, across and down, and the face is turned by at most _CROP_ROLL degrees from a quarter
# turn: so are 95 % of FER2013's when they are enlarged, and three standard deviations of its rolls.
SMALL_CROP = 64
_CROP_SHARE, _CROP_SHIFT, _CROP_ROLL = 0.64, 0.17, 27.0

_UNTURNED = torch.eye(2, 3, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, eq=False)
class Pose:
    """How a face stands, in pixels of the picture, in float64: landmarks (5, 2); the middle (2,) of
    its box, and the side of a square as large; the box (4,) as it is in the picture; the score."""

    points: Tensor
    middle: Tensor
    side: float
    box: Tensor
    score: float

    @classmethod
    def read(cls, row: Tensor, matrix: Tensor = _UNTURNED) -> Pose:
        """From a row of ``detect`` for a view, and the matrix that ``cut_view`` gives with it."""
        row = row.double()
        points = torch.cat([(row[:2] + row[2:4])[None] / 2, row[4:14].view(5, 2)])
        points = points @ matrix[:, :2].T + matrix[:, 2]
        area = (row[2:4] - row[:2]).prod() * torch.det(matrix[:, :2])
        return cls(points[1:], points[0], math.sqrt(float(area)), row[:4], float(row[14]))

    @property
    def roll(self) -> float:
        """Degrees that the line of the eyes is turned clockwise from level."""
        x, y = (self.points[1] - self.points[0]).tolist()
        return math.degrees(math.atan2(y, x))

    @property
    def square(self) -> Tensor:
        """(4,), as a box."""
        return torch.cat([self.middle - self.side / 2, self.middle + self.side / 2])

    def rank(self) -> float:
        """By which the faces of a picture are sorted: the score times the box's side."""
        return self.score * self.side

    def scaled(self, scale: float) -> Pose:
        """In pixels of which ``scale`` make one of these."""
        points, middle, box = self.points * scale, self.middle * scale, self.box * scale
        return replace(self, points=points, middle=middle, side=self.side * scale, box=box)

    def turned(self, degrees: float) -> Pose:
        """With the landmarks turned clockwise about the middle."""
        turn = math.radians(degrees)
        rows = [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
        axes = torch.tensor(rows, dtype=torch.float64, device="cpu")
        return replace(self, points=(self.points - self.middle) @ axes + self.middle)

    def upright(self, followed: float) -> Pose:
        """With the landmarks turned as far as the head is, of whose roll, beyond quarter turns, the
        line from the eyes to the mouth shows the share ``followed``."""
        x, y = (self.points[3:].mean(0) - self.points[:2].mean(0)).tolist()
        lean = math.degrees(math.atan2(-x, y))
        beyond = math.remainder(lean, 90) / followed
        roll = 90 * round(lean / 90) + max(-45.0, min(45.0, beyond))
        return self.turned(roll - self.roll)

    def seen_as(self, looks: Sequence[Pose], followed: float) -> Pose:
        """The mean of several looks at this face, in which the landmarks have turned away from this
        pose by the share ``followed`` of what the head has."""
        pairs = zip(*((look.points, look.middle) for look in looks), strict=True)
        points, middle = (torch.stack(parts).mean(0) for parts in pairs)
        side = sum(look.side for look in looks) / len(looks)
        corners = (self.box.view(2, 2) - self.middle) * (side / self.side) + middle
        mean = Pose(points, middle, side, corners.flatten(), self.score)
        return mean.turned(math.remainder(mean.roll - self.roll, 360) * (1 / followed - 1))


def distance(first: Pose, second: Pose) -> float:
    """How unlike two boxes are: how far apart, in sides, and the log ratio of the sides."""
    apart = float((first.middle - second.middle).norm()) / second.side
    return apart + abs(math.log(first.side / second.side))


def is_crop(picture: Tensor, pose: Pose) -> bool:
    """Whether a picture is itself framed on this face as FER2013's pictures are."""
    height, width = picture.shape[1:]
    if height != width or width <= SMALL_CROP:
        return height == width
    return (
        pose.side >= _CROP_SHARE * width
        and bool((pose.middle / width - 0.5).abs().max() <= _CROP_SHIFT)
        and abs((pose.roll + 45) % 90 - 45) <= _CROP_ROLL
        and bool((picture[:1] == picture[1:]).all())
    )


def frame_face(picture: Tensor, pose: Pose, scale: float = 1.0) -> DetectedFace:
    """The face that has this pose, with its crop; ``scale``: how many of the photo's own pixels one
    of the picture's is wide."""
    side, turn = pose.side / _BOX_SHARE, math.radians(pose.roll)
    down = torch.tensor([-math.sin(turn), math.cos(turn)], dtype=torch.float64, device="cpu")
    size = max(SIZE, min(_MAX_FRAME, round(side)))
    middle = pose.middle + _DROP * side * down
    frame, _ = cut_view(picture, middle, pose.roll, side, size, smooth=True)
    height, width = picture.shape[1:]
    x0, y0, x1, y1 = (
        max(0.0, min(end, float(length))) * scale
        for end, length in zip(pose.box.tolist(), (width, height) * 2, strict=True)
    )
    points, crop = (pose.points * scale).float(), resize(to_gray(frame))
    return DetectedFace((x0, y0, x1, y1), points, min(1.0, pose.score), crop)


def cut_view(
    picture: Tensor, middle: Tensor, roll: float, side: float, size: int, *, smooth: bool
) -> tuple[Tensor, Tensor]:
    """A square of a picture, turned upright: ``side`` pixels of the picture wide about
    ``middle``, turned by ``roll`` degrees, drawn at ``size`` by ``size``. Returns
    (3, size, size) float32 in [0, 1], and the (2, 3) matrix that takes the view's coordinates to
    the picture's.

    ``smooth``: bicubic, and past the picture's end the pixels there once more, for what is read;
    otherwise bilinear, a quarter of the work, and black past the end, since smeared or mirrored
    pixels mislead YuNet.
    """
    turn = math.radians(roll)
    rows = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    axes = torch.tensor(rows, dtype=torch.float64, device="cpu") * side
    # First only the part that is needed, shrunk with averaging: grid_sample alone would alias.
    reach = side * 0.75 + 2
    start, end = [], []
    for centre, length in zip(middle.tolist(), (picture.shape[2], picture.shape[1]), strict=True):
        start.append(min(max(0, math.floor(centre - reach)), length - 1))
        end.append(max(min(length, math.ceil(centre + reach)), start[-1] + 1))
    part = picture[None, :, start[1] : end[1], start[0] : end[0]]
    extent = torch.tensor([part.shape[3], part.shape[2]], dtype=torch.float64, device="cpu")
    if size < side:
        small = [max(1, round(length * size / side)) for length in part.shape[2:]]
        part = F.interpolate(part, size=small, mode="bilinear", antialias=True)
    # In grid_sample's coordinates both the part and the view go from -1 to 1.
    shift = (middle - torch.tensor(start, dtype=torch.float64, device="cpu")) * 2 / extent - 1
    (across, down), shift = (axes / extent[:, None]).mT.float(), shift.float()
    ends = torch.arange(1, 2 * size, 2, dtype=torch.float32, device="cpu")[:, None] / size - 1
    grid = ends * across + (ends * down + shift)[:, None]
    how = ("bicubic", "border") if smooth else ("bilinear", "zeros")
    view = F.grid_sample(part.float() / 255, grid[None], *how, align_corners=False)
    matrix = torch.cat([axes / size, (middle - axes.sum(1) / 2)[:, None]], 1)
    return view[0].clamp_(0, 1) if smooth else view[0], matrix
