"""Whether adapters' histories go on from what was seen of them, as a replica finds out beside its polls.

A poll shows the tags of all adapters, and asks for no history. Where a tag is another one than before, that adapter's
history is read next; all others are read in turns, a few at a time, since a history can be cut without its tag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from loradock.registry import heads
from loradock.registry.errors import HistoryCut, LoradockError, Refused, Unreachable
from loradock.registry.settings import Settings
from loradock.registry.store import Family, Store

_CHANGED: Final = 20
"""How many histories whose tag changed are read at a time."""
_IN_TURN: Final = 4
"""How many of the others."""


class Continuity:
    """The histories of one registry; `audit` blocks for some ten calls to it."""

    def __init__(self, settings: Settings, store: Callable[[], Store]) -> None:
        self._memory, self._store = heads.Memory(settings), store
        self._seen: dict[str, Family] = {}
        self._read: dict[str, tuple[str, str]] = {}
        """By family, its tags when its history was read last."""
        self._turn: list[str] = []
        self._faults: dict[str, str] = {}

    def saw(self, families: Iterable[Family]) -> None:
        """Take note of what a poll shows."""
        self._seen |= {family.name: family for family in families}

    @property
    def changed(self) -> tuple[str, ...]:
        """The families whose tags are others than when their history was read."""
        return tuple(name for name, family in [*self._seen.items()] if self._read.get(name) != _tags(family))

    def audit(self) -> Mapping[str, str]:
        """Read the histories that are due; returns by family why one does not go on from what was seen of it."""
        self._begin()
        if not self._turn:
            self._turn = sorted({*self._seen, *self._memory.all()})
        turn, self._turn = self._turn[:_IN_TURN], self._turn[_IN_TURN:]
        for name in dict.fromkeys((*self.changed[:_CHANGED], *turn)):
            tags = _tags(self._seen[name]) if name in self._seen else ("", "")
            try:
                heads.current(self._store(), name, whole=False)
                self._faults.pop(name, None)
            except (HistoryCut, Refused) as error:
                self._faults[name] = str(error)
            except Unreachable:
                break  # nothing new is known of any
            except LoradockError:  # it was deleted, say, which replicas tell by themselves
                pass
            self._read[name] = tags
        return dict(self._faults)

    def _begin(self) -> None:
        """Believe what the tags of families say that this machine has never seen, without reading their histories."""
        known = self._memory.all()
        new = {name: head for name, family in [*self._seen.items()] if name not in known and (head := _head(family))}
        if new:
            self._memory.keep(new)
        for name, head in {**known, **new}.items():
            if name in self._seen and name not in self._read and head == _head(self._seen[name]):
                self._read[name] = _tags(self._seen[name])


def _tags(family: Family) -> tuple[str, str]:
    return family.ledger, family.head


def _head(family: Family) -> heads.Head | None:
    found = heads.parse(family.head) if family.head else None
    return found if found and found.run == family.ledger else None
