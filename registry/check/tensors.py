"""What the names, shapes and types of an adapter's tensors say against it, whatever its base."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from loradock.registry.artifact import TensorInfo
from loradock.registry.check.config import is_number, is_rank, replaces
from loradock.registry.check.findings import Finding, some
from loradock.registry.check.names import ROOT, TensorName
from loradock.registry.check.settings import Scaling, targets

_TYPES: Final = ("F32", "F16", "BF16")
_SMALL: Final = ("F8_E4M3", "F8_E5M2")
"""Numbers of 8 bits that PEFT reads as such."""
EMBEDDING_WEIGHTS: Final = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""Copies of the base's weights that PEFT keeps and vLLM passes over."""
_WHOLE_EMBEDDING = re.compile(
    r"(?:.+\.)?(?:embed_tokens|lm_head|wte|word_embeddings|embed_in|embed_out)(?:\.token_adapter\.base_layer)?\.weight"
)
"""Embeddings and head as PEFT keeps them where the vocabulary was resized."""
_TOLD: Final = {
    "prefix-missing": f"tensors are named without PEFT's {ROOT}",
    "prefix-doubled": f"tensors are named with {ROOT} more than once",
    "wrapper-in-names": "tensors bear a wrapper's name (DDP's module, FSDP's, torch.compile's _orig_mod)",
    "adapter-in-names": "tensors bear the adapter's name, or lack PEFT's .weight",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The two LoRA matrices of a module, by their names in the file; empty for one that is missing."""

    module: str
    a: str = ""
    b: str = ""
    embedding: bool = False


def pairs(names: Mapping[str, TensorName]) -> dict[str, Pair]:
    """Every module's LoRA matrices, by module; of two with one name the last."""
    found: dict[str, dict[str, str]] = {}
    for name, parsed in names.items():
        if parsed.side:
            found.setdefault(parsed.module, {})[parsed.part] = name
    return {
        module: Pair(
            module,
            sides.get("A") or sides.get("embedding_A", ""),
            sides.get("B") or sides.get("embedding_B", ""),
            "embedding_A" in sides or "embedding_B" in sides,
        )
        for module, sides in found.items()
    }


def in_names(config: Mapping[str, Any], names: Mapping[str, TensorName]) -> Iterator[Finding]:
    """Names that PEFT does not write, and tensors that are no LoRA matrices."""
    for code, told in _TOLD.items():
        if wrong := [name for name, parsed in names.items() if parsed.part and code in parsed.faults]:
            yield Finding(code, f"{len(wrong)} of {len(names)} {told}: {some(wrong, most=1)}", "names")
    written = Counter(parsed.written() for parsed in names.values())
    if twice := [name for name, count in written.items() if count > 1]:
        yield Finding("tensors-twice", f"it holds more than one tensor for the same matrix: {some(twice)}")
    foreign = [
        name
        for name, parsed in names.items()
        if not parsed.part
        and not name.endswith(EMBEDDING_WEIGHTS)
        and not replaces(config, parsed)
        and "trainable_tokens" not in parsed.module
        and not (parsed.module.endswith(".bias") and config.get("bias", "none") not in ("none", None))
    ]
    whole = [name for name in foreign if _WHOLE_EMBEDDING.fullmatch(names[name].module)]
    if whole:
        text = f"it holds whole embeddings, as PEFT saves them where the vocabulary was resized: {some(whole)}"
        yield Finding("embeddings-whole", text, "merge")
    if foreign := [name for name in foreign if name not in whole]:
        yield Finding("tensors-unknown", f"{len(foreign)} of its tensors are no LoRA weights: {some(foreign)}")


def in_pairs(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], found: Mapping[str, Pair]
) -> Iterator[Finding]:
    """Matrices without their other half, of impossible shapes, or of another rank than was configured."""
    if not found:
        yield Finding("no-lora-weights", "it has no LoRA weights")
        return
    if half := [pair.module for pair in found.values() if not (pair.a and pair.b)]:
        yield Finding("half-pair", f"{len(half)} modules have only one of lora_A and lora_B: {some(half)}")
    wrong: dict[str, list[str]] = {}
    scaling = scaling_of(config, found)
    for pair in found.values():
        if pair.a and pair.b and (fault := _shape_fault(scaling, pair, tensors[pair.a], tensors[pair.b])):
            wrong.setdefault(fault[0], []).append(f"{pair.module} has {fault[1]}")
    told = {
        "tensor-empty": "are empty or flat, as a sharded training leaves them that was not gathered",
        "tensor-transposed": "lie the other way round",
        "ranks-differ": "differ in the ranks of lora_A and lora_B",
        "rank-not-configured": "have another rank than the configuration says",
    }
    for code, modules in wrong.items():
        yield Finding(code, f"{len(modules)} of {len(found)} modules {told[code]}: {some(modules, most=2)}")
    if odd := sorted({tensors[name].dtype for pair in found.values() for name in (pair.a, pair.b) if name} - {*_TYPES}):
        text = f"its LoRA weights are {', '.join(odd)}, where {', '.join(_TYPES)} are usual"
        remedy = "merge" if {*odd} <= {*_SMALL, "F64"} else ""
        yield Finding("dtype-unusual", text, remedy, blocks=odd != ["F64"])
    yield from _untargeted(config, found)
    if scaling:
        yield from _as_vllm_scales(scaling, found)


def scaling_of(config: Mapping[str, Any], found: Mapping[str, Pair]) -> Scaling | None:
    """Rank and scaling of each of these modules; None for a configuration that names no rank, or not as PEFT does."""
    patterns = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    named = "r" in config and all(isinstance(pattern, dict) for pattern in patterns)
    return Scaling.of(config, found) if named else None


def _as_vllm_scales(scaling: Scaling, found: Mapping[str, Pair]) -> Iterator[Finding]:
    """Where vLLM holds the patterns against another name than PEFT (vllm/lora/peft_helper.py)."""
    apart = {}
    told = (scaling.rank, *scaling.ranks.values(), scaling.alpha, *scaling.alphas.values())
    for module in found if all(is_number(value) and value for value in told) else ():
        name, end = module, module.rsplit(".", 1)[-1]
        if module.endswith(".experts.base_layer"):
            name = f"{module.removesuffix('.base_layer')}.gate_up_proj"
        elif end == "experts":
            name = f"{module}.down_proj"
        theirs, ours = scaling.scale_named(name), scaling.scale_of(module)
        if not math.isclose(theirs, ours, rel_tol=1e-6) and scaling.parameters.get(module) != "":
            apart[module] = f"{module} {theirs / ours:.3g} times"
    if apart:
        text = f"vLLM scales {len(apart)} of {len(found)} modules otherwise than PEFT, by its patterns: "
        yield Finding("scaling-differs", text + some(apart.values()), "merge")


def sound(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], found: Mapping[str, Pair]) -> dict[str, Pair]:
    """The pairs whose widths mean something: not those that are empty or lie the other way round."""
    scaling = scaling_of(config, found)

    def means(pair: Pair) -> bool:
        fault = _shape_fault(scaling, pair, tensors[pair.a], tensors[pair.b]) if pair.a and pair.b else None
        return fault is None or fault[0] not in ("tensor-empty", "tensor-transposed")

    return {module: pair for module, pair in found.items() if means(pair)}


def ranks(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], found: Mapping[str, Pair]) -> list[int]:
    """The rank of each pair that has one; of a parameter with a matrix for each expert, what is configured."""
    scaling = scaling_of(config, found)
    both = {name: (tensors[pair.a].shape, tensors[pair.b].shape) for name, pair in found.items() if pair.a and pair.b}
    return [
        scaling.rank_of(module) if scaling and module in scaling.parameters else a[0]
        for module, (a, b) in both.items()
        if len(a) == len(b) == 2 and a[0] == b[1]
    ]


def _shape_fault(scaling: Scaling | None, pair: Pair, a: TensorInfo, b: TensorInfo) -> tuple[str, str] | None:
    """A code and what was seen."""
    seen = f"lora_A of {a.shape} and lora_B of {b.shape}"
    if len(a.shape) != 2 or len(b.shape) != 2 or 0 in (*a.shape, *b.shape):
        return "tensor-empty", seen
    rank = scaling.rank_of(pair.module) if scaling else None
    stacked = bool(scaling and pair.module in scaling.parameters)
    if rank is not None and not stacked and ((a.shape[0] != rank == a.shape[1]) or (b.shape[1] != rank == b.shape[0])):
        return "tensor-transposed", seen
    if a.shape[0] != b.shape[1]:
        return "ranks-differ", seen
    if rank is not None and (not is_rank(rank) or a.shape[0] % rank if stacked else a.shape[0] != rank):
        return "rank-not-configured", f"rank {a.shape[0]} where {rank} is configured{' for each' if stacked else ''}"
    return None


def _untargeted(config: Mapping[str, Any], found: Mapping[str, Pair]) -> Iterator[Finding]:
    if left := [module for module in found if targets(config, module) is False]:
        text = f"{len(left)} modules have LoRA weights that target_modules does not name, which PEFT leaves out"
        yield Finding("tensors-untargeted", f"{text}: {some(left)}", "settings")
    wanted = config.get("target_modules")
    if (
        isinstance(wanted, list)
        and not config.get("exclude_modules")
        and (idle := [str(name) for name in wanted if not any(targets({"target_modules": [name]}, m) for m in found)])
    ):
        text = f"target_modules names what no tensor is for: {some(sorted(idle))}"
        yield Finding("targets-idle", text, "settings", blocks=False)
