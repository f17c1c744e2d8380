"""Where aliases stood and for how long, as a family's history tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from loradock.registry.records import Move


@dataclass(frozen=True, slots=True)
class Tenure:
    """A stretch of time in which an alias stood at one version."""

    alias: str
    number: int
    since: datetime
    until: datetime | None
    """None while it lasts."""
    actor: str
    """Who moved it there."""
    reason: str


def tenures(moves: Sequence[Move]) -> tuple[Tenure, ...]:
    """Every tenure, in the order in which they began; `moves` are a family's, in order."""
    current: dict[str, int] = {}
    found: list[Tenure] = []
    for move in moves:
        index = current.get(move.alias)
        if index is not None:
            if found[index].number == move.to_version:
                continue
            found[index] = replace(found[index], until=move.at)
        current.pop(move.alias, None)
        if move.to_version is not None:
            current[move.alias] = len(found)
            found.append(Tenure(move.alias, move.to_version, move.at, None, move.actor, move.reason))
    return tuple(found)
