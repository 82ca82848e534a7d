"""tools/release.py: from a run to bundled weights, their card and their figures in documents."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import _pages
import pytest
import release
import torch
from _ckplus import CATEGORIES
from _fer2013 import FERPLUS_CATEGORIES
from conftest import ROOT, csv_text, flip, sharp, votes_text

from ferfacenet import list_pretrained, load_pretrained, predict_proba, preprocess, save_pretrained

SENTENCES = {
    "trained_on": "21 images, and the FER+ votes on them.",
    "selected_on": "The only ones.",
    "dataset_license": "our own",
}


def test_nothing_in_this_repository_is_stale() -> None:
    """Blocks of documents, model cards, registry, golden values."""
    assert release.find_stale() == []


@pytest.mark.parametrize("path", _pages.pages(), ids=lambda path: path.name)
def test_every_block_of_a_page_is_written(path: Path) -> None:
    opened = path.read_text().count("<!-- /")
    assert _pages.render("<!-- results -->\n<!-- /results -->").count("\n") > 5
    assert opened == len([b for b in _pages.BLOCKS if f"<!-- /{b} -->" in path.read_text()])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with documents and figures like this one's, and no weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "root"
    shutil.copytree(ROOT / "docs" / "results", root / "docs" / "results")
    for name in ("fer2013", "fer2013-small", "ferplus", "photos"):
        shutil.rmtree(root / "docs" / "results" / name)
    spoilt = _pages.read("robustness.json")
    release.write_json(root / "docs" / "results" / "robustness.json", {"fer": spoilt["fer"]})
    (root / "docs" / "images").mkdir()
    shutil.copytree(ROOT / "docs" / "photos", root / "docs" / "photos")
    shutil.copy(ROOT / "README.md", root)
    (root / "ferfacenet" / "weights").mkdir(parents=True)
    (root / "ferfacenet" / "weights" / "registry.json").write_text('{"pretrained": {}}')
    (root / "tests").mkdir()
    monkeypatch.setattr(_pages, "ROOT", root)
    return root


def snapshot(root: Path) -> dict[Path, bytes]:
    kept = (p for p in root.rglob("*") if p.is_file() and p.suffix != ".png")
    return {path: path.read_bytes() for path in kept}


def check(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        release.main(["--check"])
    return str(caught.value.code or "")


def test_a_run_becomes_bundled_weights(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", tmp_path / "fer2013.csv"
    private = csv_text(0, 14, seed=2).replace("PublicTest", "PrivateTest").split("\n", 1)[1]
    data.write_text(csv_text(21, 28) + private)
    model = sharp(width=0.125)
    save_pretrained(model, run / "weights", **SENTENCES)
    config = {"epochs": 1, "data": str(data), "votes": "", "init": str(run / "weights")}
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n')

    release.main([str(run), "--name", "fer2013", "--data", str(data), "--quick"])
    folder = root / "ferfacenet" / "weights" / "fer2013"
    weights = (folder / "model.safetensors").read_bytes()
    assert weights == (run / "weights" / "model.safetensors").read_bytes()
    public = json.loads((root / "docs/results/fer2013/public.json").read_text())
    assert public["images"] == 28
    assert public["precision"] == "float32" and "torch" in public["versions"]
    model = load_pretrained(folder)
    assert round(model.temperature.item(), 4) == public["temperature"] != 1
    card, readme = (folder / "README.md").read_text(), (root / "README.md").read_text()
    assert SENTENCES["trained_on"] in card
    assert "PrivateTest was scored once" in card
    for text in (card, readme):
        assert f"{100 * public['accuracy']['ten_crop']:.2f}" in text
    assert str(tmp_path) not in card + readme
    kept = json.loads((root / "docs/results/fer2013/config.json").read_text())
    assert kept == {"epochs": 1, "data": "fer2013.csv", "votes": "", "init": "run"}
    assert check(capsys) == ""

    before = snapshot(root)
    release.main([str(folder), "--name", "fer2013", "--data", str(data), "--quick"])
    release.main([])
    after = snapshot(root)
    assert after == before

    (root / "README.md").write_text(readme.replace(f"{100 * public['accuracy']['flip']:.2f}", "99"))
    assert "README.md" in check(capsys)
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
    assert "registry.json (fer2013)" in check(capsys)
    (folder / "model.safetensors").write_bytes(flip(weights, 1000))
    assert "model.safetensors" in check(capsys)


def test_data_without_a_private_test(root: Path, tmp_path: Path, tiny_csv: Path) -> None:
    """Leaves its columns empty, and no figure of the weights before."""
    save_pretrained(sharp(width=0.125), tmp_path / "weights", **SENTENCES)
    private = root / "docs/results/fer2013/private.json"
    private.parent.mkdir()
    private.write_text("{}")
    arguments = [str(tmp_path / "weights"), "--name", "fer2013", "--data", str(tiny_csv), "--quick"]
    release.main(arguments)
    assert not private.exists()
    card = (root / "ferfacenet/weights/fer2013/README.md").read_text()
    assert "for FER2013" in card
    assert "PrivateTest" not in card
    readme = (root / "README.md").read_text()
    assert re.search(r"\| `fer2013`, ten crops \| [\d.]+ \| [\d.]+ \|  \|  \|", readme)
    assert release.find_stale() == []
    spoilt = _pages.read("robustness.json")
    spoilt["fer2013"] = spoilt["fer"] | {"config_sha256": "that of other weights"}
    release.write_json(root / "docs/results/robustness.json", spoilt)
    assert any(path.endswith("run tools/robustness.py") for path in release.find_stale())


def test_weights_by_the_votes_of_ferplus(root: Path, tmp_path: Path, tiny_csv: Path) -> None:
    model, votes = sharp(8, width=0.125), tmp_path / "fer2013new.csv"
    model.categories = FERPLUS_CATEGORIES
    save_pretrained(model, tmp_path / "weights", **SENTENCES)
    votes.write_text(votes_text(28))
    arguments = [str(tmp_path / "weights"), "--name", "ferplus", "--data", str(tiny_csv), "--quick"]
    release.main([*arguments, "--votes", str(votes)])
    card = (root / "ferfacenet/weights/ferplus/README.md").read_text()
    assert "for FER+" in card and "- ferplus" in card and "contempt | 0.0 |" in card
    readme = (root / "README.md").read_text()
    reads = "six expressions, contempt and neutral"
    assert re.search(rf"`ferplus` \| {reads} \| .* on FER\+'s PublicTest \|", readme)
    assert "`ferplus`, ten crops" in _pages.ferplus() and "ferplus" not in _pages.results()
    assert release.find_stale() == []


def test_what_release_needs(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pretrained(sharp(width=0.125), tmp_path / "weights", **SENTENCES)
    for arguments, message in (
        (["runs/x"], "--name"),
        (["runs/x", "--name", "a", "--data", "b.csv"], "holds no weights"),
        ([str(tmp_path), "--name", "a"], "--data"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            release.main(arguments)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_weights_and_folds_of_ckplus(root: Path, tmp_path: Path) -> None:
    result = {**_pages.read("ckplus-subject/result.json"), "temperature": 1.5}
    folds, run = tmp_path / "folds", tmp_path / "run"
    for folder, config in ((folds, {"init": ""}), (run, {"init": "", "result": str(folds)})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    (folds / "result.json").write_text(json.dumps(result))
    (folds / "predictions.csv").write_text("file,fold\n")
    model = sharp(width=0.125)
    model.categories, model.temperature = CATEGORIES, 1.5
    save_pretrained(model, run / "weights", metrics={"folds": 0.9}, **SENTENCES)
    release.main([str(folds), "--name", "ckplus-subject"])
    assert _pages.read("ckplus-subject/result.json") == result
    assert (root / "docs/results/ckplus-subject/predictions.csv").read_text() == "file,fold\n"
    release.main([str(run), "--name", "ckplus", "--quick"])
    assert load_pretrained(root / "ferfacenet/weights/ckplus").categories == CATEGORIES
    assert "for CK+" in (root / "ferfacenet/weights/ckplus/README.md").read_text()
    assert _pages.read("ckplus/config.json") == {"init": "", "result": "folds"}
    assert release.find_stale() == []


@pytest.mark.parametrize("name", list_pretrained())
def test_predictions_are_the_golden_ones(name: str) -> None:
    """What PyTorch's own layers say of the photo's face, on every other path too."""
    golden = json.loads((ROOT / "tests" / "golden.json").read_text())[name]["probabilities"]
    model = load_pretrained(name)
    assert tuple(golden) == model.categories
    with release.Image.open(ROOT / "docs" / "photos" / "astronaut.jpg") as photo:
        face = preprocess(photo.crop(release.FACE), align=False)[None]
    want = torch.tensor(list(golden.values()))
    for count in (1, 20):  # alone, and among as many that Winograd's form pays
        rows = predict_proba(model, face.expand(count, -1, -1, -1), precision="float32")
        torch.testing.assert_close(rows, want.expand(count, -1), atol=1e-3, rtol=0)
    (row,) = predict_proba(model, face, precision="bfloat16")
    torch.testing.assert_close(row, want, atol=1e-2, rtol=0)
    assert row.argmax() == want.argmax()
