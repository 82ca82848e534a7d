"""tools/publish.py: the upload of bundled weights to a Hub on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import _pages
import publish
import pytest
import release
from conftest import ROOT, sharp
from hub_server import Fault, HubServer

import ferfacenet
from ferfacenet import hub

REPO = "ferfacenet/improved-vgg19-ckplus"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.lead_here(tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's weights/ckplus with small weights of our own, registered, with their card."""
    root = tmp_path / "root"
    weights = root / "ferfacenet" / "weights"
    shutil.copytree(ROOT / "docs" / "results", root / "docs" / "results")
    model = sharp(width=0.125)
    model.temperature.fill_(_pages.read("ckplus-subject/result.json")["temperature"])
    words = {"trained_on": "frames", "selected_on": "the last", "dataset_license": "its own"}
    ferfacenet.save_pretrained(model, weights / "ckplus", **words)
    entries = {"ckplus": release.registry_entry(weights / "ckplus")}
    release.write_json(weights / "registry.json", {"pretrained": entries})
    monkeypatch.setattr(_pages, "ROOT", root)
    monkeypatch.setattr(hub, "_BUNDLED", weights)
    (weights / "ckplus" / "README.md").write_text(publish.card("ckplus"))
    return weights / "ckplus"


def fail(*arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        publish.main(list(arguments))
    return str(caught.value.code)


def test_what_is_uploaded_can_be_loaded(
    folder: Path, server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.main(["ckplus", "--dry-run"])
    printed = capsys.readouterr().out
    assert f"{REPO} on {server.url}" in printed and printed.count("sha256") == 3
    assert server.requests == []
    publish.main(["ckplus", "--tag", "v9"])
    repo = server.repos[REPO]
    commit = repo.branches["main"]
    assert f'"revision": "{commit}"' in capsys.readouterr().out
    assert repo.tags == {"v9": commit}
    sent = {name: data for name, data in repo.commits[commit].items() if name != ".gitattributes"}
    assert sent == {path.name: path.read_bytes() for path in folder.iterdir()}
    posts = [r for r in server.requests if r.method == "POST"]
    assert posts
    assert all(r.headers.get("authorization") == "Bearer hf_secret" for r in posts)
    assert ferfacenet.load_pretrained("ckplus", revision="v9").num_classes == 7
    assert "tag v9" in fail("ckplus", "--tag", "v9")
    assert repo.branches["main"] == commit


def test_what_is_not_fit_to_be_published(folder: Path, server: HubServer) -> None:
    assert "registered" in fail("other")
    (folder / "notes.txt").write_text("secret")
    assert "notes.txt" in fail("ckplus")
    (folder / "notes.txt").unlink()
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card + "more")
    assert "stale" in fail("ckplus")
    (folder / "model.safetensors").write_bytes(b"\0")
    assert "sha256" in fail("ckplus")
    assert server.requests == []


@pytest.mark.parametrize(("method", "path"), [("POST", "/repos/create"), ("POST", "/commit/main")])
def test_refusals_of_the_hub(method: str, path: str, folder: Path, server: HubServer) -> None:
    server.fail(method, path, *[Fault(403)] * 20)
    assert "403" in fail("ckplus")
    assert not any(repo.tags for repo in server.repos.values())


def test_a_space_is_the_page_with_all_that_it_needs(
    server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/test_webcam_app.py runs these files."""
    publish.main(["space", "--dry-run"])
    printed = capsys.readouterr().out
    assert f"{publish.SPACE} on {server.url}" in printed and server.requests == []
    needed = ("README.md", "app.py", "requirements.txt", "ferfacenet/weights/fer2013/config.json")
    for name in (*needed, "ferfacenet/video/tracker.py", "ferfacenet/weights/yunet/LICENSE"):
        assert f"  {name} " in printed
    assert ".pyc" not in printed
    publish.send("some/space", {"app.py": b"print()"}, "gradio", "v1", False)
    commit = server.repos["some/space"].branches["main"]
    assert server.repos["some/space"].commits[commit]["app.py"] == b"print()"
    assert any("/api/spaces/some/space/commit/" in request.path for request in server.requests)
