"""tools/data_facts.py: what is planted in tiny data is found, and the page says what is in the real
data."""

from __future__ import annotations

import json
from pathlib import Path

import _ckplus
import _pages
import data_facts
import numpy as np
import pytest
from _fer2013 import VOTES, load, load_votes
from conftest import ROOT, SHARED, csv_text, votes_text
from PIL import Image


def planted() -> str:
    """``csv_text`` of 14 Training and 7 PublicTest images, and rows 21 to 30 made from them."""
    head, *rows = csv_text(14, 7).splitlines()
    images = [np.array(row.split(",")[1].split(), int).reshape(48, 48) for row in rows]
    almost = images[4].copy()
    almost[::2, ::2] += 6  # root mean square 3
    black = np.zeros((48, 48), int)
    for image, label, split in (
        (images[0], 0, "Training"), (images[0], 3, "Training"),  # three rows of two labels
        (images[0], 0, "PrivateTest"), (images[0], 5, "PrivateTest"),  # memory is right, and wrong
        (images[15], 1, "PrivateTest"),  # of PublicTest
        (almost, 4, "PrivateTest"), (images[5][:, ::-1], 5, "Training"),
        (black, 0, "Training"), (black, 6, "PrivateTest"), (images[6] + 3, 6, "Training"),
    ):  # fmt: skip
        rows.append(f"{label},{' '.join(map(str, image.ravel()))},{split}")
    return "\n".join([head, *rows]) + "\n"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_pages, "ROOT", tmp_path)
    (tmp_path / "fer2013.csv").write_text(planted())
    return tmp_path / "fer2013.csv"


def test_what_is_planted_is_found_in_any_order(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_facts.main(["--data", str(tiny), "--out", str(tmp_path / "own")])
    written = json.loads((tmp_path / "own" / "data.json").read_text())
    assert written.keys() == {"fer2013", "command"}
    found = written["fer2013"]
    assert found["labels"]["PrivateTest"] == {
        "anger": 1, "disgust": 1, "fear": 0, "happiness": 0, "sadness": 1, "surprise": 1,
        "neutral": 1,
    }  # fmt: skip
    assert {name: n for name, n in found["blank"].items() if n} == {"anger": 1, "neutral": 1}
    assert found["twins"] == {"Training": 4, "PublicTest": 1, "PrivateTest": 4}
    assert (found["training_twins"], found["training_twins_at_odds"]) == (3, 3)
    assert found["in_training"] == {"Training": 19, "PublicTest": 0, "PrivateTest": 3}
    assert found["in_public"] == {"Training": 0, "PublicTest": 7, "PrivateTest": 1}
    assert found["labelled_as_in_training"]["PrivateTest"] == 1
    of_twins = np.array(found["labels_of_twins"])
    assert of_twins[0].tolist() == [6, 0, 0, 3, 0, 3, 0]  # black ones aside
    assert of_twins[1, 1] == 2 and of_twins.sum() == 5 * 4 + 2
    assert (found["near_twins"], found["mirrored_twins"]) == (2, 1)
    assert found["only_near_training"] == {"Training": 0, "PublicTest": 0, "PrivateTest": 1}
    with Image.open(tmp_path / "own" / "twins.png") as picture:
        assert min(picture.size) > 400
    shown = capsys.readouterr().out
    assert "| of PrivateTest in PublicTest | 1 |" in shown and "FER+" not in shown

    head, *rows = tiny.read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(rows))
    tiny.write_text("\n".join([head, *(rows[i] for i in order)]) + "\n")
    assert data_facts.describe_fer2013(load(tiny)) == found


def test_no_near_twin_is_missed() -> None:
    random = np.random.default_rng(0)
    images = random.integers(20, 200, (12, 48, 48), np.uint8)
    blocks = np.repeat(np.repeat(random.integers(0, 2, (12, 4, 4)), 12, 1), 12, 2)
    worst = [images[i] + np.uint8(i + 1) * blocks[i] for i in range(12)]  # as different in means
    turned = images[6:, :, ::-1] + random.integers(0, 7, (6, 1, 1))
    everything = np.concatenate([images, worst, turned]).astype(np.uint8)

    def measure(other: np.ndarray) -> set[tuple[int, int]]:
        apart = (everything[:, None].astype(float) - other[None]) ** 2
        close = np.argwhere(apart.mean((2, 3)) < data_facts.NEAR**2)
        return {(i, j) for i, j in close.tolist() if i < j}

    near, mirrored = data_facts.find_near(everything)
    assert set(map(tuple, np.sort(near, 1).tolist())) == measure(everything)
    assert set(map(tuple, mirrored.tolist())) == measure(everything[:, :, ::-1])
    assert 3 < len(near) < 30 and 2 < len(mirrored) < 30


def test_ways_to_count_votes_and_frames(tiny: Path, tmp_path: Path) -> None:
    labels = {21: "anger", 22: "happiness", 26: "sadness", 27: "surprise"}
    given = {26: [5, 0, 0, 5], 23: [0] * 9 + [10], 24: [0] * 10, 25: [4, 0, 0, 0, 2, 0, 0, 0, 3, 1]}
    _, *lines = votes_text(21).splitlines()
    for row in range(21, 31):
        own = [10 * (name == labels.get(row, "neutral")) for name in VOTES]
        counts = (given.get(row, own) + [0] * 10)[:10]
        lines.append(f"PrivateTest,a.png,{','.join(map(str, counts))}")
    votes, folder = tmp_path / "fer2013new.csv", tmp_path / "CK+48"
    votes.write_text("\n".join([f"Usage,Image name,{','.join(VOTES)}", *lines]) + "\n")
    random = np.random.default_rng(0)
    for person, name in enumerate(_ckplus.FOLDERS.values()):
        (folder / name).mkdir(parents=True)
        face = random.integers(0, 240, (48, 48), np.uint8)
        for frame in range(1, 4):
            stem = f"S00{max(person, 1)}_00{person}_0000000{frame}"
            Image.fromarray(face + np.uint8(frame * 3)).save(folder / name / f"{stem}.png")
    arguments = ["--data", tiny, "--votes", votes, "--ckplus", folder, "--weights", "ferplus"]
    data_facts.main([str(argument) for argument in arguments])
    found = json.loads((tmp_path / "docs/results/data/data.json").read_text())
    assert found["ferplus"]["odd_totals"] == [9] * 21
    assert found["ferplus"]["not_a_face"] == 2
    private = {rule: of["PrivateTest"] for rule, of in found["ferplus"]["kept"].items()}
    assert private == {"majority": 1, "probability": 2, "plurality": 3}
    assert found["ferplus"]["kept"]["majority"]["Training"] == 19
    assert found["ferplus"]["accuracy"].keys() == private.keys()
    # Three pictures have twins with votes; only the black ones' are the same.
    assert found["ferplus"]["groups_of_twins"] == 3
    assert found["ferplus"]["groups_of_one_vote"] == 1
    assert found["ckplus"]["labels"]["contempt"] == 3 and found["ckplus"]["twins"] == 0
    assert (found["ckplus"]["persons"], found["ckplus"]["sequences"]) == (6, 7)
    assert (found["ckplus"]["of_other_sequences"], found["ckplus"]["in_near_twins"]) == (6, 21)
    assert found["ckplus"]["frames_of_a_sequence"] == [3]
    shown = _pages.data()
    assert "| frames, sequences, persons | 21, 7, 6 |" in shown and "`ferplus` on" in shown


def test_the_page_has_what_is_in_fer2013(fer2013_csv: Path) -> None:
    faces, told = load(fer2013_csv), _pages.read("data/data.json")
    found = data_facts.describe_fer2013(faces)
    assert found == told["fer2013"]
    assert f"{found['in_public']['PrivateTest']} images that PublicTest has too" in " ".join(
        (ROOT / "README.md").read_text().split()
    )
    votes = load_votes(SHARED / "fer2013" / "ferplus.csv", faces)
    of_votes = data_facts.describe_ferplus(faces, votes)
    assert of_votes == {key: told["ferplus"][key] for key in of_votes}


def test_the_page_has_what_is_in_ckplus() -> None:
    folder = SHARED / "ckplus" / "CK+48"
    if not folder.is_dir():
        pytest.skip(f"needs CK+, which may not be redistributed: {folder} is absent")
    found = data_facts.describe_ckplus(_ckplus.load(folder))
    assert found == _pages.read("data/data.json")["ckplus"]


def test_the_page_measures_the_weights_that_are_bundled() -> None:
    """Else: tools/data_facts.py has to be run again with --weights ferplus."""
    told = _pages.read("data/data.json")["ferplus"]["accuracy"]["majority"]
    measured = _pages.last("ferplus", "FER+")["accuracy"]["flip"]
    assert told == pytest.approx(measured, abs=1e-3)
