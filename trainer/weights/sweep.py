"""Several ways to combine the same parents, measured on the same rows, and a picture of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loradock.registry.base import LocalBase
from loradock.registry.records import Record
from loradock.trainer.recipe import Recipe
from loradock.trainer.weights.combine import Mix, Mixer
from loradock.trainer.weights.losses import Bench
from loradock.trainer.weights.parents import Parent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSITIES: Final = (0.3, 0.5, 0.8)
"""What a sweep of a pruning method tries where no density is given."""
_MOST: Final = 0.75
"""The weight of the one that is favoured, in what a sweep tries where no weights are given."""


class Tried(Record):
    """One point of a grid."""

    weights: tuple[float, ...]
    density: float | None
    error: float
    """Relative Frobenius, to the weighted sum."""
    loss: float
    """Held-out, in nats a token."""


@dataclass(frozen=True, slots=True)
class Point:
    """One combination on disk."""

    mix: Mix
    directory: Path
    error: float
    loss: float = math.nan

    def told(self) -> Tried:
        """As it is reported."""
        return Tried(weights=self.mix.weights, density=self.mix.density, error=self.error, loss=self.loss)


def weights(count: int) -> tuple[tuple[float, ...], ...]:
    """What is tried for so many parents: all alike, each favoured in turn, and all in full."""
    favoured = [
        tuple(_MOST if at == first else (1 - _MOST) / (count - 1) for at in range(count)) for first in range(count)
    ]
    return ((1 / count,) * count, *favoured, (1.0,) * count)


def run(mixer: Mixer, mixes: Sequence[Mix], directory: Path) -> tuple[Point, ...]:
    """Every combination, each in a directory of its own below `directory`."""
    found = []
    for number, mix in enumerate(mixes):
        out = directory / str(number)
        out.mkdir()
        found.append(Point(mix, out, mixer.mix(mix, out)))
    return tuple(found)


def measure(
    tried: Sequence[Point], parents: Sequence[Parent], bench: Bench, local: LocalBase, recipe: Recipe
) -> tuple[tuple[Point, ...], dict[str, float]]:
    """The points with their losses; and the losses of the base, of each parent and of the best point."""
    found = bench.losses(
        local,
        recipe,
        {parent.name: parent.directory for parent in parents}
        | {f"combination {number}": point.directory for number, point in enumerate(tried)},
    )
    losses = [found.pop(f"combination {number}") for number in range(len(tried))]
    points = tuple(replace(point, loss=loss) for point, loss in zip(tried, losses, strict=True))
    return points, {**found, "combined": min(losses)}


def plot(tried: Sequence[Point], measured: Mapping[str, float], refs: Sequence[str]) -> Figure:
    """The loss of every point, a line a density, beside that of the parents and of the base."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Any = figure.add_subplot()
    labels = list(dict.fromkeys(_label(point.mix.weights) for point in tried))
    for density in dict.fromkeys(point.mix.density for point in tried):
        line = [point for point in tried if point.mix.density == density]
        places = [labels.index(_label(point.mix.weights)) for point in line]
        name = tried[0].mix.method + (f", density {density:g}" if density is not None else "")
        axes.plot(places, [point.loss for point in line], marker="o", label=name)
    for number, (who, loss) in enumerate(measured.items()):
        if who != "combined":
            axes.axhline(loss, linestyle=":", color=f"C{7 + number % 3}", label=who)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(title="Held-out loss of each combination", xlabel=f"weights of {', '.join(refs)}", ylabel="nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _label(given: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in given)
