"""tools/widths.py on tiny data."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import _pages
import benchmark
import pytest
import torch
import train
import widths
from _fer2013 import load
from conftest import csv_text, votes_text

from ferfacenet import load_pretrained, predict_proba


def test_every_width_is_trained_measured_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pages, "ROOT", tmp_path)
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    for key, value in {"batch_size": 7, "sizes": "32", "amp": "off"}.items():
        monkeypatch.setitem(train.RECIPES["small"], key, value)
    data, votes = tmp_path / "fer2013.csv", tmp_path / "fer2013new.csv"
    data.write_text(csv_text(14, 7))
    votes.write_text(votes_text(21))
    words = "--epochs 1 --widths 0.125 --seconds 0.001"
    files = ["--data", data, "--votes", votes, "--out", tmp_path / "runs"]
    widths.main([*words.split(), *map(str, files)])
    assert load_pretrained(tmp_path / "runs" / "0.125" / "weights").width == 0.125
    home = tmp_path / "docs" / "results" / "widths"
    full, thin = json.loads((home / "widths.json").read_text())["rows"]
    assert (full["width"], thin["width"]) == (1, 0.125)
    assert thin["ms_128"] < full["ms_128"] and thin["parameters"] < 0.1 * full["parameters"]
    assert json.loads((home / "0.125" / "config.json").read_text())["init"] == "fer2013"
    assert (home / "widths.png").stat().st_size > 1000
    assert _pages.widths().count("\n| ") == 2
    before = (tmp_path / "runs" / "0.125" / "metrics.jsonl").stat().st_mtime
    widths.main([*words.split(), *map(str, files)])  # what is trained stays
    assert (tmp_path / "runs" / "0.125" / "metrics.jsonl").stat().st_mtime == before


def test_peers_answer_for_the_same_crops(
    tiny_csv: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason="needs the onnx extra")
    model, public = load_pretrained(weights), load(tiny_csv).split("PublicTest")
    monkeypatch.setattr(widths, "load_pretrained", lambda _: model)
    monkeypatch.setitem(sys.modules, "fer", None)  # as where it is not installed
    peers = widths.find_peers()
    assert peers.keys() == {"onnxruntime"}
    answers = predict_proba(model, torch.from_numpy(public.images)[:, None] / 255, tta=None)
    wanted = (answers.argmax(1).numpy() == public.labels).mean()
    for reader in (peers["onnxruntime"], partial(widths.read, model)):
        assert widths.accuracy(reader, public) == pytest.approx(wanted)
