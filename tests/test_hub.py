"""Weights from a Hub on loopback: its answers, its faults, its cache, and other processes."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import assert_whole, flip, python_path, run
from hub_server import Fault, HubServer, etag

from ferfacenet import hub
from ferfacenet.hub import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    WeightsError,
    load_pretrained,
)

REPO = "tester/faces"


# --- the Hub -------------------------------------------------------------------------------

RESOLVED = (
    ("HEAD", CONFIG_FILE),
    ("GET", CONFIG_FILE),
    ("HEAD", WEIGHTS_FILE),
    ("GET", WEIGHTS_FILE),
)


@pytest.fixture(scope="module")
def started() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def server(started: HubServer, files: dict[str, bytes]) -> HubServer:
    """A Hub that holds ``REPO`` with the files of ``saved``."""
    started.repos.clear()
    started.clear()
    started.add(REPO, files)
    return started


@pytest.fixture
def cache(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real client in this process, pointed at the server and at an empty cache."""
    from huggingface_hub import constants, file_download

    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    for module in (constants, file_download):  # older versions keep a second one
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's pauses between its tries
    return tmp_path / "cache"


def half_written(cache: Path) -> list[Path]:
    """Files under their final name that are not as the Hub has them, by their etag."""
    return [
        path
        for path in cache.rglob("*")
        if (path.parent.name == "blobs" and path.suffix != ".incomplete" and not path.is_symlink())
        and path.name
        not in (etag("x", path.read_bytes()), etag("x.safetensors", path.read_bytes()))
    ]


def test_repository_by_its_id(
    server: HubServer, cache: Path, whole: dict[str, torch.Tensor]
) -> None:
    model = load_pretrained(REPO)
    assert_whole(model, whole)
    assert (model.temperature, model.mean) == (1.25, 0.5)
    assert sorted(set(server.seen())) == sorted(RESOLVED)
    assert half_written(cache) == []
    server.requests.clear()
    assert_whole(load_pretrained(REPO), whole)
    assert server.seen() == [("HEAD", CONFIG_FILE)]  # which commit is main?


def test_cached_commit_needs_no_request(
    server: HubServer, cache: Path, whole: dict[str, torch.Tensor]
) -> None:
    commit = server.repos[REPO].branches["main"]
    load_pretrained(REPO, revision=commit)
    server.requests.clear()
    assert_whole(load_pretrained(REPO, revision=commit), whole)
    assert_whole(load_pretrained(f"{REPO}@{commit}"), whole)
    assert server.requests == []


def test_revisions(server: HubServer, cache: Path, whole: dict[str, torch.Tensor]) -> None:
    repo = server.repos[REPO]
    repo.tags["v1"] = repo.branches["main"]
    config = json.loads(repo.commits[repo.branches["main"]][CONFIG_FILE])
    server.add(REPO, {CONFIG_FILE: json.dumps(config | {"temperature": 2.5}).encode()})
    assert load_pretrained(REPO).temperature == 2.5
    assert load_pretrained(f"{REPO}@v1").temperature == 1.25
    assert load_pretrained(REPO, revision="v1").temperature == 1.25
    assert load_pretrained(f"{REPO}@v1", revision="v1").temperature == 1.25
    with pytest.raises(WeightsError, match=f"{REPO}@v9: config.json: there is no such revision"):
        load_pretrained(REPO, revision="v9")


def test_both_files_are_of_one_commit(
    server: HubServer, cache: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch moves between the two requests: the old pair is loaded, not a mixture."""
    import huggingface_hub

    download = huggingface_hub.hf_hub_download

    def moving(repo: str, file: str, **settings: Any) -> str:
        path = download(repo, file, **settings)
        server.add(REPO, {WEIGHTS_FILE: b"of another commit"})
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", moving)
    load_pretrained(REPO)


def test_token(server: HubServer, cache: Path, whole: dict[str, torch.Tensor]) -> None:
    server.repos[REPO].token = "hf_secret"
    with pytest.raises(WeightsError, match="no such repository, or it is private.*token="):
        load_pretrained(REPO)
    with pytest.raises(WeightsError, match="no such repository, or it is private") as caught:
        load_pretrained(REPO, token="hf_wrong")
    assert "hf_wrong" not in str(caught.value)
    assert_whole(load_pretrained(REPO, token="hf_secret"), whole)


def test_gated_repository(server: HubServer, cache: Path) -> None:
    server.repos[REPO].gated = True
    with pytest.raises(WeightsError, match=f"it is gated; accept its terms at {server.url}/{REPO}"):
        load_pretrained(REPO)


def test_cache_dir(
    server: HubServer, cache: Path, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    assert_whole(load_pretrained(REPO, cache_dir=tmp_path / "elsewhere"), whole)
    assert not cache.exists()
    assert (tmp_path / "elsewhere" / "models--tester--faces" / "snapshots").is_dir()


def test_local_files_only(server: HubServer, cache: Path, whole: dict[str, torch.Tensor]) -> None:
    message = rf"not in the cache \({cache}\) and the Hub may not be asked; run this once"
    with pytest.raises(WeightsError, match=message):
        load_pretrained(REPO, local_files_only=True)
    assert server.requests == []
    load_pretrained(REPO)
    server.requests.clear()
    assert_whole(load_pretrained(REPO, local_files_only=True), whole)
    assert server.requests == []


def test_the_remedy_is_a_command_that_works(
    server: HubServer, cache: Path, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    server.repos[REPO].tags["v1"] = server.repos[REPO].branches["main"]
    asked: dict[str, Any] = {"revision": "v1", "cache_dir": tmp_path / "at home"}
    with pytest.raises(WeightsError) as caught:
        load_pretrained(REPO, local_files_only=True, **asked)
    code = re.search(r'with a network: python -c "(.*)"$', str(caught.value))
    assert code is not None
    exec(code[1].replace("import ferfacenet", "from ferfacenet import hub as ferfacenet"), {})
    assert_whole(load_pretrained(REPO, local_files_only=True, **asked), whole)


# --- faults of the network -----------------------------------------------------------------


def test_no_network(
    server: HubServer, cache: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, file_download

    with monkeypatch.context() as unplugged:
        for module in (constants, file_download):
            template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
            unplugged.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        unplugged.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(WeightsError, match=r"the Hub cannot be reached.*run this once with a"):
            load_pretrained(REPO)
    assert_whole(load_pretrained(REPO), whole)
    with monkeypatch.context() as unplugged:
        for module in (constants, file_download):
            unplugged.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        assert_whole(load_pretrained(REPO), whole)  # the cached copy serves


LOGIN = "pass token=... or set HF_TOKEN to a token that may read it"
AGAIN = (
    f'run this once with a network: python -c "import ferfacenet; ferfacenet.load_pretrained('
    f"'{REPO}', revision='v1', cache_dir='/cache')\""
)
ELSEWHERE = "name another place with cache_dir=... or HF_HOME"
PRIVATE = f"there is no such repository, or it is private; check the name, or {LOGIN}"
NO_FILE = (
    "the repository has no such file; only config.json with model.safetensors, as "
    "ferfacenet.save_pretrained writes them, are read, never a pickle"
)


@pytest.mark.parametrize(
    ("kind", "status", "wanted"),
    [
        ("GatedRepoError", 403,
         f"it is gated; accept its terms at http://hub/{REPO}, then {LOGIN}"),
        ("RepositoryNotFoundError", 404, PRIVATE),
        ("HfHubHTTPError", 401, PRIVATE),
        ("RevisionNotFoundError", 404,
         f"there is no such revision; see http://hub/{REPO}/commits/main"),
        ("LocalEntryNotFoundError", None,
         f"it is not in the cache (/cache) and the Hub may not be asked; {AGAIN}"),
        ("LocalEntryNotFoundError", 503, "the Hub answered 503; try again later"),
        ("EntryNotFoundError", 404, NO_FILE),
        ("EntryNotFoundError", None, NO_FILE),
        ("EntryNotFoundError", 502, "the Hub answered 502; try again later"),
        ("HfHubHTTPError", 403, f"the Hub answered 403, forbidden; {LOGIN}"),
        ("HfHubHTTPError", 429, "the Hub answered 429; try again later"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_cause", [False, True])
def test_what_is_said_of_the_clients_errors(
    kind: str, status: int | None, wanted: str, as_cause: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, and also where the answer hangs on the error behind (of which it says no more)."""
    from huggingface_hub import constants, errors

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub")
    source = hub._HubRepo(REPO, "v1", "/cache", False, None)
    cls = getattr(errors, kind)
    error = cls.__new__(cls)
    answered: Any = error
    if as_cause and status:
        answered = error.__cause__ = OSError("behind")
    answered.response = None if status is None else SimpleNamespace(status_code=status)
    assert source._explain(error) == wanted


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (hub._UnsafeAnswerError("odd"), "odd; do not trust http://hub"),
        *((OSError(code, "full", "/x"),
           f"the disk of the cache (/hf) is full ([Errno {code}] full: '/x'); make room, or "
           f"{ELSEWHERE}") for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        *((OSError(code, "shut"),
           f"the cache (/hf) cannot be written ([Errno {code}] shut); {ELSEWHERE}")
          for code in (errno.EACCES, errno.EPERM, errno.EROFS)),
        (OSError(5, "bad"), "the download failed (OSError: [Errno 5] bad); try again"),
        (RuntimeError("odd"), "the download failed (RuntimeError: odd); try again"),
    ],
)  # fmt: skip
def test_what_is_said_of_other_errors(
    error: Exception, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/hf")
    assert hub._HubRepo(REPO, None, None, False, None)._explain(error) == wanted


def test_what_is_said_of_a_name_and_of_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, errors

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/hf")
    source = hub._HubRepo(REPO, None, None, False, None)
    assert source._explain(errors.HFValidationError("a--b")) == "that is no Hub id (a--b)"
    unreached = errors.LocalEntryNotFoundError("not there")
    unreached.__cause__ = ConnectionError("refused")
    assert source._explain(unreached) == (
        "it is not in the cache (/hf) and the Hub cannot be reached (refused); run this once with "
        f"a network: python -c \"import ferfacenet; ferfacenet.load_pretrained('{REPO}')\""
    )


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "no such repository, or it is private.*HF_TOKEN"),
        (403, "the Hub answered 403, forbidden; pass token="),
        (404, "the repository has no such file|the Hub answered 404"),
        (429, "the Hub answered 429; try again later"),
        (500, "the Hub answered 500; try again later"),
        (503, "the Hub answered 503; try again later"),
    ],
)
def test_refusals(
    status: int,
    message: str,
    file: str,
    method: str,
    server: HubServer,
    cache: Path,
    whole: dict[str, torch.Tensor],
) -> None:
    """However often the client tries, it ends in one error; and the next call succeeds."""
    fault = Fault(status, {"X-Error-Code": "EntryNotFound"} if status == 404 else {})
    server.fail(method, file, *[fault] * 20)
    with pytest.raises(WeightsError, match=message) as caught:
        load_pretrained(REPO)
    assert str(caught.value).startswith(REPO)
    assert file in str(caught.value)
    server.clear()
    assert half_written(cache) == []
    assert_whole(load_pretrained(REPO), whole)


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_one_refusal_then_success(
    status: int, method: str, server: HubServer, cache: Path, whole: dict[str, torch.Tensor]
) -> None:
    """A model at once where the client tries again by itself, or else at the second call."""
    server.fail(method, WEIGHTS_FILE, Fault(status, {"Retry-After": "0"}))
    try:
        model = load_pretrained(REPO)
    except WeightsError as error:
        assert f"the Hub answered {status}; try again later" in str(error)  # noqa: PT017
        model = load_pretrained(REPO)
    assert_whole(model, whole)


def test_a_cut_connection_is_resumed(
    server: HubServer, cache: Path, whole: dict[str, torch.Tensor], files: dict[str, bytes]
) -> None:
    """Within the call or at the next one, by the client's version; never a half model."""
    half = len(files[WEIGHTS_FILE]) // 2
    server.fail("GET", WEIGHTS_FILE, Fault(cut=half))
    try:
        model = load_pretrained(REPO)
    except WeightsError as error:
        assert "the download failed" in str(error)  # noqa: PT017
        assert half_written(cache) == []
        model = load_pretrained(REPO)
    assert_whole(model, whole)
    gets = [r for r in server.requests if (r.method, Path(r.path).name) == ("GET", WEIGHTS_FILE)]
    assert len(gets) == 2
    ranges = {name.lower(): value for name, value in gets[1].headers.items()}
    assert re.fullmatch(r"bytes=[1-9]\d*-", ranges["range"])


def test_a_connection_that_is_always_cut(
    server: HubServer, cache: Path, whole: dict[str, torch.Tensor]
) -> None:
    server.fail("GET", WEIGHTS_FILE, *[Fault(cut=0)] * 20)
    with pytest.raises(WeightsError, match="model.safetensors: the download failed.*; try again"):
        load_pretrained(REPO)
    assert half_written(cache) == []
    server.clear()
    assert_whole(load_pretrained(REPO), whole)


@pytest.mark.parametrize("size", [0, 1, 1000, 20_000_000])
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_truncated_answer(
    size: int,
    file: str,
    server: HubServer,
    cache: Path,
    files: dict[str, bytes],
    whole: dict[str, torch.Tensor],
) -> None:
    """The server believes that the shorter file is the whole."""
    size = min(size, len(files[file]) - 1)
    server.fail("GET", file, *[Fault(body=files[file][:size])] * 20)
    with pytest.raises(WeightsError, match="the download failed|sha256|not JSON"):
        load_pretrained(REPO)
    assert half_written(cache) == []
    server.clear()
    assert_whole(load_pretrained(REPO), whole)


def test_an_answer_that_is_too_long(
    server: HubServer, cache: Path, files: dict[str, bytes], whole: dict[str, torch.Tensor]
) -> None:
    """Nor does what it leaves behind stand in the way of the next try."""
    server.fail("GET", WEIGHTS_FILE, Fault(body=files[WEIGHTS_FILE] + bytes(1000)))
    with pytest.raises(WeightsError, match="the download failed"):
        load_pretrained(REPO)
    assert half_written(cache) == []
    assert_whole(load_pretrained(REPO), whole)


@pytest.mark.parametrize("length", [10, 10**9])
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_wrong_length_in_the_header(
    length: int, file: str, server: HubServer, cache: Path, whole: dict[str, torch.Tensor]
) -> None:
    """The HEAD request's, so that the client expects another size than comes."""
    headers = {"X-Linked-Size": str(length), "Content-Length": str(length)}
    server.fail("HEAD", file, *[Fault(headers=headers)] * 20)
    with pytest.raises(WeightsError, match="the download failed.*; try again"):
        load_pretrained(REPO)
    assert half_written(cache) == []
    server.clear()
    assert_whole(load_pretrained(REPO), whole)


@pytest.mark.parametrize("place", [0, 4_000, 30_000_000])
def test_wrong_bytes_of_the_right_size(
    place: int,
    server: HubServer,
    cache: Path,
    files: dict[str, bytes],
    whole: dict[str, torch.Tensor],
) -> None:
    """Also of a repository that is not registered: its config states the sha256."""
    server.fail("GET", WEIGHTS_FILE, Fault(body=flip(files[WEIGHTS_FILE], place)))
    message = "its sha256 is .*: the file is damaged.*removed from the cache: try again"
    with pytest.raises(WeightsError, match=message):
        load_pretrained(REPO)
    assert half_written(cache) == []
    assert_whole(load_pretrained(REPO), whole)


def test_damage_in_the_cache_itself(
    server: HubServer, cache: Path, whole: dict[str, torch.Tensor]
) -> None:
    load_pretrained(REPO)
    (blob,) = (p for p in cache.rglob("blobs/*") if p.stat().st_size > 1e6)
    blob.write_bytes(flip(blob.read_bytes(), 25_000_000))
    with pytest.raises(WeightsError, match="sha256.*removed from the cache: try again"):
        load_pretrained(REPO, local_files_only=True)
    assert half_written(cache) == []
    assert_whole(load_pretrained(REPO), whole)


def test_damage_that_another_process_has_removed_already(server: HubServer, cache: Path) -> None:
    source = hub._HubRepo(REPO, None, None, False, None)
    for path in (source.fetch(CONFIG_FILE), source.fetch(WEIGHTS_FILE)):
        path.resolve().unlink()
        path.unlink()
    assert "has been removed from the cache: try again" in source.discard()


def test_damage_is_never_removed_outside_the_cache(
    server: HubServer, cache: Path, saved: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    """Some people link blobs to files that they keep elsewhere."""
    load_pretrained(REPO)
    (blob,) = (p for p in cache.rglob("blobs/*") if p.stat().st_size > 1e6)
    blob.unlink()
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(flip(files[WEIGHTS_FILE], 25_000_000))
    blob.symlink_to(mine)
    with pytest.raises(WeightsError, match="sha256"):
        load_pretrained(REPO)
    assert mine.exists()


def test_no_file_of_that_name(server: HubServer, cache: Path, files: dict[str, bytes]) -> None:
    server.add("tester/pickled", {CONFIG_FILE: files[CONFIG_FILE], "pytorch_model.bin": b"pickle"})
    with pytest.raises(WeightsError, match="no such file; only config.json with model.safetensors"):
        load_pretrained("tester/pickled")
    assert ("GET", "pytorch_model.bin") not in server.seen()
    with pytest.raises(WeightsError, match="tester/nothing: config.json: there is no such repo"):
        load_pretrained("tester/nothing")
    with pytest.raises(WeightsError, match=r"a \.bin file may be a pickle"):
        load_pretrained("tester/pytorch_model.bin")
    with pytest.raises(WeightsError, match="that is no Hub id"):
        load_pretrained("tester/a--b")


def test_a_config_from_the_future_spares_the_download(server: HubServer, cache: Path) -> None:
    server.add(REPO, {CONFIG_FILE: b'{"format_version": 2}'})
    message = "format_version is 2.*pip install --upgrade ferfacenet; name another revision"
    with pytest.raises(WeightsError, match=message):
        load_pretrained(REPO)
    assert set(server.seen()) == {("HEAD", CONFIG_FILE), ("GET", CONFIG_FILE)}


def test_a_commit_cannot_lead_outside_the_cache(
    server: HubServer, cache: Path, tmp_path: Path
) -> None:
    cache.mkdir()
    server.fail("HEAD", CONFIG_FILE, *[Fault(headers={"X-Repo-Commit": "../../../evil"})] * 20)
    with pytest.raises(WeightsError):
        load_pretrained(REPO)
    assert list(tmp_path.iterdir()) == [cache]


# --- registered names through the Hub ------------------------------------------------------


@pytest.fixture
def published(
    server: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> HubServer:
    """A registered name ``other`` that is on the Hub and not in this installation."""
    entry = hub._Registered(
        sha256=hashlib.sha256(files[WEIGHTS_FILE]).hexdigest(),
        size=len(files[WEIGHTS_FILE]),
        config_sha256=hashlib.sha256(files[CONFIG_FILE]).hexdigest(),
    )
    monkeypatch.setitem(hub._REGISTRY, "other", entry)
    server.add("ferfacenet/improved-vgg19-other", files)
    return server


NAMES = ["other", "ferfacenet/improved-vgg19-other", "ferfacenet/improved-vgg19-other@main"]


@pytest.mark.parametrize("name", NAMES)
def test_registered_name_from_the_hub(
    name: str, published: HubServer, cache: Path, whole: dict[str, torch.Tensor]
) -> None:
    assert_whole(load_pretrained(name), whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_registered_names_are_checked_on_every_route(
    name: str,
    file: str,
    published: HubServer,
    cache: Path,
    files: dict[str, bytes],
    whole: dict[str, torch.Tensor],
) -> None:
    """The repository as a whole is replaced by one that agrees with itself."""
    config = json.loads(files[CONFIG_FILE])
    forged = flip(files[WEIGHTS_FILE], 30_000_000) if file == WEIGHTS_FILE else files[WEIGHTS_FILE]
    config["weights_sha256"] = hashlib.sha256(forged).hexdigest()
    config["temperature"] = 3.0
    good = published.repos["ferfacenet/improved-vgg19-other"].branches["main"]
    published.add(
        "ferfacenet/improved-vgg19-other",
        {CONFIG_FILE: json.dumps(config).encode(), WEIGHTS_FILE: forged},
    )
    with pytest.raises(WeightsError, match=r"config\.json: its sha256"):
        load_pretrained(name)
    assert_whole(load_pretrained(name.split("@")[0], revision=good), whole)


def test_registered_commit_is_the_default_revision(
    published: HubServer,
    cache: Path,
    whole: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An older package goes on working when the repository gets better weights."""
    good = published.repos["ferfacenet/improved-vgg19-other"].branches["main"]
    published.add("ferfacenet/improved-vgg19-other", {CONFIG_FILE: b"{}"})
    pinned = dataclasses.replace(hub._REGISTRY["other"], revision=good)
    monkeypatch.setitem(hub._REGISTRY, "other", pinned)
    assert_whole(load_pretrained("other"), whole)
    published.requests.clear()
    assert_whole(load_pretrained("other"), whole)
    assert published.requests == []


def test_damaged_download_of_a_registered_name(
    published: HubServer, cache: Path, files: dict[str, bytes], whole: dict[str, torch.Tensor]
) -> None:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        published.fail("GET", file, Fault(body=flip(files[file], len(files[file]) - 5)))
        with pytest.raises(WeightsError, match=f"{file}: its sha256.*try again"):
            load_pretrained("other")
        assert half_written(cache) == []
    assert_whole(load_pretrained("other"), whole)


def test_bundled_name_with_a_revision_asks_the_hub(server: HubServer, cache: Path) -> None:
    bundled = {p.name: p.read_bytes() for p in (hub._BUNDLED / "fer2013").iterdir()}
    server.add("ferfacenet/improved-vgg19-fer2013", bundled)
    expected = load_pretrained("fer2013").state_dict()
    assert server.requests == []
    assert_whole(load_pretrained("fer2013", revision="main"), expected)
    assert_whole(load_pretrained("fer2013@main"), expected)
    assert_whole(load_pretrained("ferfacenet/improved-vgg19-fer2013"), expected)
    assert len(server.requests) > 0


# --- other processes -----------------------------------------------------------------------


def client(server: HubServer, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process whose Hub is ``server``."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": "",
        **more,
    }


LOAD = f"""
import sys
from ferfacenet.hub import WeightsError, load_pretrained
try:
    print(float(load_pretrained({REPO!r}).classifier.weight.double().sum()))
except WeightsError as error:
    sys.exit(str(error))
"""


def answer(whole: dict[str, torch.Tensor]) -> str:
    return str(float(whole["classifier.weight"].double().sum()))


def test_environment_variables(
    server: HubServer, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, as the client reads them."""
    server.repos[REPO].token = "hf_secret"
    offline = client(server, tmp_path, HF_HUB_OFFLINE="1")
    done = run(LOAD, env=offline)
    assert done.returncode == 1
    assert "run this once with a network: python -c" in done.stderr
    assert server.requests == []
    done = run(LOAD, env=client(server, tmp_path, HF_TOKEN="hf_secret"))
    assert done.stdout.strip() == answer(whole), done.stderr
    assert (tmp_path / "hub" / "models--tester--faces").is_dir()
    server.requests.clear()
    done = run(LOAD, env=offline)
    assert done.stdout.strip() == answer(whole), done.stderr
    assert server.requests == []


def start(server: HubServer, home: Path, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOAD],
        env=os.environ | client(server, home) | {"PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def test_two_processes_at_once(
    server: HubServer, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    gate = threading.Event()
    fault = Fault(cut=10_000_000, gate=gate)
    server.fail("GET", WEIGHTS_FILE, fault)
    both = [start(server, tmp_path) for _ in range(2)]
    assert fault.reached.wait(60)
    gate.set()
    for process in both:
        out, err = process.communicate(timeout=60)
        assert out.strip() == answer(whole), err
    assert half_written(tmp_path) == []


def test_kill_in_the_middle_of_a_download(
    server: HubServer, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    gate = threading.Event()
    fault = Fault(cut=20_000_000, gate=gate)
    server.fail("GET", WEIGHTS_FILE, fault)
    process = start(server, tmp_path)
    assert fault.reached.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    gate.set()
    assert half_written(tmp_path) == []
    done = run(LOAD, env=client(server, tmp_path))
    assert done.stdout.strip() == answer(whole), done.stderr
    assert half_written(tmp_path) == []


def test_full_disk(server: HubServer, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))

    process = start(server, tmp_path, preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"the disk of the cache \(.*hub\) is full .*make room.*cache_dir", err), err
    assert half_written(tmp_path) == []
    done = run(LOAD, env=client(server, tmp_path))
    assert done.stdout.strip() == answer(whole), done.stderr


READ_ONLY = f"""
import os, sys
from ferfacenet.hub import WeightsError, load_pretrained
first, cache = sys.argv[1:]
load_pretrained({REPO!r}, cache_dir=first)  # so that all modules are loaded
if os.geteuid() == 0:  # root may write anywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    print(float(load_pretrained({REPO!r}, cache_dir=cache).classifier.weight.double().sum()))
except WeightsError as error:
    sys.exit(str(error))
"""


def test_read_only_cache(server: HubServer, whole: dict[str, torch.Tensor]) -> None:
    """With nothing in it, an error; with the weights in it, they are loaded."""
    home = Path(tempfile.mkdtemp(prefix="ferfacenet-test-"))  # pytest's are closed to nobody
    try:
        home.chmod(0o755)
        (home / "cache").mkdir()
        (home / "cache").chmod(0o555)
        arguments = [str(home / "first"), str(home / "cache")]
        done = run(READ_ONLY, *arguments, env=client(server, home))
        assert done.returncode == 1
        assert re.search(r"the cache \(.*cache\) cannot be written .*cache_dir=", done.stderr)
        (home / "cache").rmdir()
        load_into = (
            f"from ferfacenet.hub import *; load_pretrained({REPO!r}, cache_dir=sys.argv[1])"
        )
        assert (
            run("import sys;" + load_into, arguments[1], env=client(server, home)).returncode == 0
        )
        for path in home.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o555 if path.is_dir() else 0o444)
        done = run(READ_ONLY, arguments[1], arguments[1], env=client(server, home))
        assert done.stdout.strip() == answer(whole), done.stderr
    finally:
        for path in home.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(home)


# --- what a Hub's answer may name ----------------------------------------------------------

EVIL = ["../../../evil", "/{there}/evil", "a/b", "..", "."]


def outside(tmp_path: Path, cache: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if cache not in (path, *path.parents)]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("after", [0, 1])
def test_an_etag_cannot_lead_outside_the_cache(
    server: HubServer, cache: Path, tmp_path: Path, evil: str, after: int
) -> None:
    """Neither at the first answer nor at one after a good one."""
    header = {"ETag": f'"{evil.format(there=tmp_path)}"'}
    faults = [Fault()] * after + [Fault(headers=header)] * 20
    if after:
        load_pretrained(REPO)
        server.add(REPO, {CONFIG_FILE: server.repos[REPO].commits[
            server.repos[REPO].branches["main"]][CONFIG_FILE] + b" "})  # fmt: skip
        faults = faults[1:]
    server.fail("HEAD", CONFIG_FILE, *faults)
    with pytest.raises(WeightsError, match="etag is .*no plain name; do not trust"):
        load_pretrained(REPO)
    assert outside(tmp_path, cache) == []


@pytest.mark.parametrize("evil", EVIL)
def test_the_linked_etag_of_large_files_neither(
    server: HubServer, cache: Path, tmp_path: Path, evil: str
) -> None:
    header = {"X-Linked-Etag": f'"{evil.format(there=tmp_path)}"'}
    server.fail("HEAD", WEIGHTS_FILE, *[Fault(headers=header)] * 20)
    with pytest.raises(WeightsError, match="etag is .*no plain name; do not trust"):
        load_pretrained(REPO)
    assert outside(tmp_path, cache) == []


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("status", [None, 404])
def test_the_commit_of_an_answer_or_a_refusal_neither(
    server: HubServer, cache: Path, tmp_path: Path, evil: str, status: int | None
) -> None:
    """The client notes that a commit has no such file in a file of its own."""
    headers = {"X-Repo-Commit": evil.format(there=tmp_path)}
    if status:
        headers["X-Error-Code"] = "EntryNotFound"
    server.fail("HEAD", CONFIG_FILE, *[Fault(status=status, headers=headers)] * 20)
    with pytest.raises(WeightsError, match="commit is .*no plain name; do not trust"):
        load_pretrained(REPO)
    assert outside(tmp_path, cache) == []


def test_the_guard_is_gone_afterwards(server: HubServer, cache: Path) -> None:
    from huggingface_hub import file_download

    before = file_download.get_hf_file_metadata
    load_pretrained(REPO)
    with pytest.raises(WeightsError):
        load_pretrained("tester/nothing")
    assert file_download.get_hf_file_metadata is before


@pytest.mark.parametrize("revision", ["../../../evil", "/tmp/evil", "a/../../b"])
def test_a_revision_cannot_lead_outside_the_cache(
    server: HubServer, cache: Path, tmp_path: Path, revision: str
) -> None:
    for name, given_revision in ((REPO, revision), (f"{REPO}@{revision}", None)):
        with pytest.raises(WeightsError, match="is no revision"):
            load_pretrained(name, revision=given_revision)
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []
