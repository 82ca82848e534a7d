"""tools/ckplus_kfold.py: its folds on real data where that is there, its runs on tiny data."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ckplus_kfold
import evaluate
import numpy as np
import pytest
import torch
from _ckplus import CATEGORIES, FOLDERS, Frames, load
from conftest import ROOT, SHARED
from PIL import Image

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba, save_pretrained

SCRIPT = ROOT / "tools" / "ckplus_kfold.py"
TINY = [
    "--epochs", "2", "--batch-size", "7", "--n-folds", "3", "--sizes", "32", "--width", "0.125",
    "--device", "cpu", "--protocol", "random", "--amp", "off",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CK+48's layout: six subjects with all labels, one frame each; noise, and a bright stripe
    that tells the label."""
    folder = tmp_path_factory.mktemp("data") / "CK+48"
    rng = np.random.default_rng(0)
    for label, name in enumerate(FOLDERS.values()):
        (folder / name).mkdir(parents=True)
        for subject in range(6):
            image = rng.integers(0, 100, (48, 48)).astype(np.uint8)
            image[6 * label : 6 * label + 6] += 150
            path = folder / name / f"S{subject:03}_{label:03}_00000009.png"
            Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run over subjects."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    ckplus_kfold.main(["--data", str(tiny), *TINY, "--protocol", "subject", "--out", str(run)])
    return run


@pytest.fixture(scope="module")
def fer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for FER2013's labels."""
    torch.manual_seed(0)
    model = ImprovedVGG19(width=0.125)
    model.temperature = 1.5
    folder = tmp_path_factory.mktemp("runs") / "fer" / "weights"
    save_pretrained(model, folder, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def real() -> Frames:
    folder = SHARED / "ckplus" / "CK+48"
    if not folder.is_dir():
        pytest.skip(f"needs CK+, which may not be redistributed: {folder} is absent")
    return load(folder)


def folds_of(frames: Frames, protocol: Any, **settings: Any) -> list[Any]:
    """The frames that each fold tests."""
    return ckplus_kfold.make_folds(frames, ckplus_kfold.Config(protocol=protocol, **settings))


def rest_of(frames: Frames, folds: list[Any]) -> list[Any]:
    """And those that it trains on."""
    return [np.delete(np.arange(len(frames.names)), test) for test in folds]


def test_real_frames_and_their_folds(real: Frames) -> None:
    assert real.images.shape == (981, 48, 48)
    assert len(set(real.subjects)) == 118
    assert np.bincount(real.labels).tolist() == [135, 54, 177, 75, 207, 84, 249]
    random, again = (folds_of(real, "random") for _ in range(2))
    assert all(map(np.array_equal, random, again))
    counts = np.array([np.bincount(real.labels[test]) for test in random])
    assert counts.sum() == 981
    assert (counts.max(0) - counts.min(0) <= 1).all()
    folds = folds_of(real, "subject")
    for test, rest in zip(folds, rest_of(real, folds), strict=True):  # nobody is on both sides
        assert not set(real.subjects[test]) & set(real.subjects[rest])
        assert set(real.labels[test]) == set(real.labels[rest]) == set(range(7))
    published = json.loads((ckplus_kfold.PUBLISHED / "result.json").read_text())
    right = np.array(published["accuracy_by_fold"]) * [*map(len, folds)]
    assert right == pytest.approx(right.round())  # whole images: the folds are that run's


def test_the_public_folds(real: Frames) -> None:
    """What is known of those of the public VGG19 code, and how far memory goes on all folds."""
    folds = folds_of(real, "public")
    assert [*map(len, folds)] == [99] * 10
    tested = np.bincount(np.concatenate(folds), minlength=981)
    assert np.bincount(tested).tolist() == [24, 924, 33]
    sequences = np.array([name.rpartition("_")[0] for name in real.names])
    known = 0
    for test, rest in zip(folds, rest_of(real, folds), strict=True):
        assert not set(sequences[test]) & set(sequences[rest])
        known += np.isin(real.subjects[test], real.subjects[rest]).sum()
    assert known == 627  # of 990: 63.3 %
    assert [real.names[index] for index in folds[9][:12:6]] == [
        "anger/S503_001_00000069.png", "anger/S506_001_00000038.png",
    ]  # fmt: skip
    pooled, best = {"public": 34.65, "random": 98.67, "subject": 55.56}, 0.0
    for protocol, share in pooled.items():
        found = ckplus_kfold.nearest_neighbour(real, folds_of(real, protocol))
        assert 100 * found["accuracy"] == pytest.approx(share, abs=0.005)
        best = best or max(found["accuracy_by_fold"])
    assert 100 * best == pytest.approx(53.54, abs=0.005)


def test_frames_that_two_folds_test_and_that_none_does(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = [np.array([0, 7, 14, 21, 28, 35]), np.array([0, 1, 8])]
    monkeypatch.setattr(ckplus_kfold, "make_folds", lambda *_: folds)
    given = ["--data", str(tiny), *TINY, "--epochs", "1", "--n-folds", "2", "--out", str(tmp_path)]
    with pytest.warns(UserWarning, match=r"at the bound of its fit, 0\.135: these 9 images"):
        ckplus_kfold.main(given)
    rows = [*csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines())]
    names = load(tiny).names
    assert [row["file"] for row in rows] == [names[index] for test in folds for index in test]
    assert [row["fold"] for row in rows] == ["1"] * 6 + ["2"] * 3
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["images"] == 9
    right = np.array([row["true"] == row["predicted"] for row in rows])
    assert result["accuracy_by_fold"] == pytest.approx([right[:6].mean(), right[6:].mean()])
    memory = result["nearest_neighbour"]["accuracy_by_fold"]
    assert memory == [1.0, 1.0]  # the stripe tells
    assert result["precision"] == "float32" and "scikit-learn" in result["versions"]


def test_the_published_folds_hang_on_no_version_of_scikit_learn() -> None:
    published = json.loads((ckplus_kfold.PUBLISHED / "folds.json").read_text())

    def folds(persons: list[str], **settings: Any) -> list[int]:
        """Of each person, from 1; each has one frame."""
        count = len(persons)
        images, labels = np.zeros((count, 48, 48), np.uint8), np.arange(count) % 7
        frames = Frames(tuple(persons), images, labels, np.array(persons))
        numbers = np.zeros(count, np.int64)
        for number, test in enumerate(folds_of(frames, "subject", **settings), 1):
            numbers[test] = number
        return numbers.tolist()

    assert folds([*published]) == [*published.values()]
    for persons in ([*published, "S998"], [*published][1:]):
        with pytest.raises(SystemExit, match=r"^(S998|S005): only in .*folds\.json.*--seed"):
            folds(persons)
    assert folds([*published], seed=1) != [*published.values()]
    assert set(folds(persons, n_folds=9)) == set(range(1, 10))


def test_what_is_no_ck_plus_is_named(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.glob("*/*.png"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).hardlink_to(path)
    odd = tmp_path / "fear" / "S009_001_00000001.png"
    odd.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"S009_001_00000001\.png cannot be read"):
        load(tmp_path)
    Image.new("L", (47, 48)).save(odd)
    with pytest.raises(SystemExit, match=r"S009_001_00000001\.png is 47x48"):
        load(tmp_path)
    odd.rename(odd.with_name("face.png"))
    with pytest.raises(SystemExit, match=r"face\.png is not named"):
        load(tmp_path)
    for path in (tmp_path / "fear").iterdir():
        path.unlink()
    with pytest.raises(SystemExit, match="fear holds no frames"):
        load(tmp_path)


def test_every_image_is_tested_once_and_pooled(whole: Path, tiny: Path) -> None:
    rows = [*csv.DictReader((whole / "predictions.csv").read_text().splitlines())]
    assert sorted(row["file"] for row in rows) == sorted(load(tiny).names)
    result = json.loads((whole / "result.json").read_text())
    right = np.array([row["true"] == row["predicted"] for row in rows])
    fold = np.array([row["fold"] for row in rows])
    by_fold = [right[fold == name].mean() for name in "123"]
    assert (result["images"], result["split"]) == (42, "3 folds by subject, pooled")
    assert result["accuracy"]["ten_crop"] == pytest.approx(right.mean())
    assert result["accuracy_by_fold"] == pytest.approx(by_fold)
    assert result["accuracy_fold_sd"] == pytest.approx(np.std(by_fold, ddof=1))
    for row in rows:
        found = {name: float(row[name]) for name in CATEGORIES}
        assert row["file"].startswith(FOLDERS[row["true"]])
        assert sum(found.values()) == pytest.approx(1, abs=1e-4)
        assert found[row["predicted"]] == max(found.values())
    matrix = np.array(result["confusion"])
    assert matrix.sum(1).tolist() == [6] * 7
    assert np.trace(matrix) == pytest.approx(42 * result["accuracy"]["flip"])
    assert (whole / "confusion.png").stat().st_size > 5000


def test_the_fitted_temperature_decides_nothing(tmp_path: Path) -> None:
    """Mild answers that are right fit a low one, at which the six crops that lean to the second
    class outvote the four that are sure of the first."""
    logits = torch.zeros(60, 10, 7)
    logits[:, :, 0] = 2
    logits[:6, :, 0], logits[:6, 2:8] = 20, torch.tensor([0.0, 2, 0, 0, 0, 0, 0])
    part = ckplus_kfold.Faces(
        np.zeros((60, 48, 48), np.uint8) + np.arange(48, dtype=np.uint8),
        np.zeros(60, np.int64), np.repeat([0, 1], 30), np.arange(60),
    )  # fmt: skip
    model = ckplus_kfold.build(ckplus_kfold.Config(width=0.125))
    config = ckplus_kfold.Config(n_folds=2)
    result = ckplus_kfold.summarise(model, config, part, logits, tmp_path)
    assert result["temperature"] < 0.5
    low = evaluate.average(logits, result["temperature"]).argmax(1)
    assert (low[:6] == 1).all()
    assert result["accuracy"]["ten_crop"] == np.mean(result["accuracy_by_fold"]) == 1


def test_a_stopped_run_goes_on_where_it_was(whole: Path, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(SCRIPT), "--data", str(tiny), *TINY]
    command += ["--protocol", "subject", "--out", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert f"--resume {run}" in err
    before = metrics.read_text().splitlines()
    ckplus_kfold.main(["--resume", str(run)])
    assert metrics.read_text().splitlines()[: len(before)] == before
    assert (run / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    expected, found = (json.loads((r / "result.json").read_text()) for r in (whole, run))
    assert expected.pop("command").endswith("--protocol subject --out whole")
    assert found.pop("command").endswith("--protocol subject --out run")
    assert found == expected


def test_wrong_arguments_are_named(whole: Path, tiny: Path, tmp_path: Path) -> None:
    new = ["--data", str(tiny), "--out", str(tmp_path / "new")]
    for arguments, message in (
        (["--resume", str(whole), "--epochs", "3"], "no other flag"),
        ([*new, "--result", str(whole / "result.json")], "--protocol all"),
        ([*new, "--protocol", "random"], "--n-folds 10: "),
        ([*new, "--epochs", "0"], "--epochs counts from 1"),
        ([*new, *TINY, "--protocol", "public"], "--n-folds 3: the public folds are ten"),
        ([*new, "--protocol", "public"], r"981 frames of CK\+48"),
        ([*new, "--protocol", "all", "--init", "nowhere"], "--init nowhere: "),
    ):
        with pytest.raises(SystemExit, match=message):
            ckplus_kfold.main(arguments)


def test_shared_labels_keep_their_row_of_the_classifier(fer: Path) -> None:
    model = ckplus_kfold.build(ckplus_kfold.Config(init=str(fer), dropout=0.25))
    before = load_pretrained(fer)
    assert before.categories is not None
    assert (model.categories, model.dropout.p, float(model.temperature)) == (CATEGORIES, 0.25, 1)
    for row, name in enumerate(CATEGORIES):
        if name != "contempt":
            old = before.classifier.weight[before.categories.index(name)]
            assert torch.equal(model.classifier.weight[row], old)
    assert torch.equal(model.features[0].weight, before.features[0].weight)


def test_the_weights_of_all_frames(fer: Path, tiny: Path, whole: Path, tmp_path: Path) -> None:
    options = [
        *TINY, "--protocol", "all", "--init", str(fer), "--freeze", "2", "--ema", "0",
        "--result", str(whole / "result.json"),
    ]  # fmt: skip
    ckplus_kfold.main(["--data", str(tiny), "--out", str(tmp_path / "run"), *options])
    model = load_pretrained(tmp_path / "run" / "weights")
    result = json.loads((whole / "result.json").read_text())
    assert model.categories == CATEGORIES
    assert float(model.temperature) == pytest.approx(result["temperature"])
    config = json.loads((tmp_path / "run" / "weights" / "config.json").read_text())
    figure = config["metrics"]["3 folds by subject, pooled flip accuracy"]
    assert figure == pytest.approx(result["accuracy"]["flip"], abs=1e-5)
    assert config["trained_on"] == "All 42 frames of CK+48, 2 epochs, from fer."
    assert "3 folds by subject" in config["selected_on"]
    assert predict_proba(model, tiny / "fear" / "S000_003_00000009.png").shape == (1, 7)
    for index, layer in enumerate(load_pretrained(fer).features):  # two blocks were frozen
        if isinstance(layer, torch.nn.Conv2d):
            same = torch.allclose(layer.weight, model.features[index].weight, rtol=1e-3, atol=1e-6)
            assert same == (index < 14)
