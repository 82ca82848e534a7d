"""tools/train.py on tiny data: what it learns, keeps, resumes and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import engine
import evaluate
import fer2013
import pytest
import torch
import torch.nn.functional as F
import train
from augment import NUMBERS, Augmentation, augment
from conftest import ROOT, csv_text
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba

SCRIPT = ROOT / "tools" / "train.py"
TINY = [
    "--epochs", "3", "--batch-size", "7", "--sizes", "32", "--votes-weight", "0",
    "--device", "cpu",
]  # fmt: skip


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def wait_for_epochs(process: subprocess.Popen[str], run: Path, epochs: int) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < epochs:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


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


def test_a_run_leaves_config_metrics_curves_and_weights(whole: Path, tiny: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    assert config["data"] == str(tiny)
    assert (config["lr"], config["label_smoothing"], config["epochs"]) == (0.03, 0.1, 3)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"loss", "train_accuracy", "public_accuracy", "lr", "images_per_second"} <= set(lines[0])
    assert (whole / "curves.png").stat().st_size > 5000
    model = load_pretrained(whole / "weights")
    average = load_file(whole / "checkpoint.safetensors")["average.classifier.weight"]
    torch.testing.assert_close(model.classifier.weight, average, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_bit_identical(
    how: signal.Signals, whole: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(["--data", str(tiny), "--out", str(run), *TINY])
    wait_for_epochs(process, run, 1)
    process.send_signal(how)
    _, err = process.communicate()
    if how != signal.SIGKILL:
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert f"--resume {run}" in err
    resumed = start(["--resume", str(run)])
    out, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert not any(json.loads(line)["epoch"] == 1 for line in out.splitlines() if line[0] == "{")
    expected = load_file(whole / "checkpoint.safetensors")
    found = load_file(run / "checkpoint.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_epoch_is_written(
    number: signal.Signals, tiny: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    draw, handlers = train.plot_curves, {n: signal.getsignal(n) for n in (2, 15)}

    def draw_while_it_comes(history: list[dict[str, Any]], path: Path) -> None:
        os.kill(os.getpid(), number)
        time.sleep(0)  # where Python would raise KeyboardInterrupt
        draw(history, path)

    monkeypatch.setattr(train, "plot_curves", draw_while_it_comes)
    try:
        with pytest.raises(SystemExit) as stopped:
            train.main(["--data", str(tiny), "--out", str(tmp_path / "run"), *TINY])
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert stopped.value.code == 130
    assert (tmp_path / "run" / "curves.png").stat().st_size > 5000
    assert "after 1 whole epochs of 3" in capsys.readouterr().err


def test_resuming_refuses_other_data_and_torn_checkpoints(
    whole: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    other = tmp_path / "other.csv"
    other.write_text(csv_text(21, 7, seed=1))
    config = json.loads((whole / "config.json").read_text()) | {"data": str(other), "epochs": 4}
    (run / "config.json").write_text(json.dumps(config))
    checkpoint = run / "checkpoint.safetensors"
    checkpoint.hardlink_to(whole / "checkpoint.safetensors")
    with pytest.raises(SystemExit, match="has changed since"):
        train.main(["--resume", str(run)])
    checkpoint.unlink()
    checkpoint.write_bytes((whole / "checkpoint.safetensors").read_bytes()[:1000])
    with pytest.raises(SystemExit, match="torn or not a checkpoint"):
        train.main(["--resume", str(run)])


def test_wrong_arguments_are_named(
    whole: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--data", str(tiny), "--out", str(whole)], "is not empty"),
        (["--out", str(tmp_path / "x")], "--data and --out are needed"),
        (["--resume", str(tmp_path)], "holds no config.json"),
        (["--resume", str(whole), "--lr", "1"], "all but --epochs and --sizes"),
        (["--data", str(tiny), "--out", str(tmp_path / "x")], "--votes ferplus.csv is needed"),
        (["--data", str(tiny), "--out", str(tmp_path / "x"), *TINY, "--consistent"],
         "--consistent is about the --teachers, and there are none"),
        (["--data", str(tiny), "--out", str(tmp_path / "x"), *TINY, "--every", "0"],
         "--every counts epochs"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            train.main(arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="do not fill one batch"):
        train.main(["--data", str(tiny), "--out", str(tmp_path / "y"), *TINY, "--batch-size", "64"])


def test_a_loss_that_is_not_finite_stops_and_names_the_checkpoint(
    tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"the loss became (nan|inf).*checkpoint\.safetensors"):
        train.main(
            ["--data", str(tiny), "--out", str(tmp_path / "run"), *TINY, "--lr", "1e30",
             "--clip-norm", "0", "--schedule", "step", "--warmup", "0"]
        )  # fmt: skip


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file({"x": torch.ones(3)}, path, {"state": json.dumps({"history": []})})
    code = (
        "import resource, sys; sys.path.insert(0, 'tools'); import torch, engine;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from pathlib import Path;"
        f"engine.save_checkpoint(Path({str(path)!r}), {{'x': torch.ones(9999)}}, {{}}, '--resume')"
    )
    failed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "cannot write" in failed.stderr
    assert "--resume" in failed.stderr
    assert "Traceback" not in failed.stderr
    tensors, _ = engine.load_checkpoint(path)
    assert torch.equal(tensors["x"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_train_as_one(tiny: Path, tmp_path: Path) -> None:
    # Without dropout, whose masks are each process's own; at a low rate, since rounding grows
    # with every step of a network this deep.
    options = [
        "--data", str(tiny), "--batch-size", "6", "--epochs", "2", "--sizes", "32",
        "--votes-weight", "0", "--dropout", "0", "--device", "cpu", "--lr", "0.001",
    ]  # fmt: skip
    train.main([*options, "--out", str(tmp_path / "one")])
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(SCRIPT), *options, "--out", str(tmp_path / "two")],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=5e-4)
    first, second = (load_file(tmp_path / n / "checkpoint.safetensors") for n in ("one", "two"))
    for name in (
        "trainee.network.features.1.running_mean", "trainee.network.features.0.weight",
        "average.features.1.running_mean",  # of --precise-bn
    ):  # fmt: skip
        torch.testing.assert_close(first[name], second[name], rtol=1e-2, atol=1e-3)


def test_formula_one_is_binary_cross_entropy_over_softmax_outputs() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64) * 4
    targets = F.one_hot(torch.tensor([0, 3, 6, 2, 2]), 7).double()
    h = logits.softmax(1)
    by_hand = -(targets * h.log() + (1 - targets) * (1 - h).log()).sum(1).div(7).mean()
    torch.testing.assert_close(engine.soft_loss(logits, targets, "paper"), by_hand)
    extreme = torch.tensor([[200.0, 0, 0, 0, 0, 0, 0]], requires_grad=True)
    loss = engine.soft_loss(extreme, F.one_hot(torch.tensor([1]), 7).float(), "paper")
    loss.backward()
    assert loss.isfinite()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()
    plain = engine.soft_loss(logits, targets, "cross-entropy")
    torch.testing.assert_close(plain, -(targets * h.log()).sum(1).mean())

    equal = torch.zeros(5, 7, dtype=torch.float64, requires_grad=True)
    paper, usual = (
        torch.autograd.grad(engine.soft_loss(equal, targets, kind), equal)[0]
        for kind in ("paper", "cross-entropy")
    )
    torch.testing.assert_close(paper, usual / 6)


def test_recipes_and_schedules() -> None:
    paper, _, _ = train.parse(["--recipe", "paper", "--data", "x", "--out", "/tmp/none"])
    assert (paper.lr, paper.epochs, paper.batch_size, paper.crop) == (0.01, 250, 128, True)
    rate = [engine.learning_rate(paper, 0, 1, epoch) for epoch in (0, 79, 84, 85, 90)]
    assert rate == pytest.approx([0.01, 0.01, 0.01, 0.009, 0.0081])
    cosine = train.Config(schedule="cosine", warmup=0.1, lr=1.0)
    rates = [engine.learning_rate(cosine, step, 100, 0) for step in (0, 5, 10, 55, 99)]
    assert rates == pytest.approx([0.01, 0.505, 1, 0.5, 0.0003], abs=1e-3)
    assert [train.Config(sizes="32x2,40x1,44").size(epoch) for epoch in range(5)] == [
        32, 32, 40, 44, 44,
    ]  # fmt: skip


def test_the_average_follows_the_weights() -> None:
    average, model = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(3)
        model.running_mean.fill_(1)
        model.num_batches_tracked.fill_(5)
    engine.update_average(average, model, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert average.running_mean.tolist() == [0.25, 0.25]
    assert int(average.num_batches_tracked) == 5


def test_other_architectures_and_options_train(tiny: Path, tmp_path: Path) -> None:
    common = ["--data", str(tiny), *TINY, "--epochs", "1"]
    for number, options in enumerate(
        (
            ["--arch", "vgg19", "--recipe", "paper"],
            ["--no-batch-norm", "--hidden-features", "16", "--pool", "avg", "--loss", "paper"],
            ["--mixup", "1", "--holdout", "0.4", "--ema", "0"],
        )
    ):
        run = tmp_path / str(number)
        train.main([*common, *options, "--out", str(run)])
        line = json.loads((run / "metrics.jsonl").read_text())
        assert 0 <= line["public_accuracy"] <= 1
        assert ("holdout_accuracy" in line) == ("--holdout" in options)


def test_the_votes_train_a_second_head(tiny: Path, tmp_path: Path) -> None:
    votes = tmp_path / "ferplus.csv"
    names = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    rows = [f"{row},Training,{','.join(['1'] * 10)}" for row in range(28)]
    votes.write_text("\n".join([f"row,Usage,{names}", *rows]) + "\n")
    run = tmp_path / "run"
    train.main(
        ["--data", str(tiny), "--votes", str(votes), "--out", str(run), *TINY, "--epochs", "1",
         "--votes-weight", "0.5"]
    )  # fmt: skip
    assert load_file(run / "checkpoint.safetensors")["trainee.votes.weight"].shape == (10, 512)
    assert load_pretrained(run / "weights").num_classes == 7


def test_a_run_starts_from_the_weights_that_init_names(
    whole: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(tiny), *TINY, "--epochs", "1", "--lr", "0", "--ema", "0"]
    train.main([*common, "--out", str(tmp_path / "run"), "--init", str(whole / "weights")])
    old, new = (load_pretrained(run / "weights").state_dict() for run in (whole, tmp_path / "run"))
    for name in old:
        assert torch.equal(old[name], new[name]) or "running" in name or "batches" in name
    config = json.loads((tmp_path / "run" / "weights" / "config.json").read_text())
    assert config["trained_on"].endswith("1 epochs, from the weights whole.")
    for number, (options, remedy) in enumerate(
        (
            (["--init", str(tmp_path / "nowhere")], "nowhere"),
            (["--init", str(whole / "weights"), "--arch", "vgg19"], "other layers"),
        )
    ):
        with pytest.raises(SystemExit, match=f"--init .*{remedy}"):
            train.main([*common, *options, "--out", str(tmp_path / str(number))])


def test_teachers_are_learned_from_and_asked_once(whole: Path, tiny: Path, tmp_path: Path) -> None:
    run, bundled = tmp_path / "run", load_pretrained("fer2013")
    train.main(
        ["--data", str(tiny), *TINY, "--epochs", "1", "--teachers", f"{whole / 'weights'},fer2013",
         "--teacher-weight", "0.75", "--label-smoothing", "0", "--out", str(run)]
    )  # fmt: skip
    faces = train.load(tiny).split("Training")
    answers = [
        predict_proba(model, evaluate.prepare(model, faces.images), tta="flip")
        for model in (load_pretrained(whole / "weights"), bundled)
    ]
    labels = F.one_hot(torch.from_numpy(faces.labels), 7)
    expected = 0.25 * labels + 0.75 * torch.stack(answers).mean(0)
    targets = load_file(run / "checkpoint.safetensors")["targets"]
    torch.testing.assert_close(targets, expected)

    config = json.loads((run / "config.json").read_text()) | {"teachers": "gone"}
    (run / "config.json").write_text(json.dumps(config))
    train.main(["--resume", str(run), "--epochs", "2"])
    assert torch.equal(load_file(run / "checkpoint.safetensors")["targets"], targets)
    with pytest.raises(SystemExit, match=r"--teachers gone: "):
        train.main(
            ["--data", str(tiny), *TINY, "--teachers", "gone", "--out", str(tmp_path / "new")]
        )


def test_targets_are_what_is_learned(tiny: Path) -> None:
    # At weight 1 the labels drop out: two runs whose labels differ take the same step.
    images, labels = train.to_device(train.load(tiny).split("Training"), torch.device("cpu"))
    teacher = torch.rand(len(labels), 7, generator=torch.Generator().manual_seed(0)).softmax(1)
    settings = engine.Settings(epochs=1, batch_size=7, sizes="32", label_smoothing=0.1, mixup=0.5)
    found = []
    for given, weight in ((labels, 1.0), (labels.flip(0), 1.0), (labels, 0.0)):
        torch.manual_seed(0)
        trainer = engine.Trainer(
            ImprovedVGG19(), settings, images, given, teacher=teacher, teacher_weight=weight
        )
        with tqdm(disable=True) as bar:
            found.append(trainer.train_epoch(0, bar, "")["loss"])
    assert found[0] == found[1] != found[2]


def test_consistent_teachers_are_asked_about_each_batch(tiny: Path) -> None:
    images, labels = train.to_device(train.load(tiny).split("Training"), torch.device("cpu"))
    settings = engine.Settings(epochs=1, batch_size=7, sizes="32", label_smoothing=0.1, mixup=0.5)
    teacher = train.consistent_teacher("fer2013,ckplus", torch.device("cpu"))
    found, seen = [], []

    def ask(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return teacher(x)

    for given, weight in ((labels, 1.0), (labels.flip(0), 1.0), (labels, 0.0)):
        torch.manual_seed(0)
        trainer = engine.Trainer(
            ImprovedVGG19(), settings, images, given, teacher=ask, teacher_weight=weight
        )
        with tqdm(disable=True) as bar:
            found.append(trainer.train_epoch(0, bar, "")["loss"])
    assert found[0] == found[1] != found[2]
    assert [x.shape for x in seen] == 9 * [(7, 1, 32, 32)]
    assert not torch.equal(seen[0].sort(0).values, seen[1].sort(0).values)
    probabilities = []
    for name in ("fer2013", "ckplus"):
        model = load_pretrained(name)
        with torch.no_grad():
            probabilities.append((model(seen[0]) / model.temperature).softmax(1))
    torch.testing.assert_close(teacher(seen[0]), sum(probabilities) / 2, atol=1e-4, rtol=0)


def test_a_run_with_consistent_teachers_resumes_bit_identical(tiny: Path, tmp_path: Path) -> None:
    common = ["--data", str(tiny), *TINY, "--teachers", "fer2013", "--consistent"]
    train.main([*common, "--epochs", "2", "--out", str(tmp_path / "whole")])
    process = start([*common, "--epochs", "2", "--out", str(tmp_path / "run")])
    wait_for_epochs(process, tmp_path / "run", 1)
    process.kill()
    process.communicate()
    train.main(["--resume", str(tmp_path / "run")])
    expected, found = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "run")
    )
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    labels = torch.from_numpy(train.load(tiny).split("Training").labels)
    assert torch.equal(found["targets"].argmax(1), labels)  # not what the teachers say


def a_trainer(tiny: Path, teacher: Any = None, odds: Any = None, **given: Any) -> engine.Trainer:
    images, labels = train.to_device(train.load(tiny).split("Training"), torch.device("cpu"))
    settings = engine.Settings(**{"epochs": 1, "batch_size": 7, "sizes": "32"} | given)
    torch.manual_seed(0)
    return engine.Trainer(
        ImprovedVGG19(width=0.125), settings, images, labels,
        teacher=teacher, teacher_weight=0.9, odds=odds,
    )  # fmt: skip


def an_epoch(trainer: engine.Trainer) -> dict[str, Any]:
    with tqdm(disable=True) as bar:
        return trainer.train_epoch(0, bar, "")


@pytest.mark.parametrize(
    ("options", "losses"),
    [([], [1.96703, 2.01742, 2.01811]), (["--recipe", "paper"], [2.20600, 1.77765, 1.31470])],
)
def test_the_same_seed_gives_the_same_numbers(
    options: list[str], losses: list[float], tiny: Path, tmp_path: Path
) -> None:
    train.main(["--data", str(tiny), *TINY, "--amp", "off", *options, "--out", str(tmp_path / "r")])
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["loss"] for line in lines]
    # Rounding grows with every step, and differs between processors.
    assert found[0] == pytest.approx(losses[0], rel=1e-3)
    assert found == pytest.approx(losses, rel=0.05)


def test_an_epoch_made_at_once_is_the_same(tiny: Path) -> None:
    asked: list[int] = []

    def teacher(x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return x.flatten(1)[:, :7].softmax(1)

    found = []
    for ahead in (False, True):
        trainer = a_trainer(tiny, teacher, mixup=0.5, crop=False, rotate=20.0, erase=0.5)
        trainer.ahead = ahead
        line = an_epoch(trainer)
        found.append((line["loss"], line["train_accuracy"], trainer.network.classifier.weight))
    assert asked == [7, 7, 7, 21]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_teachers_answer_is_corrected_by_the_votes_and_then_mixed(tiny: Path) -> None:
    # P(vote | label) counted by hand, one added: label 0 has votes 3 and 1, label 1 has 0 and 2.
    votes = torch.tensor([[3, 1], [0, 2], [0, 0]], dtype=torch.float32).numpy()
    odds = torch.from_numpy(fer2013.vote_odds(votes, torch.tensor([0, 1, 1]).numpy(), 2))
    p = torch.tensor([[4 / 6, 2 / 6], [1 / 4, 3 / 4]]).log()
    expected = torch.stack([3 * p[:, 0] + p[:, 1], 2 * p[:, 1], torch.zeros(2)])
    torch.testing.assert_close(odds, expected)
    answers = torch.tensor([[0.7, 0.3]] * 3)
    found = engine.corrected(answers, 0.1 * odds)
    torch.testing.assert_close(found[2], answers[2])  # no votes
    product = answers[0] * (0.1 * odds[0]).exp()
    torch.testing.assert_close(found[0], product / product.sum())

    given = torch.randn(21, 7, generator=torch.Generator().manual_seed(3))
    answer = torch.full((7,), 1 / 7)
    trainer = a_trainer(tiny, lambda x: answer.expand(len(x), 7), given)
    picked, kept = torch.arange(14).view(2, 7), torch.tensor([0.75, 1.0])
    batches = trainer.make(picked, torch.rand(21, NUMBERS), kept, Augmentation(), 44)
    target = 0.1 * F.one_hot(trainer.labels, 7) + 0.9 * given.softmax(1)
    torch.testing.assert_close(batches.targets[0], 0.75 * target[:7] + 0.25 * target[:7].roll(1, 0))
    torch.testing.assert_close(batches.targets[1], target[7:14])
    fixed = a_trainer(tiny, answer.expand(21, 7), given)
    torch.testing.assert_close(fixed.targets, target)


def test_the_end_is_calm() -> None:
    settings = engine.Settings(epochs=100, calm=0.12, rotate=15.0, scale=0.3, shift=0.6, erase=0.5)
    assert settings.augmented(87) is settings
    calm = settings.augmented(88)
    assert (calm.rotate, calm.scale, calm.shift, calm.erase) == pytest.approx((5, 0.1, 0.2, 0))
    assert not any(engine.Settings(epochs=9).is_calm(epoch) for epoch in range(9))


def test_calm_epochs_mix_no_images(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, seen = engine.Trainer.make, []

    def watched(self: Any, picked: Any, numbers: Any, kept: torch.Tensor, *rest: Any) -> Any:
        seen.extend(kept.tolist())
        return make(self, picked, numbers, kept, *rest)

    monkeypatch.setattr(engine.Trainer, "make", watched)
    an_epoch(a_trainer(tiny, mixup=0.5))
    assert all(share < 1 for share in seen)
    seen.clear()
    an_epoch(a_trainer(tiny, mixup=0.5, calm=1.0))
    assert seen == [1, 1, 1]


def test_the_average_may_be_updated_every_few_steps(tiny: Path) -> None:
    trainer = a_trainer(tiny, ema=0.5, ema_every=3, epochs=2)
    before = trainer.average.classifier.weight.clone()
    an_epoch(trainer)
    share = min(0.5, 3 / 12) ** 3
    expected = share * before + (1 - share) * trainer.network.classifier.weight
    torch.testing.assert_close(trainer.average.classifier.weight, expected)


def test_tests_and_checkpoints_every_few_epochs(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train.main(["--data", str(tiny), *TINY, "--every", "2", "--width", "0.125", "--out", str(run)])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert ["public_accuracy" in line for line in lines] == [False, True, True]
    assert (run / "curves.png").stat().st_size > 5000
    assert load_pretrained(run / "weights").width == 0.125


def test_as_many_epochs_as_fit_the_time(tiny: Path, tmp_path: Path) -> None:
    config = train.Config(minutes=1.0, epochs=100)
    marks = [10.0, 12.0, 13.0, 14.0, 15.0]  # one second each, but the first ones
    assert train.fit_epochs(config, 5, 15.0, marks).epochs == 50
    assert train.fit_epochs(config, 3, 13.0, marks[:3]) is config  # nothing to go by
    assert train.fit_epochs(config, 3, 30.0, marks[:3]).epochs == 6  # but 10 seconds each
    assert train.fit_epochs(config, 99, 60.5, marks) is config  # over time, and at the end
    assert train.fit_epochs(config, 50, 60.5, marks).epochs == 51

    run, begun = tmp_path / "run", time.monotonic()
    train.main(
        ["--data", str(tiny), *TINY, "--minutes", "0.1", "--every", "1000", "--width", "0.125",
         "--out", str(run)]
    )  # fmt: skip
    took = time.monotonic() - begun
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = train.Config(**json.loads((run / "config.json").read_text()))
    assert len(lines) == lines[-1]["epochs"] == config.epochs
    assert config.epochs < 100 and took < 60
    assert lines[-1]["lr"] < 0.2 * max(line["lr"] for line in lines)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_fast_on_a_gpu_changes_no_numbers(tiny: Path, compiled: bool) -> None:
    images, labels = train.to_device(train.load(tiny).split("Training"), torch.device("cuda"))
    found = []
    for fast in (False, True):
        settings = engine.Settings(
            epochs=3, batch_size=7, dropout=0.0, amp="off", lr=0.001, ema=0.9,
            graph=fast, ahead=fast, compile=fast and compiled,
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = engine.Trainer(ImprovedVGG19(dropout=0.0), settings, images, labels)
        with tqdm(disable=True) as bar:
            found.append([trainer.train_epoch(epoch, bar, "")["loss"] for epoch in range(3)])
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_precise_bn_measures_plain_crops(tiny: Path, tmp_path: Path) -> None:
    common = ["--data", str(tiny), *TINY, "--epochs", "1", "--rotate", "90", "--erase", "1"]
    models = []
    for flag in ("--precise-bn", "--no-precise-bn"):
        train.main([*common, flag, "--out", str(tmp_path / flag)])
        models.append(load_pretrained(tmp_path / flag / "weights-float32"))
    precise, plain = (dict(model.named_parameters()) for model in models)
    for name, value in plain.items():
        assert torch.equal(precise[name], value), name
    x = evaluate.prepare(models[0], train.load(tiny).split("Training").images)
    with torch.no_grad():
        found = models[0].features[0](x)
    expected = found.mean((0, 2, 3)), found.var((0, 2, 3))
    for index, statistics in enumerate(
        [(norm.running_mean, norm.running_var) for norm in (m.features[1] for m in models)]
    ):
        close = [
            torch.allclose(a, b, rtol=0.05, atol=0.02)
            for a, b in zip(statistics, expected, strict=True)
        ]
        assert close == [index == 0] * 2
    # No epoch at all: the weights that are given, with the statistics of plain crops.
    begin = ["--init", str(tmp_path / flag / "weights-float32"), "--out", str(tmp_path / "none")]
    train.main(["--data", str(tiny), *TINY, "--epochs", "0", *begin])
    anew = load_pretrained(tmp_path / "none" / "weights-float32").state_dict()
    for name, value in models[0].state_dict().items():
        assert torch.equal(anew[name], value), name
    assert not (tmp_path / "none" / "metrics.jsonl").exists()


def test_held_out_images_have_no_twin_in_training(tiny: Path) -> None:
    faces = train.load(tiny)
    double = type(faces)(*(torch.cat([torch.tensor(a)] * 2).numpy() for a in vars(faces).values()))
    kept, held = fer2013.hold_out(double, 0.4)
    assert len(kept) + len(held) == len(double)
    assert 0 < len(held) < len(double)
    assert not set(kept.hashes()) & set(held.hashes())


class TestAugment:
    images = torch.randint(0, 256, (64, 48, 48), dtype=torch.uint8)
    numbers = torch.rand(64, NUMBERS, generator=torch.Generator().manual_seed(0))

    def test_crops_are_windows_of_the_image_or_its_mirror(self) -> None:
        x = augment(self.images, self.numbers, Augmentation(crop=True), 44, 44)
        assert x.shape == (64, 1, 44, 44)
        mirrored = 0
        places = set()
        for image, crop in zip(self.images.float() / 255, x[:, 0], strict=True):
            windows = image.unfold(0, 44, 1).unfold(1, 44, 1)
            plain = (windows == crop).all(-1).all(-1)
            flipped = (windows == crop.flip(1)).all(-1).all(-1)
            assert plain.any() != flipped.any()
            mirrored += int(flipped.any())
            places.add(tuple((plain | flipped).nonzero()[0].tolist()))
        assert 16 < mirrored < 48
        assert len(places) > 15

    def test_numbers_at_the_ends_of_their_range_stay_inside(self) -> None:
        for end in (0.0, 1 - 2**-24):  # the largest that torch.rand gives
            numbers = torch.full((64, NUMBERS), end)
            x = augment(self.images, numbers, Augmentation(crop=True), 44, 44)
            corner = self.images[:, None, :44, :44] if end == 0 else self.images[:, None, 4:, 4:]
            expected = corner.flip(-1) if end == 0 else corner
            assert torch.equal(x, expected.float() / 255)

    def test_no_change_asked_is_the_centre_crop_or_its_mirror(self) -> None:
        x = augment(self.images, self.numbers, Augmentation(), 44, 44)
        centre = self.images[:, None, 2:46, 2:46].float() / 255
        flip = (self.numbers[:, 0] < 0.5).view(-1, 1, 1, 1)
        torch.testing.assert_close(x, torch.where(flip, centre.flip(-1), centre), atol=1e-4, rtol=0)

    def test_the_whole_range_of_changes_stays_in_range(self) -> None:
        how = Augmentation(rotate=30, scale=0.3, shift=0.2, brightness=0.3, contrast=0.5, erase=1.0)
        x = augment(self.images, self.numbers, how, 40, 44)
        assert x.shape == (64, 1, 40, 40)
        assert x.min() >= 0
        assert x.max() <= 1
        blank = (x == 0.5).float().mean((1, 2, 3))
        assert (blank > 0.01).all()
        assert (blank < 0.35).all()
        assert torch.equal(x, augment(self.images, self.numbers, how, 40, 44))
