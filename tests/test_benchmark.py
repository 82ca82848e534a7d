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
from _photos import FIRST, MANY

from ferfacenet import detect_faces


@pytest.fixture
def run(weights: Path, tmp_path: Path) -> Any:
    def run(*arguments: str) -> Any:
        out = tmp_path / "benchmark.json"
        short = ["--seconds", "0.001", "--largest", "4", "--out", str(out)]
        benchmark.main([*arguments, *short, "--weights", str(weights)])
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


def test_a_video_is_timed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs the video extra")
    monkeypatch.setattr(benchmark, "FRAMES", 8)
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    (row,) = run("video")["video"]
    assert row["frames_per_second"] > 1 and row["times_decoding"] > 1


def test_photos_are_timed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(folder: Path, count: int) -> dict[str, list[str]]:
        cases = draw_photos(folder, count)
        found = [len(detect_faces(files[0])) for files in islice(cases.values(), 5)]
        assert found == [1, 2, 1, 12, 0], "each photo shows what its name says"
        return {name: cases[name] for name in (FIRST, MANY)}  # the others take long

    draw_photos = benchmark.draw_photos
    monkeypatch.setattr(benchmark, "draw_photos", draw)
    monkeypatch.setattr(benchmark, "FRAMES", 3)
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    report = run("photos")
    rows = {row["case"]: row for row in report["photos"] if row["package"] == "ferfacenet"}
    first_photo = "first photo of a process"
    assert rows.keys() == {FIRST, MANY, "640x480 video, a frame", first_photo}
    photo, first = rows[FIRST], rows[first_photo]
    assert photo["faces"] == first["faces"] == 2 and first["ms"] > photo["ms"]
    assert all(photo["shares"].values()) and sum(photo["shares"].values()) <= 1
    assert first["peak_mib"] > 100
    monkeypatch.setattr(_pages, "read", lambda _: report)
    assert _pages.photo_speed().count("\n| ") == len(rows)


def test_calls_that_are_compared_take_turns(weights: Path) -> None:
    options = Namespace(seconds=0.001, largest=4, device="cpu", weights=[weights])
    made: list[str] = []
    calls = {name: partial(made.append, name) for name in "ab"}
    assert set(benchmark.Bench(options).time("title", "row", calls)) == {"a", "b"}
    assert "".join(name for name, _ in groupby(made)) == "ab" * benchmark.ROUNDS


def test_an_unknown_section(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("forwards")
    assert "no section forwards" in capsys.readouterr().err
