"""A nudge is MLflow's, signed as MLflow signs, or a caller's with a key."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow.entities.webhook import Webhook, WebhookAction, WebhookEntity, WebhookEvent
from mlflow.webhooks import delivery
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Route

from loradock.serving import keyfile
from loradock.serving.access import NUDGE
from loradock.serving.keys import Keys
from loradock.serving.nudge import MOST, SIGNATURE, TIMESTAMP, Nudges, signed

SECRET = "of-the-webhook"


class FakeSession:
    """Takes down what MLflow would send."""

    def post(self, url: str, data: bytes, headers: dict[str, str], timeout: int) -> None:
        self.data, self.headers = data, {name.lower(): value for name, value in headers.items()}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    """A delivery of MLflow's own making, of an alias that moved."""
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
    webhook = Webhook("1", "loradock", "https://127.0.0.1/loradock/nudge", [event], 1, 1, secret=SECRET)
    session, payload = FakeSession(), {"name": "bot", "alias": "production", "version": "3"}
    delivery._send_webhook_request(webhook, payload, event, session)  # type: ignore[arg-type]
    return session


def moment(sent: FakeSession) -> float:
    return float(sent.headers[TIMESTAMP])


def test_what_mlflow_sends_is_known(sent: FakeSession) -> None:
    assert json.loads(sent.data)["data"]["name"] == "bot"
    for ago in (-299, 0, 299):
        assert signed(SECRET, sent.headers, sent.data, now=moment(sent) + ago)


def test_what_is_not_mlflows_or_old_is_not(sent: FakeSession) -> None:
    now = moment(sent)
    assert not signed("another", sent.headers, sent.data, now=now)
    assert not signed("", sent.headers, sent.data, now=now)
    assert not signed(SECRET, sent.headers, sent.data + b" ", now=now)
    for ago in (-301, 301):
        assert not signed(SECRET, sent.headers, sent.data, now=now + ago)
    for name in sent.headers.keys() - {"content-type"}:
        without = {key: value for key, value in sent.headers.items() if key != name}
        assert not signed(SECRET, without, sent.data, now=now)
        for other in ("", "1", "v1,", "v1,%", "v2,aaaa", "é", "٣", "-1", "1e9"):
            assert not signed(SECRET, {**sent.headers, name: other}, sent.data, now=now)


class NudgeHarness:
    """The route behind a clock that stands still."""

    def __init__(self, keys: Keys, secret: str, now: float = 0.0) -> None:
        self.woken, self.clock = 0, 0.0
        self.refused: list[tuple[str, int]] = []
        self.nudges = Nudges(
            keys,
            SecretStr(secret),
            self.wake,
            refused=lambda name, status: self.refused.append((name, status)),
            now=lambda: now,
            clock=lambda: self.clock,
        )
        self.app = Starlette(routes=[Route(NUDGE, self.nudges.answer, methods=["POST"])])

    def wake(self) -> None:
        self.woken += 1

    def nudge(self, body: bytes = b"", client: str = "10.1.2.3", **headers: str) -> tuple[int, Any]:
        return asyncio.run(self._nudge(body, client, headers))

    async def _nudge(self, body: bytes, client: str, headers: dict[str, str]) -> tuple[int, Any]:
        transport = httpx.ASGITransport(self.app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as asking:
            answer = await asking.post(NUDGE, content=body, headers=headers)
        return answer.status_code, answer.json()


def test_a_signed_nudge_needs_no_key_and_a_wrong_signature_is_not_helped_by_one(
    sent: FakeSession, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    key = {"authorization": f"Bearer {keyfile.add(file, 'ci', may=['bot'])}"}
    harness = NudgeHarness(Keys(file), SECRET, moment(sent))
    assert harness.nudge(sent.data, **sent.headers) == (202, {"polling": True})
    assert (harness.nudge(sent.data, **{**sent.headers, **key, SIGNATURE: "v1,aaaa"}))[0] == 401
    assert (harness.nudge(b"x" * 70_000, **sent.headers))[0] == 400
    assert (harness.nudge())[0] == 401
    assert harness.nudge(**key) == (202, {"polling": True})
    assert harness.woken == 2


def test_a_delivery_of_mlflows_is_taken_once(sent: FakeSession) -> None:
    harness = NudgeHarness(Keys(), SECRET, moment(sent))
    assert [harness.nudge(sent.data, **sent.headers)[0] for _ in range(3)] == [202] * 3
    assert harness.woken == 1


def test_a_nudge_is_a_request_of_its_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = {"authorization": f"Bearer {keyfile.add(file, 'ci', may=['bot'], requests=['2/h'])}"}
    harness = NudgeHarness(Keys(file), "")
    assert [harness.nudge(**key)[0] for _ in range(3)] == [202, 202, 429]
    assert harness.nudge()[0] == 401
    assert (harness.woken, harness.refused) == (2, [("ci", 429), ("", 401)])


def test_no_key_makes_a_replica_read_without_end(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    ann, bob = ({"authorization": f"Bearer {keyfile.add(file, name, may=['**'])}"} for name in ("ann", "bob"))
    harness = NudgeHarness(Keys(file), "")
    assert [harness.nudge(**ann)[0] for _ in range(MOST.most + 1)] == [202] * MOST.most + [429]
    assert harness.nudge(**bob)[0] == 202
    harness.clock = 62.0
    assert harness.nudge(**ann)[0] == 202
    assert harness.refused == [("ann", 429)]


def test_without_keys_and_a_secret_only_this_machine_may_nudge() -> None:
    harness = NudgeHarness(Keys(), "")
    for client in ("127.0.0.1", "127.8.8.8", "::1"):
        assert harness.nudge(client=client) == (202, {"polling": True})
    for client in ("10.1.2.3", "fe80::1", "somewhere"):
        assert (harness.nudge(client=client))[0] == 403
    assert (NudgeHarness(Keys(), SECRET).nudge(client="127.0.0.1"))[0] == 401
