"""What the engine reads is what was hashed: the real cache, and a client that reads files as vLLM does."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.artifact import WEIGHTS
from loradock.registry.check import shapes_of_config
from loradock.registry.errors import DigestMismatch, NotServable
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.registry.store import Store
from loradock.serving.admission import Admission
from loradock.serving.cache import Cache
from loradock.serving.engine import Engine
from loradock.serving.probe import Scored
from loradock.serving.replica import Replica
from tests.support.adapters import BASE_CONFIG, SMOL, make_version
from tests.support.serving.fakes import FAST, FakeReferences, FakeRegistry, FakeWatcher


class FakeCounter:
    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int) -> int:
        self.value += by
        return self.value


class ReadingClient:
    """Reads an adapter's weights when it is told to, and by itself for a request of one that it does not hold."""

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}
        self.by_itself = 0
        self.while_reading: Callable[[Path], object] = lambda path: None

    def read(self, request: Any) -> None:
        path = Path(request.lora_path) / WEIGHTS
        self.held[request.lora_int_id] = path.read_bytes()
        self.while_reading(path)

    async def add_lora(self, request: Any) -> bool:
        if request.lora_int_id not in self.held:
            self.read(request)
        return True

    async def remove_lora(self, number: int) -> bool:
        return self.held.pop(number, None) is not None

    async def list_loras(self) -> set[int]:
        return set(self.held)

    async def generate(self, prompt: str, lora_request: Any = None) -> AsyncIterator[bytes]:
        if lora_request.lora_int_id not in self.held:
            self.by_itself += 1
            self.read(lora_request)
        yield self.held[lora_request.lora_int_id]

    encode = generate

    async def abort(self, request_id: str) -> None:
        """What is aborted held nothing."""


class ScoredEngine(Engine):
    """Says something else with an adapter than without one."""

    async def scores(self, tokens: Sequence[int], ref: VersionRef | None) -> Sequence[Scored]:
        return [Scored(-2.0 if ref else -1.0, 1)] * (len(tokens) - 1)

    def tokens(self, prompt: str) -> list[int]:
        return [*prompt.encode()]


class ReadingHarness:
    def __init__(self, store: Store, root: Path, *promoted: Version) -> None:
        self.client, self.table = ReadingClient(), dict[str, Any]()
        models = Namespace(
            lora_requests=self.table, lora_id_counter=FakeCounter(), base_model_paths=[Namespace(name="smol")]
        )
        self.engine = ScoredEngine(self.client, models)
        self.fetched = 0
        self.cache = Cache(root, self.download, base=shapes_of_config(BASE_CONFIG), max_rank=16)
        self.admission = Admission(self.cache, FakeReferences(), self.engine, proof="effect", precision="float32")
        self.registry, self.store = FakeRegistry(*promoted), store
        self.replica = Replica(
            self.registry,
            self.admission,
            self.engine,
            SMOL,
            FAST,
            capacity=4,
            slots=4,
            max_rank=16,
            watcher=FakeWatcher(),
        )
        self.engine.readmit = self.replica.readmit

    def download(self, version: Version, into: Path) -> None:
        self.fetched += 1
        self.store.download(version.source, into, what=str(version.ref))

    async def unloaded(self, ref: VersionRef) -> None:
        async with asyncio.timeout(20):
            while ref in self.engine.resident:  # noqa: ASYNC110 - what is waited for signals nothing
                await asyncio.sleep(0.005)


@pytest.fixture
def version(store: Store, tmp_path: Path) -> Version:
    return make_version(store, tmp_path / "adapter")


@pytest.fixture
def harness(store: Store, tmp_path: Path, version: Version) -> ReadingHarness:
    return ReadingHarness(store, tmp_path / "cache", version)


def flipped(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flipped_and_back(path: Path) -> None:
    flipped(path)
    flipped(path)


def replaced(path: Path) -> None:
    path.parent.chmod(0o755)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def joined(path: Path) -> None:
    path.parent.chmod(0o755)
    (path.parent / "more").touch()


@pytest.mark.parametrize("change", [flipped, flipped_and_back, replaced, joined])
def test_files_that_change_while_the_engine_reads_them_take_no_traffic(
    change: Callable[[Path], None], harness: ReadingHarness, version: Version
) -> None:
    harness.client.while_reading = change
    with pytest.raises(DigestMismatch, match="changed while the engine read them"):
        asyncio.run(harness.admission.admit(version))
    assert (harness.engine.resident, harness.client.held) == ({}, {})
    harness.client.while_reading = lambda path: None
    asyncio.run(harness.admission.admit(version))
    assert harness.engine.resident.keys() == {version.ref}


def test_a_late_request_meets_bytes_that_are_verified_and_proven_again(
    harness: ReadingHarness, version: Version, tmp_path: Path
) -> None:
    """It looked its name up, then the version drained, was unloaded, and its files were changed."""

    async def story() -> None:
        await harness.replica.start()
        following = asyncio.create_task(harness.replica.run())
        (right,) = harness.client.held.values()
        late = harness.client.generate("x", lora_request=harness.table[version.ref.name])
        harness.registry.promote()
        await harness.unloaded(version.ref)
        assert version.ref not in harness.admission.proofs
        flipped(tmp_path / "cache" / version.facts.digest / WEIGHTS)
        assert [answer async for answer in late] == [right]
        assert (harness.client.by_itself, harness.fetched) == (0, 2)
        assert version.ref in harness.admission.proofs
        await harness.unloaded(version.ref)
        following.cancel()

    asyncio.run(story())


def test_a_late_request_for_what_cannot_be_verified_any_more_ends_with_an_error(
    harness: ReadingHarness, version: Version, tmp_path: Path
) -> None:
    async def story() -> None:
        await harness.replica.start()
        following = asyncio.create_task(harness.replica.run())
        late = harness.client.generate("x", lora_request=harness.table[version.ref.name])
        harness.registry.promote()
        await harness.unloaded(version.ref)
        flipped(tmp_path / "cache" / version.facts.digest / WEIGHTS)
        (stored,) = harness.store.settings.artifacts.rglob(WEIGHTS)
        flipped(stored)
        with pytest.raises(NotServable, match="does not hold the bytes"):
            await anext(late)
        assert harness.client.held == {}
        assert harness.engine.meter.running(str(version.ref)) == 0
        following.cancel()

    asyncio.run(story())


def test_what_vllm_dropped_is_verified_and_proven_before_the_next_request(
    harness: ReadingHarness, version: Version
) -> None:
    async def story() -> None:
        await harness.replica.start()
        (right,) = harness.client.held.values()
        harness.client.held.clear()
        assert await harness.admission.lost() == (version.ref,)
        following = asyncio.create_task(harness.replica.run())
        answers = harness.client.generate("x", lora_request=harness.table[version.ref.name])
        assert [answer async for answer in answers] == [right]
        assert harness.client.by_itself == 0
        following.cancel()

    asyncio.run(story())
