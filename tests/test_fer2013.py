"""tools/_fer2013.py: every form of the data, what is broken, and the votes beside it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from _fer2013 import FERPLUS_CATEGORIES, SPLITS, VOTES, Faces, hold_out, load, load_votes, relabel
from conftest import SHARED, csv_text
from PIL import Image

from ferfacenet import ImprovedVGG19, predict_proba


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "data.csv").write_text(text)
    return tmp_path / "data.csv"


def test_every_packing_of_the_csv_reads_the_same(tmp_path: Path) -> None:
    text = csv_text(14, 7)
    plain = load(write(tmp_path, text))
    assert plain.labels.tolist() == [i % 7 for i in range(21)]
    assert plain.split("PublicTest").rows.tolist() == list(range(14, 21))
    for kind, module in {"gz": gzip, "xz": lzma, "bz2": bz2}.items():
        path = tmp_path / f"data.csv.{kind}"
        path.write_bytes(module.compress(text.encode()))
        assert load(path).fingerprint() == plain.fingerprint()
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("fer2013/fer2013.csv", text)
    assert load(tmp_path / "data.zip").fingerprint() == plain.fingerprint()
    _, *rows = [line.split(",") for line in text.splitlines()]
    icml = [f"{emotion},{usage},{pixels}" for emotion, pixels, usage in rows]
    icml_face_data = write(tmp_path, "\n".join(["emotion, Usage, pixels", *icml]))
    assert load(icml_face_data).fingerprint() == plain.fingerprint()


def test_the_csv_is_parsed_once(tmp_path: Path) -> None:
    path = write(tmp_path, csv_text(3, 2))
    first, cached = load(path), next((tmp_path / "cache").rglob("*.npz"))
    stamp = cached.stat().st_mtime_ns
    assert (load(path).fingerprint(), cached.stat().st_mtime_ns) == (first.fingerprint(), stamp)
    cached.write_bytes(cached.read_bytes()[:100])
    assert load(path).fingerprint() == first.fingerprint()
    path.write_text(csv_text(3, 2, seed=1))
    assert load(path).fingerprint() != first.fingerprint()


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    good = csv_text(2, 0)
    for text, message in (
        (f"{good}7,1 2 3,Training\n", "row 3: emotion is '7'"),
        (f"{good}1,1 2 3,Training\n", "row 3: 3 pixels"),
        (f"{good}1,{'1 ' * 2303}256,Training\n", "row 3: .*256"),
        (f"{good}1,{'1 ' * 2304},Trainin\n", "Usage is 'Trainin'"),
        (f"{good}1,1 2 3\n", "row 3: .*Usage is None"),
        ("a,b,c\n", "header"),
        ("emotion,pixels,Usage\n", "no rows"),
    ):
        with pytest.raises(SystemExit, match=message):
            load(write(tmp_path, text))
    (tmp_path / "torn.csv.xz").write_bytes(lzma.compress(good.encode())[:-200])
    for name in ("torn.csv.xz", "absent.csv"):
        with pytest.raises(SystemExit, match=name):
            load(tmp_path / name)
    with pytest.raises(SystemExit, match="no PublicTest images"):
        load(write(tmp_path, good)).split("PublicTest")


def test_folder_layout_takes_the_split_from_the_name(tmp_path: Path) -> None:
    root = tmp_path / "kaggle"
    names = ("train/angry/Training_10", "train/happy/Training_9", "test/sad/PublicTest_1")
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True)
        Image.new("L", (48, 48), 50 * value).save(root / f"{name}.jpg", quality=100)
    faces = load(root)
    assert (faces.labels.tolist(), faces.splits.tolist()) == ([3, 0, 4], [0, 0, 1])
    assert faces.images[:, 20, 20].tolist() == [50, 0, 100]
    with pytest.raises(SystemExit, match="folder"):
        load_votes("fer2013new.csv", faces)
    for name in ("Training_11.jpg", "photo.jpg"):  # of a wrong size, of a wrong name
        Image.new("L", (40, 48)).save(root / "train" / "angry" / name)
        with pytest.raises(SystemExit, match=name):
            load(root)


def test_held_out_images_have_no_twin_in_training(tmp_path: Path) -> None:
    faces = load(write(tmp_path, csv_text(21, 7)))
    double = Faces(*(np.concatenate([array] * 2) for array in vars(faces).values()))
    held = hold_out(double, 0.4)
    assert 0 < held.sum() < len(double)
    assert not set(double.where(held).hashes()) & set(double.where(~held).hashes())
    folds = np.array([hold_out(double, 1 / 5, fold) for fold in range(1, 6)])
    assert (folds.sum(0) == 1).all() and folds.any(1).all()  # each image is in one of them
    assert np.array_equal(folds[0] | folds[1], held)
    assert np.array_equal(folds[:, :28], folds[:, 28:])


def test_images_of_one_gray_are_known() -> None:
    """Those that predict_proba refuses, which leaves the edge out in some of its views."""
    images = np.zeros((5, 48, 48), np.uint8)
    images[1] = 255
    images[2, 43, 43] = 1
    images[3] = np.arange(48)
    images[4, 44:] = 255
    zeros = np.zeros(5, np.int64)
    varied = Faces(images, zeros, zeros, zeros).varied()
    assert varied.tolist() == [False, False, True, True, False]
    model = ImprovedVGG19(width=0.1).eval()
    read = predict_proba(model, torch.from_numpy(images)[:, None] / 255, errors="coerce")
    assert (~read.isnan().any(1)).tolist() == varied.tolist()


def test_real_votes_in_both_forms(
    fer2013_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    faces = load(fer2013_csv)
    votes = load_votes(SHARED / "fer2013" / "ferplus.csv", faces)
    assert votes.shape == (len(faces), len(VOTES))
    assert votes[0].tolist() == [4, 0, 0, 1, 3, 2, 0, 0, 0, 0]  # as row 0 has them

    counts = []
    for part in map(faces.split, SPLITS):
        kept, shares = relabel(part, load_votes(SHARED / "fer2013" / "ferplus.csv", part))
        assert (shares.argmax(1) == kept.labels).all() and (shares.max(1) > 0.5).all()
        counts.append(np.bincount(kept.labels).tolist())
    assert len(FERPLUS_CATEGORIES) == 8
    # By fer2013new.csv three and one more: it has four images twice, these votes have them once.
    assert [sum(count) for count in counts] == [25057, 3199, 3152]
    assert counts[2] == [1089, 893, 396, 384, 273, 18, 83, 16]

    lines = [f"Training,fer0.png,{','.join(str(int(n)) for n in row)}" for row in votes]
    lines = [f"Usage,Image name,{','.join(VOTES)}", *lines]
    public = write(tmp_path, "\n".join(lines))
    assert np.array_equal(load_votes(public, faces), votes)
    public.write_text("\n".join([lines[0], *lines[2:]]))
    with pytest.raises(SystemExit, match=r"data\.csv: the votes agree with 1\d% of the labels"):
        load_votes(public, faces)
    with pytest.raises(SystemExit, match="header"):
        load_votes(write(tmp_path, csv_text(2, 2)), faces)
