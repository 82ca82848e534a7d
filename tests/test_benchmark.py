"""tools/benchmark.py: each section, on a thin network and next to no time."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import _pages
import benchmark
import pytest
import torch
from _photos import FIRST, MANY, read_photos
from conftest import ROOT, lively

from ferfacenet import ImprovedVGG19, detect_faces, load_pretrained, predict_proba, save_pretrained


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
        model = load_pretrained(weights)
        found = predict_proba(model, x, tta=row["tta"], precision="float32").argmax(1).numpy()
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


def test_photos_are_timed_beside_those_of_another_revision(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout by git")
    with pytest.raises(SystemExit, match="no-such"):
        run("photos", "--against", "no-such")

    def draw(folder: Path, count: int) -> dict[str, list[str]]:
        cases = draw_photos(folder, count)
        found = [len(detect_faces(files[0])) for files in islice(cases.values(), 5)]
        assert found == [1, 2, 1, 12, 0], "each photo shows what its name says"
        return {name: cases[name] for name in (FIRST, MANY)}  # the others take long

    draw_photos = benchmark.draw_photos
    monkeypatch.setattr(benchmark, "draw_photos", draw)
    monkeypatch.setattr(benchmark, "FRAMES", 3)
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    report = run("photos", "--against", "HEAD")
    rows = {(row["package"], row["case"]): row for row in report["photos"]}
    (other,) = {package for package, _ in rows} - {"ferfacenet", "fer"}
    cases = [case for package, case in rows if package == other]
    assert len(cases) == 4
    for case in cases:
        ours, theirs = rows["ferfacenet", case], rows[other, case]
        assert theirs["ratio"] == pytest.approx(ours["ms"] / theirs["ms"], rel=0.005)
        assert theirs["cpu_ratio"] == pytest.approx(ours["cpu_ms"] / theirs["cpu_ms"], rel=0.005)
    for package in ("ferfacenet", other):
        photo, first = rows[package, FIRST], rows[package, cases[-1]]
        assert photo["faces"] == first["faces"] == 2 and first["ms"] > photo["ms"]
        assert all(photo["shares"].values()) and sum(photo["shares"].values()) <= 1
        assert first["peak_mib"] > 100
    monkeypatch.setattr(_pages, "read", lambda _: report)
    assert _pages.photo_speed().count("\n| ") == len(cases)


def test_several_photos_are_one_call_where_that_is_possible() -> None:
    asked: list[Any] = []

    def one(model: None, image: str) -> list[str]:
        return [image]

    def many(model: None, images: Any) -> Any:
        asked.append(images)
        return [images] if isinstance(images, str) else ([image] for image in images)

    for call in (one, many):
        assert read_photos(call, None, ["a"]) == [["a"]]
        assert read_photos(call, None, ["a", "b"]) == [["a"], ["b"]]
    assert asked == ["a", ["a", "b"]]


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
