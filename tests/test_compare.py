"""tools/compare.py on tiny data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import _pages
import compare
import numpy as np
import pytest
from _ckplus import FOLDERS
from conftest import csv_text, votes_text
from PIL import Image

from ferfacenet import load_pretrained, predict_proba


def test_answers_are_counted_by_both_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pages, "ROOT", tmp_path)
    data, votes, folder = tmp_path / "fer2013.csv", tmp_path / "fer2013new.csv", tmp_path / "CK+48"
    private = csv_text(0, 14).replace("PublicTest", "PrivateTest")
    known = [row.replace("PrivateTest", "Training") for row in private.splitlines()[1:3]]
    data.write_text(private + "\n".join(known))
    head, *lines = votes_text(14).splitlines()
    votes.write_text("\n".join([head, *lines[:-1], "Training,a.png,5,0,0,5,0,0,0,0,0,0"]))
    for label, name in enumerate(FOLDERS.values()):
        (folder / name).mkdir(parents=True)
        face = Image.new("L", (48, 48), 30 * label)
        face.putpixel((24, 24), 255)  # one plain colour has no expression
        face.save(folder / name / "S001_001_00000009.png")
    spoilt = tmp_path / "docs/results/robustness.json"
    compare.write_json(spoilt, {"ferplus": {"mean": {"accuracy": 0.5}}})
    compare.main(["--data", str(data), "--votes", str(votes), "--ckplus", str(folder)])
    found = json.loads((tmp_path / "docs/results/compare/compare.json").read_text())
    images = {"fer2013": 14, "ferplus": 13, "ckplus": 6, "neutral": 1, "in_training": 2}
    assert found["images"] == images
    of = {row["weights"]: row for row in found["rows"]}
    assert of.keys() == {"fer2013", "fer2013-small", "ferplus", "photos"}
    model = load_pretrained("fer2013-small")
    images = compare.load(data).split("PrivateTest").images
    predicted = predict_proba(model, [Image.fromarray(i) for i in images]).argmax(1).numpy()
    assert of["fer2013-small"]["fer2013"] == np.mean(predicted == np.arange(14) % 7)
    assert of["fer2013-small"]["fear"] == np.mean(predicted[2::7] == 2)
    neutral = model.categories[predicted[6]]  # the other neutral one has no majority
    assert of["fer2013-small"]["neutral_as_anger_or_sadness"] == (neutral in ("anger", "sadness"))
    assert 0 <= of["ferplus"]["ckplus"] <= of["ferplus"]["ckplus_of_six"] <= 1
    *_, plus, _ = rows = re.findall(r"^\| `.*", _pages.compare(), re.MULTILINE)
    assert len(rows) == 4 and plus.startswith("| `ferplus`") and plus.endswith("| 50.0 |")
