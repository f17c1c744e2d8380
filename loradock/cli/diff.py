"""The `diff` verb: parse, call, print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.options import json_option
from loradock.cli.output import emit
from loradock.registry import diff as differences
from loradock.registry import promotion, refs
from loradock.registry.distance import Distance
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command(cls=Command)
@click.argument("a", shell_complete=complete_ref)
@click.argument("b", shell_complete=complete_ref)
@json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Show what two versions differ in, and how far apart they are.

    Example:
      loradock diff support-bot/2 support-bot/3

    A and B are versions or aliases, of one adapter or of two. The bytes of both are hashed first. A distance is the
    Frobenius norm of the difference between the weight changes of A and B, relative to that of A.
    """
    store = Store(Settings())
    one, other = (promotion.resolve(store, refs.parse_ref(ref)) for ref in (a, b))
    found = differences.compare(store, one, other)
    if as_json:
        emit(found.model_dump(mode="json"), as_json)
        return
    emit(list(_changes(found)), as_json, columns=("what", *found.versions))
    if found.weights.why_not:
        say(f"their weights are not compared: {found.weights.why_not}")
    for besides in found.weights.besides:
        say(f"not in the distances: {besides}")
    if found.weights.total:
        emit([_distance(module) for module in (*found.weights.modules, found.weights.total)], as_json, columns=_APART)


_APART = ("module", "distance", "cosine", "norm", "other norm")


def _distance(found: Distance) -> dict[str, str | None]:
    numbers = (found.distance, found.cosine, *found.norms)
    texts = (None if number is None else f"{number:.4g}" for number in numbers)
    return dict(zip(_APART, (found.module, *texts), strict=True))


def _changes(found: differences.Difference) -> Iterator[dict[str, Any]]:
    for group in ("facts", "base", "recipe", "data", "metrics", "config"):
        changed: Mapping[str, differences.Pair] = getattr(found, group)
        for key, pair in changed.items():
            yield {"what": f"{group}.{key}", **dict(zip(found.versions, pair, strict=True))}
    for run_id in found.runs_gone:
        yield {"what": f"run {run_id} is gone: its recipe, data and metrics are not known"}
