"""What `promote` gives a canary, and whom it tells: through the command, to replicas that answer or do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.store import Store
from tests.support.adapters import make_version
from tests.support.shell import loradock
from tests.support.web import running


@contextmanager
def replica(status: int = 202) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Something that takes a nudge, and what it was sent."""
    seen: list[tuple[str, str]] = []

    class FakeReplicaHandler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, self.headers.get("Authorization", "")))
            self.send_response(status)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with running(HTTPServer(("127.0.0.1", 0), FakeReplicaHandler)) as server:
        yield f"http://127.0.0.1:{server.server_port}", seen


@pytest.fixture(autouse=True)
def two(store: Store, tmp_path: Path) -> None:
    for seed in (1, 2):
        make_version(store, tmp_path / str(seed), seed=seed)


@pytest.mark.slow
def test_a_canary_with_a_weight_is_one_command() -> None:
    done = loradock("promote", "support-bot/2", "--alias", "canary", "--weight", "10%", "--reason", "try", "--json")
    assert done.exit_code == 0, done.err
    assert json.loads(done.out).items() >= {"alias": "support-bot@canary", "to": "support-bot/2", "weight": 0.1}.items()
    again = loradock("promote", "support-bot/2", "--alias", "canary", "--weight", "25%", "--json")
    assert json.loads(again.out)["weight"] == 0.25
    said = loradock("history", "support-bot").out
    assert "weight canary" in said
    assert "25% of requests" in said


@pytest.mark.parametrize("words", [("--weight", "10%"), ("--alias", "staging", "--weight", "10%")])
def test_only_a_canary_and_a_shadow_have_a_weight(words: tuple[str, ...]) -> None:
    done = loradock("promote", "support-bot/2", *words)
    assert done.exit_code == 2
    assert "--alias canary or --alias shadow" in done.err


def test_a_weight_that_is_none_moves_nothing(store: Store) -> None:
    done = loradock("promote", "support-bot/2", "--alias", "canary", "--weight", "150%")
    assert done.exit_code == 2
    assert not store.family("support-bot").aliases


def test_replicas_are_told_of_each_move_with_the_key() -> None:
    with replica() as (url, seen):
        where = {"LORADOCK_REPLICAS": f"{url}, {url}/", "VLLM_API_KEY": "a-key"}
        loradock("promote", "support-bot/1", **where)
        loradock("promote", "support-bot/2", **where)
        done = loradock("rollback", "support-bot", **where)
    assert done.exit_code == 0
    assert seen == [("/loradock/nudge", "Bearer a-key")] * 6


def test_a_replica_that_is_not_told_harms_no_move(store: Store) -> None:
    with replica(status=401) as (url, _):
        done = loradock("promote", "support-bot/1", LORADOCK_REPLICAS=f"{url},http://127.0.0.1:9,nonsense")
    assert done.exit_code == 0
    assert store.family("support-bot").aliases == {"production": 1}
    assert done.err.count("could not be nudged, and sees the move at its next poll") == 3
