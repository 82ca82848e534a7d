"""A training run that is killed, starved and lied to: nothing that had been written is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train
from conftest import ROOT, csv_text
from safetensors.torch import load_file

TINY = [
    "--epochs", "3", "--batch-size", "7", "--sizes", "32", "--votes-weight", "0",
    "--device", "cpu",
]  # fmt: skip
CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "fer2013.csv"
    path.write_text(csv_text(14, 7))
    return path


@pytest.fixture(scope="module")
def first(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after its first epoch."""
    run = tmp_path_factory.mktemp("runs") / "first"
    train.main(["--data", str(tiny), "--out", str(run), *TINY, "--epochs", "1"])
    return run


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(first, tmp_path / "run", ignore=lambda *_: ["weights"]))


def edit_config(run: Path, **changes: object) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | changes))


# One process imports PyTorch and forks the runs, which it kills; it never computes itself.
KILLS = """
import os, random, signal, sys, time, json
from pathlib import Path
import train
from safetensors import safe_open

run, arguments, draw = Path(sys.argv[1]), sys.argv[2:], random.Random(8)

def start():
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        resumes = (run / "config.json").exists()
        train.main(["--resume", str(run)] if resumes else [*arguments, "--out", str(run)])
        os._exit(0)
    return child

def written():
    if not (run / "checkpoint.safetensors").exists():
        return 0
    with safe_open(run / "checkpoint.safetensors", "pt") as file:  # raises on a torn one
        history = json.loads(file.metadata()["state"])["history"]
        for name in file.keys():
            file.get_tensor(name)
    if (run / "metrics.jsonl").exists():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert lines == history[: len(lines)] and len(history) - len(lines) <= 1
    return len(history)

begun = time.monotonic()
assert os.waitpid(start(), 0)[1] == 0  # how long the whole takes
whole = time.monotonic() - begun
os.rename(run, f"{run}-whole")
kills, ends, epochs, at = 0, 0, 0, []
while kills < 20:
    child = start()
    time.sleep(draw.uniform(0, whole / 2))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    now = written()
    assert now >= epochs, (epochs, now)
    epochs = now
    if status == signal.SIGKILL:
        kills += 1
        at.append(now)
    else:  # it was over: another one, from the beginning
        assert status == 0, status
        os.rename(run, f"{run}-{ends}")
        ends, epochs = ends + 1, 0
assert os.waitpid(start(), 0)[1] == 0
print(json.dumps(at))
"""


def test_twenty_kills_at_random_moments_lose_nothing(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(run), "--data", str(tiny), *TINY],
        capture_output=True, text=True, timeout=400,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'tools'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    at = json.loads(done.stdout)
    assert len(at) == 20
    assert len(set(at)) > 1  # in different epochs
    whole = load_file(f"{run}-whole/{CHECKPOINT}")
    ended = [run, *(path for path in tmp_path.glob("run-[0-9]*") if path.is_dir())]
    for other in ended:
        found = load_file(other / CHECKPOINT)
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], value) for name, value in whole.items())
        assert (other / "weights" / "model.safetensors").read_bytes() == Path(
            f"{run}-whole/weights/model.safetensors"
        ).read_bytes()
        assert not list(other.glob("*.tmp"))
    shutil.rmtree(tmp_path)  # some gigabytes


FULL = """
import resource, signal, sys
import train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**7, 10**7))
train.main(sys.argv[1:])
"""


def test_a_disk_that_is_full_at_a_checkpoint(run: Path, tiny: Path) -> None:
    before = (run / CHECKPOINT).read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, "--resume", str(run), "--epochs", "2"],
        capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'tools'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert f"--resume {run}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / CHECKPOINT).read_bytes() == before
    assert not list(run.glob("*.tmp"))
    train.main(["--resume", str(run), "--epochs", "2"])
    assert len((run / METRICS).read_text().splitlines()) == 2


@pytest.mark.parametrize("cut", [0, 7, 5000, -1])
def test_a_torn_checkpoint_is_named(run: Path, cut: int) -> None:
    path = run / CHECKPOINT
    os.truncate(path, cut if cut >= 0 else path.stat().st_size + cut)
    with pytest.raises(SystemExit, match=r"checkpoint\.safetensors is torn or not a checkpoint"):
        train.main(["--resume", str(run), "--epochs", "2"])


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(run: Path) -> None:
    edit_config(run, lr=1e30, clip_norm=0.0, schedule="step", warmup=0.0)
    before = (run / CHECKPOINT).read_bytes()
    message = r"the loss became (nan|inf) in epoch 2; .*run/checkpoint\.safetensors \(epoch 1\)"
    with pytest.raises(SystemExit, match=message):
        train.main(["--resume", str(run), "--epochs", "2"])
    assert (run / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("change", ["pixel", "label", "order", "fewer"])
def test_data_that_changed_since_the_checkpoint(
    run: Path, tiny: Path, tmp_path: Path, change: str
) -> None:
    head, one, two, *rest = tiny.read_text().splitlines()
    if change == "pixel":
        label, pixels, usage = one.split(",")
        first, rest_of = pixels.split(" ", 1)
        one = f"{label},{(int(first) + 1) % 256} {rest_of},{usage}"
    elif change == "label":
        one = f"{(int(one[0]) + 1) % 7}{one[1:]}"
    elif change == "order":
        one, two = two, one
    lines = [head, one, two, *rest] if change != "fewer" else [head, one, *rest]
    other = tmp_path / "other.csv"
    other.write_text("\n".join(lines) + "\n")
    assert other.read_text() != tiny.read_text()
    edit_config(run, data=str(other))
    before = (run / CHECKPOINT).read_bytes()
    with pytest.raises(SystemExit, match=r"other\.csv has changed since .*checkpoint"):
        train.main(["--resume", str(run), "--epochs", "2"])
    assert (run / CHECKPOINT).read_bytes() == before
