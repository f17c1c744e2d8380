"""Which row comes next: pure.

An engine holds so many adapters at once, and swaps one for another at a price. So where a run has more of them than
that, its rows go adapter by adapter, and one comes in only when another has gone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Queue(Generic[Item]):
    """Items that wait for an engine, each under the adapter that it needs, or under None."""

    def __init__(self, items: Iterable[tuple[Item, Hashable | None]], *, slots: int, window: int) -> None:
        """`slots` adapters and `window` items at most are in the engine at once."""
        waiting = list(items)
        turn = {adapter: place for place, adapter in enumerate(dict.fromkeys(adapter for _, adapter in waiting))}
        if len(turn.keys() - {None}) > slots:
            waiting.sort(key=lambda item: turn[item[1]])
        self._waiting = deque(waiting)
        self._slots, self._window = slots, window
        self._inside: Counter[Hashable] = Counter()
        self._count = 0

    def __bool__(self) -> bool:
        """Whether any item waits, or is in the engine."""
        return bool(self._waiting or self._count)

    def take(self) -> tuple[Item, Hashable | None] | None:
        """The next item, which is in the engine from now on; None while there is no room for it."""
        if not self._waiting or self._count >= self._window:
            return None
        item, adapter = self._waiting[0]
        if adapter is not None:
            if adapter not in self._inside and len(self._inside) >= self._slots:
                return None
            self._inside[adapter] += 1
        self._waiting.popleft()
        self._count += 1
        return item, adapter

    def leave(self, adapter: Hashable | None) -> None:
        """Tell that an item under this adapter has left the engine."""
        self._count -= 1
        if adapter is not None:
            self._inside[adapter] -= 1
            if not self._inside[adapter]:
                del self._inside[adapter]
