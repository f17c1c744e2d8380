"""One replica: it follows the registry, and keeps its engine equal to what is promoted.

Two loops that wait for each other in nothing: one reads the registry in a thread, one applies the plan. Versions load
in tasks beside them, so that a slow registry or a long download holds up no name that could move.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from registry.errors import LoradockError, NotServable, Unreachable
from registry.records import Base, Version
from registry.refs import VersionRef
from serving import reconcile
from serving.desired import Desired, Reading, for_base
from serving.probe import Prober
from serving.reconcile import Load, Observed, Point, Quarantine, Resident, Retire, Unpoint
from serving.settings import ServingSettings

_FETCHES: Final = 4
"""How many versions are downloaded and hashed at once."""

log = logging.getLogger(__name__)


class Registry(Protocol):
    """What a replica asks of `desired.Source`; it blocks."""

    @property
    def registry(self) -> str:
        """Where it is."""

    def read(self) -> Reading:
        """What is promoted."""


class Adapters(Protocol):
    """What a replica asks of `cache.Cache`; it blocks."""

    def directory(self, version: Version) -> Path:
        """A version's files, verified."""


class Engine(Protocol):
    """What a replica asks of `engine.Engine`, which describes each of these."""

    @property
    def served_as(self) -> frozenset[str]:
        """The base's names."""

    @property
    def pointed(self) -> Mapping[str, VersionRef]:
        """What answers."""

    @property
    def resident(self) -> Mapping[VersionRef, Resident]:
        """What is loaded."""

    async def add(self, version: Version, directory: Path) -> None:
        """Load."""

    def admit(self, ref: VersionRef) -> None:
        """Allow pointing at it."""

    def point(self, name: str, ref: VersionRef) -> None:
        """Move a name."""

    def unpoint(self, name: str) -> None:
        """Take a name off."""

    async def remove(self, ref: VersionRef) -> None:
        """Unload."""

    async def log_probabilities(self, prompt: str, ref: VersionRef | None) -> Sequence[float]:
        """Measure."""


class Replica:
    """The services of one replica, wired; `start` once, then `run` for as long as the server lives."""

    def __init__(
        self,
        registry: Registry,
        adapters: Adapters,
        engine: Engine,
        base: Base,
        settings: ServingSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._adapters, self._engine = registry, adapters, engine
        self._base, self._settings, self._clock = base, settings, clock
        self._desired = Desired()
        self._error = ""
        self._read_at: float | None = None
        self._loading: dict[VersionRef, asyncio.Task[None]] = {}
        self._quarantined: dict[VersionRef, Quarantine] = {}
        self._since: dict[str, datetime] = {}
        self._changed = asyncio.Event()
        self.ready = False
        """True from the moment when every promoted version was loaded and proven. It stays so: a bad version that is
        promoted later is held back here and on every other replica, which must not take them all out of service."""
        self._fetching = asyncio.Semaphore(_FETCHES)
        self._engine_turn = asyncio.Lock()
        self._complaint = ""
        self._prober = Prober(lambda prompt: engine.log_probabilities(prompt, None))

    async def start(self) -> None:
        """Read the registry and bring up every promoted version, before the first request is accepted.

        A version that fails is held back, and does not stop the others. Raises Unreachable when the registry is out
        of reach and no last good plan is on disk.
        """
        self._take(await asyncio.to_thread(self._registry.read))
        await self._apply()
        while self._loading:
            await asyncio.wait(self._loading.values(), return_when=asyncio.FIRST_COMPLETED)
            await self._apply()

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._act())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
            try:
                self._take(await asyncio.to_thread(self._registry.read))
            except Exception as error:  # noqa: BLE001 - nothing ends the following
                self._complain("reading the registry", error)
                self._error = str(error)

    async def _act(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.poll_seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass  # a drain or a wait may have ended
            self._changed.clear()
            try:
                await self._apply()
            except Exception as error:  # noqa: BLE001 - nothing ends the applying
                self._complain("applying the plan", error)

    def _take(self, reading: Reading) -> None:
        if reading.error and not self._error:
            log.warning("%s; serving the last good plan", reading.error)
        elif self._error and not reading.error:
            log.info("the registry at %s answers again", self._registry.registry)
        self._error = reading.error
        if reading.age is not None:
            self._read_at = self._clock() - reading.age
        desired = for_base(reading.promoted, self._base, served_as=self._engine.served_as)
        if desired == self._desired:
            return
        for name, refusal in desired.refused.items():
            if self._desired.refused.get(name) != refusal:
                log.warning("%s is promoted and not served here: %s", refusal.version.ref, refusal.reason)
        self._desired = desired
        wanted = {version.ref for version in desired.targets.values()}
        self._quarantined = {ref: held for ref, held in self._quarantined.items() if ref in wanted}
        self._changed.set()

    def _observed(self) -> Observed:
        return Observed(
            now=self._clock(),
            pointed=self._engine.pointed,
            resident=self._engine.resident,
            loading=frozenset(self._loading),
            quarantined=self._quarantined,
        )

    async def _apply(self) -> None:
        for action in reconcile.plan(self._desired, self._observed(), drain_seconds=self._settings.drain_seconds):
            match action:
                case Point(name, version):
                    self._engine.point(name, version.ref)
                    self._since[name] = datetime.now(UTC)
                    log.info("%s is answered by %s", name, version.ref)
                case Unpoint(name):
                    self._engine.unpoint(name)
                    self._since.pop(name, None)
                    log.info("%s is no longer served", name)
                case Retire(ref):
                    await self._engine.remove(ref)
                    log.info("%s is unloaded", ref)
                case Load(version):
                    self._loading[version.ref] = asyncio.create_task(self._load(version))

        self.ready = self.ready or not self.unmet()

    async def _load(self, version: Version) -> None:
        ref, added = version.ref, False
        started = self._clock()
        try:
            async with self._fetching:
                directory = await asyncio.to_thread(self._adapters.directory, version)
            async with self._engine_turn:
                await self._engine.add(version, directory)
                added = True
                await self._prove(version)
            self._engine.admit(ref)
            self._quarantined.pop(ref, None)
            log.info("%s is loaded and proven in %.2f s", ref, self._clock() - started)
        except Exception as error:  # noqa: BLE001 - whatever it is, this version takes no traffic
            self._hold_back(version, error)
            if added:
                await self._discard(ref)
        finally:
            self._loading.pop(ref, None)
            self._changed.set()

    async def _prove(self, version: Version) -> None:
        found = await self._prober.effect(lambda prompt: self._engine.log_probabilities(prompt, version.ref))
        if found.fault:
            raise NotServable(str(version.ref), [found.fault])

    def _hold_back(self, version: Version, error: Exception) -> None:
        # Out of reach often mends by itself, so it is asked again soon; other faults rarely do.
        first = self._settings.poll_seconds if isinstance(error, Unreachable) else self._settings.retry_seconds
        reason = str(error) if isinstance(error, LoradockError) else f"{type(error).__name__}: {error}"
        before = self._quarantined.get(version.ref)
        if before is None or before.reason != reason:
            log.warning("%s takes no traffic: %s", version.ref, reason)
        self._quarantined[version.ref] = reconcile.quarantine(version, reason, before, now=self._clock(), first=first)

    async def _discard(self, ref: VersionRef) -> None:
        try:
            await self._engine.remove(ref)
        except Exception as error:  # noqa: BLE001 - it was never pointed at, so nobody is harmed
            self._complain(f"unloading {ref}", error)

    def _complain(self, what: str, error: Exception) -> None:
        """Log an error that keeps coming back once, and not at every turn."""
        text = f"{what} failed: {type(error).__name__}: {error}"
        if text != self._complaint:
            log.error("%s", text, exc_info=not isinstance(error, LoradockError))
        self._complaint = text

    def unmet(self) -> dict[str, str]:
        """Each name that is not answered by its promoted version, and why; empty when all are."""
        return reconcile.unmet(self._desired, self._observed())

    def status(self) -> dict[str, Any]:
        """All that this replica knows of itself, as JSON has it."""
        observed = self._observed()
        stale = None if self._read_at is None else round(observed.now - self._read_at, 1)
        return {
            "base": {"names": sorted(self._engine.served_as), **self._base.model_dump(mode="json", exclude={"id"})},
            "ready": self.ready,
            "converged": not self.unmet(),
            "registry": {
                "uri": self._registry.registry,
                "reachable": not self._error,
                "staleness_seconds": stale,
                "error": self._error,
            },
            "adapters": {name: self._name_row(name, observed) for name in sorted(observed.pointed)},
            "loading": sorted(map(str, observed.loading)),
            "quarantined": {
                str(ref): {
                    "reason": held.reason,
                    "attempts": held.attempts,
                    "retry_in_seconds": round(max(0.0, held.until - observed.now), 1),
                }
                for ref, held in sorted(self._quarantined.items())
            },
            "refused": {
                name: {"version": str(refusal.version.ref), "reason": refusal.reason}
                for name, refusal in sorted(self._desired.refused.items())
            },
            "resident": {str(ref): held.in_flight for ref, held in sorted(observed.resident.items())},
        }

    def _name_row(self, name: str, observed: Observed) -> dict[str, Any]:
        ref = observed.pointed[name]
        held: Resident | None = observed.resident.get(ref)
        target = self._desired.targets.get(name)
        return {
            "version": str(ref),
            "digest": held.version.facts.digest if held else "",
            "since": self._since[name].isoformat(timespec="milliseconds"),
            "promoted": str(target.ref) if target else None,
        }
