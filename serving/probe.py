"""Proof, on the replica that will serve it, that a version changes what its base says.

vLLM loads some adapters without an error and then answers as the base would. So before a name points at a version,
the log-probability of every token of a few fixed prompts is measured with it and with the base. Log-probabilities of
given tokens show an adapter whose effect is too small to change greedy text; text alone would not.

Two runs of the same weights differ too, because the make-up of a batch changes rounding (in bfloat16 visibly). A
version that is far from its base needs no more than one pass. One that is near is held against two passes of the
base, made before and after it: it has to differ by clearly more than those do.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

PROMPTS: Final = (
    "The committee met on Tuesday to decide whether the old bridge should be repaired or replaced.",
    "User: How do I reset my password?\nAssistant: Open the settings page, choose Security, and then",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total /",
    '{"name": "Ada", "city": "London", "orders": [{"id": 17, "total": 42.5}, {"id": 18, "total":',
)
"""Prose, dialogue, code and data: an adapter that was trained on any of them shows."""

_CLEAR: Final = 0.1  # nats; rounding in bfloat16 stays well below this on average
_FLOOR: Final = 1e-5  # nats; float32 runs of the same weights differ by less than this on average
_OVER_NOISE: Final = 2.0

Measure = Callable[[str], Awaitable[Sequence[float]]]
"""From a prompt to the log-probability, in nats, of each of its tokens but the first."""


@dataclass(frozen=True, slots=True)
class Effect:
    """How far a version's log-probabilities lie from its base's, and the base's from its own."""

    signal: float
    """Mean absolute difference in nats between the version and its base."""
    noise: float
    """The same between two passes of the base; 0 where the signal made a second one needless."""

    @property
    def fault(self) -> str:
        """Why this does not prove an effect; empty when it does."""
        if not math.isfinite(self.signal):
            return "its output is not a number"
        if self.signal <= _FLOOR + _OVER_NOISE * self.noise:
            return f"no effect: its log-probabilities equal the base's (they differ by {self.signal:.1e} nats)"
        return ""


class Prober:
    """Measures versions against one base, whose first pass it keeps."""

    def __init__(self, base: Measure) -> None:
        self._base = base
        self._kept: list[float] = []

    async def effect(self, version: Measure) -> Effect:
        """How far a version is from the base, in one pass of its own, and of the base's as many as it takes."""
        if not self._kept:
            self._kept = await _passage(self._base)
        changed = await _passage(version)
        signal = _distance(self._kept, changed)
        if signal >= _CLEAR or not math.isfinite(signal):
            return Effect(signal, 0.0)
        self._kept, before = await _passage(self._base), self._kept
        return Effect(min(signal, _distance(self._kept, changed)), _distance(before, self._kept))


async def _passage(measure: Measure) -> list[float]:
    """Every prompt at once: they share a batch, and one pass is one step or two of the engine."""
    return [value for values in await asyncio.gather(*map(measure, PROMPTS)) for value in values]


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other) or not one:
        return math.nan
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
