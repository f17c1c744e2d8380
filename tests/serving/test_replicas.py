"""Two real replicas on one registry and one cache: they follow alike, and a killed one catches up."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from loradock.registry import promotion, traffic
from loradock.registry.base import resolve
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import make_version
from tests.support.serving.cached import assert_whole
from tests.support.serving.shallow import Shallow, launch, told, whole

pytestmark = [pytest.mark.slow, pytest.mark.story]


class Pair:
    """Both replicas, the second of which is killed and started again."""

    def __init__(self, scratch: Path, base_dir: Path) -> None:
        self.home, self.scratch = scratch / "home", scratch
        settings = Settings(home=self.home)
        self.store, self.base = Store(settings), resolve(str(base_dir), settings)
        self.versions = [
            make_version(self.store, scratch / f"bot-{seed}", "bot", base=self.base.base, scale=8.0, seed=seed)
            for seed in (1, 2, 3)
        ]
        self.promote(1)
        self.servers: list[Shallow] = []

    def promote(self, number: int, alias: str = "production") -> Version:
        version = self.versions[number - 1]
        promotion.promote(self.store, version.ref, alias, actor="tester")
        return version

    def start(self, count: int) -> None:
        started = [launch(self.home, self.base, self.store, self.scratch) for _ in range(count)]
        self.servers += started
        for server in started:
            server.until_ready()

    def restart_second(self) -> None:
        self.servers.pop().kill()
        self.start(1)

    def until_both(self, number: int) -> None:
        for server in self.servers:
            server.until_answered_by(self.versions[number - 1])
            assert server.complete("bot", 2)[0] == f"bot/{number}"

    def status(self) -> Sequence[Any]:
        """What `loradock status` says of both."""
        return told([server.url for server in self.servers])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path) -> Iterator[Pair]:
    both = Pair(tmp_path_factory.mktemp("replicas"), shallow_dir)
    try:
        both.start(2)
        yield both
    finally:
        for server in both.servers:
            server.kill()


def test_both_follow_promotions_rollbacks_and_shares(pair: Pair) -> None:
    pair.until_both(1)
    pair.promote(2)
    pair.until_both(2)
    promotion.rollback(pair.store, "bot", "production", actor="tester")
    pair.until_both(1)
    three = pair.promote(3, "canary")
    traffic.set_share(pair.store, three.ref, "canary", 0.5, actor="tester")
    for server in pair.servers:
        server.until(lambda found: found["shares"] and "bot@canary" in found["adapters"])
    users = "abcdefghijkl"
    answers = [
        {user: server.client.completions.create(model="bot", prompt="x", max_tokens=1, user=user).model}
        for server in pair.servers
        for user in users
    ]
    assert answers[: len(users)] == answers[len(users) :], "a user gets the same version from both"
    assert {model for answer in answers for model in answer.values()} == {"bot/1", "bot/3"}
    assert [(row["error"], row["differs"]) for row in pair.status()] == [(None, [])] * 2
    traffic.set_share(pair.store, three.ref, "canary", 0.0, actor="tester")


@pytest.mark.chance
def test_one_that_is_killed_while_it_takes_a_version_up_catches_up_from_the_same_cache(pair: Pair) -> None:
    (pair.home / "adapters" / pair.versions[1].facts.digest).rename(pair.scratch / "gone")  # it is to be fetched
    pair.promote(2)
    time.sleep(random.uniform(0, 0.4))  # noqa: S311 - no secret; anywhere from before the poll to after the move
    pair.servers[1].kill()
    assert_whole(pair.home / "adapters")
    pair.servers[0].until_answered_by(pair.versions[1])
    pair.restart_second()
    pair.until_both(2)
    assert assert_whole(pair.home / "adapters") == []
    assert [row["differs"] for row in pair.status()] == [[], []]


@pytest.mark.chance
def test_one_whose_engine_is_killed_ends_with_an_error_and_the_other_answers(pair: Pair) -> None:
    first, second = pair.servers
    answering, engine = first.complete("bot", 2), second.engine
    with second.stream("bot", 240) as events:
        next(events)
        engine.send_signal(signal.SIGKILL)
        with suppress(httpx.HTTPError):
            assert not whole([*events])
    assert second.ended() == 1
    assert "vLLM's engine died" in second.text
    assert first.complete("bot", 2) == answering
    rows = pair.status()
    assert [row["error"] is None for row in rows] == [True, False]
    with pytest.raises(openai.APIConnectionError):
        second.complete("bot")
