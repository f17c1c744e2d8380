"""From answers as they end to what is compared: the canary's with production's of the same time on the same replica."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from loradock.serving.rollout.measures import Limits, Signal
from loradock.serving.rollout.sequential import Differences
from loradock.serving.signals import Ended

Side = Literal["canary", "production"]

_AT_ONCE: Final = 4
"""Blocks that are made at a time, so that what is short of one side for a moment is not lost."""
_WAITING: Final = 1000
"""Answers of one side that wait for the other; beyond, the oldest is left out."""


@dataclass(slots=True)
class Tally:
    """How many answers of one side were bad."""

    bad: float = 0
    number: int = 0

    def add(self, bad: float) -> None:
        """Count one."""
        self.bad += bad
        self.number += 1

    @property
    def rate(self) -> float | None:
        """The part that was bad; None where there is none."""
        return self.bad / self.number if self.number else None


class Blocks:
    """Answers of one replica that wait until there are enough of each side, which nothing measured on them changes.

    Then they are dealt out in the order in which they came, to blocks that have as many of one side as of the other, or
    where one side has more, that many more.
    """

    def __init__(self) -> None:
        self._waiting: dict[Side, deque[bool]] = {
            "canary": deque(maxlen=_WAITING),
            "production": deque(maxlen=_WAITING),
        }

    def add(self, side: Side, bad: bool) -> list[float]:
        """Count one; the differences of the blocks that are full now."""
        self._waiting[side].append(bad)
        sizes = {each: len(waiting) // _AT_ONCE for each, waiting in self._waiting.items()}
        if not all(sizes.values()):
            return []
        return [self._rate("canary", sizes) - self._rate("production", sizes) for _ in range(_AT_ONCE)]

    def _rate(self, side: Side, sizes: Mapping[Side, int]) -> float:
        return sum(self._waiting[side].popleft() for _ in range(sizes[side])) / sizes[side]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one signal."""

    signal: Signal
    margin: float
    """How much more often than production the canary may do badly."""
    canary: float | None
    production: float | None
    """The parts that were bad, over the whole time."""
    answers: int
    """The canary's that were measured."""
    difference: float | None
    """The mean over all blocks, which a bad hour or a new share does not change as it does the parts above."""
    low: float
    high: float
    """Where the difference is, at any time but with the chances that were agreed."""
    alarmed: bool
    """The difference is above the margin."""
    shown: bool
    """The difference is below the margin."""

    def __str__(self) -> str:
        if self.canary is None or self.production is None:
            return f"{self.signal}: nothing to compare yet"
        interval = f"{100 * self.low:+.1f} to {100 * self.high:+.1f} points"
        rates = f"{self.canary:.1%} of {self.answers} against {self.production:.1%}"
        return f"{self.signal}: {rates} of production's, a difference of {interval}, allowed {100 * self.margin:+.1f}"


class Comparison:
    """Every signal, over all replicas."""

    def __init__(self, margins: Mapping[Signal, float], limits: Limits, alpha: float) -> None:
        self._margins, self._limits, self._alpha = margins, limits, alpha
        self._blocks: dict[tuple[str, Signal], Blocks] = {}
        self._begun: dict[str, float] = {}
        self._differences = {signal: Differences() for signal in margins}
        self._sides: dict[Signal, dict[Side, Tally]] = {
            signal: {"canary": Tally(), "production": Tally()} for signal in margins
        }
        self.answers = 0
        """The canary's, whatever was measured on them."""

    def add(self, process: str, rows: Iterable[Ended], canary: int, production: int) -> None:
        """Count what ended in a replica's process since.

        Production's answers that began before the canary's first are left out: of the canary's, none so old can be
        there, and old ones are the long ones.
        """
        for row in rows:
            side = _side(row, canary, production)
            if side == "canary":
                self.answers += 1
                self._begun.setdefault(process, row.started)
            if side is None or row.started < self._begun.get(process, math.inf):
                continue
            for signal, bad in self._limits.bad(row).items():
                if signal in self._margins:
                    self._count(process, signal, side, bad)

    def judged(self, canary: float, production: float) -> None:
        """Count one prompt's two answers: how bad each is, from 0 to 1."""
        self._sides["judge"]["canary"].add(canary)
        self._sides["judge"]["production"].add(production)
        self._differences["judge"].add(canary - production)

    def findings(self) -> tuple[Finding, ...]:
        """Every signal as it stands."""
        return tuple(map(self._finding, self._margins))

    def _count(self, process: str, signal: Signal, side: Side, bad: bool) -> None:
        self._sides[signal][side].add(bad)
        for difference in self._blocks.setdefault((process, signal), Blocks()).add(side, bad):
            self._differences[signal].add(difference)

    def _finding(self, signal: Signal) -> Finding:
        margin, differences = self._margins[signal], self._differences[signal]
        each = self._alpha / len(self._margins)  # a false alarm of any ends the rollout
        low, high = differences.interval(each, self._alpha)
        return Finding(
            signal=signal,
            margin=margin,
            canary=self._sides[signal]["canary"].rate,
            production=self._sides[signal]["production"].rate,
            answers=self._sides[signal]["canary"].number,
            difference=differences.mean,
            low=low,
            high=high,
            alarmed=differences.above(margin) >= math.log(1 / each),
            shown=differences.below(margin) >= math.log(1 / self._alpha),
        )


def _side(row: Ended, canary: int, production: int) -> Side | None:
    """On which side an answer counts: only those for the bare name are of one kind of users, dealt out by chance."""
    match row.role, row.version:
        case "canary", number if number == canary:
            return "canary"
        case "production", number if number == production:
            return "production"
        case _:
            return None
