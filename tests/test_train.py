"""tools/train.py on tiny data: what it learns, keeps, resumes and refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import _fer2013
import _trainer
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import train
from _augment import NUMBERS, Augmentation, augment
from _degrade import spoil
from _figures import plot_curves
from _settings import Settings
from _thin import thin
from conftest import ROOT, change_state, csv_text, faces, votes_text
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba, save_pretrained

SCRIPT = ROOT / "tools" / "train.py"
TINY = [
    "--epochs", "3", "--batch-size", "7", "--sizes", "32", "--votes-weight", "0",
    "--device", "cpu", "--width", "0.125", "--amp", "off",
]  # fmt: skip


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "fer2013.csv"
    path.write_text(csv_text(21, 7))
    return path


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train.main(["--data", str(tiny), "--out", str(run), *TINY])
    return run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that is sure of what it says, and calibrated."""
    torch.manual_seed(3)
    model = ImprovedVGG19(width=0.125)
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    model.temperature, model.mean = 1.5, 0.4
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    save_pretrained(model, folder / "weights", dtype=torch.float32)
    return folder / "weights"


def a_trainer(
    tiny: Path, teacher: Any = None, odds: Any = None, weight: float = 0.9, flip: bool = False,
    embeddings: int = 0, embedding_weight: float = 1.0, **given: Any,
) -> _trainer.Trainer:  # fmt: skip
    images, labels = train.to_device(train.load(tiny).split("Training"), torch.device("cpu"))
    settings = Settings(**{"epochs": 1, "batch_size": 7, "sizes": "32", "device": "cpu"} | given)
    torch.manual_seed(0)
    return _trainer.Trainer(
        ImprovedVGG19(width=0.125), settings, images, labels.flip(0) if flip else labels,
        teacher=teacher, teacher_weight=weight, odds=odds,
        embeddings=embeddings, embedding_weight=embedding_weight,
    )  # fmt: skip


def an_epoch(trainer: _trainer.Trainer) -> dict[str, Any]:
    return trainer.train_epoch(0, tqdm(disable=True))


def test_a_run_leaves_config_metrics_and_weights(whole: Path, tiny: Path) -> None:
    config, lines = json.loads((whole / "config.json").read_text()), lines_of(whole)
    assert (config["data"], config["lr"], config["epochs"]) == (str(tiny), 0.03, 3)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"loss", "train_accuracy", "public_accuracy", "lr"} <= set(lines[0])
    model = load_pretrained(whole / "weights")
    average = load_file(whole / "checkpoint.safetensors")["average.classifier.weight"]
    torch.testing.assert_close(model.classifier.weight, average, atol=1e-3, rtol=1e-3)


def test_curves_of_one_epoch_show_points(tmp_path: Path) -> None:
    line = {"epoch": 1, "loss": 1.5, "train_accuracy": 0.4}
    plot_curves([line], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    middle = pixels[130:310]  # of 440 rows; the legend is in a corner
    for colour in ((214, 39, 40), (31, 119, 180)):  # the loss's and the accuracy's
        assert (middle == colour).all(-1).sum() > 10


def test_a_stopped_run_resumes_bit_identical(whole: Path, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(SCRIPT), "--data", str(tiny), "--out", str(run), *TINY]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(SystemExit, match="another process is at work on"):
            train.main(command[2:])
    finally:
        process.send_signal(signal.SIGCONT)
    process.terminate()
    _, err = process.communicate()
    assert process.returncode == 130 and f"--resume {run}" in err
    train.main(["--resume", str(run)])
    found, expected = (load_file(folder / "checkpoint.safetensors") for folder in (run, whole))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_ctrl_c_waits_until_the_epoch_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(history: list[dict[str, Any]], path: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # where Python would raise KeyboardInterrupt
        path.write_text("drawn")

    monkeypatch.setattr(train, "plot_curves", draw)
    with pytest.raises(SystemExit, match="130"):
        train.main(["--data", str(tiny), "--out", str(tmp_path), *TINY])
    assert (tmp_path / "curves.png").read_text() == "drawn"
    assert len(lines_of(tmp_path)) == 1


def test_wrong_arguments_are_named(whole: Path, tiny: Path, tmp_path: Path) -> None:
    new = ["--data", str(tiny), "--out", str(tmp_path / "x")]
    for arguments, message in (
        (["--data", str(tiny), "--out", str(whole), *TINY, "--lr", "1"], "not empty.* another lr:"),
        ([*new[:-1], str(tiny.parent)], "holds no run"),
        (["--resume", str(tmp_path)], "no run of this"),
        (["--resume", str(whole), "--lr", "1"], "--resume takes --epochs, --sizes"),
        (new, "--votes is needed"),
        ([*new, *TINY, "--labels", "ferplus"], "--votes is needed"),
        ([*new, *TINY, "--consistent"], "--consistent"),
        ([*new, *TINY, "--embedding-weight", "1"], "--embedding-weight"),
        ([*new, *TINY, "--every", "0"], "--every"),
        ([*new, *TINY, "--batch-size", "64"], "--batch-size 64"),
        ([*new, *TINY, "--freeze", "6"], "--freeze 6"),
        ([*new, *TINY, "--init", "nowhere"], "--init nowhere"),
        ([*new, *TINY, "--epochs", "-1"], "epochs must be at least 0"),
        ([*new, *TINY, "--epochs", "0"], "--epochs 0 keeps .* --init"),
        ([*new, *TINY, "--sizes", "7x8"], "sizes must be"),
        ([*new, *TINY, "--holdout", "2"], "--holdout is a share"),
        ([*new, *TINY, "--holdout", "0.1", "--fold", "1/5"], "give one of them"),
        ([*new, *TINY, "--teachers", "ckplus"], "categories"),
        ([*new, *TINY, "--teachers", "ferplus", "--consistent"], "have the same categories"),
        ([*new, *TINY, "--favour", "joy=1"], "no class joy"),
        ([*new, *TINY, "--favour", "fear=1", "--hidden-features", "9"], "the only one"),
        ([*new, *TINY, "--favour", "fear=nan"], "give numbers"),
        ([*new, *TINY, "--keep", "0.5"], "--keep is the share"),
        ([*new, *TINY, "--init", "ferplus", "--keep", "0.5"], "nothing to --keep"),
        ([*new, *TINY, "--teacher-shares", "1"], "--teacher-shares are those of"),
        ([*new, *TINY, "--teachers", "ferplus", "--teacher-shares", "1,2"], "a number above 0"),
        ([*new, *TINY, "--teachers", "ferplus", "--teacher-shares", "a"], "a number above 0"),
        ([*new, *TINY, "--teachers", "ferplus", "--consistent", "--degrade", "1"], "of clean"),
        ([*new, *TINY, "--init", str(whole / "weights"), "--arch", "vgg19"], "other layers"),
    ):
        with pytest.raises(SystemExit, match=message):
            train.main(arguments)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("recipe", "losses"),
    [("release", [1.95547, 1.95844, 1.94735]), ("paper", [1.96301, 1.94834, 1.96227])],
)
def test_the_same_seed_gives_the_same_numbers(
    recipe: str, losses: list[float], tiny: Path, tmp_path: Path
) -> None:
    options = [*TINY, "--amp", "off", "--recipe", recipe, "--lr", "0.001"]
    train.main(["--data", str(tiny), *options, "--out", str(tmp_path / "run")])
    # Rounding grows with every step, and differs between processors.
    assert [line["loss"] for line in lines_of(tmp_path / "run")] == pytest.approx(losses, rel=2e-3)


def test_images_of_one_gray_are_not_learned(whole: Path, tiny: Path, tmp_path: Path) -> None:
    head, *lines = tiny.read_text().splitlines()
    black, data, run = " ".join(["0"] * 48 * 48), tmp_path / "data.csv", tmp_path / "run"
    lines[3:3] = [f"0,{black},Training"] * 5
    data.write_text("\n".join([head, *lines]))
    train.main(["--data", str(data), "--out", str(run), *TINY])
    found, expected = (load_file(folder / "checkpoint.safetensors") for folder in (run, whole))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    card = json.loads((run / "weights" / "config.json").read_text())["trained_on"]
    assert card == "21 Training images of FER2013, of 26, 3 epochs."
    # Nor is one got right, whatever the network says of it.
    images, labels = torch.zeros(7, 48, 48, dtype=torch.uint8), torch.arange(7)
    assert _trainer.accuracy(load_pretrained(run / "weights"), images, labels, 44) == 0


def test_a_fold_is_not_learned_and_answered_for(tiny: Path, tmp_path: Path) -> None:
    run, common = tmp_path / "run", ["--data", str(tiny), *TINY, "--epochs", "1"]
    train.main([*common, "--fold", "2/5", "--out", str(run)])
    answers, model = np.load(run / "answers.npz"), load_pretrained(run / "weights-float32")
    faces = train.load(tiny)
    for key, name in (("training", "Training"), ("public", "PublicTest")):
        pixels = torch.tensor(faces.split(name).images)[:, None] / 255
        expected = predict_proba(model, pixels, tta="ten_crop", precision="float32").log()
        assert answers[key].dtype == np.float16
        torch.testing.assert_close(torch.tensor(answers[key]).float(), expected, atol=2e-3, rtol=0)
    training = faces.split("Training")
    held = _fer2013.hold_out(training, 1 / 5, 2)
    assert 0 < held.sum() < 14 and np.array_equal(answers["unseen"], held)
    assert (str(answers["fold"]), str(answers["fingerprint"])) == ("2/5", training.fingerprint())
    assert (run / "answers.npz").stat().st_size < 10_000
    # As if they were not in the file.
    head, *lines = tiny.read_text().splitlines()
    rest = [line for line, out in zip(lines, [*held, *[False] * 7], strict=True) if not out]
    (tmp_path / "rest.csv").write_text("\n".join([head, *rest]))
    common[1] = str(tmp_path / "rest.csv")
    train.main([*common, "--out", str(tmp_path / "rest")])
    first, other = (
        load_pretrained(folder / "weights-float32") for folder in (run, tmp_path / "rest")
    )
    assert all(map(torch.equal, first.parameters(), other.parameters()))
    card = json.loads((run / "weights" / "config.json").read_text())["trained_on"]
    assert card == f"{(~held).sum()} Training images of FER2013, of 21, 1 epochs."


def test_the_same_command_goes_on(tiny: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["--data", str(tiny), "--out", str(run), *TINY[2:]]
    train.main([*command, "--epochs", "1"])
    before = (run / "checkpoint.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="its run has another epochs"):
        train.main([*command, "--epochs", "3"])
    (run / "weights" / "config.json").unlink()
    train.main([*command, "--epochs", "1"])  # it was over but for the weights
    assert load_pretrained(run / "weights")
    assert (run / "checkpoint.safetensors").read_bytes() == before
    train.main(["--resume", str(run), "--epochs", "2"])
    train.main(command)  # with as many epochs as the run has got since
    assert len(lines_of(run)) == 2


def test_as_many_epochs_as_fit_the_time(tiny: Path, tmp_path: Path) -> None:
    config = train.Config(minutes=1.0, epochs=100)
    marks = [10.0, 12.0, 13.0, 14.0, 15.0]  # one second each, but the first ones
    assert train.fit_epochs(config, 5, 15.0, marks).epochs == 50
    assert train.fit_epochs(config, 3, 13.0, marks[:3]) is config  # nothing to go by
    assert train.fit_epochs(config, 3, 30.0, marks[:3]).epochs == 6  # but 10 seconds each
    assert train.fit_epochs(config, 99, 60.5, marks) is config  # over time, and at the end
    assert train.fit_epochs(config, 50, 60.5, marks).epochs == 51

    run = tmp_path / "run"
    options = ["--minutes", "0.03", "--every", "1000", "--out", str(run)]
    train.main(["--data", str(tiny), *TINY, *options])
    lines, epochs = lines_of(run), json.loads((run / "config.json").read_text())["epochs"]
    assert len(lines) == lines[-1]["epochs"] == epochs < 100
    assert [line["epoch"] for line in lines if "public_accuracy" in line] == [epochs]


def test_formula_one_is_binary_cross_entropy_over_softmax_outputs() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64) * 4
    targets = F.one_hot(torch.tensor([0, 3, 6, 2, 2]), 7).double()
    h = logits.softmax(1)
    by_hand = -(targets * h.log() + (1 - targets) * (1 - h).log()).sum(1).div(7).mean()
    torch.testing.assert_close(_trainer.soft_loss(logits, targets, "paper"), by_hand)
    extreme = torch.tensor([[200.0, 0, 0, 0, 0, 0, 0]], requires_grad=True)
    loss = _trainer.soft_loss(extreme, F.one_hot(torch.tensor([1]), 7).float(), "paper")
    assert loss.isfinite()
    assert torch.autograd.grad(loss, extreme)[0].isfinite().all()


def test_rates_sizes_and_the_calm_end() -> None:
    paper, _ = train.parse(["--recipe", "paper", "--data", "x", "--out", "/tmp/none"])
    assert (paper.lr, paper.epochs, paper.batch_size, paper.crop) == (0.01, 250, 128, True)
    assert [paper.rate(epoch, 0) for epoch in (84, 85, 90)] == pytest.approx([0.01, 0.009, 0.0081])
    cosine = Settings(schedule="cosine", warmup=0.1, lr=1.0)
    rates = [cosine.rate(0, done) for done in (0, 0.05, 0.1, 0.55, 0.99)]
    assert rates == pytest.approx([0.01, 0.505, 1, 0.5, 0.0003], abs=1e-3)
    assert [Settings(sizes="32x2,40x1,44").size(epoch) for epoch in (1, 2, 3)] == [32, 40, 44]
    settings = Settings(epochs=100, calm=0.12, rotate=15.0, scale=0.3, shift=0.6, erase=0.5)
    calm = settings.augmented(88)
    assert (calm.rotate, calm.scale, calm.shift, calm.erase) == pytest.approx((5, 0.1, 0.2, 0))
    assert settings.augmented(87) is settings


def test_other_architectures_and_options_train(tiny: Path, tmp_path: Path) -> None:
    for options in (
        ["--arch", "vgg19", "--recipe", "paper", "--limit", "7"],
        ["--no-batch-norm", "--hidden-features", "16", "--pool", "avg", "--loss", "paper"],
        ["--mixup", "1", "--holdout", "0.4", "--ema", "0", "--amp", "on"],
    ):
        run = tmp_path / options[0]
        train.main(["--data", str(tiny), *TINY, "--epochs", "1", *options, "--out", str(run)])
        (line,) = lines_of(run)
        assert 0 <= line["public_accuracy"] <= 1
        assert ("holdout_accuracy" in line) == ("--holdout" in options)


def test_the_votes_are_learned_in_place_of_the_labels_and_beside_them(
    tiny: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what else is learned from them stays in line with the images that have a label."""
    votes, run, seen = tmp_path / "fer2013new.csv", tmp_path / "run", list[dict[str, Any]]()
    head, *lines = votes_text(28).splitlines()
    lines[0] = "Training,a.png,0,0,0,0,6,0,0,3,1,0"  # of ten, one vote counts for nothing
    lines[1] = "Training,a.png,0,0,0,0,0,0,1,0,9,0"  # unknown
    votes.write_text("\n".join([head, *lines]))

    def spy(network: Any, config: Any, images: Any, labels: Any, **given: Any) -> _trainer.Trainer:
        seen.append(given | {"labels": labels})
        return _trainer.Trainer(network, config, images, labels, **given)

    monkeypatch.setattr(train, "Trainer", spy)
    options = ["--epochs", "1", "--lr", "0", "--ema", "0", "--init", str(teacher)]
    options += ["--labels", "ferplus", "--votes-weight", "0.5", "--votes-correction", "0.1"]
    options += ["--teachers", "ferplus", "--votes", str(votes), "--out", str(run)]
    train.main(["--data", str(tiny), *TINY, *options])
    (given,) = seen
    torch.testing.assert_close(given["shares"][0], torch.tensor([0, 0, 0, 0, 2, 0, 0, 1]) / 3)
    assert len(given["labels"]) == 20 and given["shares"][1:].max(1).values.eq(1).all()
    for learned in ("shares", "votes", "odds"):
        assert torch.equal(given[learned].argmax(1), given["labels"])
    assert load_file(run / "checkpoint.safetensors")["trainee.votes.weight"].shape == (10, 64)
    model, before = load_pretrained(run / "weights-float32"), load_pretrained(teacher)
    assert model.categories == _fer2013.FERPLUS_CATEGORIES
    assert torch.equal(model.classifier.weight[4], before.classifier.weight[0])  # anger
    assert 0 <= lines_of(run)[0]["public_accuracy"] <= 1
    assert "votes of FER+" in json.loads((run / "weights/config.json").read_text())["trained_on"]


def test_a_run_that_is_cut_short_is_not_left_at_a_high_rate(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train.main(["--data", str(tiny), *TINY, "--epochs", "2", "--out", str(run)])
    saved = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(saved | {"epochs": 9}))  # 2 of 9 are over
    lines = [json.loads(line) | {"epochs": 9} for line in (run / "metrics.jsonl").open()]
    change_state(run, history=lines)
    for epochs in ("1", "2"):
        with pytest.raises(SystemExit, match=f"--epochs {epochs}: 2 of 9 are over.* at least 3"):
            train.main(["--resume", str(run), "--epochs", epochs])
    train.main(["--resume", str(run), "--epochs", "3"])
    assert len(lines_of(run)) == 3
    assert lines_of(run)[-1]["lr"] < 0.3 * lines_of(run)[0]["lr"]


def test_a_run_goes_on_from_another_folder(
    tiny: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(teacher, tmp_path / "t")
    (tmp_path / "ferplus").mkdir()  # which is not what the registered name means
    monkeypatch.chdir(tmp_path)
    given = ["--init", "t", "--teachers", "t,fer2013-small", "--consistent", "--epochs", "1"]
    train.main(["--data", str(tiny), *TINY, *given, "--out", "run"])
    config = json.loads(Path("run/config.json").read_text())
    assert config["teachers"] == f"{tmp_path / 't'},fer2013-small"
    monkeypatch.chdir(tiny.parent)
    train.main(["--resume", str(tmp_path / "run"), "--epochs", "2"])
    monkeypatch.chdir(tmp_path)
    own = ["--teachers", "ferplus", "--epochs", "1", "--out", "plus"]
    train.main(["--data", str(tiny), *TINY, *own])
    assert json.loads(Path("plus/config.json").read_text())["teachers"] == "ferplus"


@pytest.mark.parametrize("faster", ["on", "off"])
def test_auto_takes_the_precision_of_the_faster_steps(
    faster: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run keeps it, also where the other one has become the faster."""
    command = ["--data", str(tiny), *TINY, "--epochs", "1", "--amp", "auto", "--out"]
    epoch = _trainer.Trainer.train_epoch
    times: dict[str, list[float]] = {}

    def timed(trainer: _trainer.Trainer, *given: Any) -> dict[str, Any]:
        clock = times[trainer.settings.amp]
        return epoch(trainer, *given) | {"seconds": clock.pop(0) if clock else 0.0}

    monkeypatch.setattr(_trainer.Trainer, "train_epoch", timed)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    other = {"on": "off", "off": "on"}[faster]
    for first, second in ((faster, other), (other, faster)):
        times |= {first: [9, 2, 1], second: [1, 3, 2]}  # the first ones do not count
        train.main([*command, str(tmp_path / "run")])
        assert json.loads((tmp_path / "run" / "config.json").read_text())["amp"] == faster
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # no instructions for it
    times |= {"on": [], "off": []}
    train.main([*command, str(tmp_path / "old")])
    assert json.loads((tmp_path / "old" / "config.json").read_text())["amp"] == "off"


@pytest.mark.parametrize("levels", [0, 1])
def test_a_run_starts_from_the_weights_that_init_names(
    levels: int, teacher: Path, tiny: Path, tmp_path: Path
) -> None:
    how = ["--epochs", "1", "--lr", "0", "--ema", "0", "--no-precise-bn", "--init", str(teacher)]
    how += ["--levels", "--degrade", "0.5"] * levels
    train.main(["--data", str(tiny), *TINY, *how, "--out", str(tmp_path / "run")])
    new, old = load_pretrained(tmp_path / "run" / "weights-float32"), load_pretrained(teacher)
    assert all(map(torch.equal, new.parameters(), old.parameters()))
    # The old temperature was fitted to the old weights.
    found = float(new.mean), float(new.temperature), int(new.levels)
    assert found == (pytest.approx(0.4), 1, levels)
    config = json.loads((tmp_path / "run" / "weights" / "config.json").read_text())
    assert "1 epochs, from the weights teacher" in config["trained_on"]


def test_a_thinner_run_begins_with_what_the_weights_know(tiny: Path, tmp_path: Path) -> None:
    wide = load_pretrained("fer2013-small")
    wide.mean, wide.levels, narrow = 0.4, 1, ImprovedVGG19(width=0.9 * wide.width)
    some = faces(200)[..., 2:46, 2:46]
    some[7] = 0.5  # shows nothing
    thin(wide, narrow, some)
    assert (narrow.mean, narrow.levels) == (wide.mean, 1)
    x = faces(200, 1)[..., 2:46, 2:46]
    assert (wide(x).argmax(1) == narrow(x).argmax(1)).float().mean() > 0.85
    options = [*TINY, "--epochs", "0", "--no-precise-bn", "--init", "fer2013-small"]
    train.main(["--data", str(tiny), "--out", str(tmp_path / "run"), *options])
    begun = load_pretrained(tmp_path / "run" / "weights")
    assert begun.width == 0.125 and begun.features[1].running_mean.any()


def test_batches_that_come_round_are_asked_about_once(tiny: Path) -> None:
    asked = list[torch.Tensor]()

    def teacher(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(x)
        return x.flatten(1)[:, :7].softmax(1), x.flatten(1)

    answers: train.Answers = {}
    for _ in range(2):  # two runs that share them
        ask = train.remembering(teacher, answers)
        trainer = a_trainer(tiny, ask, rounds=2, epochs=5, mixup=0.5)
        losses = [trainer.train_epoch(epoch, tqdm(disable=True))["loss"] for epoch in range(5)]
        assert len(asked) == 6 and losses[0] != losses[2]
    assert len({float(x.sum()) for x in asked}) == 6


def test_teachers_are_learned_from_by_their_shares_and_asked_once(
    teacher: Path, tiny: Path, tmp_path: Path
) -> None:
    """In a geometric mean over the classes that are to be learned."""
    run, options = tmp_path / "run", [*TINY, "--epochs", "1", "--label-smoothing", "0"]
    given = ["--teachers", f"{teacher},ferplus", "--teacher-shares", "3,1", "--out", str(run)]
    train.main(["--data", str(tiny), *options, "--teacher-weight", "0.75", *given])
    faces = train.load(tiny).split("Training")
    pixels = torch.tensor(faces.images)[:, None].float() / 255
    plus = load_pretrained("ferplus")
    columns = [(plus.categories or ()).index(name) for name in train.FER2013_CATEGORIES]
    own = predict_proba(load_pretrained(teacher), pixels, precision="float32")
    rows = predict_proba(plus, pixels, precision="float32")[:, columns]
    mean = own**0.75 * rows**0.25
    expected = 0.75 * mean / mean.sum(1, keepdim=True)
    expected += 0.25 * F.one_hot(torch.from_numpy(faces.labels), 7)
    targets = load_file(run / "checkpoint.safetensors")["targets"]
    torch.testing.assert_close(targets, expected, atol=1e-5, rtol=0)

    config = json.loads((run / "config.json").read_text()) | {"teachers": "gone,ferplus"}
    (run / "config.json").write_text(json.dumps(config))
    train.main(["--resume", str(run), "--epochs", "2"])
    assert torch.equal(load_file(run / "checkpoint.safetensors")["targets"], targets)


def test_levels_of_init_stay(teacher: Path, tiny: Path, tmp_path: Path) -> None:
    """What a network has learned on levelled views it does not know of others."""
    model = load_pretrained(teacher)
    model.levels.fill_(1)
    save_pretrained(model, tmp_path / "init")
    given = ["--data", str(tiny), *TINY, "--init", str(tmp_path / "init"), "--epochs", "1"]
    for width in ("0.125", "0.1"):  # as it is, and thinned
        run = tmp_path / width
        train.main([*given, "--width", width, "--out", str(run)])
        assert load_pretrained(run / "weights").levels == 1
    train.main(["--resume", str(run)])
    assert load_pretrained(run / "weights").levels == 1


def test_a_teacher_with_levels_spoils_no_batch_in_which_a_view_is_plain(
    teacher: Path, tmp_path: Path
) -> None:
    model = load_pretrained(teacher)
    model.levels.fill_(1)
    save_pretrained(model, tmp_path)
    config = train.Config(teachers=str(tmp_path), amp="off")
    ask, _ = train.consistent_teacher(config, torch.device("cpu"))
    x = torch.cat([torch.rand(2, 1, 44, 44), torch.full((1, 1, 44, 44), 0.5)])
    answers, embeddings = ask(x)
    assert answers.isfinite().all() and embeddings.isfinite().all()
    torch.testing.assert_close(answers[:2], load_pretrained(tmp_path)(x[:2]).softmax(1))


def test_what_init_knew_is_kept_in_part(
    teacher: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run that was at its end when it went on; and no hour is lost on weights that are
    not there any more."""
    init, run = tmp_path / "init", tmp_path / "0.25"
    shutil.copytree(teacher, init)
    begin = ["--data", str(tiny), *TINY, "--init", str(init), "--epochs", "1"]
    found = {}
    for keep in ("0", "0.25"):
        favour = ["--favour", "fear=0.5"] if keep == "0.25" else []
        train.main([*begin, "--keep", keep, *favour, "--out", str(tmp_path / keep)])
        found[keep] = load_pretrained(tmp_path / keep / "weights-float32").state_dict()
    old = load_pretrained(teacher).state_dict()
    for name, value in found["0"].items():
        if name.startswith(("features", "classifier")) and value.is_floating_point():
            expected = torch.lerp(value, old[name], 0.25)
            if name == "classifier.bias":
                expected[2] += 0.5
            torch.testing.assert_close(found["0.25"][name], expected)
    assert not torch.equal(found["0"]["features.0.weight"], old["features.0.weight"])
    train.main(["--resume", str(run)])
    again = load_pretrained(run / "weights-float32").state_dict()
    assert all(torch.equal(again[name], value) for name, value in found["0.25"].items())
    shutil.rmtree(init)
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("trained in vain"))
    with pytest.raises(SystemExit, match="--init"):
        train.main(["--resume", str(run)])


def test_consistent_teachers_are_asked_about_each_batch(teacher: Path, tiny: Path) -> None:
    names, seen = ("fer2013-small", str(teacher)), list[torch.Tensor]()
    config = train.Config(teachers=",".join(names), amp="off")
    asked, size = train.consistent_teacher(config, torch.device("cpu"))

    def ask(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(x.clone())
        return asked(x)

    # At weight 1 the labels drop out: two runs whose labels differ take the same step.
    one, other, labels = (
        an_epoch(a_trainer(tiny, ask, weight=weight, flip=flip, mixup=0.5))["loss"]
        for flip, weight in ((False, 1.0), (True, 1.0), (False, 0.0))
    )
    assert one == other != labels
    assert [x.shape for x in seen] == 9 * [(7, 1, 32, 32)]
    teachers, (answers, embeddings) = [load_pretrained(name) for name in names], asked(seen[0])
    with torch.no_grad():
        expected = torch.stack([model(seen[0]).softmax(1) for model in teachers])
        maps = [model.forward_features(seen[0]) for model in teachers]
        parts = [m.forward_head(x, pre_logits=True) for m, x in zip(teachers, maps, strict=True)]
    torch.testing.assert_close(answers, expected.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(embeddings, torch.cat(parts, 1), atol=1e-4, rtol=0)
    assert embeddings.shape == (7, size)

    in_bfloat16, _ = train.consistent_teacher(
        dataclasses.replace(config, amp="on"), torch.device("cpu")
    )
    rounded = in_bfloat16(seen[0])[0]
    assert not torch.equal(rounded, answers)
    torch.testing.assert_close(rounded, answers, atol=0.05, rtol=0)


def test_a_teachers_embedding_is_learned_too(tiny: Path) -> None:
    def ask(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(x), 7), 1 / 7), 10 * F.adaptive_avg_pool2d(x, (8, 1)).flatten(1)

    losses, given = [], {"lr": 0.02, "epochs": 20, "clip_value": 0.0, "crop": False}
    for weight in (0.0, 1.0):
        trainer = a_trainer(tiny, ask, embeddings=8, embedding_weight=weight, **given)
        lines = [trainer.train_epoch(epoch, tqdm(disable=True)) for epoch in range(20)]
        losses.append([line["loss"] for line in lines])
    missed = [both - answers for answers, both in zip(*losses, strict=True)]
    assert missed[0] > 1 > 0.5 > missed[-1]
    wanted = torch.randn(50, 3)
    assert _trainer.unexplained(wanted, wanted) == 0
    mean = wanted.mean(0).expand(50, 3)
    torch.testing.assert_close(_trainer.unexplained(mean, wanted), torch.tensor(1.0))


def test_a_teachers_answer_about_mixed_images_is_corrected_by_their_votes(tiny: Path) -> None:
    # P(vote | label) counted by hand, one added: label 0 has votes 3 and 1, label 1 has 0 and 2.
    votes = torch.tensor([[3, 1], [0, 2], [0, 0]], dtype=torch.float32).numpy()
    odds = torch.from_numpy(_fer2013.vote_odds(votes, torch.tensor([0, 1, 1]).numpy(), 2))
    p = torch.tensor([[4 / 6, 2 / 6], [1 / 4, 3 / 4]]).log()
    expected = torch.stack([3 * p[:, 0] + p[:, 1], 2 * p[:, 1], torch.zeros(2)])
    torch.testing.assert_close(odds, expected)

    given = torch.randn(21, 7, generator=torch.Generator().manual_seed(3))
    seen, answer = list[torch.Tensor](), torch.full((7,), 1 / 7)

    def ask(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(x)
        return answer.expand(len(x), 7), x.flatten(1)

    trainer = a_trainer(tiny, ask, given)
    picked, kept = torch.arange(14).view(2, 7), torch.tensor([0.75, 1.0])
    batches = trainer.make(picked, torch.rand(21, NUMBERS), kept, Augmentation(), 44)
    assert torch.equal(seen[0], batches.x.flatten(0, 1))
    labels = F.one_hot(trainer.labels, 7).float()
    mixed, odds = (0.75 * v[:7] + 0.25 * v[:7].roll(1, 0) for v in (labels, given))
    torch.testing.assert_close(batches.targets[0], 0.1 * mixed + 0.9 * odds.softmax(1))
    target = 0.1 * labels + 0.9 * given.softmax(1)
    torch.testing.assert_close(batches.targets[1], target[7:14])
    assert torch.equal(batches.labels, trainer.labels[picked])
    torch.testing.assert_close(a_trainer(tiny, answer.expand(21, 7), given).targets, target)


def test_calm_epochs_mix_no_images(tiny: Path) -> None:
    plain, mixed, calm = (
        an_epoch(a_trainer(tiny, **given))["loss"]
        for given in ({}, {"mixup": 0.5}, {"mixup": 0.5, "calm": 1.0})
    )
    assert calm == plain != mixed


def test_the_average_is_updated_every_few_steps(tiny: Path) -> None:
    trainer = a_trainer(tiny, ema=0.5, ema_every=3, epochs=2)
    before = copy.deepcopy(trainer.average.state_dict())
    an_epoch(trainer)
    share, new = min(0.5, 3 / 12) ** 3, trainer.network.state_dict()
    for name, found in trainer.average.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(found, share * before[name] + (1 - share) * new[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_is_fast_on_a_gpu_changes_no_numbers(tiny: Path) -> None:
    found, data = [], train.to_device(train.load(tiny).split("Training"), torch.device("cuda"))
    for fast, compiled in ((False, False), (True, False), (True, True)):
        settings = Settings(
            epochs=3, batch_size=7, dropout=0.0, amp="off", lr=0.001, ema=0.9,
            graph=fast, ahead=fast, compile=compiled,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = _trainer.Trainer(settings.network(), settings, *data)
        bar = tqdm(disable=True)
        found.append([trainer.train_epoch(epoch, bar)["loss"] for epoch in range(3)])
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[2] == pytest.approx(found[0], rel=0.02)


def test_precise_bn_measures_plain_crops(tiny: Path, tmp_path: Path) -> None:
    common = ["--data", str(tiny), *TINY, "--epochs", "1", "--rotate", "90", "--erase", "1"]
    models = []
    for flag in ("--precise-bn", "--no-precise-bn"):
        train.main([*common, flag, "--out", str(tmp_path / flag)])
        models.append(load_pretrained(tmp_path / flag / "weights-float32"))
    x = torch.tensor(train.load(tiny).split("Training").images)[:, None].float() / 255
    with torch.no_grad():
        found = models[0].features[0]((x - models[0].mean) / models[0].std)
    for model, close in zip(models, (True, False), strict=True):
        norm = model.features[1]
        for name, expected in (("mean", found.mean((0, 2, 3))), ("var", found.var((0, 2, 3)))):
            statistics = getattr(norm, f"running_{name}")
            assert torch.allclose(statistics, expected, rtol=0.05, atol=0.02) == close
    frozen = ["--freeze", "2", "--precise-bn", "--lr", "0", "--ema", "0", "--init"]
    begin = [*frozen, str(tmp_path / "--precise-bn" / "weights-float32"), "--erase", "0"]
    train.main([*common, *begin, "--out", str(tmp_path / "frozen")])
    kept = load_pretrained(tmp_path / "frozen" / "weights-float32")
    for index, layer in enumerate(models[0].features):
        if isinstance(layer, torch.nn.BatchNorm2d):
            same = torch.equal(layer.running_mean, kept.features[index].running_mean)
            assert same == (index < 14)
    # No epoch at all: the weights that are given, with the statistics of plain crops.
    begin = ["--init", str(tmp_path / flag / "weights-float32"), "--out", str(tmp_path / "none")]
    train.main(["--data", str(tiny), *TINY, "--epochs", "0", *begin])
    anew = load_pretrained(tmp_path / "none" / "weights-float32").state_dict()
    assert all(torch.equal(anew[name], value) for name, value in models[0].state_dict().items())


IMAGES = torch.randint(0, 256, (64, 48, 48), dtype=torch.uint8)
DRAWN = torch.rand(64, NUMBERS, generator=torch.Generator().manual_seed(0))


def test_crops_are_windows_of_the_image_or_its_mirror() -> None:
    x = augment(IMAGES, DRAWN, Augmentation(crop=True))
    assert x.shape == (64, 1, 44, 44)
    mirrored, places = 0, set()
    for image, crop in zip(IMAGES.float() / 255, x[:, 0], strict=True):
        windows = image.unfold(0, 44, 1).unfold(1, 44, 1)
        plain = (windows == crop).all(-1).all(-1)
        flipped = (windows == crop.flip(1)).all(-1).all(-1)
        assert plain.any() != flipped.any()
        mirrored += int(flipped.any())
        places.add(tuple((plain | flipped).nonzero()[0].tolist()))
    assert 16 < mirrored < 48
    assert len(places) > 15
    for end in (0.0, 1 - 2**-24):  # the largest that torch.rand gives stays inside
        x = augment(IMAGES, torch.full((64, NUMBERS), end), Augmentation(crop=True))
        expected = IMAGES[:, None, 4:, 4:] if end else IMAGES[:, None, :44, :44].flip(-1)
        assert torch.equal(x, expected.float() / 255)


def test_ranges_change_images_as_far_as_they_say() -> None:
    centre = IMAGES[:, None, 2:46, 2:46].float() / 255
    centre = torch.where((DRAWN[:, 0] < 0.5).view(-1, 1, 1, 1), centre.flip(-1), centre)
    torch.testing.assert_close(augment(IMAGES, DRAWN, Augmentation()), centre, atol=1e-4, rtol=0)
    how = Augmentation(rotate=30, scale=0.3, shift=0.2, brightness=0.3, contrast=0.5, erase=1.0)
    x = augment(IMAGES, DRAWN, how, 40)
    assert x.shape == (64, 1, 40, 40)
    assert 0 <= x.min() < x.max() <= 1
    blank = (x == 0.5).float().mean((1, 2, 3))
    assert ((blank > 0.01) & (blank < 0.35)).all()


def test_the_share_that_is_degraded_and_the_share_that_is_framed_anew() -> None:
    blobs = torch.rand(400, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    faces = (F.interpolate(blobs, size=(48, 48), mode="bicubic").clamp(0, 1) * 255).byte()[:, 0]
    drawn = torch.rand(400, NUMBERS, generator=torch.Generator().manual_seed(1))
    spoiled = spoil(faces, drawn[:, 11], 0.3)
    assert (spoiled.dtype, spoiled.shape) == (torch.uint8, faces.shape)
    changed = (spoiled != faces).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    alone = torch.cat([spoil(faces[i : i + 1], drawn[i : i + 1, 11], 0.3) for i in range(20)])
    assert torch.equal(alone, spoiled[:20])  # whatever else is in the batch
    how = Augmentation(rotate=15, scale=0.15, shift=0.08, degrade=0.3)
    x = augment(faces, drawn, how)[:, 0]
    cut = torch.zeros(400, dtype=torch.bool)
    for index, (image, view) in enumerate(zip(spoiled.float() / 255, x, strict=True)):
        windows = torch.stack([image, image.flip(1)]).unfold(1, 44, 1).unfold(2, 44, 1)
        cut[index] = bool((windows - view).abs().amax((-1, -2)).min() < 1e-3)
    assert 0.6 < cut.float().mean() < 0.8
    assert 0.1 < (cut & changed).float().mean() < 0.3
