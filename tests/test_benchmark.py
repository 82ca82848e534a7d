"""tools/benchmark.py: that it times what it says, and that docs/speed.md shows what it printed."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import benchmark
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_inference import faces, lively
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ferfacenet import ImprovedVGG19, predict_proba


def a_run(**settings: Any) -> benchmark.Run:
    model = lively(ImprovedVGG19()).eval()
    return benchmark.Run(model, 0.001, 2, Namespace(**settings), tqdm(disable=True))


@pytest.mark.parametrize("side", [44, 48])
def test_the_limit_counts_what_pytorch_counts(side: int) -> None:
    model = ImprovedVGG19().eval()
    with FlopCounterMode(display=False) as counter:
        model.forward_features(torch.zeros(1, 1, side, side))
    assert benchmark.view_flops(model, side) == counter.get_total_flops()


def test_the_limit_is_the_longer_of_computing_and_reading() -> None:
    model = ImprovedVGG19()
    reading = 4 * sum(p.numel() for p in model.parameters())
    limits = benchmark.Limits(flops=1e30, bytes=reading / 2, width=4)
    assert limits.seconds(model, 1, 44) == pytest.approx(2)
    limits = benchmark.Limits(flops=benchmark.view_flops(model, 44), bytes=1e30, width=4)
    assert limits.seconds(model, 3, 44) == pytest.approx(3)


@pytest.mark.parametrize("tta", benchmark.TTAS.values())
def test_plain_is_the_same_prediction(tta: Any) -> None:
    model, x = lively(ImprovedVGG19()).eval(), faces(3)
    want = predict_proba(model, x, tta=tta)
    torch.testing.assert_close(benchmark.plain(model, x, tta), want, atol=1e-5, rtol=0)


def test_calls_take_turns_after_one_that_does_not_count() -> None:
    made: list[str] = []
    times = a_run().time({name: lambda name=name: made.append(name) for name in "ab"})  # type: ignore[misc]
    assert made[:6] == list("ababab") and made.count("a") == made.count("b") >= 4
    assert set(times) == {"a", "b"}
    assert benchmark.Time.of([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0, 2.0, 4.0)


def test_a_process_is_not_charged_with_its_parents_memory() -> None:
    kept = torch.ones(2**26)  # 256 MiB in this process
    peak = float(benchmark.python(benchmark._PEAK + "x = bytearray(2**26)\nprint(peak())"))
    assert 2**26 < peak < 4 * len(kept)


def test_a_run_writes_its_tables_and_keeps_those_of_earlier_runs(
    tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot, evaluation = tmp_path / "out", tmp_path / "plot.png", tmp_path / "e.json"
    accuracy = {"ten_crop": 0.625, "flip": 0.5, "single": 0.6}
    evaluation.write_text(json.dumps({"split": "PublicTest", "accuracy": accuracy}))
    short = ["--out", str(out), "--seconds", "0.001", "--largest", "2"]
    benchmark.main([*short, "--only", "forward", "throughput", "peers"])
    benchmark.main(
        [*short, "--only", "tta", "bfloat16", "--data", str(tiny_csv), "--limit", "3",
         "--evaluation", str(evaluation), "--plot", str(plot)]
    )  # fmt: skip
    report = json.loads((out / "benchmark.json").read_text())
    assert list(report) == ["forward", "throughput", "tta", "peers", "bfloat16"]
    for row in report["forward"]["rows"]:
        ratio = row["plain, ms"]["median_ms"] / row["ours, ms"]["median_ms"]
        assert row["times as fast as plain"] == pytest.approx(ratio)
        assert {"times as fast, in float32", "times as fast, in bfloat16"} & row.keys()
        assert row["plain, ms"]["low_ms"] <= row["plain, ms"]["high_ms"]
    assert [row["PublicTest accuracy, %"] for row in report["tta"]["rows"]] == [62.5, 50, 60]
    assert [row["images"] for row in report["bfloat16"]["rows"]] == [3, 7, 7]
    for row in report["bfloat16"]["rows"]:
        assert 0 < row["largest difference of a probability"] < 0.1
    assert any("onnxruntime" in row[""] for row in report["peers"]["rows"])
    assert (out / "benchmark.md").read_text() == benchmark.markdown(report)
    assert "PublicTest accuracy" in capsys.readouterr().out
    with Image.open(plot) as picture:
        assert min(picture.size) > 300


def test_training_is_timed_beside_its_own_forward_and_backward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = {"batch_size": 2, "sizes": "32", "votes_weight": 0.5}
    monkeypatch.setattr(benchmark, "RECIPES", {"release": recipe})
    (row,) = benchmark.training(a_run())
    alone = row["forward and backward alone, images/s"]
    assert row["recipe"] == "release" and row["batch"] == 2
    assert row["ratio"] == pytest.approx(row["training, images/s"] / alone)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--plot", "x.png"], "--plot needs --evaluation"),
        (["--only", "bfloat16"], "needs --data"),
        (["--data", "/nowhere.csv"], "there is no /nowhere.csv"),
        (["--largest", "0"], "must be positive"),
        (["--only", "forwards"], "invalid choice"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(
    arguments: list[str], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        benchmark.main(["--out", str(tmp_path / "out"), *arguments])
    assert error.value.code == 2
    assert remedy in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_document_shows_the_tables_of_the_report() -> None:
    report = json.loads((ROOT / "docs" / "results" / "benchmark.json").read_text())
    assert set(report) == set(benchmark.SECTIONS)
    page = (ROOT / "docs" / "speed.md").read_text()
    for name, section in report.items():
        assert benchmark.markdown({name: section}) in page
    amx = json.loads((ROOT / "docs" / "results" / "benchmark-amx.json").read_text())
    assert benchmark.markdown(amx).split("\n\n", 1)[1] in page
