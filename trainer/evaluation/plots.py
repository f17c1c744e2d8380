"""An evaluation as a picture: each row's loss beside the other's, and how far the means are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loradock.registry.evidence import Evidence, Interval, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Differences = Mapping[tuple[str, Subject], Interval]
"""By metric and by whom the candidate is held against."""


def plot(evidence: Evidence, differences: Differences, title: str) -> Figure:
    """The differences with their intervals, and where there is a loss, a point for each row."""
    from matplotlib.figure import Figure

    losses = evidence.metrics.get("loss")
    figure = Figure(figsize=(10 if losses else 5, 4), layout="constrained")
    figure.suptitle(title)
    _intervals(figure.add_subplot(1, 2 if losses else 1, 1), differences)
    if losses:
        axes = figure.add_subplot(1, 2, 2)
        other: Subject = "incumbent" if losses.incumbent else "base"
        theirs = losses.of(other)
        axes.scatter(theirs, losses.candidate, s=12, alpha=0.6)
        ends = [min(*theirs, *losses.candidate), max(*theirs, *losses.candidate)]
        axes.plot(ends, ends, color="grey", linestyle=":", label="equal")
        axes.set(title="Loss of each row (nats a token)", xlabel=other, ylabel="candidate; below the line is better")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _intervals(axes: Any, differences: Differences) -> None:
    for place, interval in enumerate(differences.values()):
        spread = [[interval.mean - interval.low], [interval.high - interval.mean]]
        axes.errorbar([interval.mean], [place], xerr=spread, fmt="o", capsize=4)
    axes.set_yticks(range(len(differences)), [f"{metric}, less the {who}'s" for metric, who in differences])
    axes.axvline(0, color="grey", linestyle=":")
    axes.margins(y=0.4)
    axes.set(title="Candidate's mean, with 95% interval", xlabel="difference")
    axes.grid(alpha=0.3)
