"""A replica is killed at every step of taking up a version, started again, and serves the registered bytes.

Its registry, store and cache are real, in processes of their own; its engine is not, but looks into every directory
that it is given. `test_replicas` kills whole servers.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import promotion
from loradock.registry.artifact import WEIGHTS, verify
from loradock.registry.check import shapes_of_config
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving.admission import Admission
from loradock.serving.cache import Cache, Verified
from loradock.serving.desired import Source
from loradock.serving.probe import Scored
from loradock.serving.replica import Replica
from loradock.serving.settings import ServingSettings
from tests.support.adapters import BASE_CONFIG, NAME, SMOL, make_version, ref
from tests.support.chance import SEED
from tests.support.serving.cached import assert_whole
from tests.support.serving.fakes import FakeEngine, FakeReferences, FakeWatcher
from tests.support.shell import processes

pytestmark = [pytest.mark.slow, pytest.mark.chance]

LONGEST = 60.0  # seconds
PAUSE = 0.01
"""Seconds that a step takes at most beyond its own work, so that a kill can fall between any two."""
SERVING = ServingSettings(poll_seconds=0.02, drain_seconds=0, retry_seconds=0.05, proof="effect")
STEPS = (
    *("before the fetch", "half fetched", "fetched", "in the cache"),
    *("before the load", "loaded", "proven", "before the move", "moved", "before the unload"),
)


class Steps:
    """Where the way of the second version can end."""

    def __init__(self, dies_at: str) -> None:
        self._dies_at = dies_at

    def at(self, step: str, number: int) -> bool:
        """Whether to do half of it, and then call `die`; dies here when that is what a test asks for."""
        assert step in STEPS
        wanted = step == self._dies_at and number == 2
        if wanted and step != "half fetched":
            self.die()
        time.sleep(random.uniform(0, PAUSE))  # noqa: S311 - no secret
        return wanted

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class DyingEngine(FakeEngine):
    """Takes nothing but the registered bytes, and says what it answers with."""

    def __init__(self, steps: Steps, out: Connection) -> None:
        super().__init__()
        self._steps, self._out = steps, out

    async def add(self, item: Version, directory: Path) -> None:
        self._steps.at("before the load", item.ref.number)
        verify(directory, item.facts.digest, what="what the engine is given")
        await super().add(item, directory)
        self._steps.at("loaded", item.ref.number)

    async def scores(self, tokens: Sequence[int], ref: VersionRef | None) -> Sequence[Scored]:
        if ref:
            self._steps.at("proven", ref.number)
        return await super().scores(tokens, ref)

    def point(self, name: str, ref: VersionRef) -> None:
        self._steps.at("before the move", ref.number)
        super().point(name, ref)
        self._out.send(ref.number)
        self._steps.at("moved", ref.number)

    async def remove(self, ref: VersionRef) -> None:
        self._steps.at("before the unload", 3 - ref.number)
        await super().remove(ref)


class DyingCache(Cache):
    """The real one, with a step after it."""

    steps: Steps

    def directory(self, version: Version, keep: Collection[str] = ()) -> Verified:
        found = super().directory(version, keep)
        self.steps.at("in the cache", version.ref.number)
        return found


def _live(settings: Settings, dies_at: str, out: Connection) -> None:
    steps = Steps(dies_at)
    source = Source(settings)

    def download(version: Version, into: Path) -> None:
        steps.at("before the fetch", version.ref.number)
        if steps.at("half fetched", version.ref.number):
            (into / WEIGHTS).write_bytes(b"half of i")
            steps.die()
        source.store().download(version.source, into, what=str(version.ref))
        steps.at("fetched", version.ref.number)

    cache = DyingCache(settings.adapters, download, base=shapes_of_config(BASE_CONFIG), max_rank=16)
    cache.steps = steps
    engine = DyingEngine(steps, out)
    admission = Admission(cache, FakeReferences(), engine, proof="effect", precision="float32")
    replica = Replica(
        source, admission, engine, SMOL, SERVING, capacity=32, slots=4, max_rank=16, watcher=FakeWatcher()
    )

    async def live() -> None:
        await replica.start()
        await replica.run()

    asyncio.run(live())


class ReplicaProcess:
    """A replica in a process of its own."""

    def __init__(self, settings: Settings, dies_at: str = "") -> None:
        context = processes()
        self._said, out = context.Pipe(duplex=False)
        self.process: Any = context.Process(target=_live, args=(settings, dies_at, out))
        self.process.start()
        out.close()
        self.answers = 0
        """The number of the version that answers."""

    def until_answered_by(self, number: int) -> None:
        """Wait for it; raises EOFError when the process ends before."""
        deadline = time.monotonic() + LONGEST
        while self.answers != number:
            assert self._said.poll(max(0.0, deadline - time.monotonic())), f"{self.answers} answers, and not {number}"
            self.answers = self._said.recv()

    def ended(self) -> int:
        self.process.join(LONGEST)
        return int(self.process.exitcode)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(LONGEST)


@pytest.fixture
def versions(store: Store, tmp_path: Path) -> list[Version]:
    """Two versions, the first of them promoted."""
    made = [make_version(store, tmp_path / f"adapter-{number}", seed=number, scale=8.0) for number in (1, 2)]
    promote(store, 1)
    return made


@pytest.fixture
def followers(settings: Settings) -> Iterator[list[ReplicaProcess]]:
    started: list[ReplicaProcess] = []
    yield started
    for follower in started:
        follower.kill()


def promote(store: Store, number: int) -> None:
    promotion.promote(store, ref(number), "production", actor="tester")


@pytest.mark.parametrize("step", STEPS)
def test_a_replica_that_is_killed_at_a_step_comes_back_and_takes_the_version_up(
    step: str, settings: Settings, store: Store, versions: list[Version], followers: list[ReplicaProcess]
) -> None:
    follower = ReplicaProcess(settings, dies_at=step)
    followers.append(follower)
    follower.until_answered_by(1)
    promote(store, 2)
    assert follower.ended() == -signal.SIGKILL
    left = assert_whole(settings.adapters)
    assert len(left) == (1 if step in ("before the fetch", "half fetched", "fetched") else 0)
    again = ReplicaProcess(settings)
    followers.append(again)
    again.until_answered_by(2)
    assert assert_whole(settings.adapters) == []
    assert {path.name for path in settings.adapters.iterdir()} >= {version.facts.digest for version in versions}


def test_replicas_that_are_killed_at_random_moments_serve_what_is_promoted_in_the_end(
    settings: Settings, store: Store, versions: list[Version], followers: list[ReplicaProcess]
) -> None:
    """Two share one cache, which loses a directory now and then, as a cache may; one of them is killed each time."""
    chance = random.Random(SEED + 7)  # noqa: S311 - no secret
    pair = [ReplicaProcess(settings) for _ in range(2)]
    followers += pair
    for follower in pair:
        follower.until_answered_by(1)
    number = 1
    for turn in range(24):
        number = 3 - number
        gone = settings.adapters / versions[number - 1].facts.digest
        if gone.exists():
            gone.rename(settings.root / f"gone-{turn}")
        promote(store, number)
        time.sleep(chance.uniform(0, 0.12))  # a moment between the move and the end of taking it up
        victim, survivor = chance.sample(pair, 2)
        victim.kill()
        assert_whole(settings.adapters)
        survivor.until_answered_by(number)
        pair = [survivor, ReplicaProcess(settings)]
        followers.append(pair[1])
        pair[1].until_answered_by(number)
    assert all(follower.process.is_alive() for follower in pair)
    assert assert_whole(settings.adapters) == []


def test_a_replica_that_starts_without_the_registry_serves_what_was_promoted_last(
    settings: Settings, versions: list[Version], followers: list[ReplicaProcess]
) -> None:
    followers.append(ReplicaProcess(settings))
    followers[0].until_answered_by(1)
    followers[0].kill()
    (settings.root / "mlflow.db").rename(settings.root / "gone.db")
    followers.append(ReplicaProcess(settings))
    followers[1].until_answered_by(1)
    assert not (settings.root / "mlflow.db").exists()


def test_what_a_killed_process_left_goes_and_what_another_is_fetching_stays(
    store: Store, versions: list[Version], tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    seen: list[list[str]] = []

    def download(version: Version, into: Path) -> None:
        leftover = root / f".fetching-{'0' * 64}-left"
        leftover.mkdir()
        (leftover / WEIGHTS).write_bytes(b"half")
        leftover.chmod(0o555)
        cache()  # another replica of this machine starts meanwhile
        seen.append(sorted(path.name for path in root.glob(".fetching-*")))
        store.download(version.source, into, what=str(version.ref))

    def cache() -> Cache:
        return Cache(root, download, base=shapes_of_config(BASE_CONFIG), max_rank=16)

    directory = cache().directory(versions[0]).path
    assert [name[: -len("12345678")] for name in seen[0]] == [f".fetching-{versions[0].facts.digest}-"]
    verify(directory, versions[0].facts.digest, what=NAME)
    assert assert_whole(root) == []
