"""Whether a version fits the replicas that would serve it: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loradock.registry.records import Version
from loradock.registry.refs import PRODUCTION, VersionRef
from loradock.registry.replica_status import ReplicaStatus
from loradock.registry.text import unlike


@dataclass(frozen=True, slots=True)
class Room:
    """What one replica can hold, and what it holds or is to hold."""

    url: str
    status: ReplicaStatus

    @property
    def wanted(self) -> Mapping[str, VersionRef]:
        """By public name, the version that it should answer with."""
        answering = {name: row.promoted or row.version for name, row in self.status.adapters.items()}
        return {**self.status.cold, **answering}

    def is_for(self, version: Version, alias: str) -> bool:
        """Whether it serves the version's base, and follows the alias."""
        return self.status.base.same_weights(version.facts.base) and alias in self.status.aliases


@dataclass(frozen=True, slots=True)
class Fit:
    """What came of asking."""

    refusal: str = ""
    """Why no replica would serve the version; empty where one would, or none could be asked."""
    warnings: tuple[str, ...] = ()


def fit(version: Version, alias: str, rooms: Sequence[Room]) -> Fit:
    """Whether the replicas that serve its base can serve a version under an alias, beside all that they serve."""
    asked = [room for room in rooms if room.is_for(version, alias)]
    low = [room for room in asked if version.facts.rank > room.status.max_rank]
    over = f"{version.ref} has rank {version.facts.rank}, above "
    if low and len(low) == len(asked):
        largest = max(room.status.max_rank for room in low)
        return Fit(refusal=f"{over}the {largest} that every replica of its base was started for")
    found = [
        f"{over}the {room.status.max_rank} that {room.url} was started for: it is quarantined there" for room in low
    ]
    for room in asked:
        if words := unlike(version, room.status.base.text):
            found.append(f"{words}, at {room.url}")
        if room not in low:
            found += _crowding(version, alias, room)
    return Fit(warnings=tuple(found))


def _crowding(version: Version, alias: str, room: Room) -> Iterator[str]:
    name, ref, wanted = version.ref.name, version.ref, room.wanted
    slots, capacity = room.status.slots, room.status.capacity
    left = wanted.get(name if alias == PRODUCTION else f"{name}@{alias}")
    if ref in wanted.values():
        return
    # The version that the alias leaves counts: its requests in flight end on it.
    count = len({*wanted.values(), ref})
    with_it = f"with {ref}{f' beside {left}' if left else ''} {room.url} has {count} adapters"
    if count > slots:
        yield f"{with_it} and {slots} slots: requests for more than {slots} at once wait for each other"
    if count > capacity:
        yield f"{with_it} and keeps {capacity}: the others are loaded when a request first asks for them"
