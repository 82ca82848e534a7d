"""tools/benchmark.py: each section, on a thin network and next to no time."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import benchmark
import pytest
import torch
from conftest import lively

from ferfacenet import ImprovedVGG19, load_pretrained, predict_proba, save_pretrained


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights")
    save_pretrained(lively(ImprovedVGG19(width=0.125)), folder)
    return str(folder)


@pytest.fixture
def run(weights: str, tmp_path: Path) -> Any:
    def run(*arguments: str) -> Any:
        out = tmp_path / "benchmark.json"
        short = ["--seconds", "0.001", "--largest", "4", "--weights", weights, "--out", str(out)]
        benchmark.main([*arguments, *short])
        return json.loads(out.read_text())

    return run


def test_the_file_keeps_what_the_same_machine_measured(run: Any, tmp_path: Path) -> None:
    rows = run("forward")["forward"]
    assert [row["views"] for row in rows] == [1, 2, 10, 4]
    assert all(0 < row[key] < 1000 for row in rows for key in ("plain_ms", "fast_ms"))
    report = run("throughput")
    assert report["forward"] == rows
    kinds = [(row["images"], row["tta"]) for row in report["throughput"]]
    assert kinds == [("tensors", tta) for tta in benchmark.VIEW_COUNTS] + [("photos", "flip")]
    (tmp_path / "benchmark.json").write_text(json.dumps(report | {"torch": "another"}))
    assert "throughput" not in run("forward")


def test_accuracies_are_those_of_the_answers(run: Any, weights: str, tiny_csv: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the onnx extra")
    report = run("tta", "peers", "--data", str(tiny_csv))
    public = benchmark.load(tiny_csv).split("PublicTest")
    x = torch.from_numpy(public.images)[:, None] / 255
    for row in report["tta"]:
        found = predict_proba(load_pretrained(weights), x, tta=row["tta"]).argmax(1).numpy()
        assert row["accuracy"] == pytest.approx((found == public.labels).mean(), abs=1e-4)
    peers = {row["package"]: row["accuracy"] for row in report["peers"]}
    (single,) = (row["accuracy"] for row in report["tta"] if row["tta"] is None)
    assert peers == {weights: single, "onnxruntime": single}


def test_training_is_timed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"batch_size": 2, "sizes": "32", "width": 0.125}.items():
        monkeypatch.setitem(benchmark.RECIPES["release"], name, value)
    (row,) = run("train")["train"]
    assert row["step"] == "eager" and row["images_per_second"] > 0


def test_a_video_is_timed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs the video extra")
    monkeypatch.setattr(benchmark, "FRAMES", 8)
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    (row,) = run("video")["video"]
    assert row["frames_per_second"] > 1 and row["times_decoding"] > 1


def test_calls_that_are_compared_take_turns(weights: str) -> None:
    options = Namespace(seconds=0.001, largest=4, device="cpu", weights=[weights], data=None)
    made: list[str] = []
    calls = {name: partial(made.append, name) for name in "ab"}
    assert set(benchmark.Bench(options).time("title", "row", calls)) == {"a", "b"}
    assert "".join(name for name, _ in groupby(made)) == "ab" * benchmark.ROUNDS


def test_an_unknown_section(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("forwards")
    assert "no section forwards" in capsys.readouterr().err
