"""`convert REF`: an adapter of another method as plain LoRA that vLLM serves.

What the adapter makes of each weight, less that weight, is cut to its largest singular directions. That is exact where
the change has no higher rank, and the best of that rank otherwise (Eckart and Young, 1936,
https://doi.org/10.1007/BF02288367).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from loradock.registry import artifact, check, promotion
from loradock.registry.base import LocalBase
from loradock.registry.check.findings import some
from loradock.registry.check.names import ROOT
from loradock.registry.errors import BadInput, NotServable, Refused
from loradock.registry.records import Record
from loradock.registry.refs import AliasRef, VersionRef, parse_name
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.versions import describe
from loradock.trainer.evaluation import contestants
from loradock.trainer.weights import child, likeness, losses, parents, staging
from loradock.trainer.weights.child import Story
from loradock.trainer.weights.combine import write_config
from loradock.trainer.weights.layers import Joined, Layers
from loradock.trainer.weights.likeness import Likeness
from loradock.trainer.weights.losses import plainly
from loradock.trainer.weights.parents import Parent
from loradock.trainer.weights.quiet import quiet
from loradock.trainer.weights.speaker import speaker

Say = Callable[[str], None]

ENERGY: Final = 0.9999
"""The share of the squared change of weights that is kept, where neither rank nor energy is said: an error of 1 %."""
RANK: Final = 64
"""The largest rank that is chosen where neither is said."""
BOUND: Final = 0.05
"""The share of an adapter's effect that may be lost."""

_NOISE: Final = 1e-9  # nats; two runs of the same weights differ by less


@dataclass(frozen=True, slots=True)
class Task:
    """What to convert, and how closely."""

    ref: VersionRef | AliasRef
    rank: int | None = None
    energy: float | None = None
    name: str | None = None
    """The family; None for NAME-lora."""
    base: str | None = None
    data: str | None = None
    rows: int | None = None
    bound: float = BOUND
    """The largest share of the effect, by divergence, that may be lost."""


class Converted(Record):
    """What came of it."""

    version: str
    digest: str
    parent: str
    method: str
    rank: int
    error: float
    """Of the change of weights over all layers, relative Frobenius."""
    errors: Mapping[str, float]
    """The same of each layer."""
    likeness: Likeness
    """Of the converted to the original, on the base in float32."""
    effect: float
    """Divergence of the bare base from the original, in nats, to hold `likeness.kl` against."""
    losses: Mapping[str, float]
    """Held-out loss in nats a token; empty without rows."""

    @property
    def lost(self) -> float:
        """The share of the adapter's effect that is lost, by divergence."""
        return 0.0 if self.likeness.kl <= _NOISE else self.likeness.kl / max(self.effect, _NOISE)


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter adds to a layer's weight, by its singular directions, the largest first."""

    squares: torch.Tensor
    """Squared singular values, all of them."""
    left: torch.Tensor
    """outputs x kept, orthonormal."""
    right: torch.Tensor
    """kept x inputs: `left` transposed, times the change."""
    embedding: bool = False
    """Whether the layer is an embedding, whose inputs are tokens."""

    def error(self, rank: int) -> float:
        """Of the best approximation of a rank, relative Frobenius."""
        whole = float(self.squares.sum())
        return math.sqrt(float(self.squares[rank:].sum()) / whole) if whole else 0.0

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """B and A of a rank, filled up with zeros, each with the root of the singular values."""
        kept = min(rank, self.left.shape[1])
        root = self.squares[:kept].clamp_min(0).sqrt().sqrt()
        scale = torch.where(root > 0, root, 1.0)
        b, a = self.left[:, :kept] * root, self.right[:kept] / scale[:, None]
        pad = rank - kept
        b, a = torch.nn.functional.pad(b, (0, pad)), torch.nn.functional.pad(a, (0, 0, 0, pad))
        return b.float().contiguous(), a.float().contiguous()


def convert(task: Task, settings: Settings, say: Say) -> Converted:
    """Make a plain LoRA version of another method's; nothing stays of what is refused or killed.

    Raises BadInput for a version that is plain LoRA already, Refused where the method changes no weight, or something
    else than linear layers, or where more is lost than the bound; NotFound, DigestMismatch, WrongBase, NotServable.
    """
    store = Store(settings)
    version = promotion.resolve(store, task.ref)
    name = parse_name(task.name or f"{version.ref.name}-lora")
    store.usable(name)
    trained = store.parameters_of(version.facts.run_id)
    local = contestants.base_of(version, task.base, settings)
    bench = losses.bench(task.data, version, trained, task.rows, say)
    with quiet(), parents.opened(store, version, local) as parent, staging.staged(None) as directory:
        errors, total = _write(parent, local, task, directory)
        found = check.examine(directory, base=check.read_shapes(local.path))
        if found.blocking:
            raise NotServable(f"{version.ref}, converted,", [finding.text for finding in found.blocking])
        facts = describe(directory, version.facts.base, run_id="", data_digest=version.facts.data_digest)
        facts = facts.model_copy(update={"parents": (str(version.ref),), "text": version.facts.text})
        like, effect = _likeness(parent, local, directory)
        outcome = Converted(
            version="",
            digest=facts.digest,
            parent=str(version.ref),
            method=parent.method,
            rank=facts.rank,
            error=total,
            errors=errors,
            likeness=like,
            effect=effect,
            losses={},
        )
        if outcome.lost > task.bound:
            raise _refused(outcome, task.bound)
        if bench:
            adapters = {"original": parent.directory, "converted": directory}
            measured = bench.losses(local, plainly(contestants.as_trained(version, trained)), adapters)
            outcome = outcome.model_copy(update={"losses": measured})
        made = child.add(store, name, directory, facts, _story(outcome), say, task.base)
    return outcome.model_copy(update={"version": str(made.ref)})


def _write(parent: Parent, local: LocalBase, task: Task, out: Path) -> tuple[dict[str, float], float]:
    """Write the converted adapter, and return its error by layer and over all."""
    if parent.is_plain and task.rank is None and task.energy is None:
        if not parent.mended:
            raise BadInput(
                f"{parent.name} is plain LoRA, which vLLM serves as it is", hint="give --rank to lower its rank"
            )
        for file in (artifact.CONFIG, artifact.WEIGHTS, artifact.MANIFEST):
            shutil.copyfile(parent.directory / file, out / file)
        return {}, 0.0
    most = task.rank or (check.MAX_RANK if task.energy else RANK)
    changes = dict(_changes(parent, local, most))
    if not changes:
        raise Refused(f"{parent.name} changes no weight", hint="look at it: loradock check")
    rank = task.rank or min(_rank_for(task.energy or ENERGY, list(changes.values())), most)
    tensors = dict[str, torch.Tensor]()
    for module, change in changes.items():
        b, a = change.factors(rank)
        ends = ("lora_embedding_A", "lora_embedding_B") if change.embedding else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{ROOT}{module}.{end}": matrix for end, matrix in zip(ends, (a, b), strict=True)}
    save_file(tensors, out / artifact.WEIGHTS)
    write_config(out, parent.version.facts.base, rank, _targets(list(changes), local))
    left = sum(float(change.squares[rank:].sum()) for change in changes.values())
    whole = sum(float(change.squares.sum()) for change in changes.values())
    return {module: change.error(rank) for module, change in changes.items()}, math.sqrt(left / whole)


def _changes(parent: Parent, local: LocalBase, most: int) -> Iterator[tuple[str, Change]]:
    """Every layer that the adapter changes, with up to `most` directions; raises Refused for other things."""
    merged = f"merge it into its base: loradock merge {parent.name}"
    try:
        layers = Layers(local, parent.directory, parent.method)
    except Joined as error:
        raise Refused(f"{parent.name} cannot be converted: {error}", hint=merged) from error
    others = []
    for module, before, after in layers.modules():
        for name, value in after.items():
            if torch.equal(value, before[name]):
                continue
            change = value - before[name]
            if layers.is_linear(module) and name == f"{module}.weight":
                yield module, _decomposed(change, most)
            elif layers.is_embedding(module) and name == f"{module}.weight":
                yield module, replace(_decomposed(change.T, most), embedding=True)
            else:
                others.append(name)
    if others:
        raise Refused(
            f"{parent.name} changes what LoRA does not add to: {some(others)}",
            hint=merged,
        )


def _decomposed(change: torch.Tensor, most: int) -> Change:
    """Singular values and directions by the eigenvectors of the shorter side, which is faster than an SVD."""
    tall = change.shape[0] > change.shape[1]
    square = change.T @ change if tall else change @ change.T
    values, vectors = torch.linalg.eigh(square)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)[:, :most]
    if not tall:
        return Change(values, vectors, vectors.T @ change)
    sizes = values[: vectors.shape[1]].sqrt()
    safe = torch.where(sizes > 0, sizes, 1.0)
    return Change(values, (change @ vectors) / safe, sizes[:, None] * vectors.T)


def _rank_for(energy: float, changes: Sequence[Change]) -> int:
    """The smallest rank for all layers that keeps this share of their squared changes, added up."""
    longest = max(len(change.squares) for change in changes)
    sums = sum(torch.nn.functional.pad(change.squares, (0, longest - len(change.squares))) for change in changes)
    kept = torch.as_tensor(sums).cumsum(0)
    return int((kept < energy * kept[-1]).sum()) + 1


def _targets(modules: list[str], local: LocalBase) -> list[str]:
    """The last parts of the modules' names, or the whole names where the base has other modules of such names."""
    ends = sorted({module.rsplit(".", 1)[-1] for module in modules})
    others = set(check.read_shapes(local.path).layers) - set(modules)
    return sorted(modules) if any(other.rsplit(".", 1)[-1] in ends for other in others) else ends


def _likeness(parent: Parent, local: LocalBase, directory: Path) -> tuple[Likeness, float]:
    """Of the converted to the original, and the divergence of the bare base from the original."""
    tokenizer = AutoTokenizer.from_pretrained(local.path)
    base = likeness.listen(speaker(local), tokenizer)
    original = likeness.listen(speaker(local, parent.directory, parent.method), tokenizer)
    converted = likeness.listen(speaker(local, directory), tokenizer)
    return likeness.compare(original, converted), likeness.compare(original, base).kl


def _refused(outcome: Converted, bound: float) -> Refused:
    return Refused(
        f"at rank {outcome.rank} {outcome.lost:.1%} of what {outcome.parent} does is lost: the next token diverges by "
        f"{outcome.likeness.kl:.2g} nats, that of the bare base by {outcome.effect:.2g}; the bound is {bound:.1%} "
        f"(error of the weights {outcome.error:.2g})",
        hint=f"nothing was registered; give a higher --rank, merge it (loradock merge {outcome.parent}), or --bound",
    )


def _story(outcome: Converted) -> Story:
    like = outcome.likeness
    return Story(
        title=f"convert {outcome.parent}",
        parameters={
            "convert.parent": outcome.parent,
            "convert.method": outcome.method,
            "convert.rank": str(outcome.rank),
        },
        metrics={
            "convert.error": outcome.error,
            "convert.kl": like.kl,
            "convert.effect": outcome.effect,
            "convert.largest": like.largest,
            "convert.same_answers": float(like.same_answers),
            **{f"loss/{key}": value for key, value in outcome.losses.items()},
        },
        report=outcome.canonical(),
    )
