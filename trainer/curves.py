"""The numbers of a training over its steps, and their picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(slots=True)
class Curves:
    """Every metric's points, as (step, value), in the order in which they came."""

    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take in what was measured at one step."""
        for name, value in values.items():
            self.points.setdefault(name, []).append((step, value))

    def first(self, name: str) -> float:
        """A metric's first value; NaN when it has none."""
        return self.points[name][0][1] if self.points.get(name) else math.nan

    def last(self, name: str) -> float:
        """A metric's last value; NaN when it has none."""
        return self.points[name][-1][1] if self.points.get(name) else math.nan

    def plot(self, title: str, *, kept_step: int = 0) -> Figure:
        """Training and evaluation loss over the steps, and the step whose weights are kept."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for name, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o--")):
            if found := self.points.get(name):
                steps, values = zip(*found, strict=True)
                axes.plot(steps, values, style, label=label)
        if kept_step:
            axes.axvline(kept_step, color="grey", linestyle=":", label="kept")
        axes.set(title=title, xlabel="step", ylabel="loss (nats a token)")
        axes.grid(alpha=0.3)
        axes.legend()
        return figure

    def plot_learning_rate(self, title: str) -> Figure:
        """The learning rate over the steps."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.add_subplot()
        steps, values = zip(*self.points["learning_rate"], strict=True)
        axes.plot(steps, values)
        axes.set(title=title, xlabel="step", ylabel="learning rate")
        axes.grid(alpha=0.3)
        return figure
