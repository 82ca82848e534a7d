"""tools/evaluate.py: figures of a split, as predictions made by hand have them."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
from _fer2013 import FERPLUS_CATEGORIES, Faces, hold_out, load
from conftest import sharp, votes_text
from PIL import Image

from ferfacenet import load_pretrained, predict_proba, save_pretrained
from ferfacenet.model import FER2013_CATEGORIES


def run(tiny_csv: Path, weights: Path, *more: str) -> dict[str, Any]:
    out = tiny_csv.parent / "out"
    evaluate.main(["--data", str(tiny_csv), "--weights", str(weights), "--out", str(out), *more])
    result: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return result


def test_an_evaluation_agrees_with_predictions_made_by_hand(tiny_csv: Path, weights: Path) -> None:
    result = run(tiny_csv, weights)
    model, part = load_pretrained(weights), load(tiny_csv).split("PublicTest")
    images = [Image.fromarray(image) for image in part.images]
    assert result["images"] == result["images_deduplicated"] == 7
    for name in evaluate.VIEWS:
        tta: Any = None if name == "none" else name
        rows = predict_proba(model, images, tta=tta, precision="float32")
        right = (rows.argmax(1).numpy() == part.labels).mean()
        assert result["accuracy"][name] == pytest.approx(right)
        error = evaluate.calibration(rows.double().numpy(), part.labels)[0]
        assert result["ece"][name] == pytest.approx(error, abs=1e-5)
    counts = np.array(result["confusion"])
    answers = predict_proba(model, images, precision="float32").argmax(1)
    for true, predicted in zip(part.labels, answers, strict=True):
        counts[true, predicted] -= 1
    assert not counts.any()
    for name in ("confusion.png", "reliability.png"):
        with Image.open(tiny_csv.parent / "out" / name) as picture:
            assert min(picture.size) > 300
    assert "--data fer2013.csv.xz" in result["command"]  # and not where it lies


def test_duplicates_of_training_images_are_left_out(tiny_csv: Path) -> None:
    faces = load(tiny_csv)
    images = faces.images.copy()
    images[23] = images[5]  # the third of PublicTest, which follows 21 of Training
    part, fresh = evaluate.choose(
        type(faces)(images, faces.labels, faces.splits, faces.rows), "PublicTest"
    )
    assert len(part) == 7
    assert fresh.tolist() == [True, True, False, True, True, True, True]


def test_an_image_of_one_gray_counts_as_wrong(weights: Path) -> None:
    model, images = load_pretrained(weights), np.zeros((7, 48, 48), np.uint8)
    images[2:] = np.random.default_rng(0).integers(0, 256, (5, 48, 48))
    logits = evaluate.crop_logits(model, images)
    labels = evaluate.average(logits, 1.0).argmax(1).numpy()  # as the network says, black ones too
    part = Faces(images, labels, np.zeros(7, np.int64), np.arange(7))
    result = evaluate.evaluate(part, np.ones(7, bool), model, logits)
    assert result["accuracy"]["ten_crop"] == result["accuracy_deduplicated"]["ten_crop"] == 5 / 7
    # Those of the two that no answer is wrong about are still asked for.
    assert sum(of["support"] for of in result["per_class"].values()) == 7
    assert result["per_class"][FER2013_CATEGORIES[labels[0]]]["recall"] < 1
    assert np.sum(result["confusion"]) == 5
    # Nobody is told probabilities of them, so there is nothing to be calibrated.
    rest = part.where(part.varied())
    alone = evaluate.evaluate(rest, np.ones(5, bool), model, logits[2:])
    assert result["ece"] == alone["ece"] and alone["accuracy"]["ten_crop"] == 1


def test_weights_with_the_classes_of_ferplus_are_measured_by_votes(
    tiny_csv: Path, weights: Path
) -> None:
    model, votes = sharp(8, width=0.125), tiny_csv.parent / "fer2013new.csv"
    model.categories = FERPLUS_CATEGORIES
    save_pretrained(model, tiny_csv.parent / "plus")
    head, *lines = votes_text(28).splitlines()
    lines[22] = "PublicTest,a.png,4,0,0,4,2,0,0,0,0,0"  # no majority
    lines[24] = "PublicTest,a.png,0,0,0,0,0,0,0,10,0,0"
    votes.write_text("\n".join([head, *lines]))
    result = run(tiny_csv, tiny_csv.parent / "plus", "--votes", str(votes))
    supports = {name: of["support"] for name, of in result["per_class"].items()}
    assert supports == dict.fromkeys(FERPLUS_CATEGORIES, 1) | {"disgust": 0, "happiness": 0}
    with pytest.raises(SystemExit, match="--votes is needed"):
        run(tiny_csv, tiny_csv.parent / "plus")
    with pytest.raises(SystemExit, match="--against .*plus: other classes"):
        run(tiny_csv, weights, "--against", str(tiny_csv.parent / "plus"))
    model.categories = (*"abcdefgh",)
    save_pretrained(model, tiny_csv.parent / "own")
    with pytest.raises(SystemExit, match="other classes than FER2013 or FER"):
        run(tiny_csv, tiny_csv.parent / "own")


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.45, 0.55]])
    error, (mean, accuracy, share) = evaluate.calibration(probabilities, np.array([0, 1, 1, 1]))
    # Bins of 1/15: 0.9 twice (half right), 0.8 and 0.55 once each, both right.
    assert error == pytest.approx(0.5 * 0.4 + 0.25 * 0.2 + 0.25 * 0.45)
    assert share.sum() == pytest.approx(1)
    assert accuracy[13] == pytest.approx(0.5)
    assert mean[8] == pytest.approx(0.55)


def test_the_fitted_temperature_is_the_one_that_was_put_in() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 1, 7, generator=generator).double() * 2
    labels = torch.multinomial((logits[:, 0] / 2.5).softmax(1), 1, generator=generator)[:, 0]
    assert evaluate.fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.1)
    before = evaluate.calibration(logits[:, 0].softmax(1).numpy(), labels.numpy())[0]
    assert before > 0.1
    assert evaluate.cross_fitted_ece(logits, labels) < 0.03


def test_a_hold_out_is_measured_by_itself(tiny_csv: Path, weights: Path) -> None:
    result = run(tiny_csv, weights, "--holdout", "0.4", "--fit-temperature")
    held = hold_out(load(tiny_csv).split("Training"), 0.4)
    assert result["split"] == "Hold-out 0.4 of Training"
    assert result["images"] == result["images_deduplicated"] == held.sum() > 0
    assert result["temperature"] != 1
    assert "ece_cross_fitted" in result
    with pytest.raises(SystemExit):
        run(tiny_csv, weights, "--holdout", "1")


def test_two_weights_are_compared(tiny_csv: Path, weights: Path, tmp_path: Path) -> None:
    model = load_pretrained(weights)
    images = list(load(tiny_csv).split("PublicTest").images)
    said = predict_proba(model, images, precision="float32")
    with torch.no_grad():
        model.classifier.bias[1] += 10.0
    model.temperature.fill_(2.0)
    save_pretrained(model, tmp_path / "other", dtype=torch.float32)
    wanted = predict_proba(model, images, precision="float32")
    result = run(tiny_csv, weights, "--against", str(tmp_path / "other"))
    differ = said.argmax(1) != wanted.argmax(1)
    assert result["decisions_that_differ"]["flip"] == int(differ.sum()) > 0
    assert result["precision"] == "float32" and not torch.backends.cudnn.allow_tf32
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    divergence = (wanted * (wanted / said).log()).sum(1).mean()
    assert result["kl_divergence"] == pytest.approx(float(divergence), abs=1e-4)

    model.levels.fill_(1)  # and so has no answer for a plain image, which others guess at
    save_pretrained(model, tmp_path / "other", dtype=torch.float32)
    found = run(tiny_csv, weights, "--against", str(tmp_path / "other"))
    with lzma.open(tiny_csv, "at") as file:
        file.write(f"0,{' '.join(['90'] * 48**2)},PublicTest\n")
    result = run(tiny_csv, weights, "--against", str(tmp_path / "other"))
    assert result["images"] == 8
    assert result["decisions_that_differ"] == found["decisions_that_differ"]
    assert result["kl_divergence"] == pytest.approx(found["kl_divergence"])
