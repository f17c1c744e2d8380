"""Training adapters, measuring them, and making others of them: what takes the extra `train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr

from loradock.api import Ref, Report, forced, logged, open_store, parsed
from loradock.registry import refs
from loradock.registry.errors import BadInput
from loradock.registry.secret import NO_KEY
from loradock.registry.store import Store
from loradock.trainer import data as rows_of
from loradock.trainer import dialects
from loradock.trainer.data import Rows
from loradock.trainer.recipe_file import RecipeFile

if TYPE_CHECKING:  # they import torch
    from loradock.trainer.evaluation.run import Outcome as EvaluationOutcome
    from loradock.trainer.run import Outcome as TrainingOutcome
    from loradock.trainer.weights.combination import Combined
    from loradock.trainer.weights.convert import Converted
    from loradock.trainer.weights.fold import Merged


def load_recipe(path: str | Path, *, report: Report = logged) -> RecipeFile:
    """Read a recipe: ours, Axolotl's or LLaMA-Factory's.

    Args:
        path: The YAML file.
        report: Called with each line on what a translation changes.

    Returns:
        The recipe as `recipe`, with its text and its directory.

    Raises:
        BadInput: The recipe has faults; `problems` has every one, with its line.
        NotFound: There is no such file.
    """
    return dialects.load(Path(path), report)


def load_data(recipe: str | Path | RecipeFile, *, report: Report = logged) -> Rows:
    """Read the rows of a recipe.

    Args:
        recipe: The recipe, or its YAML file.
        report: Called with each line on what a translation of the recipe changes.

    Returns:
        The rows in order, and what identifies them.

    Raises:
        BadInput: Rows have faults; `problems` has every one, with its place.
        NotFound: There is no such file.
        Unreachable: The Hub does not answer.
    """
    source = _recipe(recipe, report)
    return rows_of.load(source.recipe.data, source.directory)


def train(
    recipe: str | Path | RecipeFile, *, resume: bool = False, store: Store | None = None, report: Report = logged
) -> TrainingOutcome:
    """Train an adapter in this process, and log the run to MLflow.

    Args:
        recipe: The recipe, or its YAML file.
        resume: Go on with a run of this recipe that was interrupted on this machine.
        store: The registry; by default the one that the environment names.
        report: Called with each line of progress.

    Returns:
        The run, its losses in nats a token, and the adapter's digest. `register` makes a version of the run.

    Raises:
        BadInput: The recipe or its rows have faults, or several processes were started.
        LoradockError: The training diverged, or memory ran out.
        NotFound: There is no such recipe, data or base.
        Unreachable: The Hub or the registry does not answer.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise BadInput(
            "loradock.train trains in one process, and torchrun or accelerate started several",
            hint="loradock train RECIPE --processes N",
        )
    source = _recipe(recipe, report)
    rows = load_data(source)
    from loradock.trainer import run

    outcome = run.train(source, rows, (store or open_store()).settings, report, resume=resume)
    assert outcome is not None  # noqa: S101 - the only process is the main one
    return outcome


def evaluate(
    ref: Ref,
    data: str,
    *,
    metrics: Sequence[str] = ("loss",),
    against: str | None = None,
    base_model: str | None = None,
    endpoint: str | None = None,
    api_key: SecretStr = NO_KEY,
    max_new_tokens: int = 256,
    limit: int | None = None,
    samples: bool = True,
    store: Store | None = None,
    report: Report = logged,
) -> EvaluationOutcome:
    """Measure a version, the incumbent and the base on the same rows, and log it to MLflow as evidence.

    Args:
        ref: The version, or an alias that names it.
        data: Rows that it never saw: a file, a directory, or ORG/NAME on the Hub.
        metrics: `loss`, `perplexity`, `exact_match`, `rouge`, or `FILE.py:FUNCTION`, with `:lower` for a loss.
        against: The alias of the incumbent; by default `production`, where nothing may stand.
        base_model: Where the base is, when the version was trained on a directory.
        endpoint: The URL of a running `loradock serve` to ask, instead of loading the model here.
        api_key: The key of the endpoint.
        max_new_tokens: Tokens of the longest answer.
        limit: Use so many rows, from the first on.
        samples: Keep prompts and answers in MLflow beside the figures.
        store: The registry; by default the one that the environment names.
        report: Called with each line of progress.

    Returns:
        The evidence, and the differences to the incumbent and to the base with their intervals.

    Raises:
        BadInput: There is no such metric, or it fails on a row.
        DigestMismatch: The stored files are not those that were registered.
        LoradockError: Memory ran out.
        NotFound: There is no such version, data or base.
        Unreachable: The endpoint, the Hub or the registry does not answer.
        WrongBase: The version was trained on another base.
    """
    from loradock.trainer.evaluation import metrics as metrics_of
    from loradock.trainer.evaluation import run
    from loradock.trainer.evaluation.task import Task, prepare

    alias = refs.parse_alias(against) if against else None
    task = Task(
        parsed(ref),
        data,
        metrics_of.parse(metrics),
        against=alias,
        base=base_model,
        endpoint=endpoint,
        api_key=api_key,
        new_tokens=max_new_tokens,
        limit=limit,
        texts=samples,
    )
    return run.evaluate(prepare(task, (store or open_store()).settings, report), report)


def merge(
    ref: Ref,
    *,
    name: str | None = None,
    base_model: str | None = None,
    out: str | Path | None = None,
    into: Literal["full", "dequantized", "quantized"] | None = None,
    dtype: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    force: bool = False,
    reason: str = "",
    store: Store | None = None,
    report: Report = logged,
) -> Merged:
    """Merge a version into its base, compare the model with base and adapter, and register it.

    Args:
        ref: The version, or an alias that names it.
        name: The adapter to add the model to; by default NAME-merged.
        base_model: Where the base is, when the version was trained on a directory.
        out: A directory that keeps the model too.
        into: What the weights are added to, for a version that was trained on a quantised base: the base's own weights,
            these as they were in training, or the quantised layers, which needs `force`.
        dtype: `float32`, `bfloat16` or `float16`; by default that of the base's files.
        data: Held-out rows to measure the loss on.
        limit: Use so many of these rows, from the first on.
        force: Merge in spite of a refusal; needs a reason.
        reason: Why.
        store: The registry; by default the one that the environment names.
        report: Called with each line of progress.

    Returns:
        The version of the model, and how far it is from base and adapter.

    Raises:
        BadInput: An argument does not fit the version.
        DigestMismatch: The stored files are not those that were registered.
        NotFound: There is no such version or base.
        Refused: The model answers otherwise than base and adapter, or the adapter's policy asks for an evaluation.
        WrongBase: The version was trained on another base.
    """
    why = forced(force, reason)
    from loradock.trainer.weights import fold

    task = fold.Task(
        parsed(ref),
        base=base_model,
        out=None if out is None else Path(out),
        into=into,
        dtype=dtype,
        name=name,
        data=data,
        limit=limit,
        forced=why,
    )
    return fold.merge(task, (store or open_store()).settings, report)


def combine(
    versions: Sequence[Ref],
    name: str,
    *,
    method: str | None = None,
    weights: Sequence[float] | Sequence[Sequence[float]] = (),
    density: float | Sequence[float] = (),
    rank: int | None = None,
    max_rank: int = 512,
    seed: int = 0,
    sweep: bool = False,
    base_model: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    store: Store | None = None,
    report: Report = logged,
) -> Combined:
    """Combine versions of plain LoRA on one base into a new version.

    Args:
        versions: The versions, or aliases that name them.
        name: The adapter to add the result to.
        method: `cat`, `svd`, `linear`, `ties`, `dare_ties` and others; by default `cat`.
        weights: The weight of each version, by default equal ones; several such for a sweep.
        density: The share of values that a pruning method keeps, by default 0.5; several for a sweep.
        rank: The rank of the result of an svd method.
        max_rank: The server's `--max-lora-rank`.
        seed: Of the random numbers of dare.
        sweep: Try all weights with all densities, and keep what has the lowest loss on `data`.
        base_model: Where the base is, when the versions were trained on a directory.
        data: Held-out rows to measure the loss on.
        limit: Use so many of these rows, from the first on.
        store: The registry; by default the one that the environment names.
        report: Called with each line of progress.

    Returns:
        The version, and its error against the weighted sum of what the versions add.

    Raises:
        BadInput: An argument does not fit the versions.
        DigestMismatch: The stored files of one are not those that were registered.
        NotFound: There is no such version or base.
        NotServable: vLLM could not serve the result.
        Refused: A version is no plain LoRA.
        WrongBase: The versions were trained on different bases.
    """
    from loradock.trainer.weights import combination

    task = combination.Task(
        tuple(parsed(ref) for ref in versions),
        name,
        base=base_model,
        method=method,
        weights=_grid(weights),
        densities=(density,) if isinstance(density, int | float) else tuple(density),
        rank=rank,
        limit=max_rank,
        seed=seed,
        sweep=sweep,
        data=data,
        rows=limit,
    )
    return combination.combine_versions(task, (store or open_store()).settings, report)


def convert(
    ref: Ref,
    *,
    name: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    bound: float = 0.05,
    base_model: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    store: Store | None = None,
    report: Report = logged,
) -> Converted:
    """Make plain LoRA, which vLLM serves, of an adapter of another method; or lower the rank of plain LoRA.

    Args:
        ref: The version, or an alias that names it.
        name: The adapter to add the result to; by default NAME-lora.
        rank: The rank of the result.
        energy: Instead of a rank, the share of the squared change of weights to keep; by default 0.9999, to rank 64.
        bound: The share of the adapter's effect that may be lost, by the divergence of the next token on probe texts.
        base_model: Where the base is, when the version was trained on a directory.
        data: Held-out rows to measure the loss on.
        limit: Use so many of these rows, from the first on.
        store: The registry; by default the one that the environment names.
        report: Called with each line of progress.

    Returns:
        The version, its rank, and what was lost: of each layer's weights as `errors`, of the effect as `lost`.

    Raises:
        BadInput: The version is plain LoRA already, or both `rank` and `energy` are given.
        DigestMismatch: The stored files are not those that were registered.
        NotFound: There is no such version or base.
        NotServable: vLLM could not serve the result.
        Refused: The method changes no weight, or more is lost than `bound`.
        WrongBase: The version was trained on another base.
    """
    if rank and energy:
        raise BadInput("rank and energy exclude each other")
    from loradock.trainer.weights import convert as conversion

    task = conversion.Task(
        parsed(ref), rank=rank, energy=energy, name=name, base=base_model, data=data, rows=limit, bound=bound
    )
    return conversion.convert(task, (store or open_store()).settings, report)


def _recipe(recipe: str | Path | RecipeFile, report: Report) -> RecipeFile:
    return recipe if isinstance(recipe, RecipeFile) else load_recipe(recipe, report=report)


def _grid(weights: Sequence[float] | Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Weights as a sweep takes them: each a tuple of one for each version."""
    grid: list[tuple[float, ...]] = []
    alone: list[float] = []
    for each in weights:
        if isinstance(each, int | float):
            alone.append(each)
        else:
            grid.append(tuple(each))
    return (*grid, tuple(alone)) if alone else tuple(grid)
