"""`merge REF`: an adapter folded into its base, as a model of its own, which proves that it speaks as the two did."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from transformers import AutoTokenizer

from loradock.registry import artifact, gates, history, promotion
from loradock.registry.base import LocalBase, identify
from loradock.registry.errors import BadInput, GateFailed, Refused
from loradock.registry.records import Record, Version
from loradock.registry.refs import PRODUCTION, AliasRef, VersionRef, parse_name
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer import base
from loradock.trainer.evaluation import contestants
from loradock.trainer.recipe import Recipe
from loradock.trainer.weights import child, likeness, losses, parents, quantized, staging, whole
from loradock.trainer.weights.child import Story
from loradock.trainer.weights.layers import Joined, Layers, Source, worn
from loradock.trainer.weights.likeness import Likeness
from loradock.trainer.weights.losses import Bench, plainly
from loradock.trainer.weights.parents import Parent
from loradock.trainer.weights.quiet import quiet
from loradock.trainer.weights.shards import DTYPES, Shards
from loradock.trainer.weights.speaker import speaker

Into = Literal["full", "dequantized", "quantized"]
Say = Callable[[str], None]

BOUNDS: Final = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}
"""By precision: how far any logit may be from that of base and adapter, in standard deviations over the vocabulary."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to fold into what."""

    ref: VersionRef | AliasRef
    base: str | None = None
    """Where the base is; None for what the version says of it."""
    out: Path | None = None
    into: Into | None = None
    """What the weights are added to; None for what the version was trained on, where that is not quantised."""
    dtype: str | None = None
    """None for that of the base's files."""
    name: str | None = None
    """The family; None for NAME-merged."""
    data: str | None = None
    limit: int | None = None
    forced: str = ""
    """Why a refusal is overridden; empty where it is not."""


class Merged(Record):
    """What came of it."""

    version: str
    digest: str
    parent: str
    base: str
    into: Into
    dtype: str
    bytes: int
    likeness: Likeness
    """Of the merged model to base and adapter; both compute in float32."""
    losses: dict[str, float]
    """Held-out loss in nats a token, of what was measured."""
    forced: str = ""
    """Why a refusal was overridden; empty where it was not forced."""


def merge(task: Task, settings: Settings, say: Say) -> Merged:
    """Fold a version into its base, prove it, and register the model; nothing stays of what is refused or killed.

    The weights are written one file of the base at a time. Raises Refused when the merged model speaks otherwise than
    base and adapter, when the family's policy asks for an evaluation that is not there, and for a merge into quantised
    layers, unless forced; BadInput, NotFound, DigestMismatch, WrongBase, and LoradockError for a full disk.
    """
    store = Store(settings)
    version = promotion.resolve(store, task.ref)
    name = parse_name(task.name or f"{version.ref.name}-merged")
    store.usable(name)
    trained = store.parameters_of(version.facts.run_id)
    recipe = contestants.as_trained(version, trained)
    into = _into(task, version)
    if not task.forced:
        _evaluated(store, version)
    local = contestants.base_of(version, task.base, settings)
    shards = Shards(local.path)
    dtype = task.dtype or shards.dtype
    _check_room(task, store, shards.size(dtype))
    rows = losses.bench(task.data, version, trained, task.limit, say)
    with quiet(), parents.opened(store, version, local) as parent, staging.staged(task.out) as directory:
        say(f"{version.ref} goes into {local.base.id}, in {dtype}")
        source = _write(parent, local, recipe, into, directory, dtype)
        like = _likeness(parent, local, source, directory)
        if like.relative > BOUNDS[dtype] and not task.forced:
            raise _unlike(like, dtype)
        outcome = Merged(
            version="",
            digest=artifact.write_manifest(directory).digest,
            parent=str(version.ref),
            base=local.base.id,
            into=into,
            dtype=dtype,
            bytes=sum(path.stat().st_size for path in directory.iterdir()),
            likeness=like,
            losses=_losses(rows, parent, local, recipe, directory, into),
            forced=task.forced,
        )
        facts = version.facts.model_copy(
            update={
                "digest": outcome.digest,
                "base": version.facts.base.model_copy(update={"quantization": "none"}),
                "method": parents.MERGED,
                "rank": 0,
                "parents": (str(version.ref),),
            }
        )
        made = child.add(store, name, directory, facts, _story(outcome), say, task.base)
    return outcome.model_copy(update={"version": str(made.ref)})


def _into(task: Task, version: Version) -> Into:
    held = version.facts.base.quantization
    if held == "none":
        if task.into not in (None, "full"):
            raise BadInput(f"{version.ref} was trained on a base that was not quantised", hint="leave --into out")
        return "full"
    if task.into is None:
        raise BadInput(
            f"{version.ref} was trained on a base in {held}: say what it goes into",
            hint="--into dequantized is exactly what was trained; --into full is often better; --data shows the loss "
            "of both",
        )
    if task.into == "quantized" and not task.forced:
        raise Refused(
            f"merged into layers in {held}, the weights are rounded to {held} again, and most of the training is lost",
            hint="take --into dequantized or --into full; --force --reason WHY does it all the same",
        )
    return task.into


def _evaluated(store: Store, version: Version) -> None:
    """Raise GateFailed where the family's policy for production asks for figures that the version does not show."""
    verdicts = gates.judge(store, history.read(store, version.ref.name), version, PRODUCTION)
    asked = [verdict for verdict in verdicts if not verdict.rule.startswith(("tags.", "min_hours."))]
    if any(not verdict.passed for verdict in asked):
        error = GateFailed(str(version.ref), PRODUCTION, [str(verdict) for verdict in asked])
        error.hint = "evaluate it on held-out data first, as the policy asks; --force --reason WHY merges it unproven"
        raise error


def _check_room(task: Task, store: Store, size: int) -> None:
    """The files beside --out or in TMPDIR, the store's copy where that is here, and one more that is hashed."""
    aside = Path(tempfile.gettempdir())
    needs = {aside: size} if task.out else {aside: 2 * size}
    if task.out:
        needs[task.out.absolute().parent] = needs.get(task.out.absolute().parent, 0) + size
    if not store.settings.tracking_uri:
        needs[store.settings.artifacts] = size
    staging.check_room(needs)


def _write(parent: Parent, local: LocalBase, recipe: Recipe, into: Into, out: Path, dtype: str) -> Source | None:
    """Write the merged model, and return what gives the weights that it was merged into; None for the base's own."""
    shards = Shards(local.path)
    source = None if into == "full" else _as_held(shards, recipe)
    if into == "quantized":
        model = worn(base.load(local, recipe).model, parent.directory)
        whole.save(model.merge_and_unload(), out)
        shards.copy_beside(out, LocalBase(out, local.base).config)
        return source
    try:
        layers = Layers(local, parent.directory, parent.method, source)
    except Joined:
        whole.merge(local, parent.directory, source, out, dtype)
        shards.copy_beside(out, LocalBase(out, local.base).config | {"dtype": dtype})
        return source

    def changed(name: str) -> torch.Tensor | None:
        after = layers.after(name)
        return source(layers.held_as(name)) if after is None and source else after

    untied = layers.untied
    shards.rewrite(out, changed, dtype, untied)
    shards.copy_beside(out, {"dtype": dtype} | ({"tie_word_embeddings": False} if untied else {}))
    return source


def _as_held(shards: Shards, recipe: Recipe) -> Source | None:
    """The base's weights as the training held them."""
    if recipe.quantization is None:
        return None
    dtype = DTYPES.get(recipe.training.dtype) or base.best_dtype()
    return quantized.source(shards.directory, shards.read, recipe.quantization, dtype)


def _likeness(parent: Parent, local: LocalBase, source: Source | None, directory: Path) -> Likeness:
    tokenizer = AutoTokenizer.from_pretrained(local.path)
    expected = likeness.listen(speaker(local, parent.directory, parent.method, source), tokenizer)
    merged = LocalBase(directory, identify(directory, base_id=local.base.id))
    return likeness.compare(expected, likeness.listen(speaker(merged), tokenizer))


def _unlike(like: Likeness, dtype: str) -> Refused:
    return Refused(
        f"the merged model speaks otherwise than base and adapter: a logit differs by {like.largest:.2g}, "
        f"{like.relative:.2g} standard deviations, and {like.same_answers} of {like.answers} answers are the same; "
        f"the bound for {dtype} is {BOUNDS[dtype]:g}",
        hint="nothing was registered; take a wider --dtype, or --force --reason WHY",
    )


def _losses(
    rows: Bench | None, parent: Parent, local: LocalBase, recipe: Recipe, directory: Path, into: Into
) -> dict[str, float]:
    """Of the base and the adapter apart, held in each way that it can be merged into, and of the merged model."""
    if rows is None:
        return {}
    plain, apart = plainly(recipe), {"full": parent.directory}
    found = rows.losses(local, plain, apart)
    if recipe.quantization:
        held = rows.losses(local, recipe, {"dequantized": parent.directory})
        found |= {"base as trained": held["base"], "dequantized": held["dequantized"]}
    merged = LocalBase(directory, identify(directory, base_id=local.base.id))
    return found | {f"merged into {into}": rows.losses(merged, plain, {})["base"]}


def _story(outcome: Merged) -> Story:
    like = outcome.likeness
    return Story(
        title=f"merge {outcome.parent}",
        parameters={
            "merge.parent": outcome.parent,
            "merge.base": outcome.base,
            "merge.into": outcome.into,
            "merge.dtype": outcome.dtype,
            "merge.bound": str(BOUNDS[outcome.dtype]),
            **({"merge.forced": outcome.forced} if outcome.forced else {}),
        },
        metrics={
            "merge.largest": like.largest,
            "merge.relative": like.relative,
            "merge.kl": like.kl,
            "merge.same_answers": float(like.same_answers),
            **{f"loss/{key}": value for key, value in outcome.losses.items()},
        },
        report=outcome.canonical(),
    )
