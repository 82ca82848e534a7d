from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, csv_text
from fer2013 import VOTES, load, load_votes
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "data.csv"
    path.write_text(text)
    return path


def test_every_packing_of_the_csv_reads_the_same(tmp_path: Path) -> None:
    text = csv_text(14, 7)
    plain = load(write(tmp_path, text))
    assert plain.images.shape == (21, 48, 48)
    assert plain.labels.tolist() == [i % 7 for i in range(21)]
    assert len(plain.split("Training")) == 14
    assert plain.rows.tolist() == list(range(21))
    for suffix, pack in ((".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)):
        path = tmp_path / f"data.csv{suffix}"
        path.write_bytes(pack(text.encode()))
        assert load(path).fingerprint() == plain.fingerprint()
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("fer2013/fer2013.csv", text)
        archive.writestr("fer2013/README", "about")
    assert load(tmp_path / "data.zip").fingerprint() == plain.fingerprint()


def test_icml_layout_has_spaces_and_another_order(tmp_path: Path) -> None:
    rows = [line.split(",") for line in csv_text(3, 2).splitlines()]
    rows[0] = ["emotion", " pixels", " Usage"]
    text = "\n".join(f"{emotion},{usage},{pixels}" for emotion, pixels, usage in rows)
    assert (load(write(tmp_path, text)).labels == [0, 1, 2, 3, 4]).all()


def test_the_csv_is_parsed_once(tmp_path: Path) -> None:
    path = write(tmp_path, csv_text(3, 2))
    first = load(path)
    cached = next((tmp_path / "cache").rglob("*.npz"))
    stamp = cached.stat().st_mtime_ns
    assert load(path).fingerprint() == first.fingerprint()
    assert cached.stat().st_mtime_ns == stamp
    cached.write_bytes(cached.read_bytes()[:100])
    assert load(path).fingerprint() == first.fingerprint()
    path.write_text(csv_text(3, 2, seed=1))
    assert load(path).fingerprint() != first.fingerprint()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7,1 2 3,Training", "row 3: emotion is '7'"),
        ("1,1 2 3,Training", "row 3: 3 pixels in place of 2304"),
        ("1," + "1 " * 2303 + "256,Training", "row 3: a pixel is not a whole number"),
        ("1," + "1 " * 2303 + "x,Training", "row 3: a pixel is not a whole number"),
        ("1," + "1 " * 2304 + ",Trainin", "row 3: Usage is 'Trainin'"),
        ("1,1 2 3", "row 3: 2 columns in place of 3"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    text = csv_text(2, 0) + row + "\n" + csv_text(1, 0).splitlines()[1]
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, text))


def test_other_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="header is not emotion, pixels, Usage"):
        load(write(tmp_path, "a,b,c\n"))
    with pytest.raises(ValueError, match="no rows"):
        load(write(tmp_path, "emotion,pixels,Usage\n"))
    torn = tmp_path / "torn.csv.xz"
    torn.write_bytes(lzma.compress(csv_text(5, 2).encode())[:-200])
    with pytest.raises(ValueError, match=r"torn\.csv\.xz, row"):
        load(torn)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="no PublicTest images"):
        load(write(tmp_path, csv_text(2, 0))).split("PublicTest")
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_folder_layout_takes_the_split_from_the_name(tmp_path: Path) -> None:
    made = {}
    for name, folder in (
        ("Training_10", "train/angry"),
        ("Training_9", "train/happy"),
        ("PublicTest_1", "test/sad"),
        ("PrivateTest_2", "test/neutral"),
    ):
        target = tmp_path / "kaggle" / folder
        target.mkdir(parents=True)
        made[name] = np.full((48, 48), len(made) * 50, np.uint8)
        Image.fromarray(made[name]).save(target / f"{name}.jpg", quality=100)
    faces = load(tmp_path / "kaggle")
    assert faces.labels.tolist() == [3, 0, 4, 6]
    assert [faces.split(s).labels.tolist() for s in ("Training", "PublicTest", "PrivateTest")] == [
        [3, 0], [4], [6],
    ]  # fmt: skip
    assert abs(faces.split("PublicTest").images.astype(int) - made["PublicTest_1"]).max() <= 1
    Image.new("L", (40, 48)).save(tmp_path / "kaggle/train/angry/Training_11.jpg")
    with pytest.raises(ValueError, match=r"Training_11\.jpg: \(40, 48\) pixels"):
        load(tmp_path / "kaggle")
    Image.new("L", (48, 48)).save(tmp_path / "kaggle/train/angry/Training_11.jpg")
    Image.new("L", (48, 48)).save(tmp_path / "kaggle/train/angry/photo.jpg")
    with pytest.raises(ValueError, match=r"photo\.jpg: expected"):
        load(tmp_path / "kaggle")


def test_real_file_and_its_votes(fer2013_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    faces = load(fer2013_csv)
    assert np.bincount(faces.split("Training").labels).tolist() == [
        3995, 436, 4097, 7215, 4830, 3171, 4965,
    ]  # fmt: skip
    votes = load_votes(SHARED / "fer2013" / "ferplus.csv", faces)
    assert votes.shape == (len(faces), len(VOTES))
    sums = votes.sum(1)
    assert set(sums.tolist()) == {0, 9, 10}
    assert (sums > 0).mean() > 0.99
    # Row 0: "4 neutral, 1 sadness, 3 anger, 2 disgust" in ferplus.csv.
    assert votes[0].tolist() == [4, 0, 0, 1, 3, 2, 0, 0, 0, 0]
