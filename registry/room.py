"""Whether a version fits the replicas that would serve it: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from loradock.registry.errors import NotFound
from loradock.registry.records import TextSettings, Version
from loradock.registry.refs import CANARY, PRODUCTION, SHADOW
from loradock.registry.text import unlike

_FOLLOWED: Final = (PRODUCTION, CANARY, SHADOW)
"""The aliases that every replica follows."""


@dataclass(frozen=True, slots=True)
class Room:
    """What one replica can hold, and what it holds or is to hold."""

    url: str
    config_digest: str
    weights_digest: str
    """Of its base."""
    slots: int
    """Adapters that its engine takes into one batch."""
    capacity: int
    """Adapters that it keeps loaded."""
    max_rank: int
    aliases: frozenset[str]
    """Those that it follows."""
    wanted: Mapping[str, str]
    """By public name, the version that it should answer with."""
    text: TextSettings = field(default_factory=TextSettings)
    """Of its base, where it says."""

    @classmethod
    def of(cls, url: str, status: Mapping[str, Any]) -> Room:
        """A replica's room, from its status; raises NotFound for one of a loradock that does not tell it."""
        try:
            wanted = {name: row["promoted"] or row["version"] for name, row in status["adapters"].items()}
            return cls(
                url=url,
                config_digest=status["base"]["config_digest"],
                weights_digest=status["base"]["weights_digest"],
                slots=int(status["slots"]),
                capacity=int(status["capacity"]),
                max_rank=int(status["max_rank"]),
                aliases=frozenset(status.get("aliases", _FOLLOWED)),
                wanted={**status["cold"], **wanted},
                text=TextSettings.model_validate(status["base"].get("text", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NotFound("it is of another version of loradock") from error

    def is_for(self, version: Version, alias: str) -> bool:
        """Whether it serves the version's base, and follows the alias."""
        base = version.facts.base
        same = (self.config_digest, self.weights_digest) == (base.config_digest, base.weights_digest)
        return same and alias in self.aliases


@dataclass(frozen=True, slots=True)
class Fit:
    """What came of asking."""

    refusal: str = ""
    """Why no replica would serve the version; empty where one would, or none could be asked."""
    warnings: tuple[str, ...] = ()


def fit(version: Version, alias: str, rooms: Sequence[Room]) -> Fit:
    """Whether the replicas that serve its base can serve a version under an alias, beside all that they serve."""
    asked = [room for room in rooms if room.is_for(version, alias)]
    low = [room for room in asked if version.facts.rank > room.max_rank]
    over = f"{version.ref} has rank {version.facts.rank}, above "
    if low and len(low) == len(asked):
        largest = max(room.max_rank for room in low)
        return Fit(refusal=f"{over}the {largest} that every replica of its base was started for")
    found = [f"{over}the {room.max_rank} that {room.url} was started for: it is held back there" for room in low]
    for room in asked:
        if words := unlike(version, room.text):
            found.append(f"{words}, at {room.url}")
        if room not in low:
            found += _crowding(version, alias, room)
    return Fit(warnings=tuple(found))


def _crowding(version: Version, alias: str, room: Room) -> Iterator[str]:
    name, ref = version.ref.name, str(version.ref)
    left = room.wanted.get(name if alias == PRODUCTION else f"{name}@{alias}")
    if ref in room.wanted.values():
        return
    # The version that the alias leaves counts: its requests in flight end on it.
    count = len({*room.wanted.values(), ref})
    with_it = f"with {ref}{f' beside {left}' if left else ''} {room.url} has {count} adapters"
    if count > room.slots:
        yield f"{with_it} and {room.slots} slots: requests for more than {room.slots} at once wait for each other"
    if count > room.capacity:
        yield f"{with_it} and keeps {room.capacity}: the others are loaded when a request first asks for them"
