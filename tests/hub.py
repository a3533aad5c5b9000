"""A stand-in for the hub's HTTP API, on the loopback address, for the real client to talk to.

It keeps commits in memory, takes large files by LFS as the hub does, and serves these from a second address, as a
content network does. Every request is recorded with the credentials that came with it.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["Hub", "Repository", "git_hash", "hub"]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


@dataclass
class Repository:
    """Files by commit, and commits by branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit to a branch, and return its name."""
        lines = [str(len(self.commits)), *(f"{path} {git_hash(content)}" for path, content in sorted(files.items()))]
        name = hashlib.sha1("\n".join(lines).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Hub:
    """The hub's state, and what a test wants to go wrong.

    Attributes:
        url: address.
        repositories: by name.
        token: the token that may write, and read what is private.
        requests: (method, path, authorization) of every request.
        failing: status for every request; None to answer as usual.
        corrupted: files whose content arrives with another last byte.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_right"
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    failing: int | None = None
    corrupted: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)

    def downloads(self) -> list[str]:
        """Names of the files that were asked for, by any method."""
        return [path.rpartition("/")[2] for _, path, _ in self.requests if "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing to standard error."""

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        given = self.headers.get("authorization")
        url = urlsplit(self.path)
        self.hub.requests.append((self.command, url.path, given))
        if self.hub.failing is not None:
            return self.answer(self.hub.failing, {"error": "the hub is out of order"})
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        allowed = given == f"Bearer {self.hub.token}"
        return self.route(parts, body, parse_qs(url.query), allowed=allowed)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one  # noqa: N815  # as the base class calls them

    def route(self, parts: list[str], body: bytes, query: dict[str, list[str]], *, allowed: bool) -> None:
        match self.command, parts:
            case "PUT", ["lfs", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                self.hub.large[oid] = body
                return self.answer(200, {})
            case "GET", ["lfs", oid]:
                return self.send(200, self.hub.large[oid])
            case "POST", ["api", "validate-yaml"]:
                return self.answer(200, {"errors": [], "warnings": []})
            case "POST", _ if not allowed:
                return self.answer(401, {"error": "Invalid username or password."})
            case "POST", ["api", "repos", "create"]:
                return self.create(json.loads(body))
        place = parts[2:4] if parts[:2] == ["api", "models"] else parts[:2]
        name = "/".join(place).removesuffix(".git")
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not allowed):
            return self.answer(401, {"error": "Repository not found"}, code="RepoNotFound")
        rest = parts[4:] if parts[:2] == ["api", "models"] else parts[2:]
        match self.command, rest:
            case "GET", []:
                return self.info(name, repository, "main")
            case "GET", ["revision", revision]:
                return self.info(name, repository, revision)
            case "GET", ["tree", revision, *_]:
                files = repository.commits[repository.resolve(revision) or ""]
                return self.answer(200, [self.entry(path, content) for path, content in files.items()])
            case "POST", ["branch", branch]:
                if branch in repository.branches:
                    return self.answer(409, {"error": "Reference already exists"})
                repository.branches[branch] = repository.branches["main"]
                return self.answer(201, {})
            case "POST", ["preupload", _]:
                modes = [
                    {"path": file["path"], "uploadMode": "lfs" if is_large(file["path"]) else "regular"}
                    for file in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": [mode | {"shouldIgnore": False} for mode in modes]})
            case "POST", ["info", "lfs", "objects", "batch"]:
                objects = [
                    {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}}}
                    for one in json.loads(body)["objects"]
                ]
                return self.answer(200, {"transfer": "basic", "objects": objects})
            case "POST", ["commit", branch]:
                return self.commit(name, repository, branch, [json.loads(line) for line in body.splitlines()])
            case (("GET" | "HEAD"), ["resolve", revision, *path]):
                return self.file(repository, revision, "/".join(path))
        return self.answer(404, {"error": f"unknown {self.command} {parts} {query}"})

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        made = self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        made.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def info(self, name: str, repository: Repository, revision: str) -> None:
        commit = repository.resolve(revision)
        if commit is None:
            return self.answer(404, {"error": f"Invalid rev id: {revision}"}, code="RevisionNotFound")
        siblings = [
            {"rfilename": path} | {key: value for key, value in self.entry(path, content).items() if key != "path"}
            for path, content in repository.commits[commit].items()
        ]
        for sibling in siblings:
            sibling["blobId"] = sibling.pop("oid")
        about = {"id": name, "modelId": name, "sha": commit, "private": repository.private, "tags": []}
        return self.answer(200, about | {"siblings": siblings})

    @staticmethod
    def entry(path: str, content: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if is_large(path):
            digest = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 130}
        return found

    def commit(self, name: str, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> None:
        head = repository.branches[branch]
        files = dict(repository.commits[head])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header" if value.get("parentCommit", head) != head:
                    return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = repository.commit(files, branch)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        return self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def file(self, repository: Repository, revision: str, path: str) -> None:
        commit = repository.resolve(revision) or ""
        content = repository.commits.get(commit, {}).get(path)
        if content is None:
            return self.answer(404, {"error": "Entry not found"}, code="EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_hash(content)}"'}
        if path in self.hub.corrupted:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if is_large(path):
            digest = hashlib.sha256(content).hexdigest()
            self.hub.large[digest] = content
            # Another name of the same machine: to the client, another host.
            away = self.hub.url.replace("127.0.0.1", "localhost")
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return self.send(302, b"", headers | {"Location": f"{away}/lfs/{digest}"})
        return self.send(200, content, headers)

    def answer(self, status: int, body: Any, *, code: str | None = None) -> None:
        self.send(status, json.dumps(body).encode(), {"X-Error-Code": code} if code else {})

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub() -> Iterator[Hub]:
    """Run a hub without repositories."""
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": found}))
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
