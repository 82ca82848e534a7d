"""The plot: the photo, a box and a number on each face, and a histogram of each."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PORTRAITS

from ferfacenet import DetectedFace, Face, detect_faces, draw_faces, plot_faces
from ferfacenet.model import FER2013_CATEGORIES
from ferfacenet.plots import plot_tracks

pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs the plot extra")
BOXES = ((20, 60, 120, 180), (280, 60, 399, 200))
PHOTO = torch.rand(1, 60, 80, generator=torch.Generator().manual_seed(0))


def make_faces(count: int) -> list[Face]:
    found = []
    for index in range(count):
        row = [0.02] * 7
        row[index % 7] = 0.88
        box = (float(4 * index), 6.0, 20.0 + 4 * index, 30.0)
        chances = dict(zip(FER2013_CATEGORIES, row, strict=True))
        label = FER2013_CATEGORIES[index % 7]
        parts = torch.zeros(5, 2), 0.9, torch.zeros(1, 48, 48)
        found.append(Face(box, *parts, label, 0.88, chances))
    return found


@pytest.mark.parametrize("count", [0, 1, 2, 4, 12])
def test_one_histogram_a_face_a_box_on_each_and_nothing_overlaps(count: int) -> None:
    faces = make_faces(count)
    figure = plot_faces(PHOTO, faces)
    figure.draw_without_rendering()
    photo, *histograms = figure.axes
    assert [patch.get_bbox().extents.tolist() for patch in photo.patches] == [
        list(face.box) for face in faces
    ]
    titles = [f"{i + 1}: {face.label}" if count > 1 else face.label for i, face in enumerate(faces)]
    assert [axes.get_title() for axes in histograms] == titles
    for axes, face in zip(histograms, faces, strict=True):
        widths = [bar.get_width() for bar in axes.patches]
        assert widths == pytest.approx(list(face.probabilities.values()))
        assert [text.get_text() for text in axes.get_yticklabels()] == list(FER2013_CATEGORIES)
    boxes = [axes.get_tightbbox() for axes in histograms]
    for index, box in enumerate(boxes):
        assert box is not None and figure.bbox.padded(1).containsx(box.x0)
        assert figure.bbox.padded(1).containsy(box.y0) and figure.bbox.padded(1).containsy(box.y1)
        for other in boxes[:index]:
            assert not box.padded(-1).overlaps(other)
    area = photo.get_window_extent()
    assert area.width * area.height > 0.25 * figure.bbox.width * figure.bbox.height
    assert pyplot.get_fignums() == []


def test_a_large_photo_is_drawn_smaller_in_its_own_coordinates() -> None:
    (axes,) = plot_faces(torch.rand(3, 30, 4000), []).axes
    (image,) = axes.images
    assert image.get_array().shape == (15, 2000, 3)
    assert image.get_extent() == [-0.5, 3999.5, 29.5, -0.5]


def test_boxes_and_labels_alone() -> None:
    sky = np.full((300, 400, 3), 90, np.uint8)
    first, second = (replace(f, box=b) for f, b in zip(make_faces(2), BOXES, strict=True))
    drawn = draw_faces(sky, [first, second])
    assert drawn.shape == sky.shape and drawn.dtype == np.uint8 and (sky == 90).all()
    changed = (drawn != sky).any(2)
    for x0, y0, x1, y1 in BOXES:
        assert changed[y0 : y1 + 1, x0].all() and changed[y1, x0 : x1 + 1].all()
        assert not changed[y0 + 20 : y1 - 5, x0 + 5 : x1 - 5].any()
    labels = changed[: BOXES[0][1] - 2]  # also of the one at the edge
    assert labels[:, :200].any() and labels[:, 200:].any()
    drawn[:] = 0  # it is the caller's own
    unread = DetectedFace(first.box, first.landmarks, first.score, first.crop)
    boxes = draw_faces(sky, [unread])
    assert (boxes != sky).any() and (boxes[: BOXES[0][1] - 2] == sky[: BOXES[0][1] - 2]).all()
    gray = draw_faces(np.full((300, 400), 90, np.uint8), [])
    assert gray.shape == sky.shape and (gray[60:] == sky[60:]).all()


@pytest.mark.parametrize("level", [0, 119, 255])
def test_where_nobody_is_it_is_said(level: int) -> None:
    for size in ((48, 64, 3), (300, 400, 3), (1080, 1920, 3)):
        plain = np.full(size, level, np.uint8)
        corner = draw_faces(plain, [])[: size[0] // 3, : size[1]]
        assert corner.max() > 240 and corner.min() < 130  # white on a darker ground
    assert plot_faces(plain, []).axes[0].get_title() == "no face"
    assert plot_tracks({}, ["anger"]).axes[0].get_title() == "no face"


def test_faces_must_have_been_read() -> None:
    with pytest.raises(ValueError, match="predict_faces"):
        plot_faces(PORTRAITS, detect_faces(PORTRAITS))  # type: ignore[arg-type]


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install.*plot"):
        plot_faces(PHOTO, [])
