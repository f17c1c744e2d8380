"""A combination of versions as a version: found, combined, measured where rows are given, and registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loradock.registry import promotion
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, WrongBase
from loradock.registry.records import Record, Version
from loradock.registry.refs import AliasRef, VersionRef, parse_name
from loradock.registry.scratch import scratch
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.versions import describe
from loradock.trainer.evaluation import contestants
from loradock.trainer.weights import child, combine, losses, parents, sweep
from loradock.trainer.weights.child import Story
from loradock.trainer.weights.combine import Mix, Mixer
from loradock.trainer.weights.quiet import quiet
from loradock.trainer.weights.sweep import Point, Tried

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Task:
    """What to combine, and how."""

    refs: tuple[VersionRef | AliasRef, ...]
    name: str
    base: str | None = None
    method: str | None = None
    weights: tuple[tuple[float, ...], ...] = ()
    """One for each version; several such only for a sweep."""
    densities: tuple[float, ...] = ()
    rank: int | None = None
    limit: int = 512
    """The largest rank that the server takes."""
    seed: int = 0
    sweep: bool = False
    data: str | None = None
    rows: int | None = None
    """How many rows are measured on; None for all."""


class Combined(Record):
    """What came of it."""

    version: str
    digest: str
    parents: tuple[str, ...]
    method: str
    weights: tuple[float, ...]
    density: float | None
    rank: int
    seed: int
    error: float
    """Of its change of weights, to the weighted sum of the parents', relative Frobenius."""
    losses: dict[str, float]
    """Held-out loss in nats a token; empty without rows."""
    grid: tuple[Tried, ...]
    """What a sweep tried."""


def combine_versions(task: Task, settings: Settings, say: Say) -> Combined:
    """Combine versions into a new one, whose parents they are; nothing stays of what is refused or killed.

    Raises BadInput, WrongBase for parents on different bases, Refused for a parent that is no plain LoRA, NotFound,
    DigestMismatch, or NotServable where the doctor refuses the result.
    """
    parse_name(task.name)
    if not task.sweep and (len(task.weights) > 1 or len(task.densities) > 1):
        raise BadInput("several --weights or --density make a grid", hint="add --sweep with --data to try them all")
    if task.sweep and not task.data:
        raise BadInput("--sweep needs --data", hint="give held-out rows, by whose loss the best is chosen")
    store = Store(settings)
    store.usable(task.name)
    versions = [promotion.resolve(store, ref) for ref in task.refs]
    _on_one_base(versions)
    local = contestants.base_of(versions[0], task.base, settings)
    trained = store.parameters_of(versions[0].facts.run_id)
    bench = losses.bench(task.data, versions[0], trained, task.rows, say)
    with quiet(), ExitStack() as stack:
        found = [stack.enter_context(parents.opened(store, version, local)) for version in versions]
        ranks = [combine.rank_of(parent) for parent in found]
        mixes = _mixes(task, ranks)
        mixer = Mixer(local, found)
        directory = stack.enter_context(scratch())
        tried = sweep.run(mixer, mixes, directory)
        measured: dict[str, float] = {}
        if bench:
            recipe = contestants.as_trained(versions[0], trained)
            tried, measured = sweep.measure(tried, found, bench, local, recipe)
        best = min(tried, key=lambda point: point.loss) if bench else tried[0]
        return _register(store, task, versions, tried, best, measured, local, say)


def _on_one_base(versions: Sequence[Version]) -> None:
    first = versions[0]
    for version in versions[1:]:
        if not version.facts.base.same_weights(first.facts.base):
            given = f"{first.facts.base.id} like {first.ref}"
            raise WrongBase(
                str(version.ref),
                trained_on=version.facts.base.id,
                given=given,
                hint="only adapters of one base can be added: train it on this base",
            )


def _mixes(task: Task, ranks: Sequence[int]) -> tuple[Mix, ...]:
    weights, densities = task.weights, task.densities
    if task.sweep:
        weights = weights or sweep.weights(len(ranks))
        if not densities and task.method in combine.PRUNING:
            densities = sweep.DENSITIES
    return tuple(
        combine.plan(task.method, Mix("", each, density, task.rank, task.seed), ranks, task.limit)
        for each in weights or ((),)
        for density in densities or (None,)
    )


def _register(
    store: Store,
    task: Task,
    versions: Sequence[Version],
    tried: Sequence[Point],
    best: Point,
    measured: dict[str, float],
    local: LocalBase,
    say: Say,
) -> Combined:
    refs = tuple(str(version.ref) for version in versions)
    digests = {version.facts.data_digest for version in versions}
    facts = describe(
        Path(best.directory),
        versions[0].facts.base,
        run_id="",
        data_digest=digests.pop() if len(digests) == 1 else "",
        text=versions[0].facts.text if len({version.facts.text for version in versions}) == 1 else None,
    ).model_copy(update={"parents": refs})
    mix = best.mix
    outcome = Combined(
        version="",
        digest=facts.digest,
        parents=refs,
        method=mix.method,
        weights=mix.weights,
        density=mix.density,
        rank=facts.rank,
        seed=mix.seed,
        error=best.error,
        losses=measured,
        grid=tuple(point.told() for point in tried) if len(tried) > 1 else (),
    )
    story = Story(
        title=f"combine {', '.join(refs)}",
        parameters={"combine.parents": ", ".join(refs), "combine.base": local.base.id, **mix.parameters()},
        metrics={"combine.error": best.error, **{f"loss/{key}": value for key, value in measured.items()}},
        report=outcome.canonical(),
        figures={"sweep.png": sweep.plot(tried, measured, refs)} if len(tried) > 1 else {},
    )
    made = child.add(store, task.name, Path(best.directory), facts, story, say, task.base)
    return outcome.model_copy(update={"version": str(made.ref)})
