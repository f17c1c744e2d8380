"""A rollout as MLflow keeps it: what was seen over time, and how it ended. It is a picture, and decides nothing."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from loradock.registry.errors import LoradockError
from loradock.registry.store.rollouts import Rollouts
from loradock.serving.rollout.blocks import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EVERY: Final = 30.0  # seconds between two values of a metric
_POINTS: Final = 4000
"""Moments that are kept for the picture; beyond, every second one is left out."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Point:
    """One moment."""

    at: float
    """Seconds since the beginning."""
    weight: float
    findings: Sequence[Finding]

    def values(self) -> Mapping[str, float]:
        """As metrics."""
        found: dict[str, float | None] = {"weight": self.weight}
        for each in self.findings:
            found |= {f"{each.signal}/canary": each.canary, f"{each.signal}/production": each.production}
            found |= {f"{each.signal}/low": each.low, f"{each.signal}/high": each.high}
        return {key: value for key, value in found.items() if value is not None}


class Record:
    """One rollout's run; where MLflow does not take it, a warning is all that comes of it."""

    def __init__(
        self, connect: Callable[[], Rollouts], title: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect, self._title, self._clock = connect, title, clock
        self._rollouts: Rollouts | None = None
        self._points: list[Point] = []
        self._logged = float("-inf")
        self.run_id = ""

    def begin(self, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        """Make the run."""
        try:
            self._rollouts = self._connect()
            self.run_id = self._rollouts.begin(self._title, tags, params)
        except LoradockError as error:
            log.warning("the rollout is not recorded: %s", error)

    def note(self, point: Point) -> None:
        """Keep a moment, and log it where some time has gone by or the share is another."""
        moved = not self._points or self._points[-1].weight != point.weight
        self._points.append(point)
        if len(self._points) > _POINTS:
            self._points = self._points[::2]
        if moved or self._clock() - self._logged >= _EVERY:
            self._logged = self._clock()
            self._quietly(lambda rollouts: rollouts.log(self.run_id, int(point.at), point.values()))

    def end(self, result: str, outcome: str) -> None:
        """Log the last moment, the outcome and the picture."""
        if self._points:
            last = self._points[-1]
            self._quietly(lambda rollouts: rollouts.log(self.run_id, int(last.at), last.values()))
        self._quietly(lambda rollouts: rollouts.end(self.run_id, result, outcome, plot(self._points, self._title)))

    def _quietly(self, act: Callable[[Rollouts], None]) -> None:
        if self._rollouts is None or not self.run_id:
            return
        try:
            act(self._rollouts)
        except LoradockError as error:
            log.warning("the rollout's run in MLflow lacks something: %s", error)


def plot(points: Sequence[Point], title: str) -> Figure:
    """The share over time, and below it each signal's difference with its interval and its margin."""
    from matplotlib.figure import Figure

    signals = [finding.signal for finding in points[-1].findings] if points else []
    minutes = [point.at / 60 for point in points]
    figure = Figure(figsize=(9, 2 + 1.8 * len(signals)), layout="constrained")
    figure.suptitle(title)
    panels: Any = figure.subplots(1 + len(signals), 1, sharex=True, squeeze=False)[:, 0]
    panels[0].step(minutes, [100 * point.weight for point in points], where="post")
    panels[0].set(ylabel="share (%)", ylim=(0, None))
    for place, signal in enumerate(signals):
        axes = panels[place + 1]
        found = [each for point in points for each in point.findings if each.signal == signal]
        at = minutes[-len(found) :]
        low, high = (
            [100 * value for value in values] for values in zip(*((f.low, f.high) for f in found), strict=True)
        )
        axes.fill_between(at, low, high, alpha=0.25, step="post")
        seen = [float("nan") if each.difference is None else 100 * each.difference for each in found]
        axes.step(at, seen, where="post")
        axes.axhline(100 * found[-1].margin, color="tab:red", linestyle="--")
        axes.axhline(0, color="grey", linestyle=":")
        axes.set(ylabel=f"{signal}\n(points)", ylim=_room(seen, 100 * found[-1].margin))
    panels[-1].set(xlabel="minutes; the red line is what is allowed")
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def _room(seen: Sequence[float], margin: float) -> tuple[float, float]:
    """What part of the axis is worth seeing: an interval is all of it at first."""
    values = [1.2 * value for value in seen if not math.isnan(value)]
    return min([-3 * margin, *values]), max([3 * margin, *values])
