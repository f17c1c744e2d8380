"""What two versions differ in: recipe, data, metrics, configuration, and how far apart their weights are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from loradock.registry import artifact, check, distance, versions
from loradock.registry.distance import Weights
from loradock.registry.records import Record, Version
from loradock.registry.store import Store
from loradock.registry.store.lineage import RunFacts

_FACTS: Final = ("digest", "method", "rank", "targets", "parents")

Pair = tuple[Any, Any]
"""What a key is in the first version, and in the second; None where it is not there."""


class Difference(Record):
    """What differs between two versions; what is the same in both is left out."""

    versions: tuple[str, str]
    facts: Mapping[str, Pair]
    base: Mapping[str, Pair]
    recipe: Mapping[str, Pair]
    data: Mapping[str, Pair]
    metrics: Mapping[str, Pair]
    """The last value of each."""
    config: Mapping[str, Pair]
    """Of adapter_config.json."""
    runs_gone: tuple[str, ...]
    """The runs that are gone, so that their recipe, data and metrics are not known."""
    weights: Weights


def compare(store: Store, a: Version, b: Version) -> Difference:
    """Hold two versions, of one family or two, against each other; the bytes of both are hashed first.

    Raises NotFound, DigestMismatch or Unreachable.
    """
    both = (a, b)
    runs = [store.run_facts(version.facts.run_id) for version in both]
    with ExitStack() as stack:
        one, other = (stack.enter_context(versions.fetched(store, version)) for version in both)
        for directory, version in ((one, a), (other, b)):
            artifact.verify(directory, version.facts.digest, what=str(version.ref))
        configs = [check.read_config(directory) for directory in (one, other)]
        if a.facts.base.same_weights(b.facts.base):
            weights = distance.between(one, other, names=(str(a.ref), str(b.ref)))
        else:
            why_not = f"{a.ref} was trained on {a.facts.base.id}, {b.ref} on {b.facts.base.id}, which is another base"
            weights = Weights(why_not=why_not)
    facts = [version.facts.model_dump(mode="json") for version in both]
    params = [run.params if run else {} for run in runs]
    data = [{"digest": version.facts.data_digest} for version in both]
    return Difference(
        versions=(str(a.ref), str(b.ref)),
        facts=_changed(*({key: found[key] for key in _FACTS} for found in facts)),
        base=_changed(*(found["base"] | found["text"] for found in facts)),
        recipe=_changed(*(_below(found, "recipe.") for found in params)),
        data=_changed(*(known | _below(found, "data.") for known, found in zip(data, params, strict=True))),
        metrics=_changed(*(_metrics(run) for run in runs)),
        config=_changed(*configs),
        runs_gone=tuple(v.facts.run_id for v, run in zip(both, runs, strict=True) if v.facts.run_id and run is None),
        weights=weights,
    )


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    return {key: (a.get(key), b.get(key)) for key in keys}


def _below(params: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)}


def _metrics(run: RunFacts | None) -> dict[str, float]:
    return {name: value for name, value in run.metrics.items() if not name.startswith("system/")} if run else {}
