"""One replica: it follows the registry, and keeps its engine equal to what is promoted.

Two loops that wait for each other in nothing: one reads the registry in a thread, one applies the plan. Versions load
in tasks beside them, so that a slow registry or a long download holds up no name that could move.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from loradock.registry.errors import DigestMismatch, LoradockError, NotFound, NotServable, Unreachable
from loradock.registry.records import Base, TextSettings, Version
from loradock.registry.refs import VersionRef
from loradock.registry.replica_status import KeysView, RegistryView, ReplicaStatus, ServedBase
from loradock.registry.text import unlike
from loradock.serving import reconcile, report
from loradock.serving.admission import Admission
from loradock.serving.desired import Desired, Reading, for_base
from loradock.serving.metrics import kind_of
from loradock.serving.ports import Engine, Registry, Watcher
from loradock.serving.reconcile import Limits, Load, Observed, Point, Quarantine, Retire, Unpoint
from loradock.serving.settings import ServingSettings
from loradock.serving.table import Table

_PAUSE: Final = 9.0
"""How often as long as a reading kept a core busy the next one waits; at a thousand adapters that is half a second."""
_AUDIT_SECONDS: Final = 30.0
_LEAST_SECONDS: Final = 0.1
"""Between two readings of the registry, however often the replica is nudged."""
_UNKNOWN_SECONDS: Final = 10.0
"""How long a version that is not there is not asked for again."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Demand:
    """Requests that wait for one version."""

    version: Version
    waiting: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Replica:
    """The services of one replica, wired; `start` once, then `run` for as long as the server lives."""

    def __init__(
        self,
        registry: Registry,
        admission: Admission,
        engine: Engine,
        base: Base,
        settings: ServingSettings,
        *,
        capacity: int,
        slots: int,
        max_rank: int,
        watcher: Watcher,
        text: TextSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._admission, self._engine, self._watcher = registry, admission, engine, watcher
        self._base, self._settings, self._clock = base, settings, clock
        self._text = text or TextSettings()
        self._limits = Limits(settings.drain_seconds, capacity)
        self._slots, self._max_rank = slots, max_rank
        self._desired = Desired()
        self._error = ""
        self._read_at: float | None = None
        self._loading: dict[VersionRef, asyncio.Task[None]] = {}
        self._quarantined: dict[VersionRef, Quarantine] = {}
        self._since: dict[str, datetime] = {}
        self._demand: dict[VersionRef, Demand] = {}
        self._unknown: dict[VersionRef, float] = {}
        self._histories: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._suspect = asyncio.Event()
        self._nudged = asyncio.Event()
        self.stopping = False
        """True from a SIGTERM on: requests are answered, and no new ones should come."""
        self.ready = False
        """True from the moment when every promoted version was loaded and proven. It stays so: a bad version that is
        promoted later is quarantined here and on every other replica, which must not take them all out of service."""
        self._complaint = ""

    async def start(self) -> None:
        """Read the registry and bring up every promoted version, before the first request is accepted.

        A version that fails is quarantined, and does not stop the others. Raises Unreachable when the registry is out
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
            group.create_task(self._audit())
            group.create_task(self._audit_histories())

    def stop(self) -> None:
        """Say from now on that no new requests should come; those that do are still answered."""
        self.stopping = True

    def nudge(self) -> None:
        """Read the registry now, and not at the next poll."""
        self._nudged.set()

    async def _follow(self) -> None:
        took = 0.0
        while True:
            wait = max(self._settings.poll_seconds, _PAUSE * took) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
            await asyncio.sleep(_LEAST_SECONDS)
            await _set_within(self._nudged, wait - _LEAST_SECONDS)
            self._nudged.clear()
            try:
                reading, took = await asyncio.to_thread(self._read)
                self._take(reading)
                if self._registry.continuity.changed:
                    self._suspect.set()
            except Exception as error:  # noqa: BLE001 - nothing ends the following
                self._complain("reading the registry", error)
                self._error = str(error)
                self._watcher.poll_failed()
                took = 0.0

    def _read(self) -> tuple[Reading, float]:
        """The registry's newest answer, and the seconds of processor time that it took."""
        began = time.thread_time()
        reading = self._registry.read()
        return reading, time.thread_time() - began

    async def _act(self) -> None:
        while True:
            await _set_within(self._changed, self._settings.poll_seconds)  # a drain or a wait may have ended
            self._changed.clear()
            try:
                await self._apply()
            except Exception as error:  # noqa: BLE001 - nothing ends the applying
                self._complain("applying the plan", error)

    async def _audit(self) -> None:
        """Hold the ledger against what vLLM says that it holds."""
        while True:
            await asyncio.sleep(_AUDIT_SECONDS)
            try:
                lost = await self._admission.lost()
            except Exception as error:  # noqa: BLE001 - nothing ends the auditing
                self._complain("asking vLLM what it holds", error)
                continue
            for ref in lost:
                log.warning("vLLM no longer holds %s; it is loaded again", ref)
            if lost:
                self._changed.set()

    async def _audit_histories(self) -> None:
        """Hold the adapters' histories against what was seen of them; whatever comes of it, requests are answered."""
        while True:
            await _set_within(self._suspect, _AUDIT_SECONDS)
            self._suspect.clear()
            try:
                found = await asyncio.to_thread(self._registry.continuity.audit)
            except Exception as error:  # noqa: BLE001 - nothing ends the auditing
                self._complain("reading the histories", error)
                continue
            for name, fault in found.items():
                if self._histories.get(name) != fault:
                    log.warning("%s", fault)
            self._histories = dict(found)

    def _take(self, reading: Reading) -> None:
        if reading.error:
            self._watcher.poll_failed()
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
        told = self._unlike(self._desired)
        for ref, words in self._unlike(desired).items():
            if ref not in told:
                log.warning("%s", words)
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
            demanded={ref: demand.version for ref, demand in self._demand.items()},
            quarantined=self._quarantined,
        )

    async def _apply(self) -> None:
        for action in reconcile.plan(self._desired, self._observed(), self._limits):
            match action:
                case Point(name, version):
                    if name in self._engine.pointed:
                        self._watcher.flipped(name)
                    self._engine.point(name, version.ref)
                    self._since[name] = datetime.now(UTC)
                    log.info("%s is answered by %s", name, version.ref)
                case Unpoint(name):
                    self._engine.unpoint(name)
                    self._since.pop(name, None)
                    log.info("%s is no longer served", name)
                case Retire(ref):
                    held = self._engine.resident.get(ref)
                    if held is None or held.in_flight:  # since the plan was made
                        continue
                    await self._engine.remove(ref)
                    self._admission.forget(ref)
                    self._watcher.forget(ref)
                    log.info("%s is unloaded", ref)
                case Load(version):
                    self._loading[version.ref] = asyncio.create_task(self._load(version))

        for ref in [*self._demand]:
            self._settle(ref)
        self.ready = self.ready or not self.unmet()

    async def _load(self, version: Version) -> None:
        ref, started = version.ref, self._clock()
        try:
            await self._admission.admit(version, frozenset(self.digests().values()))
            self._quarantined.pop(ref, None)
            seconds = self._clock() - started
            self._watcher.loaded(ref, seconds)
            log.info("%s is loaded and proven in %.2f s", ref, seconds)
        except Exception as error:  # noqa: BLE001 - whatever it is, this version takes no traffic
            self._quarantine(version, error)
        finally:
            self._loading.pop(ref, None)
            self._changed.set()

    def _quarantine(self, version: Version, error: Exception) -> None:
        # Out of reach often mends by itself, so it is asked again soon; other faults rarely do.
        first = self._settings.poll_seconds if isinstance(error, Unreachable) else self._settings.retry_seconds
        reason = str(error) if isinstance(error, LoradockError) else f"{type(error).__name__}: {error}"
        if isinstance(error, DigestMismatch):
            self._registry.forget(version.ref)
        before = self._quarantined.get(version.ref)
        if before is None or before.reason != reason:
            log.warning("%s is quarantined: %s", version.ref, reason)
        self._quarantined[version.ref] = reconcile.quarantine(version, reason, before, now=self._clock(), first=first)
        self._watcher.quarantined(version.ref, kind_of(error))

    def _complain(self, what: str, error: Exception) -> None:
        """Log an error that keeps coming back once, and not at every turn."""
        text = f"{what} failed: {type(error).__name__}: {error}"
        if text != self._complaint:
            log.error("%s", text, exc_info=not isinstance(error, LoradockError))
        self._complaint = text

    def table(self) -> Table:
        """Which names answer now, and with what."""
        return Table(
            bases=self._engine.served_as,
            desired=self._desired,
            pointed=self._engine.pointed,
            quarantined={ref for ref, held in self._quarantined.items() if self._clock() < held.until},
            public=self._settings.public,
            pinned=self._settings.pinned > 0,
        )

    async def acquire(self, ref: VersionRef) -> Version:
        """Hold a version until `release`, once it is loaded and proven; at once for one that is.

        Raises NotFound for a version that is not there or not of this base, NotServable for one that is quarantined,
        and Unreachable when it cannot be had within the time that a request may wait, or too many others are asked for.
        """
        if version := self._engine.hold(ref):
            return version
        return await self._brought(self._wanted(ref) or await self._pinned(ref))

    async def readmit(self, version: Version) -> None:
        """Return once a version that the engine let go of is loaded and proven again, for a call that comes late.

        Raises what `acquire` does.
        """
        await self._brought(version)
        self.release(version.ref)

    async def _brought(self, version: Version) -> Version:
        """Hold a version once it is loaded and proven."""
        ref = version.ref
        demand = self._demand.setdefault(ref, Demand(version))
        demand.waiting += 1
        self._changed.set()
        try:
            async with asyncio.timeout(self._settings.cold_seconds):
                await demand.settled.wait()
        except TimeoutError as error:
            raise Unreachable(f"{ref} was not loaded within {self._settings.cold_seconds:g} s") from error
        finally:
            demand.waiting -= 1
            if not demand.waiting and self._demand.get(ref) is demand:
                del self._demand[ref]
        if found := self._engine.hold(ref):
            return found
        held = self._quarantined.get(ref)
        raise NotServable(str(ref), [held.reason if held else "it was unloaded again"])

    def release(self, ref: VersionRef) -> None:
        """End what `acquire` began."""
        self._engine.release(ref)

    def _settle(self, ref: VersionRef) -> None:
        """Wake the requests that wait for a version, when it is there or is known not to come."""
        demand = self._demand[ref]
        held = self._quarantined.get(ref)
        if ref in self._engine.resident or (held and self._clock() < held.until):
            demand.settled.set()

    def _wanted(self, ref: VersionRef) -> Version | None:
        return next((version for version in self._desired.targets.values() if version.ref == ref), None)

    async def _pinned(self, ref: VersionRef) -> Version:
        """A version that no alias here serves, by its number, within the bound on them."""
        now = self._clock()
        if now < self._unknown.get(ref, 0.0):
            raise NotFound(f"there is no version {ref}")
        wanted = {version.ref for version in self._desired.targets.values()} | set(self._engine.pointed.values())
        others = ({*self._engine.resident, *self._demand} - wanted) - {ref}
        busy = {one for one in others if one in self._demand or self._engine.resident[one].in_flight}
        if len(busy) >= self._settings.pinned:
            raise Unreachable(f"{len(busy)} versions are held by number, and no more may be")
        try:
            version = await asyncio.to_thread(self._registry.version, ref)
        except NotFound:
            self._unknown = {one: until for one, until in self._unknown.items() if now < until}
            self._unknown[ref] = now + _UNKNOWN_SECONDS
            raise
        if not version.facts.base.same_weights(self._base):
            raise NotFound(f"{ref} is of another base")
        return version

    def unmet(self) -> dict[str, str]:
        """Each name that is not answered by its promoted version, and why; empty when all are."""
        return reconcile.unmet(self._desired, self._observed(), self._limits)

    def digests(self) -> dict[VersionRef, str]:
        """Of each version that is loaded or wanted, its digest."""
        known = {version.ref: version for version in self._desired.targets.values()}
        known |= {ref: held.version for ref, held in self._engine.resident.items()}
        return {ref: version.facts.digest for ref, version in known.items()}

    def _unlike(self, desired: Desired) -> dict[VersionRef, str]:
        """Of each version that should be served and was trained with another tokenizer or template, words for it."""
        found = {version.ref: unlike(version, self._text) for version in desired.targets.values()}
        return {ref: words for ref, words in sorted(found.items()) if words}

    def status(self, keys: KeysView | None = None) -> ReplicaStatus:
        """All that this replica knows of itself, and of its keys what is given."""
        observed = self._observed()
        unmet = reconcile.unmet(self._desired, observed, self._limits)
        return ReplicaStatus(
            base=ServedBase(
                names=tuple(sorted(self._engine.served_as)),
                text=self._text,
                **self._base.model_dump(exclude={"id"}),
            ),
            ready=self.ready and not self.stopping,
            converged=not unmet,
            waiting=unmet,
            unlike=self._unlike(self._desired),
            histories=self._histories,
            stopping=self.stopping,
            capacity=self._limits.capacity,
            slots=self._slots,
            max_rank=self._max_rank,
            aliases=tuple(sorted(self._settings.followed)),
            registry=RegistryView(
                uri=self._registry.registry,
                reachable=not self._error,
                staleness_seconds=None if self._read_at is None else round(observed.now - self._read_at, 1),
                error=self._error,
            ),
            **report.parts(self._desired, observed, self._since, self._admission.proofs),
            keys=keys,
        )


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but no longer than this."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
