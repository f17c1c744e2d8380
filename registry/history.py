"""A family's history: every move of its aliases, in order, chained by hash, and what MLflow's aliases say beside it.

The n-th entry is written once, by whoever was first (`Store.append`); that is the move. The alias in MLflow is set
afterwards, and the entry is marked as applied. So an alias that is not where history says was left behind by a promoter
who died, when its last move is not marked, and was moved past loradock, when it is: that is drift.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from registry.errors import HistoryDamaged
from registry.records import Move
from registry.store import Family, Store


@dataclass(frozen=True, slots=True)
class Drift:
    """An alias that somebody moved past loradock."""

    alias: str
    recorded: int | None
    """Where history says that it is."""
    found: int | None
    """Where it is in MLflow."""


@dataclass(frozen=True, slots=True)
class History:
    """A family's moves in order, and the family as it stood when they were read."""

    family: Family
    moves: tuple[Move, ...]
    applied: frozenset[int]
    """The numbers of the moves whose alias was set."""
    last: str = ""
    """The newest entry as it was written."""

    @property
    def heads(self) -> Mapping[str, Move]:
        """Each alias's last move."""
        return {move.alias: move for move in self.moves}

    def head(self, alias: str) -> int | None:
        """The version that an alias stands at."""
        move = self.heads.get(alias)
        return move.to_version if move else None

    @property
    def drifts(self) -> tuple[Drift, ...]:
        """The aliases that were moved past loradock."""
        return tuple(self._drifts())

    def drifts_of(self, alias: str) -> tuple[Drift, ...]:
        """The drift of one alias, if there is any."""
        return tuple(drift for drift in self.drifts if drift.alias == alias)

    def _drifts(self) -> Iterator[Drift]:
        heads = self.heads
        for alias in sorted({*heads, *self.family.aliases}):
            move, found = heads.get(alias), self.family.aliases.get(alias)
            if self.head(alias) != found and (move is None or move.seq in self.applied):
                yield Drift(alias, self.head(alias), found)

    def earlier(self, alias: str) -> tuple[int, ...]:
        """The versions to roll back to, best first: each is where the alias stood before the promotion above it."""
        stack: list[int] = []
        for move in self.moves:
            to = move.to_version
            if move.alias != alias or to is None or stack[-1:] == [to]:
                continue
            if move.op == "rollback" and to in stack:
                while stack[-1] != to:
                    stack.pop()
            else:
                stack.append(to)
        return tuple(reversed(stack[:-1]))

    def at(self, moment: datetime) -> Mapping[str, int]:
        """Where each alias stood at a moment."""
        stood = {move.alias: move.to_version for move in self.moves if move.at <= moment}
        return {alias: number for alias, number in stood.items() if number is not None}


def read(store: Store, name: str) -> History:
    """A family's history; raises NotFound, or HistoryDamaged when an entry was edited or is missing.

    Entries and aliases are two calls. When they disagree, entries are read again: had anyone moved the alias through
    loradock in between, there would be an entry more.
    """
    family = store.family(name)
    if not family.ledger:
        return History(family, (), frozenset())
    while True:
        ledger = store.ledger(family)
        moves, last = _chain(name, ledger.entries)
        found = History(store.family(name), moves, ledger.applied, last)
        if not found.drifts or store.ledger(family) == ledger:
            return found


def link(entry: str) -> str:
    """What the next entry holds of this one."""
    return hashlib.sha256(entry.encode()).hexdigest() if entry else ""


def _chain(name: str, entries: Mapping[int, str]) -> tuple[tuple[Move, ...], str]:
    moves: list[Move] = []
    before = ""
    for expected, (number, entry) in enumerate(entries.items()):
        if number != expected:
            raise HistoryDamaged(name, expected, "is missing")
        try:
            move = Move.model_validate_json(entry)
        except ValueError as error:
            raise HistoryDamaged(name, number, "cannot be read") from error
        if (move.seq, move.prev) != (number, link(before)):
            raise HistoryDamaged(name, number, "does not follow from the one before: one of them was edited")
        moves.append(move)
        before = entry
    return tuple(moves), before
