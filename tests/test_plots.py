"""The plot: the photo, a box and a number on each face, and a histogram of each."""

from __future__ import annotations

import base64
import io
import pickle
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PORTRAITS
from PIL import Image

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


@pytest.mark.parametrize(("count", "shape"), [(1, 4.0), (2, 0.2), (2, 4.0), (12, 0.7), (40, 0.2)])
def test_a_histogram_and_a_box_for_each_face_and_bars_as_thick_in_all(
    count: int, shape: float
) -> None:
    faces, photo = make_faces(count), torch.rand(1, round(80 * shape), 80)
    figure = plot_faces(photo, faces)
    figure.draw_without_rendering()
    photo_axes, *histograms = figure.axes
    assert [patch.get_bbox().extents.tolist() for patch in photo_axes.patches] == [
        list(face.box) for face in faces
    ]
    titles = [f"{i + 1}: {face.label}" if count > 1 else face.label for i, face in enumerate(faces)]
    assert [axes.get_title() for axes in histograms] == titles
    for axes, face in zip(histograms, faces, strict=True):
        widths = [bar.get_width() for bar in axes.patches]
        assert widths == pytest.approx(list(face.probabilities.values()))
        assert [text.get_text() for text in axes.get_yticklabels()] == list(FER2013_CATEGORIES)
        thick = axes.patches[0].get_window_extent().height / figure.dpi
        assert 0.13 < thick < 0.19, "inches"
    boxes = [axes.get_tightbbox() for axes in histograms]
    for index, box in enumerate(boxes):
        assert box is not None and figure.bbox.padded(1).containsx(box.x0)
        assert figure.bbox.padded(1).containsy(box.y0) and figure.bbox.padded(1).containsy(box.y1)
        assert not any(box.padded(-1).overlaps(other) for other in boxes[:index])
    colours = {axes.patches[0].get_facecolor() for axes in histograms}
    assert len(colours) == min(count, 12)
    assert pyplot.get_fignums() == []


def test_what_notebooks_ask_for() -> None:
    """A figure shows without pyplot, also one that was pickled, and a face its crop and its
    probabilities."""
    figure = pickle.loads(pickle.dumps(plot_faces(PHOTO, [])))
    with Image.open(io.BytesIO(figure._repr_png_())) as shown:
        assert shown.size == tuple((figure.get_size_inches() * 110).astype(int))
    (face,) = make_faces(1)
    face = replace(face, crop=torch.rand(1, 48, 48), probabilities={"<joy> & co": 0.25})
    html = face._repr_html_()
    assert "&lt;joy&gt; &amp; co" in html and "<joy>" not in html and "0.25" in html
    (data,) = re.findall('"data:image/png;base64,(.*?)"', html)
    with Image.open(io.BytesIO(base64.b64decode(data))) as crop:
        assert np.abs(np.asarray(crop) / 255 - face.crop[0].numpy()).max() < 0.002
    unread = DetectedFace(face.box, face.landmarks, face.score, face.crop)
    assert data in unread._repr_html_() and "table" not in unread._repr_html_()


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
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_faces(PHOTO, [])
