"""`merge A B ...`: several LoRA adapters of one base as one, by PEFT's add_weighted_adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from loradock.registry import artifact, check
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput, NotServable, Refused, first_line
from loradock.registry.records import Base
from loradock.trainer.weights.layers import FAULTS, copied, skeleton
from loradock.trainer.weights.parents import Parent

PRUNING: Final = (
    *("ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd"),
    *("magnitude_prune", "magnitude_prune_svd"),
)
"""Methods that leave out a part of the weights: TIES (https://arxiv.org/abs/2306.01708), DARE
(https://arxiv.org/abs/2311.03099), and by magnitude."""
METHODS: Final = ("cat", "svd", "linear", *PRUNING)
DENSITY: Final = 0.5
"""The share of weights that a pruning method keeps, where nothing else is said."""

_MIXED: Final = "mixed"
_EQUAL_RANKS: Final = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
"""Methods that add A to A and B to B."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How adapters are combined."""

    method: str = ""
    weights: tuple[float, ...] = ()
    density: float | None = None
    """The share of weights that is kept; None for a method that leaves out none."""
    rank: int | None = None
    """Of an `svd` method's result; None for the largest of the parents'."""
    seed: int = 0
    """DARE draws what it leaves out."""

    def parameters(self) -> dict[str, str]:
        """As a run's params."""
        found = {"method": self.method, "weights": ", ".join(f"{weight:g}" for weight in self.weights)}
        found |= {"density": f"{self.density:g}"} if self.density is not None else {}
        found |= {"rank": str(self.rank)} if self.rank is not None else {}
        return {f"combine.{key}": value for key, value in {**found, "seed": str(self.seed)}.items()}


def plan(method: str | None, mix: Mix, ranks: Sequence[int], limit: int) -> Mix:
    """The mix that is meant, for parents of these ranks and a server that takes ranks up to `limit`.

    `mix` holds what was said, without weights where none were. By default the method is `cat`, which is exact, or
    `svd` to the limit where the ranks add up to more. Raises BadInput with every fault.
    """
    rank = mix.rank
    if method is None:
        method = "cat" if rank is None and sum(ranks) <= limit else "svd"
        rank = limit if rank is None and method == "svd" else rank
    if method not in METHODS:
        raise BadInput(f"there is no method {method!r}", hint=f"these are: {', '.join(METHODS)}")
    meant = replace(mix, method=method, rank=rank, weights=mix.weights or (1 / len(ranks),) * len(ranks))
    if problems := list(_faults(meant, ranks, limit)):
        raise BadInput("these cannot be combined so", problems=problems)
    return replace(meant, density=DENSITY) if method in PRUNING and mix.density is None else meant


def _faults(mix: Mix, ranks: Sequence[int], limit: int) -> Iterator[str]:
    method, density = mix.method, mix.density
    if len(mix.weights) != len(ranks):
        yield f"--weights has {len(mix.weights)} for {len(ranks)} versions"
    if not all(map(math.isfinite, mix.weights)) or not any(mix.weights):
        yield "--weights must be finite, and not all 0"
    if density is not None and method not in PRUNING:
        yield f"--density is for {', '.join(PRUNING)}; {method} leaves out nothing"
    if density is not None and not 0 < density <= 1:
        yield f"--density is {density:g}, and such a share is above 0 and at most 1"
    if mix.rank is not None and not method.endswith("svd"):
        yield f"--rank is for the methods with svd; {method} gives a rank of its own"
    if method in _EQUAL_RANKS and len(set(ranks)) > 1:
        yield f"{method} adds matrices of equal rank, and these have {', '.join(map(str, ranks))}: take cat or svd"
    found = sum(ranks) if method == "cat" else mix.rank or max(ranks)
    if found > limit:
        yield f"the result would have rank {found}, and the limit is {limit}: take svd with a --rank"


def rank_of(parent: Parent) -> int:
    """A parent's largest rank; raises Refused for what is no plain LoRA."""
    if not parent.is_plain:
        converts = {found.remedy for found in parent.found.blocking} == {"convert"}
        raise Refused(
            f"{parent.name} cannot be combined: {'; '.join(found.text for found in parent.found.blocking)}",
            hint=f"make it plain LoRA first: loradock convert {parent.name}"
            if converts
            else "only plain LoRA can be added; leave it out",
        )
    return check.largest_rank(check.read_config(parent.directory))


class Mixer:
    """Parents on one base, whose weights are not read: what is added does not depend on them."""

    def __init__(self, local: LocalBase, parents: Sequence[Parent]) -> None:
        self._names = [str(number) for number in range(len(parents))]
        self._base = parents[0].version.facts.base
        self._shapes = check.read_shapes(local.path)
        bare = skeleton(local.path, {name for parent in parents for name in copied(parent.directory)})
        try:
            self._model: Any = PeftModel.from_pretrained(bare, parents[0].directory, adapter_name=self._names[0])
            for name, parent in zip(self._names[1:], parents[1:], strict=True):
                self._model.load_adapter(parent.directory, adapter_name=name)
        except (*FAULTS, OSError) as error:
            raise BadInput(f"PEFT cannot load these adapters together: {first_line(error)}") from error

    def mix(self, how: Mix, out: Path) -> float:
        """Write the combination to `out`, with its manifest, and return its error.

        That is the Frobenius norm, over all layers, of its change of weights less the weighted sum of the parents', in
        shares of the latter. Raises BadInput where PEFT refuses, and NotServable where the doctor does.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(how.seed)
            try:
                self._model.add_weighted_adapter(
                    self._names,
                    list(how.weights),
                    _MIXED,
                    combination_type=how.method,
                    svd_rank=how.rank,
                    svd_full_matrices=False,
                    density=how.density,
                )
            except FAULTS as error:
                raise BadInput(f"PEFT cannot combine these: {first_line(error)}") from error
        try:
            apart = self._error(how.weights)
            self._save(out)
        finally:
            self._model.delete_adapter(_MIXED)
        found = check.examine(out, base=self._shapes)
        if found.blocking:
            raise NotServable("the combination", [finding.text for finding in found.blocking])
        return apart

    def _error(self, weights: Sequence[float]) -> float:
        apart = whole = 0.0
        for _, layer in self._layers():
            there = [name for name in self._names if name in layer.lora_A or name in layer.lora_embedding_A]
            if not there:
                continue
            with torch.no_grad():
                true = sum(weights[int(name)] * layer.get_delta_weight(name).double() for name in there)
                mixed = 0.0
                if _MIXED in layer.lora_A or _MIXED in layer.lora_embedding_A:
                    mixed = layer.get_delta_weight(_MIXED).double() / layer.scaling[_MIXED]
                apart += float((true - mixed).square().sum())
                whole += float(torch.as_tensor(true).square().sum())
        return math.sqrt(apart / whole) if whole else 0.0

    def _save(self, out: Path) -> None:
        """The matrices as they are, with a scaling of 1, which is folded in: PEFT leaves a parent's use_rslora on."""
        tensors = dict[str, torch.Tensor]()
        for name, layer in self._layers():
            if _MIXED in layer.lora_A:
                tensors[f"{name}.lora_A.weight"] = layer.lora_A[_MIXED].weight
                tensors[f"{name}.lora_B.weight"] = layer.lora_B[_MIXED].weight
            elif _MIXED in layer.lora_embedding_A:
                tensors[f"{name}.lora_embedding_A"] = layer.lora_embedding_A[_MIXED]
                tensors[f"{name}.lora_embedding_B"] = layer.lora_embedding_B[_MIXED]
        save_file(
            {name: value.detach().float().contiguous() for name, value in tensors.items()}, out / artifact.WEIGHTS
        )
        found = self._model.peft_config[_MIXED]
        write_config(out, self._base, found.r, found.target_modules, layers=found.layers_to_transform)

    def _layers(self) -> Iterator[tuple[str, Any]]:
        for name, layer in self._model.named_modules():
            if isinstance(layer, LoraLayer):
                yield name, layer


def write_config(out: Path, base: Base, rank: int, targets: Any, *, layers: Any = None) -> None:
    """Write the configuration of plain LoRA with a scaling of 1, and the manifest."""
    LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        target_modules=targets,
        layers_to_transform=layers,
        base_model_name_or_path=base.id,
        revision=base.revision or None,
        inference_mode=True,
    ).save_pretrained(out)
    artifact.canonicalise(out)
    artifact.write_manifest(out)
