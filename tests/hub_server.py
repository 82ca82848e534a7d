"""A small Hugging Face Hub on loopback, for the real client to talk to: it answers the routes that
downloading and publishing a model use, keeps what is committed, records each request, and
misbehaves on demand (:class:`Fault`)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml


@dataclass
class Fault:
    """What is wrong with one answer: another status, headers on top, other bytes as the body, or
    only so many of them (``cut``)."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        whole = self.commits.get(self.branches.get(branch, ""), {}) | files
        commit = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        self.commits[commit], self.branches[branch] = whole, commit
        return commit


class HubServer(ThreadingHTTPServer):
    """Use as a context manager; ``url`` is what HF_ENDPOINT is to be."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.requests: list[SimpleNamespace] = []  # each with method, path and headers
        self.faults: list[tuple[str, str, Fault]] = []

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def lead_here(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the client in this process use this server and ``cache``, and never pause."""
        from huggingface_hub import constants

        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(time, "sleep", lambda _: None)

    def add(self, repo: str, files: dict[str, bytes]) -> str:
        """Make (or add to) the repository; returns the commit."""
        return self.repos.setdefault(repo, Repo()).commit(files)

    def fail(self, method: str, path_end: str, *faults: Fault) -> None:
        """The next requests of that kind get these faults, one each, in this order."""
        self.faults += [(method, path_end, fault) for fault in faults]

    def clear(self) -> None:
        self.faults.clear()
        self.requests.clear()


class _AnsweredError(Exception):
    """The answer has been sent."""


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        asked = SimpleNamespace(method=self.command, path=path, headers=dict(self.headers))
        self.server.requests.append(asked)
        matching = (f for f in self.server.faults if f[0] == self.command and path.endswith(f[1]))
        if taken := next(matching, None):
            self.server.faults.remove(taken)
        self.fault = taken[2] if taken else Fault()
        with contextlib.suppress(_AnsweredError, ConnectionError):
            if self.fault.status is not None:
                self.send(self.fault.status)
            for pattern, answer in _ROUTES.items():
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    answer(self, body, **match.groupdict())
            self.send(404)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        fault = self.fault
        body = body if fault.body is None else fault.body
        self.send_response(status)
        for line in ({"Content-Length": str(len(body))} | (headers or {}) | fault.headers).items():
            self.send_header(*line)
        if fault.cut is not None or fault.body is not None:
            self.send_header("Connection", "close")  # and does so
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault.cut])
        raise _AnsweredError

    def send_json(self, value: object, status: int = 200) -> None:
        self.send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def find(self, name: str, revision: str = "main") -> tuple[Repo, str]:
        """The repository and the commit, if the request may see them, else the Hub's refusal."""
        repo = self.server.repos.get(name)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.token and given != repo.token):
            self.send(404 if given else 401, {"X-Error-Code": "RepoNotFound"})
        if repo.gated:
            self.send(403, {"X-Error-Code": "GatedRepo"})
        names = {commit: commit for commit in repo.commits} | repo.branches | repo.tags
        if revision not in names:
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
        return repo, names[revision]

    def resolve(self, _: bytes, repo: str, revision: str, file: str) -> None:
        entry, commit = self.find(repo, revision)
        headers = {"X-Repo-Commit": commit}
        data = entry.commits[commit].get(file)
        if data is None:
            self.send(404, headers | {"X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        self.send(200, headers, data)

    def refs(self, _: bytes, repo: str) -> None:
        tags = self.find(repo)[0].tags.items()
        listed = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in tags]
        self.send_json({"branches": [], "converts": [], "tags": listed})

    def create(self, body: bytes) -> None:
        name = "{organization}/{name}".format(**json.loads(body))
        status = 409 if name in self.server.repos else 200
        self.server.repos.setdefault(name, Repo(branches={"main": "0"}, commits={"0": {}}))
        self.send_json({"url": f"{self.server.url}/{name}"}, status)

    def validate_yaml(self, body: bytes) -> None:
        """A part of what the Hub checks: that the metadata are of the right types."""
        card = yaml.safe_load(json.loads(body)["content"].split("---\n", 2)[1])
        kinds = dict.fromkeys(("license", "library_name", "pipeline_tag"), str)
        kinds |= dict.fromkeys(("tags", "datasets", "metrics", "model-index"), list)
        errors = [{"message": k} for k, kind in kinds.items() if not isinstance(card.get(k), kind)]
        self.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, repo: str) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        answer = {"uploadMode": "regular", "shouldIgnore": False}  # no other store for large files
        self.send_json({"files": [{"path": path, **answer} for path in paths]})

    def commit(self, body: bytes, repo: str, branch: str) -> None:
        items = [json.loads(line) for line in body.splitlines()]
        files = [item["value"] for item in items if item["key"] == "file"]
        contents = {file["path"]: base64.b64decode(file["content"]) for file in files}
        commit = self.find(repo)[0].commit(contents, branch)
        url = f"{self.server.url}/{repo}/commit/{commit}"
        self.send_json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def tag(self, body: bytes, repo: str, revision: str) -> None:
        entry, commit = self.find(repo, revision)
        entry.tags[json.loads(body)["tag"]] = commit
        self.send_json({"success": True})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_KIND = "(?:models|spaces)"
_ROUTES: dict[str, Any] = {
    rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)": _Handler.resolve,
    r"POST /api/repos/create": _Handler.create,
    r"POST /api/validate-yaml": _Handler.validate_yaml,
    rf"GET /api/{_KIND}/{_REPO}/refs": _Handler.refs,
    rf"POST /api/{_KIND}/{_REPO}/preupload/.+": _Handler.preupload,
    rf"POST /api/{_KIND}/{_REPO}/commit/(?P<branch>.+)": _Handler.commit,
    rf"POST /api/{_KIND}/{_REPO}/tag/(?P<revision>.+)": _Handler.tag,
}
