"""How much of something is allowed in any minute, hour or day, and how much of it is used."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_LIMIT: Final = re.compile(r"([1-9][0-9]{0,14})/([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SLOTS: Final = 60


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` in any `seconds`; written `60/m`."""

    most: int
    seconds: int

    @classmethod
    def parse(cls, text: object) -> Limit:
        """`60/m`, with s, m, h or d for the period; raises ValueError."""
        if isinstance(text, Limit):
            return text
        found = _LIMIT.fullmatch(text) if isinstance(text, str) else None
        if not found:
            raise ValueError(f"{text!r} is not a limit; write NUMBER/PERIOD, as in 60/m, with s, m, h or d")
        return cls(int(found[1]), _SECONDS[found[2]])

    def __str__(self) -> str:
        unit = next(unit for unit, seconds in _SECONDS.items() if seconds == self.seconds)
        return f"{self.most}/{unit}"


class Window:
    """What was used in a period of late: a sliding window, kept as at most 61 sums however much is counted.

    A sum covers a sixtieth of the period, and counts until its last moment is one whole period ago. So no period sees
    more than the limit, and what was used is free again after at most 61 sixtieths of it.
    """

    def __init__(self, seconds: int) -> None:
        self._width = seconds / _SLOTS
        self._sums: deque[tuple[int, int]] = deque()
        self._used = 0

    def of_period(self, seconds: int, now: float) -> Window:
        """The same uses in a period of another length; each counts from the last moment at which it can have been."""
        window = Window(seconds)
        for slot, amount in self._sums:
            window.add(min(now, (slot + 1) * self._width), amount)
        return window

    def used(self, now: float) -> int:
        """What counts at this moment; more than a limit where amounts are known only afterwards."""
        while self._sums and self._free_at(self._sums[0][0]) <= now:
            self._used -= self._sums.popleft()[1]
        return self._used

    def add(self, now: float, amount: int) -> None:
        """Count something; `now` never goes back."""
        used, slot = self.used(now), int(now // self._width)
        before = self._sums.pop()[1] if self._sums and self._sums[-1][0] == slot else 0
        self._sums.append((slot, before + amount))
        self._used = used + amount

    def wait(self, now: float, most: int) -> float:
        """Seconds until there is room for one more of `most`; 0 where there is."""
        left = self.used(now)
        for slot, amount in self._sums:
            if left < most:
                break
            left -= amount
            if left < most:
                return self._free_at(slot) - now
        return 0.0

    def reset(self, now: float) -> float:
        """Seconds until nothing counts any more."""
        return self._free_at(self._sums[-1][0]) - now if self.used(now) or self._sums else 0.0

    def _free_at(self, slot: int) -> float:
        return (slot + _SLOTS + 1) * self._width


@dataclass(frozen=True, slots=True)
class Left:
    """How a limit stands at a moment."""

    limit: Limit
    remaining: int
    wait: float
    """Seconds until there is room for one more; 0 where there is."""
    reset: float
    """Seconds until nothing counts any more."""


class Account:
    """What one key used of one thing, in the period of each limit that it has.

    What was used outlives an edit of the limits, for as long as it would have counted.
    """

    def __init__(self) -> None:
        self._limits: tuple[Limit, ...] = ()
        self._windows: dict[int, Window] = {}

    def allow(self, limits: Sequence[Limit], now: float) -> None:
        """From now on these limits are in force."""
        needed = {limit.seconds for limit in limits}
        before = {seconds: window for seconds, window in self._windows.items() if seconds in needed or window.used(now)}
        new = {seconds: _of_period(seconds, before, now) for seconds in needed - before.keys()}
        self._windows, self._limits = before | new, tuple(limits)

    def is_clear(self, now: float) -> bool:
        """Whether nothing that was used counts any more."""
        return not any(window.used(now) for window in self._windows.values())

    def add(self, now: float, amount: int) -> None:
        """Count something; `now` never goes back."""
        for window in self._windows.values():
            window.add(now, amount)

    def left(self, now: float) -> tuple[Left, ...]:
        """How each limit stands."""
        return tuple(
            Left(
                limit,
                max(0, limit.most - (window := self._windows[limit.seconds]).used(now)),
                window.wait(now, limit.most),
                window.reset(now),
            )
            for limit in self._limits
        )


def _of_period(seconds: int, known: Mapping[int, Window], now: float) -> Window:
    """A window that begins with what the others know: the next longer one has seen all, else the longest has most."""
    if not known:
        return Window(seconds)
    return known[min((other for other in known if other > seconds), default=max(known))].of_period(seconds, now)
