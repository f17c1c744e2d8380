"""From what should be served and what is, to what to do next: pure, with no clock, no disk and no engine.

An engine holds so many versions and no more. Where more are promoted, the names beyond are cold: nothing points at
their version before a request demands it, and then the version that was used least recently makes room, with its names.
One place is never taken by a version that is to answer beside all the others, so that any name can move: its new
version is loaded and proven there while the old one answers, whose place is free then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.serving.desired import Desired


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
    demanded: Mapping[VersionRef, Version] = field(default_factory=dict)
    """Versions that requests wait for."""
    quarantined: Mapping[VersionRef, Quarantine] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a replica holds, and for how long."""

    drain_seconds: float
    """How long a version that nothing points at stays after its last request."""
    capacity: int
    """Versions that the engine holds at once, those that are being loaded included; 2 at least, or no name can move."""
    spare: int = 2
    """Of them, room that is left for moves and for demand, as far as there is any."""

    @property
    def left(self) -> int:
        """The room that is not filled ahead of moves and demand: the place that a move needs, at least."""
        return min(max(1, self.spare), self.capacity - 1)


def plan(desired: Desired, observed: Observed, limits: Limits) -> tuple[Action, ...]:
    """What to do now, in order; empty when nothing can be done or nothing is left to do.

    Moving names comes first, because it costs nothing, then unloading, which makes room, then loading, whose outcome
    nobody knows: plan again when one ends. A name is never without an answer in between: it points at its old
    version until the new one is resident. Nor does a move cost another name its answer where there is room for all
    that is promoted, unless nobody asked for that one while a version drains. An engine name holds one set of bytes
    for as long as it is resident, so no name moves to a version whose number is resident with other bytes.
    """
    moves = tuple(_moves(desired, observed))
    pointed = _after(observed.pointed, moves)
    gone = tuple(_retirements(desired, observed, limits, pointed))
    return (*moves, *gone, *_loads(desired, observed, limits, pointed, {retired.ref for retired in gone}))


def _moves(desired: Desired, observed: Observed) -> Iterator[Point | Unpoint]:
    for name, version in desired.targets.items():
        if observed.pointed.get(name) != version.ref and _holds(observed, version):
            yield Point(name, version)
    for name in observed.pointed:
        if name not in desired.targets and name not in desired.refused:
            yield Unpoint(name)


def _after(pointed: Mapping[str, VersionRef], moves: tuple[Point | Unpoint, ...]) -> dict[str, VersionRef]:
    after = dict(pointed)
    for move in moves:
        match move:
            case Point(name, version):
                after[name] = version.ref
            case Unpoint(name):
                after.pop(name, None)
    return after


def _retirements(
    desired: Desired, observed: Observed, limits: Limits, pointed: Mapping[str, VersionRef]
) -> Iterator[Retire]:
    resident = observed.resident
    wanted = {
        version.ref for version in desired.targets.values() if version.ref not in resident or _holds(observed, version)
    }
    in_use = {*observed.pointed.values(), *pointed.values(), *wanted, *observed.demanded}
    for ref, held in resident.items():
        if ref not in in_use and not held.in_flight and observed.now - held.idle_since >= limits.drain_seconds:
            yield Retire(ref)


def _loads(
    desired: Desired, observed: Observed, limits: Limits, pointed: Mapping[str, VersionRef], gone: set[VersionRef]
) -> Iterator[Action]:
    held = (observed.resident.keys() | observed.loading) - gone
    room = limits.capacity - len(held)
    urgent = dict(observed.demanded)
    urgent |= {
        version.ref: version
        for name, version in desired.targets.items()
        if name in pointed and version.ref not in observed.resident
    }
    targets = {name: version.ref for name, version in desired.targets.items()}
    answers = dict(pointed)
    # A name that moves, or whose alias it may not follow, could not come back to what answers it now.
    last = {ref for name, ref in answers.items() if targets.get(name) != ref}
    idle = {ref for ref, held in observed.resident.items() if not held.in_flight} - gone - urgent.keys() - last
    loading = observed.loading & {*targets.values(), *urgent}  # what nobody wants any more goes once it is loaded
    for version in urgent.values():
        if not _may_load(observed, version):
            continue
        coming = loading | {version.ref}
        staying = (ref for name, ref in answers.items() if targets.get(name) not in coming)
        # Whether all that answers once this one does would fill the place that moves need.
        crowded = room <= 1 and len(coming.union(staying)) > max(1, limits.capacity - 1)
        if room <= 0 or crowded:
            rest = 0.0 if crowded or version.ref in observed.demanded else limits.drain_seconds
            leaving = _leaving(observed, idle & set(answers.values()) if crowded else idle, answers, rest)
            if leaving is None:
                continue  # a request or a load that ends makes room
            for name in [name for name, ref in answers.items() if ref == leaving]:
                del answers[name]
                yield Unpoint(name)
            yield Retire(leaving)
            idle.remove(leaving)
            room += 1
        yield Load(version)
        loading |= {version.ref}
        room -= 1
    newest = sorted(desired.targets.values(), key=lambda version: version.created_at, reverse=True)
    for version in {version.ref: version for version in newest}.values():
        if version.ref not in urgent and room > limits.left and _may_load(observed, version):
            yield Load(version)
            room -= 1


def _may_load(observed: Observed, version: Version) -> bool:
    held = observed.quarantined.get(version.ref)
    under_way = version.ref in observed.resident or version.ref in observed.loading
    return not under_way and (held is None or observed.now >= held.until)


def _leaving(
    observed: Observed, idle: Collection[VersionRef], pointed: Mapping[str, VersionRef], rest: float
) -> VersionRef | None:
    """What makes room: one that nothing points at, else the least recently used one that rested for `rest` seconds."""
    answering = set(pointed.values())
    since = {ref: observed.resident[ref].idle_since for ref in idle}
    may_go = [ref for ref in idle if ref not in answering or observed.now - since[ref] >= rest]
    return min(may_go, key=lambda ref: (ref in answering, since[ref], ref), default=None)


def _holds(observed: Observed, version: Version) -> bool:
    resident = observed.resident.get(version.ref)
    return resident is not None and resident.version.facts.digest == version.facts.digest


def quarantine(version: Version, reason: str, before: Quarantine | None, *, now: float, first: float) -> Quarantine:
    """Hold a failed version back: `first` seconds, then twice as long after each failure, an hour at most."""
    attempts = before.attempts + 1 if before else 1
    wait = min(first * 2.0 ** min(attempts - 1, 20), 3600.0)
    return Quarantine(version, reason, attempts, now + wait)


def unmet(desired: Desired, observed: Observed, limits: Limits) -> dict[str, str]:
    """Each name that is not answered by its promoted version, and why; empty when all are, or are only cold."""
    reasons: dict[str, str] = {}
    room = limits.capacity - len(observed.resident) - len(observed.loading)
    for name, version in desired.targets.items():
        if version.ref in observed.resident and not _holds(observed, version):
            reasons[name] = (
                f"{version.ref} is loaded with other bytes than are promoted: restart the replica to load those"
            )
            continue
        if observed.pointed.get(name) == version.ref:
            continue
        held = observed.quarantined.get(version.ref)
        if held and (observed.now < held.until or name in observed.pointed):
            reasons[name] = f"{version.ref} is quarantined: {held.reason}"
        elif version.ref in observed.loading or room > (1 if name in observed.pointed else limits.left):
            reasons[name] = f"{version.ref} is being loaded"
        elif name in observed.pointed:
            reasons[name] = f"{version.ref} waits for room: {limits.capacity} are loaded at most, by --max-cpu-loras"
    return reasons
