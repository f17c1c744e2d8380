"""What the Hub answers becomes one of our errors, and what it holds is fetched without its code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ANSWERS = {
    "org/missing": (404, "RepoNotFound"),
    "org/gated": (403, "GatedRepo"),
    "org/revision": (404, "RevisionNotFound"),
    "org/broken": (418, ""),
    "org/denied": (401, "Unauthorized"),
}
FILES = {"train.jsonl": b'{"text": "a"}\n', "rows.py": b"raise SystemExit", "weights.bin": b"", "README.md": b"# Rows"}
CODE = """
import sys
from registry import errors, hub
try:
    print(sorted(path.name for path in getattr(hub, sys.argv[1])(sys.argv[2], None).iterdir()))
except errors.LoradockError as error:
    print(f"{type(error).__name__}: {error}; {error.hint}")
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as telling errors and fetching `org/rows` takes."""

    def do_GET(self) -> None:
        for repository, (status, code) in ANSWERS.items():
            if repository in self.path:
                self.answer(
                    status,
                    b"",
                    {"X-Error-Code": code, "X-Error-Message": "Invalid credentials in Authorization header"},
                )
                return
        if "/tree/" in self.path:
            listed = [{"type": "file", "path": name, "size": len(text), "oid": name} for name, text in FILES.items()]
            self.answer(200, json.dumps(listed).encode())
        elif "/api/" in self.path:
            self.answer(200, json.dumps({"id": "org/rows", "sha": COMMIT, "siblings": []}).encode())
        else:
            name = self.path.rsplit("/", 1)[-1]
            self.answer(200, FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *given: object) -> None:
        """Be quiet."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(home: Path, endpoint: str, repository: str, kind: str = "dataset_snapshot") -> str:
    environment = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, kind, repository],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("org/missing", "NotFound: the Hub has no data set 'org/missing'; check its name"),
        ("org/gated", "NotFound: the data set 'org/gated' is gated; ask for access on its page"),
        ("org/revision", "NotFound: the Hub has no data set 'org/revision'; "),
        ("org/..x", "NotFound: the Hub has no data set 'org/..x'; "),
        ("org/denied", "Unreachable: the Hub does not hand out the data set 'org/denied': it answers 401; "),
        ("org/broken", "Unreachable: the Hub cannot be reached, and 'org/broken' is not in its local cache; "),
    ],
)
def test_what_the_hub_answers_is_told(tmp_path: Path, endpoint: str, repository: str, said: str) -> None:
    assert fetch(tmp_path, endpoint, repository).startswith(said)


def test_only_rows_and_the_readme_are_fetched(tmp_path: Path, endpoint: str) -> None:
    assert fetch(tmp_path, endpoint, "org/rows") == "['README.md', 'train.jsonl']\n"


def test_a_model_that_is_not_there(tmp_path: Path, endpoint: str) -> None:
    assert fetch(tmp_path, endpoint, "org/missing", "snapshot").startswith(
        "NotFound: the Hub has no model 'org/missing'"
    )
