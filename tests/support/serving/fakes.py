"""A real replica on fakes of all that it stands on, which fail when a test says so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from loradock.registry.errors import NotFound
from loradock.registry.records import Base, TextSettings, Version
from loradock.registry.reference import Reference
from loradock.registry.refs import VersionRef
from loradock.serving.admission import Admission
from loradock.serving.cache import Verified
from loradock.serving.desired import Promoted, Reading
from loradock.serving.probe import Scored
from loradock.serving.reconcile import Resident
from loradock.serving.replica import Replica
from loradock.serving.settings import ServingSettings
from tests.support.adapters import SMOL

FAST = ServingSettings(
    poll_seconds=0.01, drain_seconds=0.05, retry_seconds=0.05, cold_seconds=60, proof="effect", pinned=1
)


class FakeContinuity:
    """Histories with these faults, and whose tags never change."""

    changed = ()

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}

    def audit(self) -> Mapping[str, str]:
        return self.faults


class FakeRegistry:
    registry = "a registry"

    def __init__(self, *versions: Version) -> None:
        self.error: Exception | None = None
        self.others: dict[VersionRef, Version] = {}
        self.forgotten: list[VersionRef] = []
        self.reads = 0
        self.continuity = FakeContinuity()
        self.promote(*versions)

    def promote(self, *versions: Version) -> None:
        self.promoted = Promoted(versions={item.ref.name: item for item in versions})

    def read(self) -> Reading:
        self.reads += 1
        if self.error:
            raise self.error
        return Reading(self.promoted, 0.0)

    def forget(self, ref: VersionRef) -> None:
        self.forgotten.append(ref)

    def version(self, ref: VersionRef) -> Version:
        if ref not in self.others:
            raise NotFound(f"there is no version {ref}")
        return self.others[ref]


class FakeReferences:
    def of(self, item: Version) -> Reference | None:
        return None

    def keep(self, reference: Reference) -> None:
        raise AssertionError


class FakeWatcher:
    """What a replica tells of itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def flipped(self, name: str) -> None:
        self.calls.append(("flipped", name))

    def loaded(self, ref: VersionRef, seconds: float) -> None:
        self.calls.append(("loaded", ref))

    def quarantined(self, ref: VersionRef, kind: str) -> None:
        self.calls.append(("quarantined", ref, kind))

    def forget(self, ref: VersionRef) -> None:
        self.calls.append(("forgotten", ref))

    def poll_failed(self) -> None:
        self.calls.append(("poll failed",))


class FakeCache:
    def __init__(self) -> None:
        self.errors: dict[VersionRef, Exception] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[VersionRef] = []

    def directory(self, item: Version, keep: Collection[str] = ()) -> Verified:
        self.asked.append(item.ref)
        self.gate.wait(timeout=10)
        if error := self.errors.get(item.ref):
            raise error
        return Verified(Path("/nowhere"))


class FakeEngine:
    served_as = frozenset({"smol"})

    def __init__(self) -> None:
        self.loaded: dict[VersionRef, Version] = {}
        self.admitted: set[VersionRef] = set()
        self.pointed: dict[str, VersionRef] = {}
        self.in_flight: dict[VersionRef, int] = {}
        self.without_effect: set[VersionRef] = set()
        self.fail_add: Exception | None = None
        self.dropped: list[VersionRef] = []

    @property
    def resident(self) -> Mapping[VersionRef, Resident]:
        return {ref: Resident(self.loaded[ref], self.in_flight.get(ref, 0), 0.0) for ref in self.admitted}

    async def add(self, item: Version, directory: Path) -> None:
        if self.fail_add:
            raise self.fail_add
        self.loaded[item.ref] = item

    def admit(self, ref: VersionRef) -> None:
        assert ref in self.loaded
        self.admitted.add(ref)

    def point(self, name: str, ref: VersionRef) -> None:
        assert ref in self.admitted
        self.pointed[name] = ref

    def unpoint(self, name: str) -> None:
        del self.pointed[name]

    async def remove(self, ref: VersionRef) -> None:
        assert ref not in self.pointed.values()
        self.admitted.discard(ref)
        del self.loaded[ref]

    def hold(self, ref: VersionRef) -> Version | None:
        if ref not in self.admitted:
            return None
        self.in_flight[ref] = self.in_flight.get(ref, 0) + 1
        return self.loaded[ref]

    def release(self, ref: VersionRef) -> None:
        self.in_flight[ref] -= 1

    async def lost(self) -> Sequence[VersionRef]:
        gone, self.dropped = self.dropped, []
        self.admitted -= set(gone)
        return gone

    async def scores(self, tokens: Sequence[int], ref: VersionRef | None) -> Sequence[Scored]:
        changed = ref is not None and ref not in self.without_effect
        return [Scored(-2.0 if changed else -1.0, 1)] * (len(tokens) - 1)

    def tokens(self, prompt: str) -> list[int]:
        return [*prompt.encode()]


class ReplicaHarness:
    """A replica and what it stands on."""

    def __init__(
        self,
        *versions: Version,
        base: Base = SMOL,
        capacity: int = 32,
        text: TextSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry, self.cache, self.engine, self.told = (
            FakeRegistry(*versions),
            FakeCache(),
            FakeEngine(),
            FakeWatcher(),
        )
        admission = Admission(self.cache, FakeReferences(), self.engine, proof=FAST.proof, precision="float32")
        self.replica = Replica(
            self.registry,
            admission,
            self.engine,
            base,
            FAST,
            capacity=capacity,
            slots=4,
            max_rank=16,
            watcher=self.told,
            text=text,
            clock=clock,
        )

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not true():  # noqa: ASYNC110 - what is waited for signals nothing
                await asyncio.sleep(0.005)

    async def turns(self) -> None:
        """Wait until the replica has looked several times at what there is to do."""
        enough = self.registry.reads + 3
        await self.until(lambda: self.registry.reads >= enough)

    def follow(self, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start the replica, and let the story happen while it runs."""

        async def live() -> None:
            await self.replica.start()
            task = asyncio.create_task(self.replica.run())
            try:
                await story()
                assert not task.done()
            finally:
                task.cancel()

        asyncio.run(live())
