"""A small Hugging Face Hub on loopback, for the real client to talk to.

It answers the routes that downloading and publishing a model use, keeps what is committed,
records each request, and misbehaves on demand (:class:`Fault`).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


@dataclass
class Fault:
    """What is wrong with one answer.

    Attributes:
        status: answer this status instead, with ``headers``.
        headers: added to the answer, in place of those of the same name.
        body: serve these bytes instead of the file's.
        cut: close the connection after this many bytes of the body.
        gate: pause at ``cut`` (or the beginning) until the event is set.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    gate: threading.Event | None = None
    reached: threading.Event = field(default_factory=threading.Event)


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def resolve(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.branches.get(revision) or self.tags.get(revision)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        previous = self.commits[self.branches[branch]] if branch in self.branches else {}
        files = {**previous, **files}
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for name, data in sorted(files.items()):
            digest.update(name.encode() + data)
        commit = digest.hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


def is_lfs(file: str) -> bool:
    return file.endswith(".safetensors")


def etag(file: str, data: bytes) -> str:
    """The Hub's: sha256 for large files, git's blob hash for small ones."""
    if is_lfs(file):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer:
    """Use as a context manager; ``url`` is what HF_ENDPOINT is to be."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.lfs: dict[str, bytes] = {}
        self._faults: list[tuple[str, str, Fault]] = []
        self._lock = threading.Lock()
        server = self

        class Handler(_Handler):
            hub = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        # Large files are on another host, as on the real Hub; tokens are not for it.
        self.cdn_url = self.url.replace("127.0.0.1", "localhost")

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def add(self, repo: str, files: dict[str, bytes], **settings: Any) -> str:
        """Make (or add to) the repository; returns the commit."""
        entry = self.repos.setdefault(repo, Repo(**settings))
        return entry.commit(files)

    def fail(self, method: str, path_end: str, *faults: Fault) -> None:
        """The next requests of that kind get these faults, one each, in this order."""
        self._faults += [(method, path_end, fault) for fault in faults]

    def take_fault(self, method: str, path: str) -> Fault:
        with self._lock:
            for index, (at_method, path_end, fault) in enumerate(self._faults):
                if at_method == method and path.endswith(path_end):
                    del self._faults[index]
                    return fault
        return Fault()

    def clear(self) -> None:
        self._faults.clear()
        self.requests.clear()

    def seen(self) -> list[tuple[str, str]]:
        """Method and file of each request for a file, in order, a redirection counted once."""
        asked = [r for r in self.requests if not r.path.startswith("/api/")]
        return [(r.method, r.path.rsplit("/", 1)[-1]) for r in asked]


class _AnsweredError(Exception):
    """The answer has been sent."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, dict(self.headers)))
        self.fault = self.hub.take_fault(self.command, path)
        with contextlib.suppress(_AnsweredError, ConnectionError):
            if self.fault.status is not None:
                self.send(self.fault.status, {}, b"")
            for pattern, answer in _ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    answer(self, body, **match.groupdict())
            self.send(404, {"X-Error-Code": "RouteNotFound"}, b"")

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        fault = self.fault
        if fault.body is not None:
            body = fault.body
        headers = {"Content-Length": str(len(body)), **headers, **fault.headers}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = len(body) if fault.cut is None else fault.cut
            self.wfile.write(body[:cut])
            self.wfile.flush()
            fault.reached.set()
            if fault.gate is not None:
                fault.gate.wait(60)
                self.wfile.write(body[cut:])
            elif cut < len(body):
                self.close_connection = True
            if fault.body is not None or "Content-Length" in fault.headers:
                self.close_connection = True
        raise _AnsweredError

    def send_json(self, value: object, status: int = 200) -> None:
        self.send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def repo(self, name: str) -> Repo:
        """The repository if the request may see it, else the Hub's refusal."""
        repo = self.hub.repos.get(name)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.token and given != repo.token):
            status = 404 if given else 401
            self.send(status, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Not found"}, b"")
        if repo.gated:
            message = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
            self.send(403, message, b"")
        return repo

    def resolve(self, _: bytes, repo: str, revision: str, file: str) -> None:
        entry = self.repo(repo)
        commit = entry.resolve(revision)
        if commit is None:
            self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        about = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        data = entry.commits[commit].get(file)
        if data is None:
            self.send(404, {**about, "X-Error-Code": "EntryNotFound"}, b"")
        tag = f'"{etag(file, data)}"'
        if is_lfs(file):
            oid = etag(file, data)
            self.hub.lfs[oid] = data
            where = {"Location": f"{self.hub.cdn_url}/cdn/{oid}/{file}"}
            linked = {"X-Linked-Etag": tag, "X-Linked-Size": str(len(data))}
            self.send(302, {**about, **where, **linked}, b"")
        self.send_file(data, {**about, "ETag": tag})

    def cdn(self, _: bytes, oid: str, file: str) -> None:
        self.send_file(self.hub.lfs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def send_file(self, data: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None:
            self.send(200, headers, data)
        start = int(wanted[1])
        if start >= len(data):
            self.send(416, {**headers, "Content-Range": f"bytes */{len(data)}"}, b"")
        where = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206, {**headers, "Content-Range": where}, data[start:])

    def info(self, _: bytes, repo: str, revision: str | None = None) -> None:
        entry = self.repo(repo)
        commit = entry.resolve(revision or "main")
        if commit is None:
            self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        files = [{"rfilename": name} for name in entry.commits[commit]]
        self.send_json(
            {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [],
             "downloads": 0, "likes": 0, "siblings": files}
        )  # fmt: skip

    def refs(self, _: bytes, repo: str) -> None:
        entry = self.repo(repo)

        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [
                {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in refs.items()
            ]

        self.send_json(
            {"branches": listed("heads", entry.branches), "converts": [],
             "tags": listed("tags", entry.tags)}
        )  # fmt: skip

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
        if name in self.hub.repos:
            self.send_json({"url": f"{self.hub.url}/{name}", "error": "exists"}, 409)
        self.hub.repos[name] = Repo()
        self.hub.repos[name].commit({".gitattributes": b""})
        self.send_json({"url": f"{self.hub.url}/{name}"})

    def whoami(self, _: bytes) -> None:
        if not self.headers.get("Authorization"):
            self.send_json({"error": "Invalid credentials"}, 401)
        self.send_json({"name": "tester", "type": "user", "orgs": [], "auth": {}})

    def validate_yaml(self, body: bytes) -> None:
        """A part of what the Hub checks: the types of the metadata, and the model index."""
        _, head, _ = json.loads(body)["content"].split("---\n", 2)
        card, errors = yaml.safe_load(head), []
        for key in ("license", "library_name", "pipeline_tag"):
            if not re.fullmatch(r"[a-z0-9.-]+", str(card.get(key))):
                errors.append(f"{key} is {card.get(key)!r}")
        for key in ("tags", "datasets", "metrics"):
            if not all(re.fullmatch(r"[\w./-]+", item) for item in card.get(key) or ["?"]):
                errors.append(f"{key} is {card.get(key)!r}")
        for model in card["model-index"]:
            for result in model["results"] or [{}]:
                places = [result.get("task"), result.get("dataset"), *result.get("metrics", [{}])]
                if not model["name"] or not all(place and place.get("type") for place in places):
                    errors.append(f"model-index has {result}")
                if not all(isinstance(m.get("value"), float) for m in result.get("metrics", [{}])):
                    errors.append(f"model-index has {result}")
        self.send_json(
            {"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200
        )

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        self.repo(repo)
        files = [
            {"path": f["path"], "uploadMode": "lfs" if is_lfs(f["path"]) else "regular",
             "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]  # fmt: skip
        self.send_json({"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        self.repo(repo)
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}}
            known = item["oid"] in self.hub.lfs
            objects.append({**item, **({} if known else {"actions": upload})})
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.send(400, {}, b"")
        self.hub.lfs[oid] = body
        self.send(200, {}, b"")

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        entry = self.repo(repo)
        files = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
        oid = entry.commit(files, revision)
        self.send_json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}",
             "hookOutput": ""}
        )  # fmt: skip

    def tag(self, body: bytes, repo: str, revision: str) -> None:
        entry = self.repo(repo)
        name = json.loads(body)["tag"]
        if name in entry.tags:
            self.send_json({"error": "Tag reference exists already"}, 409)
        entry.tags[name] = entry.resolve(revision) or self.send(404, {}, b"")
        self.send_json({"success": True})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET /api/models/{_REPO}/refs", _Handler.refs),
    (rf"GET /api/models/{_REPO}(/revision/(?P<revision>.+))?", _Handler.info),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"POST /api/models/{_REPO}/tag/(?P<revision>.+)", _Handler.tag),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_put),
    (r"(GET|HEAD) /cdn/(?P<oid>[0-9a-f]{64})/(?P<file>.+)", _Handler.cdn),
    (rf"(GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
]
