"""The one client of replicas: what goes wrong over HTTP is one of loradock's errors, with what to do next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from loradock.registry.errors import BadInput, LoradockError, NotFound, Unreachable
from loradock.registry.replica_client import NoAnswer, ReplicaClient
from tests.support.serving.status import STATUS, FakeReplicaHandler
from tests.support.web import running

MARK = "hush-hush"


@pytest.fixture
def replica() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), FakeReplicaHandler)
    server.asked, server.answer = [], (200, json.dumps(STATUS).encode())
    server.url = f"http://127.0.0.1:{server.server_port}"
    with running(server):
        yield server


def test_it_sends_the_key_and_shows_it_nowhere(replica: Any) -> None:
    client = ReplicaClient(f"{replica.url}/", SecretStr(MARK))
    assert client.status().as_json() == STATUS
    assert replica.asked == [("/loradock/status", f"Bearer {MARK}")]
    assert MARK not in repr(client) + repr(vars(client))


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        (401, BadInput, "asks for a key"),
        (403, BadInput, "asks for a key"),
        (404, NotFound, "answers, but is no loradock replica"),
        (429, Unreachable, "answers with 429 Too Many Requests"),
        (503, Unreachable, "answers with 503 Service Unavailable"),
    ],
)
def test_each_refusal_has_its_error(replica: Any, code: int, error: type[LoradockError], said: str) -> None:
    replica.answer = (code, b"{}")
    with pytest.raises(error, match=f"^{replica.url} {said}$"):
        ReplicaClient(replica.url).status()


def test_a_key_that_may_not_is_told_of_the_one_that_may(replica: Any) -> None:
    replica.answer = (403, b"{}")
    with pytest.raises(BadInput, match="asks for an admin key"):
        ReplicaClient(replica.url, needs="an admin key").ask("GET", "/loradock/signals")


def test_nobody_there_is_told_with_the_reason_alone_too() -> None:
    with pytest.raises(NoAnswer, match=r"no endpoint answers at http://127\.0\.0\.1:9: ") as raised:
        ReplicaClient("http://127.0.0.1:9", what="endpoint").ask("GET", "/v1/models")
    assert raised.value.reason
    assert "127.0.0.1" not in raised.value.reason


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "file:///etc/passwd", "http://a:b"])
def test_what_is_no_url_is_asked_nothing(url: str) -> None:
    with pytest.raises(BadInput, match="is not a URL"):
        ReplicaClient(url).ask("GET", "/")
