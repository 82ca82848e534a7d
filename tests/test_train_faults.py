"""A training run that is killed, starved and lied to: nothing that had been written is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import train
from conftest import ROOT, csv_text, full_disk, unix
from conftest import run as run_code
from test_train import TINY, lines_of

CHECKPOINT, TOOLS = "checkpoint.safetensors", ROOT / "tools"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "fer2013.csv"
    path.write_text(csv_text(14, 7))
    return path


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    """A run after its first epoch."""
    train.main(["--data", str(tiny), "--out", str(tmp_path / "run"), *TINY, "--epochs", "1"])
    return tmp_path / "run"


def edit_config(run: Path, **changes: object) -> None:
    config = json.loads((run / "config.json").read_text()) | changes
    (run / "config.json").write_text(json.dumps(config))


# One process imports PyTorch and forks the runs, which it kills; it never computes itself.
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import train
from safetensors import safe_open

def start(run):
    child = os.fork()
    if child == 0:
        train.main([*sys.argv[2:], "--out", str(run)])
        os._exit(0)
    return child

def written(run):
    if not (run / "checkpoint.safetensors").exists():
        return 0
    with safe_open(run / "checkpoint.safetensors", "pt") as file:  # raises on a torn one
        return len(json.loads(file.metadata()["state"])["history"])

begun = time.monotonic()
assert os.waitpid(start(Path(sys.argv[1] + "-whole")), 0)[1] == 0
whole = time.monotonic() - begun
draw, kills = random.Random(8), 0
while kills < 6:
    run, epochs = Path(f"{sys.argv[1]}-{kills}"), 0
    while True:
        child = start(run)
        time.sleep(draw.uniform(0, whole / 2))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break  # it was over
        assert status == signal.SIGKILL
        assert written(run) >= epochs
        epochs, kills = written(run), kills + 1
"""


@unix
def test_kills_at_random_moments_lose_nothing(tiny: Path, tmp_path: Path) -> None:
    done = run_code(KILLS, str(tmp_path / "run"), "--data", str(tiny), *TINY, cwd=TOOLS)
    assert done.returncode == 0, done.stderr
    runs = [*tmp_path.iterdir()]
    assert len({(run / "weights-float32/model.safetensors").read_bytes() for run in runs}) == 1
    assert all(len(lines_of(run)) == 3 for run in runs)
    assert not [*tmp_path.glob("*/*.tmp"), *tmp_path.glob("*/.tmp*")]


@pytest.mark.parametrize("file", ["metrics.jsonl", CHECKPOINT])
def test_a_kill_between_a_checkpoint_and_its_metrics(
    run: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == file:
            raise RuntimeError("killed")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train.main(["--resume", str(run), "--epochs", "2"])
    train.main(["--resume", str(run)])
    assert [line["epoch"] for line in lines_of(run)] == [1, 2]


def test_a_disk_that_is_full_at_a_checkpoint(run: Path) -> None:
    before = (run / CHECKPOINT).read_bytes()
    with full_disk(), pytest.raises(SystemExit, match=f"(?s)cannot write.*--resume {run}"):
        train.main(["--resume", str(run), "--epochs", "2"])
    assert (run / CHECKPOINT).read_bytes() == before
    assert not [*run.glob("*.tmp"), *run.glob(".tmp*")]
    train.main(["--resume", str(run), "--epochs", "2"])
    assert len(lines_of(run)) == 2


def test_a_torn_checkpoint_is_named(run: Path) -> None:
    for cut in (5000, 7, 0):
        os.truncate(run / CHECKPOINT, cut)
        with pytest.raises(SystemExit, match=r"checkpoint\.safetensors is torn"):
            train.main(["--resume", str(run), "--epochs", "2"])


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(run: Path) -> None:
    edit_config(run, lr=1e30, clip_norm=0.0, schedule="step")
    before = (run / CHECKPOINT).read_bytes()
    with pytest.raises(SystemExit, match="the loss became (nan|inf) in epoch 2"):
        train.main(["--resume", str(run), "--epochs", "2"])
    assert (run / CHECKPOINT).read_bytes() == before


def test_data_that_changed_since_the_checkpoint(run: Path, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    head, one, two, *rest = tiny.read_text().splitlines()
    edit_config(run, data=str(other))
    for changed in ([head, f"6{one[1:]}", two, *rest], [head, two, one, *rest]):
        other.write_text("\n".join(changed) + "\n")
        with pytest.raises(SystemExit, match=r"other\.csv has changed since"):
            train.main(["--resume", str(run), "--epochs", "2"])
