"""A test of how much worse one version does than another, valid however often it is looked at: pure.

Each difference is the canary's rate of bad answers less production's in one block of answers of the same time, between
-1 and 1. Against the claim that its mean is at most `m`, whatever it was in each block, one bets: a stake of `c` makes
of each block the factor `1 + c (d - m) / (1 + m)`, which is never negative and is expected to be at most 1 where the
claim holds. So the capital exceeds `1 / alpha` at any time with a chance of at most `alpha` (Ville's inequality). It is
split over several stakes, for small differences and for large ones. Rates may change with the hour, and shares with the
steps: each block is its own comparison.

Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024) 1-27,
https://arxiv.org/abs/2010.09686.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Final

_STAKES: Final = tuple(0.99 / 2**power for power in range(8))
"""Of what can be lost in one block."""
_LOWEST: Final = -1 + 1e-9
_HALVINGS: Final = 24


class Differences:
    """The differences so far: their order does not matter."""

    def __init__(self) -> None:
        self._counts: Counter[float] = Counter()

    def add(self, difference: float) -> None:
        """Count one, between -1 and 1."""
        if not -1 <= difference <= 1:
            raise ValueError(f"{difference} is no difference of rates")
        self._counts[difference] += 1

    @property
    def number(self) -> int:
        """How many there are."""
        return self._counts.total()

    @property
    def mean(self) -> float | None:
        """Their mean; None where there is none."""
        return sum(d * n for d, n in self._counts.items()) / self.number if self._counts else None

    def above(self, bound: float) -> float:
        """The evidence, as the natural logarithm of an e-value, that the mean is above a bound."""
        return _capital(self._counts, bound)

    def below(self, bound: float) -> float:
        """The evidence, as the natural logarithm of an e-value, that the mean is below a bound."""
        return _capital(self._negated, -bound)

    def interval(self, alpha_low: float, alpha_high: float) -> tuple[float, float]:
        """Where the mean is: above the first at any time but with a chance of `alpha_low`, and so with the second."""
        return _lower(self._counts, alpha_low), -_lower(self._negated, alpha_high)

    @property
    def _negated(self) -> dict[float, int]:
        return {-difference: count for difference, count in self._counts.items()}


def least(bound: float, alpha: float) -> int:
    """How many blocks without any difference it takes to show that the mean is below a positive bound."""
    blocks = 1
    while _capital({0.0: blocks}, -bound) < math.log(1 / alpha):
        blocks += 1 + blocks // 50
    return blocks


def _capital(counts: Mapping[float, int], bound: float) -> float:
    """The logarithm of what is left of a capital of 1 that was bet against a mean of at most `bound`."""
    import numpy as np

    differences = np.fromiter(counts.keys(), dtype=float, count=len(counts))
    times = np.fromiter(counts.values(), dtype=float, count=len(counts))
    gains = np.log1p(np.outer(_STAKES, (differences - bound) / (1 + bound))) @ times
    return float(np.logaddexp.reduce(gains)) - math.log(len(_STAKES))


def _lower(counts: Mapping[float, int], alpha: float) -> float:
    """The largest bound that the mean is above; the evidence falls with the bound, whatever the differences."""
    needed = math.log(1 / alpha)
    low, high = _LOWEST, 1.0
    if not counts or _capital(counts, low) < needed:
        return -1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _capital(counts, middle) >= needed else (low, middle)
    return low
