"""A family's history: every move of its aliases, in order, chained by hash, and what MLflow's aliases say beside it.

The n-th entry is written once, by whoever was first (`Store.append`); that is the move. The alias in MLflow is set
afterwards, and the entry is marked as applied. Whoever sets an alias in another's stead says so before and after. So of
an alias that is not where history says, it is known whether a promoter who is slow, or died, left it there: when its
last move is not marked, or it is where a move says whose setting has no end. Otherwise somebody moved it past loradock:
that is drift.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from loradock.registry import signing
from loradock.registry.errors import HistoryDamaged
from loradock.registry.records import Acceptance, Entry, Move, PolicyChange, Removal, Traffic, parse_entry
from loradock.registry.store import Family, Ledger, Store
from loradock.registry.store.ledgers import ENTRIES


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
    """A family's history, or the end of it with what came before and still matters; and the family at that moment."""

    family: Family
    entries: tuple[Entry, ...]
    """In order."""
    ledger: Ledger
    """Them as they are stored."""
    alias: str = ""
    """The only alias that was looked at in MLflow; empty for all."""
    whole: bool = True
    """Whether all of it was read."""

    @property
    def moves(self) -> tuple[Move, ...]:
        """The entries that moved an alias."""
        return tuple(entry for entry in self.entries if isinstance(entry, Move))

    @property
    def end(self) -> int:
        """The number that the next entry will have."""
        return self.entries[-1].seq + 1 if self.entries else 0

    @property
    def last(self) -> str:
        """The newest entry as it was written."""
        return self.text(self.end - 1)

    def text(self, seq: int) -> str:
        """An entry as it was written; empty where it is not in what was read."""
        return self.ledger.entries.get(seq) or self.ledger.carried.get(seq, "")

    @property
    def applied(self) -> frozenset[int]:
        """The numbers of the moves whose alias was set."""
        return self.ledger.applied | self.ledger.mended

    @property
    def policy(self) -> PolicyChange | None:
        """The policy in force."""
        return max((e for e in self.entries if isinstance(e, PolicyChange)), key=lambda e: e.seq, default=None)

    @property
    def accepted(self) -> Acceptance | None:
        """The last entry by which somebody accepted that the history does not go on from what was seen of it."""
        return max((e for e in self.entries if isinstance(e, Acceptance)), key=lambda e: e.seq, default=None)

    @property
    def traffic(self) -> Mapping[str, Traffic]:
        """The share of each alias whose version has one."""
        last = {entry.alias: entry for entry in self.entries if isinstance(entry, Traffic)}
        return {alias: entry for alias, entry in last.items() if entry.version == self.head(alias) and entry.weight}

    @property
    def removed(self) -> frozenset[int]:
        """The versions that were deleted, or are about to be."""
        return frozenset(number for entry in self.entries if isinstance(entry, Removal) for number in entry.versions)

    @property
    def carry(self) -> Mapping[int, str]:
        """What a new run of the ledger begins with, as it was written."""
        kept = {move.seq for move in self.heads.values()} | {self.end - 1}
        kept |= {entry.seq for entry in (self.policy, self.accepted) if entry}
        kept |= {entry.seq for entry in self.traffic.values()}
        kept |= {e.seq for e in self.entries if isinstance(e, Removal) and e.seq >= self.end - ENTRIES}
        kept |= {m.seq for m in self.moves if m.seq not in self.ledger.applied and m.seq >= self.end - ENTRIES}
        texts = {**self.ledger.carried, **self.ledger.entries}
        return {seq: texts[seq] for seq in sorted(kept) if seq in texts}

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
        for alias in [self.alias] if self.alias else sorted({*heads, *self.family.aliases}):
            move, found = heads.get(alias), self.family.aliases.get(alias)
            applied = move is None or move.seq in self.applied
            if self.head(alias) != found and applied and found not in self._late(alias):
                yield Drift(alias, self.head(alias), found)

    def _late(self, alias: str) -> frozenset[int | None]:
        """Where promoters may still set an alias who were overtaken, or have set it and died."""
        open_ = (m for m in self.moves if m.seq not in self.ledger.applied or m.seq in self.ledger.mending)
        return frozenset(move.to_version for move in open_ if move.alias == alias)

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


def read(store: Store, name: str, *, whole: bool = True, alias: str = "") -> History:
    """A family's history; raises NotFound, HistoryDamaged when an entry was edited or is missing, or Unsigned.

    Without `whole` only its end is read, in a time that does not grow: the last entries, and the older ones that still
    matter. With `alias`, no other is held against MLflow. Entries and aliases are two calls. When they disagree,
    both are read again: had anyone moved the alias through loradock in between, there would be an entry more.
    """
    family = store.family(name, alias=alias)
    if not family.ledger:
        return History(family, (), _NONE, alias, whole)
    ledger = store.ledger(family, whole=whole)
    while True:
        found = History(family, _chain(name, ledger, whole=whole), ledger, alias, whole)
        if not found.drifts:
            return found
        family, before = _confirmed(store, store.family(name, alias=alias), found), ledger
        if (ledger := store.ledger(family, whole=whole)) == before:
            return History(family, found.entries, ledger, alias, whole)


def _confirmed(store: Store, family: Family, found: History) -> Family:
    """The family, with the aliases that a search left out and history has asked for one by one."""
    lost = [drift.alias for drift in found.drifts if drift.alias not in family.aliases]
    return replace(family, aliases={**family.aliases, **store.standing(family.name, lost)}) if lost else family


def unlike(end: History, whole: History) -> Iterator[str]:
    """What a history says otherwise back from its newest part than forward from its first one, which was read later."""
    for entry in end.entries:
        if not whole.text(entry.seq):
            yield f"entry {entry.seq} is reached from its newest part only"
        elif whole.text(entry.seq) != end.text(entry.seq):
            yield f"entry {entry.seq} is another one in its newest part"
    then = replace(whole, entries=whole.entries[: end.end])
    first = end.ledger.start - ENTRIES
    for what, one, other in (
        ("where aliases stand", end.heads, then.heads),
        ("its policy", end.policy, then.policy),
        ("its shares", end.traffic, then.traffic),
        ("what was accepted", end.accepted, then.accepted),
        ("what is deleted", _removals(end, first), _removals(then, first)),
    ):
        if one != other:
            yield f"its newest part does not have {what} as the parts before"


def _removals(past: History, first: int) -> Collection[int]:
    return {entry.seq for entry in past.entries if isinstance(entry, Removal) and entry.seq >= first}


def link(entry: str) -> str:
    """What the next entry holds of this one."""
    return hashlib.sha256(entry.encode()).hexdigest() if entry else ""


def _chain(name: str, ledger: Ledger, *, whole: bool) -> tuple[Entry, ...]:
    """The entries, oldest first, each held against the one before."""
    if whole and (edited := [seq for seq, text in ledger.carried.items() if ledger.entries.get(seq) != text]):
        raise HistoryDamaged(name, edited[0], "is not what it was copied as")
    older = {seq: text for seq, text in sorted(ledger.carried.items()) if seq < ledger.start}
    before = older.get(ledger.start - 1, "")
    entries: list[Entry] = []
    for expected, (number, text) in enumerate(ledger.entries.items(), ledger.start):
        if number != expected:
            raise HistoryDamaged(name, expected, "is missing")
        entry = _parsed(name, number, text)
        if (entry.seq, entry.prev) != (number, link(before)):
            raise HistoryDamaged(name, number, "does not follow from the one before: one of them was edited")
        entries.append(entry)
        before = text
    found = (*(_parsed(name, seq, text) for seq, text in older.items()), *entries)
    signing.check(name, zip(found, (*older.values(), *ledger.entries.values()), strict=True))
    return found


def _parsed(name: str, number: int, text: str) -> Entry:
    try:
        return parse_entry(text)
    except ValueError as error:
        raise HistoryDamaged(name, number, "cannot be read") from error


_NONE: Final = Ledger(
    start=0,
    entries={},
    carried={},
    applied=frozenset(),
    mended=frozenset(),
    mending=frozenset(),
    begun_at="",
    run_id="",
    room=True,
)
