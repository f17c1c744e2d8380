"""What is bad about an answer, by live signals; and from where on, by production's own answers: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loradock.serving.signals import Ended

Signal = Literal["error", "unstopped", "slow", "long", "judge"]

LIVE: Final[tuple[Signal, ...]] = ("error", "unstopped", "slow", "long")
"""What is read off each answer; the judge is asked."""
MEANING: Final[Mapping[Signal, str]] = {
    "error": "calls that the engine failed",
    "unstopped": "answers cut off at their limit of tokens",
    "slow": "answers with a slow first token or slow tokens",
    "long": "long answers",
    "judge": "answers that the judge calls bad",
}
MARGINS: Final[Mapping[Signal, float]] = {"error": 0.02, "unstopped": 0.05, "slow": 0.05, "long": 0.05, "judge": 0.05}
"""How much more often than production a canary may do badly, where nobody says otherwise."""

_TAIL: Final = 0.95
"""What is slow or long: beyond this part of production's answers."""


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on an answer is slow or long."""

    first_token: float
    """Seconds."""
    per_token: float
    """Seconds."""
    output_tokens: float

    def bad(self, row: Ended) -> Mapping[Signal, bool]:
        """Whether an answer is bad, by each signal that it says something of.

        A call that failed, or whose client left, says nothing of how long its answer is.
        """
        found: dict[Signal, bool] = {"error": row.outcome == "error"}
        if row.outcome == "ok":
            found["unstopped"] = row.finish == "length"
            found["long"] = row.output_tokens > self.output_tokens
        if row.first_token is not None:
            found["slow"] = row.first_token > self.first_token or (row.per_token or 0.0) > self.per_token
        return found


def usual(rows: Sequence[Ended], given: Mapping[str, float]) -> Limits:
    """Limits by these answers of production's, which count for nothing else; what is `given` stands."""
    whole = [row for row in rows if row.outcome == "ok"]
    found: dict[str, float] = {
        "first_token": _tail([row.first_token for row in whole if row.first_token is not None]),
        "per_token": _tail([row.per_token for row in whole if row.per_token is not None]),
        "output_tokens": _tail([row.output_tokens for row in whole]),
    }
    return Limits(**(found | dict(given)))


def _tail(values: Sequence[float]) -> float:
    """The value that so many are not beyond; without any, nothing is beyond it."""
    if not values:
        return float("inf")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(_TAIL * len(ordered)))]
