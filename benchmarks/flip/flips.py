"""What is flipped, in which order, and what is kept of each flip."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.flip.adapters import FLIPPED, Cast, Made, of_kind

BLOCK = 10
"""Flips in a block: four there and back again, with a damaged version and one without effect on the way."""


@dataclass(frozen=True, slots=True)
class Flip:
    """One move of a name's alias."""

    to: Made
    nudge: bool = False
    """The replica is told of it, and does not find out by polling."""


@dataclass(frozen=True, slots=True)
class Flipped:
    """A flip that was made; times are seconds since the epoch."""

    flip: Flip
    state: str
    """What the server had of the version before: `fresh` nothing, `cached` its files, `resident` all of it."""
    at: float
    """When the promotion was written, or when the call to vLLM was begun."""
    told: float
    """When the promotion or the call returned."""
    since: float | None
    """From when on the name was answered by it; None where it never was."""
    quarantined: str = ""
    """Why the replica answers with the version before."""
    error: str = ""

    @property
    def loads(self) -> bool:
        """Whether the server had to load it into its engine, and did."""
        return self.since is not None and self.state in ("fresh", "cached")


def good_versions(flips: int) -> int:
    """How many good versions a name needs so that about half of its new versions were never seen by the server."""
    return 1 + max(1, round(flips / BLOCK))


def schedule(cast: Cast, flips: int) -> list[Flip]:
    """Names take turns: to another version and back to the first, and on the way to versions that must not answer."""
    made: list[Flip] = []
    turns = dict.fromkeys(FLIPPED, 0)
    while len(made) < flips:
        one, two = FLIPPED if len(made) // BLOCK % 2 == 0 else FLIPPED[::-1]
        for name, bad in ((one, "damaged"), (two, ""), (one, ""), (two, "no effect")):
            home, *others = of_kind(cast, name, "good")
            nudge = turns[name] % 2 == 1
            made.append(Flip(others[turns[name] % len(others)], nudge))
            if bad:
                made.append(Flip(next(found for found in cast[name] if found.kind == bad), nudge))
            made.append(Flip(home, nudge))
            turns[name] += 1
    return made[:flips]
