"""The search for the faces of a picture, or of many side by side.

A search is a generator: it yields the views that it wants the detector to look at, and is sent the
sightings in each, rows of ``detect``. What the searches of several pictures want is looked at
together, since a call of the detector's network costs as much as its work on a small view.
The constants have the names by which tools/export_onnx.py hands them to readers without PyTorch.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ferfacenet.faces.framing import Pose, cut_view, distance
from ferfacenet.faces.types import Limits
from ferfacenet.faces.yunet import best_first, detect, first_of_each, measure_overlap

T = TypeVar("T")
Steps: TypeAlias = Generator[list[Tensor], list[Tensor], T]

# A sighting whose score is below the caller's ``min_score`` by no more than this is looked at from
# close by as well, and is a face if its score there is high enough.
_WEAKER = 0.2
# From these scores on a sighting is taken for a face (_SURE), for one even where a look from close
# by does not show it again (_EVIDENT), and for upright (_UPRIGHT: so well YuNet sees the best face
# of 93 % of photos, and of 1 % of the same photos upside down). In a picture that has been turned
# by quarters, a score counts for less by _TURNED.
_SURE, _EVIDENT, _UPRIGHT, _TURNED = 0.6, 0.8, 0.91, 0.02

# A picture is searched at the scale at which the smallest face that is asked for has SMALLEST
# pixels, since YuNet sees nearly all of these, but with a longer side of at least _LEAST. Above
# _WHOLE faces that fill the picture are seen badly, so it is searched at a longer side of _SMALL
# first. That is also where it is searched turned by quarters, but for portraits: all faces are
# upright for sure, and one has the share _PORTRAIT of the longer side, so nobody lies beside it.
# Where nothing is sure after all that, longer sides of _OTHERS are tried.
SMALLEST, _LEAST, _WHOLE, _SMALL, _OTHERS = 14, 256, 720, 160, (640, 960)
_PORTRAIT, _MAX_UPSCALE = 0.25, 4.0
# Each view gets a gray border of at least _BORDER pixels, so that faces are seen that the picture's
# edge cuts, and sides that are multiples of _STEP. Where a side is longer than the first of _PARTS
# (in pictures of more than _MUCH pixels, the second), views are parts that long, which overlap by
# _OVERLAP; a sighting that ends within _CUT of a seam is dropped, since another view has it whole.
_BORDER, _STEP, _PARTS, _MUCH, _OVERLAP, _CUT = 8, 32, (1600, 1120), 1_400_000, 160, 4

# A look from close by is a view with a side of _CLOSE_VIEW, in which the face's box is _CLOSE_FACE
# pixels large and the face upright but for one of _TILTS, in degrees; the mean of these counts.
# YuNet's landmarks follow a head's roll only in part: in a search the line from eyes to mouth by
# 0.4 to 0.8, as the face is 60 to 180 pixels large, here _FOLLOWED; from close by the eyes by
# _FOLLOWED_CLOSE. A look that turns a face by more than _LEVEL degrees is followed by another.
_CLOSE_FACE, _CLOSE_VIEW, _TILTS = 180, 256, (-8.0, 8.0)
_FOLLOWED, _FOLLOWED_CLOSE, _LEVEL = 0.6, 0.75, 8.0
# A sighting of this share of the smallest size may from close by prove to be large enough.
_NEARLY = 0.8
_FIRST = 16  # sightings that are looked at before it is asked whether there are enough faces

# Two sightings are of one face if their ``distance`` is below _SAME, or if the smaller box lies in
# the other with _SAME_BOX of its area; with _SAME_TURNED, if they are of different quarter turns.
_SAME, _SAME_BOX, _SAME_TURNED = 0.6, 0.6, 0.3


def run(searches: Sequence[Steps[T]], limits: Limits, device: torch.device) -> list[T]:
    """The results of searches, side by side."""
    results: dict[int, T] = {}
    seen: dict[int, list[Tensor]] = {}
    going = dict(enumerate(searches))
    while going:
        wanted: dict[int, list[Tensor]] = {}
        for index, search in going.items():
            try:
                wanted[index] = search.send(seen[index]) if index in seen else next(search)
            except StopIteration as done:
                results[index] = done.value
        going = {index: going[index] for index in wanted}
        views = [view for views in wanted.values() for view in views]
        rows = iter(detect(views, max(0.1, limits.min_score - _WEAKER), device))
        seen = {index: list(islice(rows, len(views))) for index, views in wanted.items()}
    return [results[index] for index in range(len(searches))]


class Search:
    """The search for the faces of one picture, (3, H, W) uint8, each pixel of which is ``scale`` of
    the photo's own wide, other than those that are known. What looks is a generator."""

    def __init__(
        self, picture: Tensor, limits: Limits, scale: float = 1.0, known: Sequence[Pose] = ()
    ) -> None:
        self.picture, self.limits, self.known = picture, limits, known
        self.height, self.width = picture.shape[1:]
        self.min_size = limits.smallest(self.height, self.width, scale)

    def find(self) -> Steps[list[Pose]]:
        """All faces, by score times size."""
        long = max(self.height, self.width)
        scale = max(SMALLEST / self.min_size, min(1.0, _LEAST / long))
        fine = self._draw(self.picture, scale)
        whole = max(fine.shape) <= _WHOLE
        first = fine if whole else self._draw(fine, _SMALL / long)
        rows = yield from self._look(first, [0])
        quarters = {0}
        if not self._is_portrait(rows):
            small = self._draw(first, min(1.0, _SMALL / long))
            turned = yield from self._look(small, [0, 1, 2, 3] if whole else [1, 2, 3])
            turned = _distinct(turned if whole else torch.cat([rows, turned]))
            quarters |= {*turned[turned[:, 14] >= _SURE, 15].int().tolist()}
            rows = torch.cat([rows, turned]) if whole else turned
        others = sorted(quarters - {0} if whole else quarters)
        rows = torch.cat([rows, (yield from self._look(fine, others))])
        if not (rows[:, 14] >= _SURE).any():
            for side in _OTHERS:
                if not 0.8 < side / max(fine.shape) < 1.25:
                    other = self._draw(self.picture, side / long)
                    rows = torch.cat([rows, (yield from self._look(other, [0]))])
        _give_back((self.height, self.width))
        return (yield from self._confirm(_distinct(rows)))

    def follow(self, poses: Sequence[Pose]) -> Steps[list[Pose | None]]:
        """The faces of the picture before, each looked for where it was; None for one that is not
        seen there, or that is another one's now."""
        old = [replace(pose, score=0.0) for pose in poses]  # what counts is what this picture shows
        new = yield from self._look_closer(old, (0.0,))  # one view: the next picture is another
        moves = [distance(pose, before) for pose, before in zip(new, old, strict=True)]
        followed: list[Pose | None] = [None] * len(old)
        for index in sorted(range(len(old)), key=moves.__getitem__):
            others = [other for other in followed if other]
            if new[index].score >= self.limits.min_score and not _is_among(new[index], others):
                followed[index] = new[index]
        return followed

    def _is_portrait(self, rows: Tensor) -> bool:
        """Whether all faces are upright for sure, and one is large."""
        upright = bool((rows[:, 14] >= _UPRIGHT).all()) and len(rows) > 0
        large = _PORTRAIT * max(self.height, self.width)
        return upright and bool((rows[:, 2:4] - rows[:, :2]).prod(1).max() >= large**2)

    def _draw(self, like: Tensor, scale: float) -> Tensor:
        """The picture at a scale, made of one that is drawn already."""
        scale = min(scale, _MAX_UPSCALE)
        size = [max(1, round(length * scale)) for length in (self.height, self.width)]
        if list(like.shape[1:]) == size:
            return like
        return F.interpolate(like[None], size=size, mode="bilinear", antialias=True)[0]

    def _look(self, drawn: Tensor, quarters: Sequence[int]) -> Steps[Tensor]:
        """The sightings in the picture as it is drawn, when it is turned anticlockwise by quarters:
        (n, 16), as ``YuNet`` gives them but in the picture's own pixels, and the quarters."""
        views, places = [], []
        height, width = drawn.shape[1:]
        part = _PARTS[height * width > _MUCH]
        # What is small in squares, which have one size at all quarters.
        least = _SMALL if max(width, height) <= _SMALL else 0
        for quarter in quarters:
            turned = torch.rot90(drawn, quarter, (1, 2))
            for top, bottom in _parts(turned.shape[1], part):
                for left, right in _parts(turned.shape[2], part):
                    lengths = bottom - top, right - left
                    sides = (max(least, length) + 2 * _BORDER for length in lengths)
                    down, across = (-(-side // _STEP) * _STEP for side in sides)
                    down, across = down - lengths[0], across - lengths[1]
                    around = across // 2, across - across // 2, down // 2, down - down // 2
                    shown = turned[:, top:bottom, left:right]
                    views.append(F.pad(shown, around, value=128))
                    ends = (left, right, turned.shape[2]), (top, bottom, turned.shape[1])
                    places.append((quarter, left - around[0], top - around[2], ends))
        found = [torch.zeros(0, 16, dtype=torch.float32, device="cpu")]
        for rows, (quarter, left, top, ends) in zip((yield views), places, strict=True):
            h, v = rows[:, 0:14:2] + left, rows[:, 1:14:2] + top
            # What the edge of a part cuts is whole in the next, or in the look in small.
            kept = _is_inside(h, *ends[0]) & _is_inside(v, *ends[1])
            rows, h, v = rows[kept], h[kept], v[kept]
            h, v = ((h, v), (width - v, h), (width - h, height - v), (v, height - h))[quarter]
            points = torch.stack([h * (self.width / width), v * (self.height / height)], 2)
            scores = rows[:, 14:] - _TURNED * (quarter > 0)
            seen = *points[:, :2].aminmax(dim=1), points[:, 2:].flatten(1), scores
            found.append(F.pad(torch.cat(seen, 1), (0, 1), value=quarter))
        return torch.cat(found)

    def _confirm(self, rows: Tensor) -> Steps[list[Pose]]:
        """The faces among sightings, each looked at from close by."""
        rows = rows[(rows[:, 2:4] - rows[:, :2]).amax(1) >= _NEARLY * self.min_size]
        sightings = [Pose.read(row).upright(_FOLLOWED) for row in rows]
        sightings = [pose for pose in sightings if not _is_among(pose, self.known)]
        sightings.sort(key=Pose.rank, reverse=True)
        found: list[Pose] = []
        for start in range(0, len(sightings), _FIRST):
            for pose in (yield from self._look_closer(sightings[start : start + _FIRST])):
                large = bool((pose.box[2:] - pose.box[:2] >= self.min_size).any())
                sure = large and pose.score >= self.limits.min_score
                if sure and not _is_among(pose, [*self.known, *found]):
                    found.append(pose)
            if len(found) >= (self.limits.max_faces or math.inf):
                break
        return sorted(found, key=Pose.rank, reverse=True)[: self.limits.max_faces]

    def _look_closer(
        self, poses: Sequence[Pose], tilts: Sequence[float] = _TILTS
    ) -> Steps[list[Pose]]:
        """The poses as looks from close by show them, and those that none shows as they were."""
        closer, unsure = list(poses), list(range(len(poses)))
        for _ in range(2):
            if not unsure:
                break
            before, views = list(closer), []
            for pose in (closer[index] for index in unsure):
                side = _CLOSE_VIEW * max(pose.side / _CLOSE_FACE, 1 / _MAX_UPSCALE)
                for roll in (pose.roll + tilt for tilt in tilts):
                    args = self.picture, pose.middle, roll, side, _CLOSE_VIEW
                    views.append(cut_view(*args, smooth=False))
            seen = yield [view for view, _ in views]
            looks = iter(zip(seen, views, strict=True))
            for index in unsure:
                pose, near = closer[index], list[Pose]()
                for rows, (_, matrix) in islice(looks, len(tilts)):
                    found = [Pose.read(row, matrix) for row in rows]
                    near += sorted(found, key=lambda look: distance(look, pose))[:1]
                near = [look for look in near if distance(look, pose) < _SAME]
                score = pose.score if pose.score >= _EVIDENT else 0.0
                pose = replace(pose, score=max(score, *(look.score for look in near), 0.0))
                closer[index] = pose.seen_as(near, _FOLLOWED_CLOSE) if near else pose
            turns = [abs(math.remainder(closer[i].roll - before[i].roll, 360)) for i in unsure]
            unsure = [i for i, turn in zip(unsure, turns, strict=True) if turn > _LEVEL]
        return closer


def _parts(length: int, part: int) -> list[tuple[int, int]]:
    """Where the parts of a length begin and end."""
    starts = range(0, max(1, length - _OVERLAP), part - _OVERLAP)
    return [(start, min(length, start + part)) for start in starts]


def _is_inside(ends: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Which boxes, whose ends are the first two columns, are not near a seam between two parts."""
    first, last = ends[:, 0] >= start + _CUT, ends[:, 1] <= stop - _CUT
    return (first | (start == 0)) & (last | (stop == length))


def _distinct(rows: Tensor) -> Tensor:
    """The best of the sightings of each face, the best first; rows as ``_look`` gives them."""
    rows = best_first(rows)
    alike = torch.where(rows[:, None, 15] == rows[:, 15], _SAME_BOX, _SAME_TURNED)
    return rows[first_of_each(measure_overlap(rows, rows)[1] >= alike)]


def _is_among(pose: Pose, others: Sequence[Pose]) -> bool:
    """Whether a face is one of the others."""
    if not others:
        return False
    squares = torch.stack([other.square for other in others])
    _, shares = measure_overlap(pose.square[None], squares)
    return bool(shares.max() >= _SAME_BOX) or any(distance(pose, o) < _SAME for o in others)


_sizes = set[tuple[int, int]]()  # of the pictures that were searched since memory was given back


def _give_back(size: tuple[int, int]) -> None:
    """Tensors of ever new sizes leave holes in glibc's heap that the next do not fit, so it grows.
    After every eighth size its free pages go back to the system; other systems see to it."""
    _sizes.add(size)
    if len(_sizes) >= 8:
        _sizes.clear()
        with suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)
