from __future__ import annotations

import csv
import json
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from fer2013 import hold_out, load
from PIL import Image

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba, preprocess, save_pretrained


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = ImprovedVGG19()
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    save_pretrained(model, tmp_path / "weights", metrics={"kept": 1.0})
    return tmp_path / "weights"


def test_an_evaluation_agrees_with_predictions_made_by_hand(
    tiny_csv: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate.main(["--data", str(tiny_csv), "--weights", str(weights), "--out", str(out)])
    result = json.loads((out / "evaluation.json").read_text())
    model = load_pretrained(weights)
    part = load(tiny_csv).split("PublicTest")
    images = [Image.fromarray(image) for image in part.images]
    assert result["images"] == 7
    assert result["images_deduplicated"] == 7
    for name, tta in (("ten_crop", "ten_crop"), ("flip", "flip"), ("single", None)):
        answers = predict_proba(model, images, tta=tta).argmax(1).numpy()
        assert result["accuracy"][name] == pytest.approx((answers == part.labels).mean())
    answers = predict_proba(model, images).argmax(1).numpy()
    with (out / "confusion.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header[1:] == list(model.categories or ())
    counts = np.array([row[1:] for row in rows], int)
    for true, predicted in zip(part.labels, answers, strict=True):
        counts[true, predicted] -= 1
    assert not counts.any()
    assert sum(values["support"] for values in result["per_class"].values()) == 7
    for name in ("confusion.png", "reliability.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    assert "tools/evaluate.py --data" in result["command"]


def test_prepared_images_are_what_preprocess_makes(tiny_csv: Path) -> None:
    model = ImprovedVGG19()
    images = load(tiny_csv).images[:3]
    expected = torch.stack([preprocess(image) for image in images])
    torch.testing.assert_close(evaluate.prepare(model, images), expected, atol=1e-6, rtol=0)


def test_duplicates_of_training_images_are_left_out(tiny_csv: Path) -> None:
    faces = load(tiny_csv)
    public, training = faces.split("PublicTest"), faces.split("Training")
    images = public.images.copy()
    images[2] = training.images[5]
    changed = type(public)(images, public.labels, public.splits, public.rows)
    assert evaluate.new_pixels(changed, training).tolist() == [True, True, False] + [True] * 4


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


def test_crop_logits_and_temperature_make_predict_proba(weights: Path, tiny_csv: Path) -> None:
    model = load_pretrained(weights)
    x = evaluate.prepare(model, load(tiny_csv).images[:3])
    logits = evaluate.crop_logits(model, x)
    model.temperature = 1.7
    torch.testing.assert_close(
        evaluate.calibrated(logits, 1.7), predict_proba(model, x), atol=1e-5, rtol=0
    )


def test_a_hold_out_is_measured_by_itself(tiny_csv: Path, weights: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(tiny_csv), "--weights", str(weights), "--out", str(tmp_path / "o")]
    evaluate.main([*arguments, "--holdout", "0.4"])
    result = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    _, held = hold_out(load(tiny_csv).split("Training"), 0.4)
    answers = predict_proba(load_pretrained(weights), list(held.images)).argmax(1).numpy()
    assert result["split"] == "Hold-out 0.4 of Training"
    assert result["images"] == result["images_deduplicated"] == len(held) > 0
    assert result["accuracy"]["ten_crop"] == pytest.approx((answers == held.labels).mean())
    with pytest.raises(SystemExit):
        evaluate.main([*arguments, "--holdout", "1"])


def test_decisions_that_differ_between_two_weights_are_counted(
    tiny_csv: Path, weights: Path, tmp_path: Path
) -> None:
    model = load_pretrained(weights)
    x = evaluate.prepare(model, load(tiny_csv).split("PublicTest").images)
    before = predict_proba(model, x).argmax(1)
    with torch.no_grad():
        model.classifier.bias[0] += 100.0
    save_pretrained(model, tmp_path / "other")
    arguments = ["--data", str(tiny_csv), "--weights", str(weights), "--out", str(tmp_path / "o")]
    evaluate.main([*arguments, "--against", str(tmp_path / "other")])
    result = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert result["against"] == str(tmp_path / "other")
    assert result["decisions_that_differ"]["ten_crop"] == int((before != 0).sum()) > 0


def test_an_evaluation_computes_in_the_precision_that_is_asked_for(
    tiny_csv: Path, weights: Path, tmp_path: Path
) -> None:
    model = load_pretrained(weights)
    part = load(tiny_csv).split("PublicTest")
    errors = []
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        evaluate.main(
            ["--data", str(tiny_csv), "--weights", str(weights), "--out", str(out),
             "--precision", precision]
        )  # fmt: skip
        errors.append(json.loads((out / "evaluation.json").read_text())["ece"]["ten_crop"])
        found = predict_proba(model, list(part.images), precision=precision)
        assert errors[-1] == pytest.approx(
            evaluate.calibration(found.double().numpy(), part.labels)[0], abs=1e-7
        )
    assert abs(errors[0] - errors[1]) > 1e-6


def test_store_keeps_temperature_and_figures_with_the_weights(
    tiny_csv: Path, weights: Path, tmp_path: Path
) -> None:
    arguments = ["--data", str(tiny_csv), "--weights", str(weights), "--out", str(tmp_path / "o")]
    evaluate.main([*arguments, "--fit-temperature", "--store"])
    result = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert "ece_cross_fitted" in result
    stored = json.loads((weights / "config.json").read_text())
    assert stored["metrics"]["kept"] == 1.0
    assert stored["metrics"]["PublicTest ten_crop accuracy"] == pytest.approx(
        result["accuracy"]["ten_crop"], abs=1e-5
    )
    assert load_pretrained(weights).temperature == result["temperature"] != 1.0
    with pytest.raises(SystemExit):
        evaluate.main([*arguments, "--weights", "fer2013", "--store"])
