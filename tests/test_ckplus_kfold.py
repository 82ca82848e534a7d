"""tools/ckplus_kfold.py: its folds on real data where that is there, its runs on tiny data."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ckplus
import ckplus_kfold
import engine
import numpy as np
import pytest
import torch
from ckplus import CATEGORIES, FOLDERS
from conftest import ROOT, SHARED
from PIL import Image
from sklearn.metrics import accuracy_score

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba

SCRIPT = ROOT / "tools" / "ckplus_kfold.py"
TINY = [
    "--init", "scratch", "--epochs", "2", "--batch-size", "7", "--n-folds", "3", "--sizes", "32",
    "--device", "cpu",
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
    ckplus_kfold.main(["--data", str(tiny), "--protocol", "subject", "--out", str(run), *TINY])
    return run


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- reading -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> ckplus.Frames:
    folder = SHARED / "ckplus" / "CK+48"
    if not folder.is_dir():
        pytest.skip(f"needs CK+, which may not be redistributed: {folder} is absent")
    return ckplus.load(folder)


def test_the_real_data_is_read_whole(real: ckplus.Frames) -> None:
    assert real.images.shape == (981, 48, 48)
    assert len(set(real.names)) == 981
    assert len(set(real.subjects)) == 118
    assert len(set(real.sequences)) == 327
    assert np.bincount(real.labels).tolist() == [135, 54, 177, 75, 207, 84, 249]


def test_frames_carry_their_name_label_and_subject(tiny: Path) -> None:
    frames = ckplus.load(tiny)
    index = frames.names.index("happy/S002_004_00000009.png")
    assert CATEGORIES[frames.labels[index]] == "happiness"
    assert frames.subjects[index] == "S002"
    assert frames.sequences[index] == "S002_004"
    with Image.open(tiny / "happy" / "S002_004_00000009.png") as image:
        assert np.array_equal(frames.images[index], np.asarray(image))


def link_all(source: Path, target: Path) -> Path:
    for path in source.glob("*/*.png"):
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        (target / path.parent.name / path.name).hardlink_to(path)
    return target


@pytest.mark.parametrize("fault", ["no folder", "empty", "name", "size", "torn"])
def test_what_is_no_ck_plus_is_named(tiny: Path, tmp_path: Path, fault: str) -> None:
    folder = link_all(tiny, tmp_path / "CK+48")
    odd = folder / "fear" / "S009_001_00000001.png"
    if fault in ("no folder", "empty"):
        for path in (folder / "fear").iterdir():
            path.unlink()
        message = "fear is empty"
        if fault == "no folder":
            (folder / "fear").rmdir()
            message = "fear is no folder: CK\\+48 has one for each of"
    elif fault == "name":
        (folder / "fear" / "face.png").write_bytes(b"")
        message = "fear/face.png is not named S<subject>_<sequence>_<frame>.png"
    elif fault == "size":
        Image.new("L", (47, 48)).save(odd)
        message = "S009_001_00000001.png is 47x48, not 48x48"
    else:
        odd.write_bytes((tiny / "fear" / "S000_003_00000009.png").read_bytes()[:90])
        message = "S009_001_00000001.png cannot be read"
    with pytest.raises(SystemExit, match=message):
        ckplus.load(folder)


# --- folds ---------------------------------------------------------------------------------


def test_random_folds_are_stratified_over_frames(real: ckplus.Frames) -> None:
    folds = ckplus_kfold.make_folds(real, "random", 10, 0)
    counts = np.array([np.bincount(real.labels[folds == fold]) for fold in range(10)])
    assert counts.sum() == 981
    assert (counts.max(0) - counts.min(0) <= 1).all()
    # What the protocol is criticised for: the test frames' sequences are in training.
    leaked = [
        np.isin(real.sequences[folds == fold], real.sequences[folds != fold]).mean()
        for fold in range(10)
    ]
    assert np.mean(leaked) > 0.95
    assert not np.array_equal(folds, ckplus_kfold.make_folds(real, "random", 10, 1))
    assert np.array_equal(folds, ckplus_kfold.make_folds(real, "random", 10, 0))


def test_nobody_is_on_both_sides_of_a_subject_fold(real: ckplus.Frames) -> None:
    folds = ckplus_kfold.make_folds(real, "subject", 10, 0)
    assert set(folds) == set(range(10))
    for fold in range(10):
        assert not set(real.subjects[folds == fold]) & set(real.subjects[folds != fold])
        assert set(real.labels[folds != fold]) == set(range(7))


def test_the_list_of_folds_is_read_back(tiny: Path, tmp_path: Path, whole: Path) -> None:
    frames = ckplus.load(tiny)
    folds = ckplus_kfold.make_folds(frames, "random", 3, 5)
    path = tmp_path / "folds.csv"
    ckplus_kfold.write_folds(path, frames, folds)
    assert np.array_equal(ckplus_kfold.read_folds(path, frames, "random", 3), folds)
    # A run is given them, in whatever order, and tests each frame in its fold.
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    out = tmp_path / "run"
    short = [*TINY, "--epochs", "1", "--folds", str(path)]
    ckplus_kfold.main(["--data", str(tiny), "--out", str(out), *short])
    used = {row["file"]: int(row["fold"]) - 1 for row in read(out / "predictions.csv")}
    assert used == dict(zip(frames.names, folds.tolist(), strict=True))


def test_a_wrong_list_of_folds_is_refused(tiny: Path, tmp_path: Path) -> None:
    frames = ckplus.load(tiny)
    path = tmp_path / "folds.csv"
    ckplus_kfold.write_folds(path, frames, ckplus_kfold.make_folds(frames, "random", 3, 0))
    lines = path.read_text().splitlines()
    for text, protocol, message in (
        (lines, "subject", r"puts S\d+ into several folds: --protocol random"),
        ([*lines, lines[5]], "random", "names a file twice"),
        (lines[:-1], "random", "differ in 1 files, the first surprise/"),
        (["a,b", "c,d"], "random", "is no list of folds with columns file,fold"),
        ([line.replace(",3", ",2") for line in lines], "random", "does not hold the folds 1 to 3"),
    ):
        path.write_text("\n".join(text))
        with pytest.raises(SystemExit, match=message):
            ckplus_kfold.read_folds(path, frames, protocol, 3)
    with pytest.raises(SystemExit, match="is no list of folds"):
        ckplus_kfold.read_folds(tmp_path / "none.csv", frames, "random", 3)


# --- runs ----------------------------------------------------------------------------------


def test_every_image_is_tested_once_and_pooled(whole: Path, tiny: Path) -> None:
    rows = read(whole / "predictions.csv")
    assert sorted(row["file"] for row in rows) == sorted(ckplus.load(tiny).names)
    result = json.loads((whole / "result.json").read_text())
    true, predicted = ([row[key] for row in rows] for key in ("true", "predicted"))
    assert result["images"] == 42
    assert result["split"] == "3 folds by subject, pooled"
    assert result["accuracy"]["ten_crop"] == accuracy_score(true, predicted)
    by_fold = [
        np.mean([row["true"] == row["predicted"] for row in rows if row["fold"] == fold])
        for fold in "123"
    ]
    assert result["accuracy_by_fold"] == pytest.approx(by_fold)
    assert result["accuracy_fold_mean"] == pytest.approx(np.mean(by_fold))
    assert result["accuracy_fold_sd"] == pytest.approx(np.std(by_fold, ddof=1))
    for row in rows:
        found = {name: float(row[name]) for name in CATEGORIES}
        assert sum(found.values()) == pytest.approx(1, abs=1e-4)
        assert found[row["predicted"]] == max(found.values())
    counts = [line.split(",") for line in (whole / "confusion.csv").read_text().splitlines()]
    assert counts[0][1:] == [line[0] for line in counts[1:]] == list(CATEGORIES)
    matrix = np.array([line[1:] for line in counts[1:]], int)
    assert matrix.sum(1).tolist() == [6] * 7
    assert np.trace(matrix) == sum(t == p for t, p in zip(true, predicted, strict=True))
    assert (whole / "confusion.png").stat().st_size > 5000
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(line["fold"], line["epoch"]) for line in lines] == [
        (fold, epoch) for fold in (1, 2, 3) for epoch in (1, 2)
    ]


@pytest.mark.parametrize(("how", "epochs"), [(signal.SIGKILL, 3), (signal.SIGINT, 4)])
def test_a_stopped_run_goes_on_where_it_was(
    how: signal.Signals, epochs: int, whole: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--data", str(tiny), "--protocol", "subject",
         "--out", str(run), *TINY],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < epochs:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in err
        assert f"--resume {run}" in err
    before = metrics.read_text().splitlines()
    assert len(before) < 6
    ckplus_kfold.main(["--resume", str(run)])
    assert metrics.read_text().splitlines()[: len(before)] == before
    for name in ("predictions.csv", "confusion.csv", "folds.csv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    expected = json.loads((whole / "result.json").read_text())
    found = json.loads((run / "result.json").read_text())
    assert found.pop("command").endswith(f"--out {run} {' '.join(TINY)}")
    expected.pop("command")
    assert found == expected


def test_resuming_refuses_changed_frames(whole: Path, tiny: Path, tmp_path: Path) -> None:
    other = link_all(tiny, tmp_path / "CK+48")
    path = next((other / "anger").iterdir())
    path.unlink()
    Image.new("L", (48, 48)).save(path)
    run = tmp_path / "run"
    run.mkdir()
    for file in whole.iterdir():
        (run / file.name).hardlink_to(file)
    config = json.loads((whole / "config.json").read_text()) | {"data": str(other)}
    (run / "config.json").unlink()
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="has changed since"):
        ckplus_kfold.main(["--resume", str(run)])


def test_wrong_arguments_are_named(
    whole: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tiny)]
    new = ["--out", str(tmp_path / "new")]
    for arguments, message in (
        ([*data, "--out", str(whole)], "is not empty"),
        (data, "--data and --out are needed"),
        (["--resume", str(whole), "--epochs", "3"], "--resume takes all its settings"),
        (["--resume", str(tmp_path)], "holds no config.json"),
        ([*data, *new, "--protocol", "all", "--folds", "x"], "--protocol all has no folds"),
        ([*data, *new, "--result", str(whole / "result.json")], "is for --protocol all"),
    ):
        with pytest.raises(SystemExit):
            ckplus_kfold.main(arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--n-folds 10: n_splits=10 cannot be greater"):
        ckplus_kfold.main([*data, *new])
    with pytest.raises(SystemExit, match="--init nowhere: "):
        ckplus_kfold.main([*data, *new, "--n-folds", "3", "--init", "nowhere"])


# --- from other weights --------------------------------------------------------------------


def test_shared_labels_keep_their_row_of_the_classifier() -> None:
    model = ckplus_kfold.build(ckplus_kfold.Config(init="fer2013", dropout=0.25))
    before = load_pretrained("fer2013")
    assert model.categories == CATEGORIES
    assert model.dropout.p == 0.25
    for name in CATEGORIES:
        row = model.classifier.weight[CATEGORIES.index(name)]
        if name != "contempt":
            assert before.categories is not None
            assert torch.equal(row, before.classifier.weight[before.categories.index(name)])
    assert torch.equal(model.features[0].weight, before.features[0].weight)
    scratch = ckplus_kfold.build(ckplus_kfold.Config())
    assert not torch.equal(scratch.features[0].weight, before.features[0].weight)


@pytest.fixture(scope="module")
def weights(tiny: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "all"
    options = [
        *TINY, "--protocol", "all", "--init", "fer2013", "--freeze", "2", "--epochs", "4",
        "--ema", "0", "--result", str(whole / "result.json"),
    ]  # fmt: skip
    ckplus_kfold.main(["--data", str(tiny), "--out", str(run), *options])
    return run / "weights"


def test_the_weights_of_all_frames(weights: Path, tiny: Path, whole: Path) -> None:
    model = load_pretrained(weights)
    assert model.categories == CATEGORIES
    result = json.loads((whole / "result.json").read_text())
    assert model.temperature == result["temperature"]
    config = json.loads((weights / "config.json").read_text())
    figure = config["metrics"]["3 folds by subject, pooled ten_crop accuracy"]
    assert figure == pytest.approx(result["accuracy"]["ten_crop"], abs=1e-5)
    assert config["trained_on"] == "All 42 frames of CK+48, 4 epochs, from fer2013."
    assert "3 folds by subject" in config["selected_on"]
    assert "forbids passing it on" in config["dataset_license"]
    probabilities = predict_proba(model, tiny / "fear" / "S000_003_00000009.png")
    assert probabilities.shape == (1, 7)


def test_frozen_blocks_stay_as_they_were(weights: Path) -> None:
    after, before = load_pretrained(weights), load_pretrained("fer2013")
    state = before.state_dict()
    for name, value in after.state_dict().items():
        part, _, rest = name.partition(".")
        frozen = part == "features" and int(rest.split(".")[0]) < 14
        if value.is_floating_point() and value.numel() > 7:
            assert torch.equal(value, state[name]) == frozen, name


@pytest.mark.parametrize("blocks", [-1, 6])
def test_blocks_that_are_not_there_cannot_be_frozen(blocks: int) -> None:
    with pytest.raises(SystemExit, match="0 to 5 blocks"):
        engine.frozen_layers(ImprovedVGG19(), blocks)
