"""Weights by name: of the package, and of a Hub on loopback, with its faults and its cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_whole, flip, full_disk, run
from hub_server import Fault, HubServer

from ferfacenet import ImprovedVGG19, WeightsError, hub, load_pretrained, save_pretrained
from ferfacenet.model import FER2013_CATEGORIES
from ferfacenet.weights import CONFIG_FILE, WEIGHTS_FILE

REPO = "tester/faces"
Loads = Callable[..., None]
Files = dict[str, bytes]
Patch = pytest.MonkeyPatch


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small weights that are not bundled."""
    folder = tmp_path_factory.mktemp("saved")
    model = ImprovedVGG19(width=0.125)
    model.temperature.fill_(1.25)
    save_pretrained(model, folder)
    return folder


@pytest.fixture
def files(saved: Path) -> Files:
    return {name: (saved / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}


@pytest.fixture
def loads(saved: Path) -> Loads:
    """Loads the name, with the options, and checks that it gives the weights of ``saved``."""
    whole = load_pretrained(saved).state_dict()
    return lambda *name, **options: assert_whole(load_pretrained(*name, **options), whole)


@pytest.fixture(scope="module")
def started() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def server(started: HubServer, files: Files, tmp_path: Path, monkeypatch: Patch) -> HubServer:
    """The Hub of the client in this process, whose ``REPO`` holds the files of ``saved``."""
    started.repos.clear()
    started.clear()
    started.add(REPO, files)
    started.lead_here(tmp_path / "cache", monkeypatch)
    return started


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A copy of the bundled weights, in their place."""
    shutil.copytree(hub._BUNDLED, tmp_path / "weights")
    monkeypatch.setattr(hub, "_BUNDLED", tmp_path / "weights")
    return tmp_path / "weights"


def seen(server: HubServer) -> list[tuple[str, str]]:
    """Method and name of each file that was asked for, in order."""
    return [(r.method, Path(r.path).name) for r in server.requests if "/resolve/" in r.path]


def assert_nothing_half_written(folder: Path) -> None:
    for path in folder.rglob("blobs/*"):
        assert path.name == sha256(path.read_bytes())  # the etag that the server gave it


def test_list_pretrained() -> None:
    listed = hub.list_pretrained()
    for name, info in listed.items():
        model, folder = load_pretrained(name), hub._BUNDLED / name
        assert info.size == (folder / WEIGHTS_FILE).stat().st_size
        assert info.parameters == sum(p.numel() for p in model.parameters())
        assert info.categories == model.categories
        assert info.metrics == json.loads((folder / CONFIG_FILE).read_bytes())["metrics"]
        assert info.repo_id == hub.repo_id(name) == f"{hub.NAMESPACE}/improved-vgg19-{name}"
        assert info.bundled
    assert load_pretrained().categories == listed["fer2013"].categories == FER2013_CATEGORIES


def test_a_changed_byte_in_the_bundle(bundle: Path) -> None:
    for file in (WEIGHTS_FILE, CONFIG_FILE):
        path = bundle / "fer2013" / file
        path.write_bytes(flip(path.read_bytes(), path.stat().st_size // 2))
        with pytest.raises(WeightsError, match=f"{file}: its sha256.*reinstall"):
            load_pretrained("fer2013")


def test_missing_bundled_weights_are_never_downloaded(bundle: Path, server: HubServer) -> None:
    folder = bundle / "fer2013"
    server.add(hub.repo_id("fer2013"), {path.name: path.read_bytes() for path in folder.iterdir()})
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(WeightsError, match=rf"{WEIGHTS_FILE}: .*No such file.*reinstall"):
        load_pretrained("fer2013")
    assert not hub.list_pretrained()["fer2013"].bundled
    shutil.rmtree(bundle)
    for call in (load_pretrained, hub.list_pretrained):
        with pytest.raises(WeightsError, match=r"registry\.json: .*reinstall"):
            call()
    assert server.requests == []


def test_bundled_weights_need_neither_network_nor_hub_client(tmp_path: Path) -> None:
    code = """
import socket, sys
def no(*a, **k): raise AssertionError('network')
socket.socket.connect = socket.getaddrinfo = no
from ferfacenet import load_pretrained, list_pretrained
load_pretrained(); list_pretrained()
print('huggingface_hub' in sys.modules)
"""
    done = run(code, cwd=tmp_path, env={"HF_HOME": str(tmp_path / "home")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["", "./nowhere", "runs/best.safetensors", "a/b/c", "x" * 5000, "nul\0byte", Path("fer2013")],
)
def test_name_that_is_nothing(name: Any, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"no registered name \(fer2013"):
        load_pretrained(name)
    with pytest.raises(TypeError, match="must be a string or a path"):
        load_pretrained([name])  # type: ignore[arg-type]
    for misspelt in ("fer2013small", "FER2013_Small"):
        with pytest.raises(WeightsError, match=r"did you mean 'fer2013-small'\?$"):
            load_pretrained(misspelt)


def test_devices(monkeypatch: Patch) -> None:
    there = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    assert load_pretrained("fer2013-small", device="auto").mean.device.type == there.type
    for name in ("gpu", "cuda:99", "xpu", "", None):
        with pytest.raises(ValueError, match="^no device .* here .*; use 'cpu' or 'auto'$") as said:
            load_pretrained(device=name)  # type: ignore[arg-type]
        assert len(str(said.value)) < 150
    if there.type == "cpu":
        for name, backend in (("mps", torch.backends.mps), ("cuda", torch.cuda)):
            monkeypatch.setattr(backend, "is_available", lambda: True)
            with pytest.raises(ValueError, match=f"no device '{name}' here"):
                hub.pick_device("auto")


def test_a_folder_of_a_registered_name(
    saved: Path, tmp_path: Path, monkeypatch: Patch, loads: Loads
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_pretrained("FER2013").width == 1
    Path("FER2013").mkdir()  # of photos, say
    assert load_pretrained("FER2013").width == 1
    Path("FER2013").rmdir()
    shutil.copytree(saved, "FER2013")
    loads("FER2013")
    shutil.copytree(saved, "fer2013")
    assert load_pretrained("fer2013").width == 1
    loads("./fer2013")


def test_repository_at_first_and_from_the_cache(server: HubServer, loads: Loads) -> None:
    loads(REPO)
    assert seen(server) == [(m, f) for f in (CONFIG_FILE, WEIGHTS_FILE) for m in ("HEAD", "GET")]
    server.clear()
    loads(REPO)
    assert seen(server) == [("HEAD", CONFIG_FILE)]  # which commit is main?
    server.clear()
    loads(REPO, revision=server.repos[REPO].branches["main"])
    loads(f"{REPO}@{server.repos[REPO].branches['main']}")
    assert server.requests == []


def test_revisions(server: HubServer, files: Files, saved: Path) -> None:
    server.repos[REPO].tags["v1"] = server.repos[REPO].branches["main"]
    server.add(REPO, {CONFIG_FILE: files[CONFIG_FILE].replace(b": 1.25", b": 2.5")})
    assert load_pretrained(REPO).temperature == 2.5
    assert load_pretrained(f"{REPO}@v1").temperature == 1.25
    assert load_pretrained(f"{REPO}@v1", revision="v1").temperature == 1.25
    with pytest.raises(WeightsError, match=f"{REPO}@v9: {CONFIG_FILE}: .*see .*/commits"):
        load_pretrained(REPO, revision="v9")
    with pytest.raises(ValueError, match="two revisions"):
        load_pretrained(f"{REPO}@v1", revision="v2")
    with pytest.raises(ValueError, match="revision='v1' is for the Hub"):
        load_pretrained(saved, revision="v1")


def test_both_files_are_of_one_commit(server: HubServer, loads: Loads, monkeypatch: Patch) -> None:
    """The branch moves between the two requests: the old pair is loaded, not a mixture."""
    import huggingface_hub

    download = huggingface_hub.hf_hub_download

    def moving(repo: str, file: str, **settings: Any) -> str:
        path = download(repo, file, **settings)
        server.add(REPO, {WEIGHTS_FILE: b"of another commit"})
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", moving)
    loads(REPO)


def test_cache_dir_and_local_files_only(server: HubServer, tmp_path: Path, loads: Loads) -> None:
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(WeightsError, match=f"with a network into {elsewhere}"):
        load_pretrained(REPO, cache_dir=elsewhere, local_files_only=True)
    assert server.requests == []
    load_pretrained(REPO, cache_dir=elsewhere)
    assert not (tmp_path / "cache").exists()
    server.clear()
    loads(REPO, cache_dir=elsewhere, local_files_only=True)
    assert server.requests == []


def test_private_gated_and_missing(server: HubServer, files: Files, loads: Loads) -> None:
    server.repos[REPO].token = "hf_secret"
    for token in (None, "hf_wrong"):
        with pytest.raises(WeightsError, match="check the name.*token=") as caught:
            load_pretrained(REPO, token=token)
        assert "hf_wrong" not in str(caught.value)
    loads(REPO, token="hf_secret")
    server.add("tester/gated", files)
    server.repos["tester/gated"].gated = True
    with pytest.raises(WeightsError, match=f"accept its terms at {server.url}/tester/gated"):
        load_pretrained("tester/gated")
    server.add("tester/pickled", {CONFIG_FILE: files[CONFIG_FILE], "pytorch_model.bin": b"pickle"})
    with pytest.raises(WeightsError, match=f"{WEIGHTS_FILE}: .*name one with {CONFIG_FILE}"):
        load_pretrained("tester/pickled")
    assert ("GET", "pytorch_model.bin") not in seen(server)
    with pytest.raises(WeightsError, match="correct the name"):
        load_pretrained("tester/a--b")
    server.fail("HEAD", CONFIG_FILE, Fault(403, {"X-Error-Message": "no \x1b[2J entry"}))
    with pytest.raises(WeightsError, match=r"no \\x1b\[2J entry"):
        load_pretrained("tester/other")


def test_no_weights_are_fetched_for_the_config_of_something_else(server: HubServer) -> None:
    server.add(REPO, {CONFIG_FILE: b'{"model_type": "bert"}'})
    with pytest.raises(WeightsError, match="unexpected .*model_type.*owners"):
        load_pretrained(REPO)
    assert seen(server) == [("HEAD", CONFIG_FILE), ("GET", CONFIG_FILE)]


@pytest.mark.parametrize("name", ["HUGGINGFACE_CO_URL_TEMPLATE", "HF_HUB_OFFLINE"])
def test_no_network(name: str, server: HubServer, loads: Loads, monkeypatch: Patch) -> None:
    from huggingface_hub import constants

    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    with monkeypatch.context() as unplugged:
        unplugged.setattr(constants, name, nowhere)
        with pytest.raises(WeightsError, match="connection.*load it once with a network into"):
            load_pretrained(REPO)
    loads(REPO)
    monkeypatch.setattr(constants, name, nowhere)
    loads(REPO)  # the cached copy serves


@pytest.mark.parametrize(("method", "status"), [("HEAD", 403), ("GET", 404), ("GET", 503)])
def test_refusals(
    status: int, method: str, server: HubServer, tmp_path: Path, loads: Loads
) -> None:
    """However often the client tries, it ends in one error; and the next call succeeds."""
    server.fail(method, WEIGHTS_FILE, *[Fault(status)] * 20)
    with pytest.raises(WeightsError, match=rf"^{REPO}@\w+: {WEIGHTS_FILE}: .*{status}.*; "):
        load_pretrained(REPO)
    server.clear()
    assert_nothing_half_written(tmp_path)
    loads(REPO)


FAULTS: dict[str, Callable[[bytes], list[Fault]]] = {
    "cut for ever": lambda data: [Fault(cut=0)] * 20,
    "longer": lambda data: [Fault(body=data + bytes(1000))],
    "last byte": lambda data: [Fault(body=flip(data, -1))],
}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_damaged_downloads(
    kind: str, file: str, server: HubServer, tmp_path: Path, files: Files, loads: Loads
) -> None:
    """An error, nothing in the cache, and at the next try the whole."""
    server.fail("GET", file, *FAULTS[kind](files[file]))
    with pytest.raises(WeightsError, match=f"{file}: .*try again"):
        load_pretrained(REPO)
    server.clear()
    assert_nothing_half_written(tmp_path)
    loads(REPO)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_damage_in_the_cache_is_removed_and_nothing_outside(
    file: str, server: HubServer, tmp_path: Path, files: Files, loads: Loads
) -> None:
    load_pretrained(REPO)
    blob = next(tmp_path.rglob(f"blobs/{sha256(files[file])}"))
    link, elsewhere = next(tmp_path.rglob(f"snapshots/*/{file}")), tmp_path / "elsewhere"
    elsewhere.write_bytes(b"of no use")

    def lead_elsewhere() -> None:
        link.unlink()
        link.symlink_to(elsewhere)

    for damage in (lambda: blob.write_bytes(b""), lead_elsewhere):
        damage()
        with pytest.raises(WeightsError, match="(sha256|JSON).*try again"):
            load_pretrained(REPO, local_files_only=True)
        assert_nothing_half_written(tmp_path)
        loads(REPO)
    assert elsewhere.exists()


def test_full_disk(server: HubServer, tmp_path: Path, loads: Loads) -> None:
    with full_disk(), pytest.raises(WeightsError, match=f"make room in {tmp_path}.*cache_dir="):
        load_pretrained(REPO)
    assert_nothing_half_written(tmp_path)
    loads(REPO)


@pytest.fixture
def published(server: HubServer, bundle: Path, saved: Path, files: Files) -> str:
    """The Hub id of a registered name ``other``, bundled too; its commit there is pinned."""
    shutil.copytree(saved, bundle / "other")
    commit = server.add(hub.repo_id("other"), files)
    entry = {"config_sha256": sha256(files[CONFIG_FILE]), "size": 1, "revision": commit}
    (bundle / "registry.json").write_text(json.dumps({"pretrained": {"other": entry}}))
    return hub.repo_id("other")


def test_registered_name_with_a_revision_or_as_an_id_asks_the_hub(
    published: str, server: HubServer, files: Files, loads: Loads
) -> None:
    loads("other")
    assert server.requests == []
    loads("other", revision="main")
    loads("Other@main")
    # Other files that agree with each other: the pinned commit is still found, and they are not
    # what is registered.
    data = flip(files[WEIGHTS_FILE], 100_000)
    config = json.loads(files[CONFIG_FILE]) | {"weights_sha256": sha256(data)}
    server.add(published, {CONFIG_FILE: json.dumps(config).encode(), WEIGHTS_FILE: data})
    server.clear()
    loads(published)
    assert server.requests == []
    for name in ("other@main", f"{published}@main"):
        with pytest.raises(WeightsError, match=r"config\.json: its sha256"):
            load_pretrained(name)
