from __future__ import annotations

import sys

import pytest
import torch

from ferfacenet.model import FER2013_CATEGORIES
from ferfacenet.plots import plot_probabilities

pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs the plot extra")


def test_one_histogram_a_face_a_box_on_each_and_pyplot_left_alone() -> None:
    rows = torch.eye(7)[[3, 0, 6, 1]] * 0.9 + 0.1 / 7
    boxes = [(5.0, 6.0, 20.0, 30.0)] * 4
    photo, *histograms = plot_probabilities(
        torch.rand(1, 60, 80), rows, FER2013_CATEGORIES, boxes
    ).axes
    assert len(photo.patches) == 4 and photo.patches[0].get_bbox().extents.tolist() == [
        5,
        6,
        20,
        30,
    ]
    titles = ["1: happiness", "2: anger", "3: neutral", "4: disgust"]
    assert [axes.get_title() for axes in histograms] == titles
    for axes, row in zip(histograms, rows, strict=True):
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(row.tolist())
        assert [label.get_text() for label in axes.get_xticklabels()] == list(FER2013_CATEGORIES)
    assert pyplot.get_fignums() == []


def test_faces_and_boxes_must_go_together() -> None:
    for rows, boxes in ((torch.zeros(0, 7), []), (torch.rand(2, 7), [(0.0, 0.0, 1.0, 1.0)])):
        with pytest.raises(ValueError, match="boxes"):
            plot_probabilities(torch.rand(3, 48, 48), rows, FER2013_CATEGORIES, boxes)


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install.*plot"):
        plot_probabilities(torch.zeros(1, 4, 4), torch.ones(1, 1), ["one"])
