"""A stand-in for the Hugging Face Hub: the part of its HTTP API that huggingface_hub calls, on files in a directory.

It answers as the client's own source expects (hf_api.py, _commit_api.py, lfs.py, file_download.py). Repositories are
directories with their commits as JSON, and contents lie beside them by their hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.support.web import running

TOKEN = "hf_ThisIsTheOwnersSecretToken"
"""It may do everything in the organisation `org`, and nothing elsewhere."""
_LICENCES = ("apache-2.0", "mit", "llama3.1", "other")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass
class HubFault:
    """Something that goes wrong with the requests that a pattern finds in `METHOD /path`."""

    pattern: str
    status: int = 0
    """What is answered; 0 breaks the connection."""
    when: str = "before"
    """`before` the request is done, in the middle of its `body`, or `after`; `never` only watches it."""
    times: int = 1000
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "it was injected"}'
    act: Callable[[], object] = field(default=lambda: None)
    """What happens at that moment."""


class HubAnswer(Exception):
    """What is answered in place of a result."""

    def __init__(self, status: int, code: str = "", message: str = "", **more: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **more}
        self.headers = {"X-Error-Code": code, "X-Error-Message": message} if code or message else {}


@dataclass
class FakeHub:
    """The repositories, who asked for what, and what goes wrong."""

    root: Path
    url: str = ""
    faults: list[HubFault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """`METHOD /path` of every request, in order."""
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        (self.root / "contents").mkdir(parents=True)

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """Where a client finds it; `home` is its cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }

    def repository(self, name: str, kind: str = "models") -> Path:
        return self.root / kind / f"{name}.json"

    def read(self, name: str, kind: str = "models") -> dict[str, Any]:
        """A repository: whether it is private or gated, and its commits, oldest first."""
        path = self.repository(name, kind)
        if not path.is_file():
            raise HubAnswer(404, "RepoNotFound", "Repository not found")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def write(self, name: str, repository: Mapping[str, Any], kind: str = "models") -> None:
        path = self.repository(name, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(repository))

    def make(self, name: str, *, private: bool, kind: str = "models", gated: bool = False) -> None:
        """A repository as the Hub makes one."""
        self.write(name, {"private": private, "gated": gated, "commits": []}, kind)
        self.change(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, title="initial commit", kind=kind)

    def keep(self, content: bytes, *, large: bool) -> dict[str, Any]:
        """Keep a content under its hash; what a tree says of it."""
        sha256 = hashlib.sha256(content).hexdigest()
        kept = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\n".encode() if large else content
        oid = hashlib.sha1(b"blob %d\0" % len(kept) + kept, usedforsecurity=False).hexdigest()
        (self.root / "contents" / (sha256 if large else oid)).write_bytes(content)
        return {"oid": oid, "size": len(content), **({"sha256": sha256} if large else {})}

    def change(
        self,
        name: str,
        files: Mapping[str, bytes | dict[str, Any] | None],
        *,
        title: str,
        message: str = "",
        kind: str = "models",
    ) -> str:
        """Commit contents, or what `keep` said of them; None takes a file away."""
        found = self.read(name, kind)
        tree = dict(found["commits"][-1]["files"]) if found["commits"] else {}
        for path, content in files.items():
            if content is None:
                del tree[path]
            else:
                large = path.endswith((".safetensors", ".bin"))
                tree[path] = self.keep(content, large=large) if isinstance(content, bytes) else content
        commit = {"title": title, "message": message, "files": tree}
        seed = json.dumps([len(found["commits"]), name, commit], sort_keys=True).encode()
        commit["id"] = hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        found["commits"].append(commit)
        self.write(name, found, kind)
        return str(commit["id"])

    def upload(self, name: str, directory: Path, kind: str = "models", *, private: bool = False) -> str:
        """A repository with the files of a directory, whose commit is somebody else's."""
        self.make(name, private=private, kind=kind)
        files: dict[str, bytes | dict[str, Any] | None] = {}
        files |= {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
        return self.change(name, files, title="Upload", kind=kind)

    def files(self, name: str) -> dict[str, bytes]:
        """What the branch `main` holds."""
        return {path: self.content(entry) for path, entry in self.read(name)["commits"][-1]["files"].items()}

    def content(self, entry: Mapping[str, Any]) -> bytes:
        return (self.root / "contents" / (entry.get("sha256") or entry["oid"])).read_bytes()

    def fetched(self) -> set[str]:
        """The files of which the content was asked for."""
        return {line.rsplit("/", 1)[-1] for line in self.asked if line.startswith("GET") and "/resolve/" in line}

    def fail(self, pattern: str, status: int = 0, **more: Any) -> None:
        """Let requests go wrong from now on."""
        self.faults.append(HubFault(pattern, status, **more))


@contextmanager
def hub(root: Path) -> Iterator[FakeHub]:
    """A Hub on a port of its own."""
    state = FakeHub(root)
    handler = type("Handler", (_Handler,), {"hub": state})
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.query, line = parse_qs(parts.query), f"{self.command} {unquote(parts.path)}"
        self.hub.asked.append(line)
        fault = self.fault(line)
        if fault and fault.when == "body":
            self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
        if fault and fault.when != "after":
            fault.act()
            if fault.when != "never":
                self.go_wrong(fault)
                return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.hub.lock:
                status, headers, content = self.route(unquote(parts.path))
        except HubAnswer as answer:
            status, headers, content = answer.status, answer.headers, json.dumps(answer.body).encode()
        if fault and fault.when == "after":
            fault.act()
            self.go_wrong(fault)
            return
        self.respond(status, headers, content)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815  # names that http.server gives

    def fault(self, line: str) -> HubFault | None:
        for fault in self.hub.faults:
            if fault.times and re.search(fault.pattern, line):
                fault.times -= 1
                return fault
        return None

    def go_wrong(self, fault: HubFault) -> None:
        self.close_connection = True
        if fault.status:
            self.respond(fault.status, fault.headers, fault.body)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def respond(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def route(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Find who answers, and what."""
        for method, pattern, name in _ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                found = getattr(self, name)(**match.groupdict())
                if isinstance(found, tuple):
                    return found
                return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        raise HubAnswer(404, "", f"no such page: {path}")

    def may_write(self, name: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise HubAnswer(401, "", "Invalid credentials in Authorization header")
        if not name.startswith("org/"):
            raise HubAnswer(403, "", f"You don't have the rights to write to {name}")

    def seen(self, name: str, kind: str) -> dict[str, Any]:
        token = self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            raise HubAnswer(401, "", "Invalid credentials in Authorization header")
        found = self.hub.read(name, kind)
        if found["private"] and not (token and name.startswith("org/")):
            raise HubAnswer(404, "RepoNotFound", "Repository not found")
        return found

    def at(self, name: str, kind: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        found = self.seen(name, kind)
        wanted = revision or "main"
        for commit in reversed(found["commits"]):
            if wanted in ("main", commit["id"]):
                return found, commit
        raise HubAnswer(404, "RevisionNotFound", "Invalid rev id")

    def info(self, kind: str, name: str, revision: str | None = None) -> Any:
        found, commit = self.at(name, kind, revision)
        siblings = [
            {
                "rfilename": path,
                "size": entry["size"],
                "blobId": entry["oid"],
                **(
                    {"lfs": {"sha256": entry["sha256"], "size": entry["size"], "pointerSize": 130}}
                    if "sha256" in entry
                    else {}
                ),
            }
            if "blobs" in self.query
            else {"rfilename": path}
            for path, entry in commit["files"].items()
        ]
        return {"id": name, "sha": commit["id"], "private": found["private"], "siblings": siblings}

    def tree(self, kind: str, name: str, revision: str) -> Any:
        return [
            {
                "type": "file",
                "path": path,
                "size": entry["size"],
                "oid": entry["oid"],
                **(
                    {"lfs": {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 130}}
                    if "sha256" in entry
                    else {}
                ),
            }
            for path, entry in self.at(name, kind, revision)[1]["files"].items()
        ]

    def commits(self, kind: str, name: str, revision: str) -> Any:
        found, newest = self.at(name, kind, revision)
        until = found["commits"].index(newest) + 1
        return [
            {
                "id": commit["id"],
                "title": commit["title"],
                "message": commit["message"],
                "authors": [{"user": "somebody"}],
                "date": "2026-01-01T00:00:00.000Z",
            }
            for commit in reversed(found["commits"][:until])
        ]

    def resolve(self, name: str, revision: str, path: str, kind: str | None = None) -> Any:
        found, commit = self.at(name, kind or "models", revision)
        if found["gated"]:
            raise HubAnswer(403, "GatedRepo", "Access to it is restricted")
        if path not in commit["files"]:
            raise HubAnswer(404, "EntryNotFound", "Entry not found")
        entry = commit["files"][path]
        tag = entry.get("sha256") or entry["oid"]
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit["id"], "Accept-Ranges": "bytes"}
        return 200, headers, self.hub.content(entry)

    def validate(self) -> Any:
        match = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        said = yaml.safe_load(match[1]) if match else {}
        faults = []
        if said.get("license") not in _LICENCES:
            faults.append(f'"license" must be one of [{", ".join(_LICENCES)}]')
        if not _NAME.fullmatch(said.get("base_model", "org/base")):
            faults.append('"base_model" is not valid. Use a model id from https://hf.co/models.')
        indexes = said.get("model-index", [])
        if any(not index.get("name") or not all(one["metrics"] for one in index["results"]) for index in indexes):
            faults.append('"model-index" is not valid')
        if faults:
            raise HubAnswer(400, errors=[{"message": fault} for fault in faults], warnings=[])
        return {"errors": [], "warnings": []}

    def create(self) -> Any:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        self.may_write(name)
        if self.hub.repository(name).is_file():
            raise HubAnswer(409, "", "You already created this model repo", url=f"{self.hub.url}/{name}")
        self.hub.make(name, private=asked.get("visibility") == "private")
        return {"url": f"{self.hub.url}/{name}"}

    def preupload(self, kind: str, name: str, revision: str) -> Any:
        self.may_write(name)
        _, commit = self.at(name, kind, revision)
        ignoring = commit["files"].get(".gitignore")
        ignored = self.hub.content(ignoring).decode().split() if ignoring else []
        answers = []
        for file in json.loads(self.body)["files"]:
            there = commit["files"].get(file["path"], {})
            mode = "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular"
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": mode,
                    "shouldIgnore": file["path"] in ignored,
                    "oid": there.get("sha256") or there.get("oid"),
                }
            )
        return {"files": answers}

    def batch(self, name: str) -> Any:
        self.may_write(name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            there = (self.hub.root / "contents" / wanted["oid"]).is_file()
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}?signature=secret-of-the-upload"},
                "verify": {"href": f"{self.hub.url}/{name}/lfs-verify"},
            }
            objects.append({**wanted, **({} if there else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubAnswer(400, "", "the content is another one")
        self.hub.keep(self.body, large=True)
        return 200, {}, b""

    def verified(self, name: str) -> Any:
        self.may_write(name)
        wanted = json.loads(self.body)
        if not (self.hub.root / "contents" / wanted["oid"]).is_file():
            raise HubAnswer(404, "", "it was not uploaded")
        return {}

    def commit(self, kind: str, name: str, revision: str) -> Any:
        self.may_write(name)
        _, newest = self.at(name, kind, revision)
        files: dict[str, bytes | dict[str, Any] | None] = {}
        header: dict[str, str] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                content = self.hub.root / "contents" / value["oid"]
                if not content.is_file():
                    raise HubAnswer(400, "", "a large file was not uploaded")
                files[value["path"]] = self.hub.keep(content.read_bytes(), large=True)
            else:
                files[value["path"]] = None
        if header.get("parentCommit", newest["id"]) != newest["id"]:
            raise HubAnswer(412, "", "A commit has happened since. Please refresh and try again.")
        made = self.hub.change(name, files, title=header["summary"], message=header["description"], kind=kind)
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{made}", "commitOid": made}

    def log_message(self, *given: object) -> None:
        """Be quiet."""


_REPO = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_ROUTES = (
    ("GET", rf"{_API}", "info"),
    ("GET", rf"{_API}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)", "tree"),
    ("GET", rf"{_API}/commits/(?P<revision>[^/]+)", "commits"),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", "/api/repos/create", "create"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/{_REPO}/lfs-verify", "verified"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "store"),
    ("GET", rf"/(?:(?P<kind>datasets)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)
"""Who answers what."""
