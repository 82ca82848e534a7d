"""Publishing: the model card, the registration, and the upload to a Hub on loopback."""

from __future__ import annotations

import copy
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import publish
import pytest
import torch
from hub_server import Fault, HubServer
from huggingface_hub import ModelCard, RepoCard

import ferfacenet
from ferfacenet import hub
from ferfacenet.hub import CONFIG_FILE, WEIGHTS_FILE, WeightsConfig
from ferfacenet.model import FER2013_CATEGORIES, ImprovedVGG19

TTAS = ("ten_crop", "flip", "single")
EVALUATION: dict[str, Any] = {
    "split": "PublicTest",
    "images": 3589,
    "images_deduplicated": 3310,
    "temperature": 1.3,
    "accuracy": {"ten_crop": 0.71234, "flip": 0.70123, "single": 0.69},
    "accuracy_deduplicated": {"ten_crop": 0.6951, "flip": 0.6842, "single": 0.6733},
    "per_class": {
        name: {"recall": 0.5 + 0.01 * i, "precision": 0.6, "f1": 0.55, "support": 400 + i}
        for i, name in enumerate(FER2013_CATEGORIES)
    },
    "macro_f1": 0.6543,
    "ece": {"ten_crop": 0.021, "flip": 0.034, "single": 0.045},
    "command": "python tools/evaluate.py --data fer2013.csv --weights fer2013",
}
SENTENCES = {
    "trained_on": "The 28,709 Training images of FER2013, and no others.",
    "selected_on": "The epoch was fixed beforehand; PublicTest chose among recipes.",
    "dataset_license": "the data's own terms",
}


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """weights/fer2013 with files of our own and the card made from EVALUATION."""
    folder = tmp_path_factory.mktemp("weights") / "fer2013"
    with torch.random.fork_rng():
        model = ImprovedVGG19()
    model.temperature = 1.3
    metrics = {f"PublicTest {tta} accuracy": EVALUATION["accuracy"][tta] for tta in TTAS}
    ferfacenet.save_pretrained(model, folder, metrics=metrics, **SENTENCES)
    evaluation = folder.parent / "evaluation.json"
    evaluation.write_text(json.dumps(EVALUATION))
    publish.main(["card", str(folder), str(evaluation)])
    return folder


@pytest.fixture
def folder(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``bundled`` that stands registered in the place of the package's own."""
    copied = Path(shutil.copytree(bundled, tmp_path / "weights" / "fer2013"))
    monkeypatch.setattr(hub, "_BUNDLED", tmp_path / "weights")
    monkeypatch.setattr(publish, "WEIGHTS", tmp_path / "weights")
    lines = publish.registration(copied)
    registry = eval("{" + lines + "}", {"_Registered": hub._Registered})
    monkeypatch.setattr(hub, "_REGISTRY", registry)
    return copied


@pytest.fixture(scope="module")
def started() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def server(started: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """An empty Hub; the real client in this process talks to it."""
    from huggingface_hub import constants, file_download, hf_api

    started.repos.clear()
    started.clear()
    template = started.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", started.url)
    monkeypatch.setattr(hf_api, "ENDPOINT", started.url, raising=False)
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return started


def validate(card: ModelCard) -> None:
    """As the Hub does, unless it is an older client that asks huggingface.co regardless."""
    if "huggingface.co" not in inspect.getsource(RepoCard.validate).rpartition('"""')[2]:
        card.validate()


# --- the card ------------------------------------------------------------------------------


def test_the_card_is_what_the_hub_asks_for(bundled: Path, server: HubServer) -> None:
    card = ModelCard.load(bundled / "README.md")
    validate(card)
    data = card.data
    assert (data.library_name, data.license) == ("ferfacenet", "mit")
    assert data.pipeline_tag == "image-classification"
    assert (data.datasets, data.metrics) == (["fer2013"], ["accuracy", "f1"])
    results = {result.metric_name: result for result in data.eval_results}
    assert len(results) == 7
    for tta in TTAS:
        result = results[f"Accuracy ({tta})"]
        assert result.metric_value == EVALUATION["accuracy"][tta]
        assert result.metric_args == {"tta": tta}
        assert (result.dataset_name, result.dataset_split) == ("FER2013", "PublicTest")
        fresh = results[f"Accuracy ({tta}, without duplicates)"]
        assert fresh.metric_value == EVALUATION["accuracy_deduplicated"][tta]
    assert results["Macro F1 (ten_crop)"].metric_value == EVALUATION["macro_f1"]


def test_the_card_says_all_that_it_has_to(bundled: Path) -> None:
    text = (bundled / "README.md").read_text()
    for sentence in SENTENCES.values():
        assert sentence in text
    assert "| ten crops (the default) | 71.23% | 69.51% | 0.021 |" in text
    assert "| one centre crop | 69.00% | 67.33% | 0.045 |" in text
    assert "| happiness | 53.0% | 60.0% | 55.0% | 403 |" in text
    assert "macro F1 65.4%" in text
    assert "3,589 images (3,310 whose" in text
    assert EVALUATION["command"] in text
    assert 'load_pretrained("ferfacenet/improved-vgg19-fer2013")' in text
    prohibited = text.split("## What it must not be used for")[1]
    assert re.search(
        r"at work or in places of education is prohibited.*Art\. 5\(1\)\(f\)", prohibited, re.S
    )


def test_a_card_of_two_splits(bundled: Path) -> None:
    config = WeightsConfig.from_json((bundled / CONFIG_FILE).read_bytes())
    private = EVALUATION | {"split": "PrivateTest", "accuracy": {"ten_crop": 0.7321}}
    text = publish.model_card("fer2013", config, EVALUATION, private)
    assert text.index("\nPublicTest, 3,589 images") < text.index("\nPrivateTest, 3,589 images")
    assert "| ten crops (the default) | 73.21% | 69.51% | 0.021 |" in text
    assert text.count("split: PublicTest\n") == text.count("split: PrivateTest\n") == 1


def test_no_figure_of_the_card_is_typed(bundled: Path) -> None:
    """Other measurements give other figures, each of them."""

    def shifted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shifted(item) for key, item in value.items()}
        return value + 0.0123 if isinstance(value, float) else value

    other = shifted(EVALUATION) | {"temperature": 1.3, "images": 11, "images_deduplicated": 9}
    config = WeightsConfig.from_json((bundled / CONFIG_FILE).read_bytes())
    first = publish.model_card("fer2013", config, EVALUATION)
    second = publish.model_card("fer2013", config, other)
    figure = r"\d+\.\d+%|\b0\.\d{3,}|\b\d+ images|[\d,]*\d,\d{3}"
    kept = set(re.findall(figure, first)) & set(re.findall(figure, second))
    assert kept <= {"28,709"}  # from config.json


@pytest.mark.parametrize("key", SENTENCES)
def test_a_config_that_says_too_little(key: str, bundled: Path) -> None:
    config = WeightsConfig.from_json((bundled / CONFIG_FILE).read_bytes())
    object.__setattr__(config, key, " ")
    with pytest.raises(ValueError, match=f"{key} in config.json is empty"):
        publish.model_card("fer2013", config, EVALUATION)


def test_an_evaluation_of_other_weights(bundled: Path) -> None:
    config = WeightsConfig.from_json((bundled / CONFIG_FILE).read_bytes())
    with pytest.raises(ValueError, match=r"at temperature 1\.1.*says 1\.3: evaluate again"):
        publish.model_card("fer2013", config, EVALUATION | {"temperature": 1.1})
    with pytest.raises(ValueError, match="classes of the evaluation are not those"):
        publish.model_card("fer2013", config, EVALUATION | {"per_class": {"anger": {}}})
    with pytest.raises(ValueError, match="'fer' is none of fer2013, fer2013-small, ckplus"):
        publish.model_card("fer", config, EVALUATION)


@pytest.mark.parametrize("name", hub._REGISTRY)
def test_the_bundled_card(name: str, server: HubServer) -> None:
    """The card in the package is whole, valid, and has the figures of its config."""
    folder = hub._BUNDLED / name
    publish.check_card(folder)
    validate(ModelCard.load(folder / "README.md"))


# --- registration --------------------------------------------------------------------------


def test_register_prints_the_entry(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish.main(["register", str(folder)])
    printed = capsys.readouterr().out
    (entry,) = eval("{" + printed + "}", {"_Registered": hub._Registered}).values()
    assert entry == hub._REGISTRY["fer2013"]
    assert ferfacenet.load_pretrained("fer2013").temperature == 1.3


# --- the upload ----------------------------------------------------------------------------


def test_dry_run_shows_what_would_go_and_sends_nothing(
    folder: Path, server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.main(["upload", "fer2013", "--dry-run"])
    printed = capsys.readouterr().out
    assert f"ferfacenet/improved-vgg19-fer2013 on {server.url}" in printed
    assert f"tag v{ferfacenet.__version__}" in printed
    for file in folder.iterdir():
        assert re.search(
            rf"  {file.name} +{file.stat().st_size:,} bytes  sha256 \w{{64}}\n", printed
        )
    assert len(re.findall("sha256", printed)) == 3
    assert "dry run: nothing was sent" in printed
    assert server.requests == []


def test_upload(folder: Path, server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    publish.main(["upload", "fer2013"])
    printed = capsys.readouterr().out
    repo = server.repos["ferfacenet/improved-vgg19-fer2013"]
    commit = repo.branches["main"]
    assert f'revision="{commit}",' in printed
    assert repo.tags == {f"v{ferfacenet.__version__}": commit}
    sent = {name: data for name, data in repo.commits[commit].items() if name != ".gitattributes"}
    assert sent == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(repo.commits) == 2  # that of the creation, and one for all files
    assert all(r.headers.get("Authorization", r.headers.get("authorization")) == "Bearer hf_secret"
               for r in server.requests if r.method == "POST")  # fmt: skip


def test_what_is_uploaded_can_be_loaded(
    folder: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish.main(["upload", "fer2013", "--tag", "v9"])
    expected = ferfacenet.load_pretrained("fer2013").state_dict()
    monkeypatch.setattr(hub, "_BUNDLED", tmp_path / "nowhere")
    found = ferfacenet.load_pretrained("fer2013@v9").state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_second_version_keeps_the_first(folder: Path, server: HubServer) -> None:
    publish.main(["upload", "fer2013", "--tag", "v1"])
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nmore\n")
    publish.main(["upload", "fer2013", "--tag", "v2"])
    repo = server.repos["ferfacenet/improved-vgg19-fer2013"]
    assert repo.tags["v2"] == repo.branches["main"] != repo.tags["v1"]
    assert b"more" not in repo.commits[repo.tags["v1"]]["README.md"]
    assert b"more" in repo.commits[repo.tags["v2"]]["README.md"]


def fails(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        publish.main(arguments)
    assert isinstance(caught.value.code, str)
    return caught.value.code


def test_a_taken_tag(folder: Path, server: HubServer) -> None:
    publish.main(["upload", "fer2013", "--tag", "v1"])
    before = copy.deepcopy(server.repos)
    assert "has a tag v1 already; name another with --tag" in fails(
        ["upload", "fer2013", "--tag", "v1"]
    )
    assert server.repos == before


def test_what_is_not_fit_to_be_published(folder: Path, server: HubServer) -> None:
    assert "'other' is not registered" in fails(["upload", "other"])
    (folder / "notes.txt").write_text("secret")
    assert "notes.txt; it has to hold README.md" in fails(["upload", "fer2013"])
    (folder / "notes.txt").unlink()
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("0.71234", "0.81234"))
    assert "has 0.81234 as PublicTest ten_crop accuracy" in fails(["upload", "fer2013"])
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# words\n")
    assert "README.md has no library_name" in fails(["upload", "fer2013"])
    (folder / "README.md").unlink()
    assert "it has to hold README.md" in fails(["upload", "fer2013"])
    (folder / "README.md").write_text(card)
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes() + b"\0")
    assert "sha256" in fails(["upload", "fer2013"])
    assert server.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/repos/create", 401),
        ("POST", "/repos/create", 403),
        ("POST", "/commit/main", 403),
        ("PUT", "", 403),
    ],
)
def test_refusals_of_the_hub(
    method: str, path: str, status: int, folder: Path, server: HubServer
) -> None:
    server.lfs.clear()
    server.fail(method, path, *[Fault(status)] * 20)
    assert str(status) in fails(["upload", "fer2013"])
    assert not any(repo.tags for repo in server.repos.values())
    server.clear()
    publish.main(["upload", "fer2013"])
