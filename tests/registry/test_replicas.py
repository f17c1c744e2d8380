"""What a promotion asks of the replicas: briefly, all at once, and without depending on an answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import loradock
from loradock.cli.promote import promote
from loradock.registry import history, replicas
from loradock.registry.errors import BadInput, GateFailed, Refused
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, aliases, make_version
from tests.support.serving.status import NOTHING, answering
from tests.support.web import running


class FakeReplicaHandler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        self.server.meeting.wait(timeout=10)
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.status).encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Start servers that say what a replica says, each of which waits until so many are asked."""
    monkeypatch.setattr(replicas, "_SHORT_TIMEOUT", 60)  # on a busy machine, an answer takes longer
    stack = ExitStack()

    def started(meeting: threading.Barrier | None = None, **changes: Any) -> str:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), FakeReplicaHandler)
        server.status, server.meeting = NOTHING | changes, meeting or threading.Barrier(1)
        stack.enter_context(running(server))
        return f"http://127.0.0.1:{server.server_port}"

    with stack:
        yield started


def run(*arguments: str) -> Result:
    return CliRunner().invoke(promote, [f"{NAME}/1", "--alias", "production", *arguments])


@pytest.fixture
def high(store: Store, tmp_path: Path) -> Store:
    """A version of rank 32."""
    make_version(store, tmp_path / "adapter", rank=32)
    return store


def test_replicas_are_asked_at_once(start: Callable[..., str], home: Path) -> None:
    meeting = threading.Barrier(3)
    urls = [start(meeting) for _ in range(3)]
    found, problems = replicas.rooms(Settings(replicas=",".join(urls)))
    assert ([room.url for room in found], problems) == (urls, [])


def test_a_rank_that_no_replica_takes_is_refused_and_can_be_forced(
    high: Store, start: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORADOCK_REPLICAS", start())
    refused = run()
    assert isinstance(refused.exception, Refused)
    assert "has rank 32, above the 16" in str(refused.exception)
    assert aliases(high) == {}
    assert isinstance(run("--force").exception, BadInput)
    assert run("--force", "--reason", "they restart tonight").exit_code == 0
    assert aliases(high) == {"production": 1}
    assert history.read(high, NAME).heads["production"].forced


def test_a_script_is_refused_it_too(high: Store, start: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_REPLICAS", start())
    with pytest.raises(Refused, match="has rank 32, above the 16"):
        loradock.promote(f"{NAME}/1")
    assert aliases(high) == {}
    assert loradock.promote(f"{NAME}/1", force=True, reason="they restart tonight") is not None


def test_a_dry_run_says_so_too(high: Store, start: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_REPLICAS", start())
    found = run("--dry-run", "--json")
    assert isinstance(found.exception, GateFailed)
    assert {"rule": "room", "passed": False}.items() <= json.loads(found.stdout)[-1].items()


def test_a_replica_that_does_not_answer_is_warned_of_and_decides_nothing(
    high: Store, start: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORADOCK_REPLICAS", f"http://127.0.0.1:9,{start(max_rank=32)}")
    found = run()
    assert found.exit_code == 0
    assert "warning: http://127.0.0.1:9 does not report its capacity" in found.stderr
    assert aliases(high) == {"production": 1}


def test_a_full_replica_is_warned_of(high: Store, start: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = {f"cat-{number}": answering(f"cat-{number}/1") for number in range(4)}
    monkeypatch.setenv("LORADOCK_REPLICAS", start(max_rank=32, adapters=crowd))
    found = run()
    assert found.exit_code == 0
    assert "has 5 adapters and 4 slots" in found.stderr
