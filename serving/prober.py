"""What a running engine says with a version and with its base, gathered for the proof."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from loradock.registry.reference import Reference
from loradock.serving.probe import Proof, Scored, Scores, is_clear, prove

Measure = Callable[[Sequence[int]], Awaitable[Sequence[Scored]]]
"""From tokens to the score of each but the first."""

_AT_ONCE: Final = 2
_REMEMBERED: Final = 1000
"""For how many references what the base said is kept."""


class Prober:
    """Measures versions against one base, held in `precision`; use it on the server's event loop only.

    `prompts` gives the tokens of what is asked where there is no reference.
    """

    def __init__(self, base: Measure, prompts: Callable[[], Sequence[Sequence[int]]], precision: str) -> None:
        self._base, self._prompts, self._precision = base, prompts, precision
        self._bare: dict[tuple[tuple[int, ...], ...], Scores] = {}

    async def prove(self, version: Measure, reference: Reference | None) -> Proof:
        """Measure a version; None for the reference proves its effect alone."""
        asked = [probe.tokens for probe in reference.probes] if reference else self._prompts()
        base, found = await self._said(asked), await _passage(version, asked)
        again = None if is_clear(base, found) else await _passage(self._base, asked)
        return prove(reference, base, found, again, self._precision)

    async def _said(self, asked: Sequence[Sequence[int]]) -> Scores:
        """What the base says, which it is asked once: without references all versions are asked the same."""
        key = tuple(map(tuple, asked))
        if key not in self._bare:
            self._bare = dict([*self._bare.items()][-_REMEMBERED:])
            self._bare[key] = await _passage(self._base, asked)
        return self._bare[key]


async def _passage(measure: Measure, asked: Sequence[Sequence[int]]) -> Scores:
    """Few prompts at a time: a step of the engine that holds more keeps running answers waiting longer."""
    found: list[Sequence[Scored]] = []
    for at in range(0, len(asked), _AT_ONCE):
        found += await asyncio.gather(*map(measure, asked[at : at + _AT_ONCE]))
    return found
