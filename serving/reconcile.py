"""From what should be served and what is, to what to do next: pure, with no clock, no disk and no engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from registry.records import Version
from registry.refs import VersionRef
from serving.desired import Desired


@dataclass(frozen=True, slots=True)
class Load:
    """Fetch, verify, load and probe a version."""

    version: Version


@dataclass(frozen=True, slots=True)
class Point:
    """Let a public name be answered by a version that is loaded and probed."""

    name: str
    version: Version


@dataclass(frozen=True, slots=True)
class Unpoint:
    """Take a public name off the endpoint."""

    name: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Unload a version that nothing points at and no request uses."""

    ref: VersionRef


Action = Load | Point | Unpoint | Retire


@dataclass(frozen=True, slots=True)
class Resident:
    """A version that the engine holds, loaded and probed."""

    version: Version
    in_flight: int
    """Requests that run on it now."""
    idle_since: float
    """When it last lost a request or the name that pointed at it, whichever was later."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A version that failed on the way to taking traffic."""

    version: Version
    reason: str
    attempts: int
    until: float
    """When it may be tried again."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a replica holds at one moment; every time is in seconds of one monotonic clock."""

    now: float
    pointed: Mapping[str, VersionRef] = field(default_factory=dict)
    resident: Mapping[VersionRef, Resident] = field(default_factory=dict)
    loading: frozenset[VersionRef] = frozenset()
    quarantined: Mapping[VersionRef, Quarantine] = field(default_factory=dict)


def plan(desired: Desired, observed: Observed, *, drain_seconds: float) -> tuple[Action, ...]:
    """What to do now, in order; empty when nothing can be done or nothing is left to do.

    Moving names comes first, because it costs nothing, then unloading, which makes room, then loading, whose outcome
    nobody knows: plan again when one ends. A name is never without an answer in between: it points at its old
    version until the new one is resident. An engine name holds one set of bytes for as long as it is resident, so
    a version whose number is resident with other bytes is left alone.
    """
    return (*_moves(desired, observed), *_retirements(desired, observed, drain_seconds), *_loads(desired, observed))


def _moves(desired: Desired, observed: Observed) -> Iterator[Point | Unpoint]:
    for name, version in desired.targets.items():
        if observed.pointed.get(name) != version.ref and _holds(observed, version):
            yield Point(name, version)
    for name in observed.pointed:
        if name not in desired.targets and name not in desired.refused:
            yield Unpoint(name)


def _retirements(desired: Desired, observed: Observed, drain_seconds: float) -> Iterator[Retire]:
    in_use = {*observed.pointed.values(), *(version.ref for version in desired.targets.values())}
    for ref, resident in observed.resident.items():
        if ref not in in_use and not resident.in_flight and observed.now - resident.idle_since >= drain_seconds:
            yield Retire(ref)


def _loads(desired: Desired, observed: Observed) -> Iterator[Load]:
    for version in desired.targets.values():
        held = observed.quarantined.get(version.ref)
        under_way = version.ref in observed.resident or version.ref in observed.loading
        if not under_way and (held is None or observed.now >= held.until):
            yield Load(version)


def _holds(observed: Observed, version: Version) -> bool:
    resident = observed.resident.get(version.ref)
    return resident is not None and resident.version.facts.digest == version.facts.digest


def quarantine(version: Version, reason: str, before: Quarantine | None, *, now: float, first: float) -> Quarantine:
    """Hold a failed version back: `first` seconds, then twice as long after each failure, an hour at most."""
    attempts = before.attempts + 1 if before else 1
    wait = min(first * 2.0 ** min(attempts - 1, 20), 3600.0)
    return Quarantine(version, reason, attempts, now + wait)


def unmet(desired: Desired, observed: Observed) -> dict[str, str]:
    """Each name that is not answered by its promoted version, and why; empty when all are."""
    reasons: dict[str, str] = {}
    for name, version in desired.targets.items():
        if observed.pointed.get(name) == version.ref:
            continue
        held = observed.quarantined.get(version.ref)
        reasons[name] = f"{version.ref} is held back: {held.reason}" if held else f"{version.ref} is being loaded"
    return reasons
