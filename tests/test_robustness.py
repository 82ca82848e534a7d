"""tools/robustness.py on tiny data, and what it does to faces."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import _pages
import numpy as np
import pytest
import robustness
import torch
from _degrade import KINDS, degrade
from _fer2013 import FERPLUS_CATEGORIES, Faces, load
from _pages import percent
from conftest import PHOTO, PORTRAITS, ROOT, sharp, votes_text
from evaluate_faces import choose_crops
from robustness import STRENGTHS, degraded, score

from ferfacenet import detect_faces, load_pretrained, predict_proba, preprocess, save_pretrained
from ferfacenet.model import FER2013_CATEGORIES


@pytest.fixture(scope="module")
def face() -> torch.Tensor:
    return preprocess(PHOTO)[None]


def spoil(x: torch.Tensor, kind: str, strength: float) -> torch.Tensor:
    return degrade(x, kind, strength, torch.Generator().manual_seed(0))


def test_every_kind_gives_other_faces_and_the_same_twice(face: torch.Tensor) -> None:
    x = torch.cat([face, face.flip(-1), 1 - face])
    first, second = list(degraded(x)), list(degraded(x))
    assert STRENGTHS.keys() == KINDS.keys()
    assert len({(kind, strength) for kind, strength, _ in first}) == len(first) == 45
    for (kind, _, one), (_, _, other) in zip(first, second, strict=True):
        assert one.shape == x.shape and one.dtype == torch.float32, kind
        assert one.min() >= 0 and one.max() <= 1, kind
        assert torch.equal((one * 255).round() / 255, one), kind  # as a file has it
        assert torch.equal(one, other), kind
        assert all((a - b).abs().mean() > 0.002 for a, b in zip(one, x, strict=True)), kind


@pytest.mark.parametrize(
    ("kind", "strength", "level"),
    [("gain", 0.1, 15), ("clipped", 2, 255), ("offset", 0.2, 201), ("offset", -0.2, 99),
     ("gamma", 2, 88), ("contrast", 0.15, 150), ("blur", 2, 150), ("motion blur", 9, 150),
     ("enlarged", 400, 150), ("shrunk", 16, 150), ("JPEG", 10, 150), ("framing", 2, 150)],
)  # fmt: skip
def test_a_plain_patch_has_the_level_that_the_name_says(
    kind: str, strength: float, level: int
) -> None:
    out = spoil(torch.full((2, 1, 48, 48), 150 / 255), kind, strength) * 255
    assert (out - level).abs().max() <= (2 if kind == "JPEG" else 0.001)


def test_noise_and_shadow_are_as_strong_as_they_say() -> None:
    plain = torch.full((40, 1, 48, 48), 0.5)
    assert abs(spoil(plain, "noise", 0.06).std().item() - 0.06) < 0.001
    assert abs(spoil(plain, "shot noise", 60).std().item() - (0.5 / 60) ** 0.5) < 0.002
    shadow = spoil(plain, "shadow", 0.3)
    sides = torch.stack([shadow[..., 0, 0], shadow[..., 0, -1]]).flatten(1)  # one each is dark
    assert (sides.amin(0) - 0.15).abs().max() < 0.01 and (sides.amax(0) - 0.5).abs().max() < 0.01
    assert 10 < (sides[0] < sides[1]).sum() < 30


def test_scores_count_those_without_an_answer_as_wrong() -> None:
    nan = float("nan")
    rows = torch.tensor([[0.9, 0.1], [0.4, 0.6], [nan, nan], [0.7, 0.3]])
    of = score(rows, np.array([0, 0, 0, 0]))
    assert of["accuracy"] == 0.5
    assert of["confidence"] == pytest.approx((0.9 + 0.6 + 0.7) / 3, abs=1e-5)
    assert (of["sure"], of["sure_and_right"]) == (0.75, 0.5)
    assert of["ece"] == pytest.approx((0.1 + 0.6 + 0.3) / 3, abs=1e-5)


def write_data(folder: Path) -> tuple[Path, Path]:
    """FER2013's file with 14 PublicTest images of three faces, and votes that agree with the
    labels but for one image, where there is no majority."""
    found = [face.crop for photo in (PHOTO, PORTRAITS) for face in detect_faces(photo)]
    crops = [
        ((one.flip(-1) if turn % 2 else one) * (1 - turn / 10) * 255).round().int().flatten()
        for turn in range(5)
        for one in found
    ]
    rows = [
        f"{index % 7},{' '.join(map(str, crop.tolist()))},PublicTest"
        for index, crop in enumerate(crops[:14])
    ]
    data, votes = folder / "fer2013.csv", folder / "fer2013new.csv"
    data.write_text("\n".join(["emotion,pixels,Usage", *rows]))
    lines = votes_text(14).splitlines()
    lines[5] = "Training,a.png,5,0,0,5,0,0,0,0,0,0"
    votes.write_text("\n".join(lines))
    return data, votes


def test_weights_are_measured_by_their_own_labels_and_others_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pages, "ROOT", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "ferfacenet").symlink_to(ROOT / "ferfacenet")
    data, votes = write_data(tmp_path)
    save_pretrained(sharp(width=0.125), tmp_path / "seven")
    eight = sharp(num_classes=8, width=0.125)
    eight.categories = FERPLUS_CATEGORIES
    save_pretrained(eight, tmp_path / "eight")
    out = tmp_path / "docs" / "results" / "robustness.json"
    words = ["--data", data, "--votes", votes, "--count", 4, "--precision", "float32"]
    robustness.main([*map(str, words), "--weights", str(tmp_path / "seven")])
    first = json.loads(out.read_text())
    robustness.main([*map(str, words), "--weights", str(tmp_path / "eight")])
    both = json.loads(out.read_text())
    assert both.keys() == {"seven", "eight"} and both["seven"] == first["seven"]
    assert (both["seven"]["images"], both["eight"]["images"]) == (14, 13)

    x = torch.from_numpy(load(data).images)[:, None] / 255
    darker = ((x * 255 - 51).clamp(0) / 255).float()  # the second strength of offset
    kept = np.arange(14) != 4
    for name, asked in (("seven", kept | True), ("eight", kept)):
        model, of = load_pretrained(tmp_path / name), both[name]
        names = np.array(model.categories)
        wanted = np.array(FER2013_CATEGORIES)[np.arange(14) % 7]
        for pixels, measured in ((x, of["untouched"]), (darker, of["kinds"]["offset"]["-0.2"])):
            rows = predict_proba(model, pixels, precision="float32")[asked].numpy()
            answers = names[rows.argmax(1)]
            assert measured["accuracy"] == pytest.approx(
                np.mean(answers == wanted[asked]), abs=1e-5
            )
            assert measured["confidence"] == pytest.approx(rows.max(1).mean(), abs=1e-4)
        every = [one["accuracy"] for kind in of["kinds"].values() for one in kind.values()]
        assert len(every) == 45
        assert of["mean"]["accuracy"] == pytest.approx(np.mean(every), abs=1e-5)
        assert of["found_again"].keys() == {"0", "20"}
        assert len(of["config_sha256"]) == 64
    assert both["eight"]["config_sha256"] != first["seven"]["config_sha256"]
    page = _pages.robustness().splitlines()
    assert page[0] == "| right, in % | `seven` | `eight` |"
    assert len(page) == 2 + 2 + 15 + 1 + 3 + 1 + 2
    shown = [percent(one["accuracy"], 1) for one in both["eight"]["kinds"]["framing"].values()]
    (line,) = [line for line in page if line.startswith("| framing: scaled / shifted / turned |")]
    assert line.endswith(f"| {' / '.join(shown)} |")


def test_faces_are_pasted_where_those_of_the_results_were() -> None:
    """By whatever labels: figures of other days and of tools/evaluate_faces.py stay comparable."""
    images = np.random.default_rng(0).integers(0, 256, (30, 48, 48), np.uint8)
    public = Faces(images, np.arange(30) % 7, np.ones(30, np.int64), np.arange(30))
    crops, turned, by_roll = choose_crops(public, 10, np.random.default_rng(0))
    unlabelled = dataclasses.replace(public, labels=np.full(30, -1))
    same, _, again = choose_crops(unlabelled, 10, np.random.default_rng(0))
    assert np.array_equal(same.rows, crops.rows) and again == by_roll
    assert len(crops) == len(turned) == len(by_roll[20]) == 10
    assert [place.roll for place in by_roll[20]] == [20, -20] * 5
    assert by_roll[20][0].x == pytest.approx(282.431377) and by_roll[20][0].ground == 168


def test_what_true_probabilities_would_show_is_what_they_show() -> None:
    rng = np.random.default_rng(1)
    rows = torch.from_numpy(rng.normal(size=(3000, 7))).mul(2).softmax(1).numpy()
    labels = (rng.random((3000, 1)) > rows.cumsum(1)[:, :-1]).sum(1)
    expected = robustness.ece_if_calibrated(rows)
    assert 0.5 * expected < robustness.calibration(rows, labels)[0] < 2 * expected < 0.05
    assert robustness.ece_if_calibrated(np.eye(7)) == 0
