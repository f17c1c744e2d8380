"""Proof, on the replica that will serve it, that a version does what it was made to do.

vLLM loads some adapters without an error and then answers as the base would, or with a part of the adapter. So before
a name points at a version, the log-probabilities of the tokens of its reference, which transformers and PEFT recorded
(`loradock.registry.reference`), are measured with it and with the base. The tokens are given, so that one word chosen
otherwise does not make all that follow incomparable.

Two things are proven. *Effect*: the version differs from the base by more than the base does from itself, because the
make-up of a batch changes rounding (in bfloat16 visibly). *Parity*: it differs from the base as the reference says, by
as much and at the same tokens. What precision and kernels make of the same weights shows in the base, which has a
reference too; a version may be as far from its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loradock.registry.reference import Reference


@dataclass(frozen=True, slots=True)
class Scored:
    """One given token, after those before it."""

    logprob: float
    """Nats."""
    rank: int
    """Its place among all tokens by probability; 1 is what a greedy answer takes."""


_CLEAR: Final = 0.1  # nats; rounding in bfloat16 stays well below this on average
_FLOOR: Final = 1e-5  # nats; float32 runs of the same weights differ by less than this on average
_OVER_NOISE: Final = 2.0

# Measured on vLLM in float32 and bfloat16, with right and wrong adapters: docs/proof.md has the figures.
_GAPS: Final = 2.0
"""How often a base's own gap a version's may be."""
_SHARES: Final = {"float32": 0.01}
"""The share of an effect that its own rounding explains, independent of the base's: squares add. In 16 bits:"""
_SHARE: Final = 0.06
_SIZE: Final = 0.05
"""By how much the size of an effect may be off, and beside that in standard errors:"""
_DOUBTS: Final = 3.0
_MARGINS: Final = 20.0
"""How often the base's gap a greedy choice's margin may be and still fall otherwise; single tokens stray that far."""
_CAPS: Final = {"float32": 0.01, "quantized": 1.0}
"""The base's gap, in nats, that a precision explains; for the 16-bit ones:"""
_CAP: Final = 0.2


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


@dataclass(frozen=True, slots=True)
class Parity:
    """How near a version comes to its reference, and its base to its own."""

    base_gap: float
    """Mean absolute difference in nats between the base here and in the reference: what precision and kernels do."""
    gap: float
    """The same of the version."""
    effect: float
    """The same between version and base in the reference."""
    size: float
    """The measured effect along the reference's, by least squares over all tokens; 1 is the whole of it."""
    doubt: float
    """The standard error of `size`, where each token strays by as much as the base's does (White, 1980,
    https://doi.org/10.2307/1912934)."""
    overturned: float
    """The largest margin, in nats, with which the reference chose a token that is not first here; 0 where all are."""
    cap: float
    """The largest `base_gap` that this replica's precision explains."""
    share: float
    """The share of the effect whose rounding it explains."""

    @property
    def fault(self) -> str:
        """Why this does not prove parity; empty when it does."""
        if not self.base_gap <= self.cap:
            return (
                f"the base here differs from the base in the reference by {self.base_gap:.2g} nats a token, where "
                f"precision explains {self.cap:.2g}; one of them has other weights"
            )
        if abs(self.size - 1) > _SIZE + _DOUBTS * self.doubt:
            share = f"{self.size:.0%} of that in the PEFT reference"
            return f"its effect is {share}: it is scaled differently, or partly loaded"
        if self.gap > _FLOOR + math.hypot(_GAPS * self.base_gap, self.share * self.effect):
            return (
                f"it is {self.gap:.2g} nats a token from the PEFT reference, where its base is {self.base_gap:.2g}: "
                "some of its weights are missing, or in another place"
            )
        if self.overturned > _FLOOR + _MARGINS * self.base_gap:
            return f"it does not choose a token that PEFT chooses with a margin of {self.overturned:.2g} nats"
        return ""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was measured of a version before it took traffic."""

    effect: Effect
    parity: Parity | None
    """None where effect alone was asked for."""

    @property
    def fault(self) -> str:
        """Why this version must not take traffic; empty when it may."""
        return self.effect.fault or (self.parity.fault if self.parity else "")

    @property
    def figures(self) -> dict[str, float]:
        """In nats, but for `size` and its `doubt`, as a status shows them."""
        found = {"effect": self.effect.signal, "noise": self.effect.noise}
        if self.parity:
            found |= {"gap": self.parity.gap, "base_gap": self.parity.base_gap}
            found |= {"size": self.parity.size, "doubt": self.parity.doubt}
        return {name: float(f"{value:.3g}") for name, value in found.items()}


Scores = Sequence[Sequence[Scored]]
"""Of each prompt, the score of each token but the first."""


def is_clear(base: Scores, version: Scores) -> bool:
    """Whether a version differs from its base by more than rounding can; else the base is to be measured again."""
    return not _distance(_logprobs(base), _logprobs(version)) < _CLEAR


def prove(
    reference: Reference | None, base: Scores, version: Scores, base_again: Scores | None, precision: str
) -> Proof:
    """What the scores of a reference's tokens show of a version, where the base is held in `precision`.

    None for the reference proves the effect alone, of whatever tokens. `base_again` is a second pass of the base; where
    there is none, and the effect is not clear, that proves no effect. `precision` is float32, bfloat16, float16 or
    quantized.
    """
    bare, changed = _logprobs(base), _logprobs(version)
    effect = Effect(_distance(bare, changed), 0.0)
    if not is_clear(base, version):
        again = _logprobs(base_again) if base_again is not None else changed
        effect = Effect(min(effect.signal, _distance(again, changed)), _distance(bare, again))
    if reference is None or effect.fault:
        return Proof(effect, None)
    return Proof(effect, _parity(reference, bare, changed, _overturned(reference, version), precision))


def _parity(
    reference: Reference, bare: Sequence[float], changed: Sequence[float], overturned: float, precision: str
) -> Parity:
    theirs = [value for probe in reference.probes for value in probe.adapted]
    base = [value for probe in reference.probes for value in probe.bare]
    meant, measured = _less(theirs, base), _less(changed, base)
    power = _dot(meant, meant)
    stray = [effect * off for effect, off in zip(meant, _less(bare, base), strict=True)]
    return Parity(
        base_gap=_distance(bare, base),
        gap=_distance(changed, theirs),
        effect=_distance(theirs, base),
        size=_dot(meant, measured) / power if power else math.nan,
        doubt=math.sqrt(_dot(stray, stray)) / power if power else math.inf,
        overturned=overturned,
        cap=_CAPS.get(precision, _CAP),
        share=_SHARES.get(precision, _SHARE),
    )


def _logprobs(found: Sequence[Sequence[Scored]]) -> list[float]:
    return [token.logprob for scores in found for token in scores]


def _overturned(reference: Reference, found: Sequence[Sequence[Scored]]) -> float:
    """The largest margin of a token that the reference's answers hold and that is not first here."""
    return max(
        (
            margin
            for probe, scores in zip(reference.probes, found, strict=True)
            for margin, token in zip(reversed(probe.margins), reversed(scores), strict=False)
            if token.rank != 1
        ),
        default=0.0,
    )


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other) or not one:
        return math.nan
    return math.fsum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def _less(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))
