"""How long a flip took, and what other requests felt of it: pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise

from benchmarks.flip.flips import Flipped
from benchmarks.flip.judge import Judged

Figure = dict[str, float]


def spread(seconds: Iterable[float]) -> Figure:
    """How many there were, their median and 99th percentile; seconds. Empty for none."""
    values = sorted(seconds)
    if not values:
        return {}
    p99 = statistics.quantiles(values, n=100, method="inclusive")[-1] if len(values) > 1 else values[0]
    return {"n": len(values), "p50": statistics.median(values), "p99": p99}


def times(flipped: Sequence[Flipped], judged: Sequence[Judged], *, named: bool) -> dict[str, Figure]:
    """From a flip's writing to the name's pointing at the version, and to the first token of its first answer.

    Without `named` the first is until the call to vLLM returned.
    """
    found: dict[str, Figure] = {}
    good = [move for move in flipped if move.since is not None and move.flip.to.kind == "good"]
    firsts = {id(move): first - move.at for move in good if (first := _first(move, judged)) is not None}
    for nudge in (False, True) if named else (None,):
        for state in ("resident", "cached", "fresh") if named else ("",):
            moves = [move for move in good if not named or (move.flip.nudge is nudge and move.state == state)]
            how = f"{'nudged' if nudge else 'polled'}, {state}" if named else "the call"
            if moves:
                found[f"pointed: {how}"] = spread(move.since - move.at for move in moves if move.since)
                found[f"first token: {how}"] = spread(firsts[id(move)] for move in moves if id(move) in firsts)
    if named:
        found["the promotion's own call"] = spread(move.told - move.at for move in good)
    return found


def _first(move: Flipped, judged: Sequence[Judged]) -> float | None:
    """When the first token came that the flip's version gave after it."""
    version, since = str(move.flip.to), move.since or 0.0
    return min(
        (one.answer.first for one in judged if one.version == version and one.answer.first >= since), default=None
    )


def pauses(flipped: Sequence[Flipped], judged: Sequence[Judged]) -> dict[str, Figure]:
    """The longest gap in the streams of other names while a version was loaded, and in as long a time just before."""
    around: dict[str, list[float]] = {"with a load": [], "without": []}
    for move in (move for move in flipped if move.since is not None and move.state != "resident"):
        gaps = [
            (before, after)
            for one in judged
            if one.answer.ask.target != move.flip.to.name
            for before, after in pairwise(one.answer.chunks)
        ]
        end = move.since or 0.0
        for name, start, stop in (("with a load", move.at, end), ("without", 2 * move.at - end, move.at)):
            longest = max((after - before for before, after in gaps if before < stop and after > start), default=None)
            if longest is not None:
                around[name].append(longest)
    return {f"longest gap {name}": spread(values) for name, values in around.items()}
