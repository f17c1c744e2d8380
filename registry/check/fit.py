"""What a base says against an adapter's tensors: modules that it lacks, other widths, other experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from loradock.registry.artifact import TensorInfo
from loradock.registry.check.config import is_rank
from loradock.registry.check.findings import Finding, some
from loradock.registry.check.names import ROOT
from loradock.registry.check.settings import TIED
from loradock.registry.check.shapes import EXPERT, BaseShapes, Layer
from loradock.registry.check.tensors import Pair, scaling_of
from loradock.registry.check.vllm import FUSED_EXPERTS, NO_EMBEDDINGS


def on_base(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], found: Mapping[str, Pair], base: BaseShapes
) -> Iterator[Finding]:
    """Modules that the base does not have, has under another name, or has of another width, or that nobody can hold."""
    if not base.config:
        text = "its base was not at hand, so that nothing was held against it"
        yield Finding("base-not-given", text, unknown=True)
        return
    wrong: dict[str, list[str]] = {}
    scaling = scaling_of(config, found)
    stacked = {module: key for module, key in (scaling.parameters if scaling else {}).items() if ".experts" in module}
    for pair in found.values():
        rank = scaling.rank_of(pair.module) if scaling else 0
        key = stacked.get(pair.module)
        faults = _misfit(tensors, pair, base) if key is None else _stack_misfit(tensors, pair, base, key, rank)
        for code, seen in faults:
            if config.get("use_bdlora") and code in _NARROWER:
                continue  # one of its matrices has no more than a block
            wrong.setdefault(code, []).append(seen)
    for code, seen in _experts(tensors, found, base, stacked):
        wrong.setdefault(code, []).append(seen)
    amiss = {module for code in _FOREIGN for module in (seen.partition(":")[0] for seen in wrong.get(code, []))}
    if amiss and amiss == set(found):
        texts = [text for code in _FOREIGN for text in wrong.pop(code, [])]
        told = f"it was trained on another base: not one of its {len(found)} modules fits"
        yield Finding("wrong-base", f"{told}, {some(texts)}")
    for code, texts in wrong.items():
        what, remedy = _MISFITS[code]
        yield Finding(code, f"{len(texts)} {what}: {some(texts)}", remedy, unknown=code in _UNHELD)


_FOREIGN: Final = ("layer-missing", "tensor-too-small", "tensor-too-large", "vocabulary-differs")
_NARROWER: Final = ("tensor-too-small", "tensor-transposed")
MISFITS: Final = (*_FOREIGN, "wrong-base", "tensor-transposed", "experts-differ")
"""What says that an adapter was trained on another base."""
_UNHELD: Final = ("shape-unheld", "parameter-unknown")
_MISFITS: Final = {
    "layer-missing": ("modules are not in the base", ""),
    "module-misnamed": ("modules have another name in the base", "names"),
    "tensor-transposed": ("modules lie the other way round", ""),
    "tensor-too-small": ("tensors are smaller than the base's, which vLLM fills up without a word", ""),
    "tensor-too-large": ("tensors are larger than the base's", ""),
    "vocabulary-differs": ("tensors have another vocabulary than the base", ""),
    "shape-unheld": ("modules cannot be held against the base, whose files do not tell their shapes", ""),
    "parameter-unknown": ("modules are for one of several target_parameters, and it is not told for which", ""),
    "experts-differ": ("modules are for another number of experts", ""),
    "experts-fused": ("modules hold all experts in one tensor, where vLLM takes them one by one", "merge"),
    "experts-apart": ("modules are single experts, where vLLM takes all in one tensor", ""),
    "experts-missing": ("layers have LoRA on a part of their experts, where vLLM takes all or none", ""),
    "experts-uneven": ("layers have experts of different ranks, which vLLM refuses", ""),
    "embeddings-not-served": ("modules are embeddings or a head, where vLLM takes no LoRA on this base", "merge"),
}


def _misfit(tensors: Mapping[str, TensorInfo], pair: Pair, base: BaseShapes) -> Iterator[tuple[str, str]]:
    layer = base.layer(pair.module)
    if layer is None:
        known = f"the base has {base.depth} layers" if base.depth else "the base has none"
        yield "layer-missing", f"{pair.module}: {known}"
        return
    if name := base.renames(pair.module):
        yield "module-misnamed", f"{pair.module}: {name}"
    if pair.module.rsplit(".", 1)[-1] in TIED and base.architecture in NO_EMBEDDINGS:
        yield "embeddings-not-served", f"{pair.module}: {base.architecture}"
    if layer.inputs is None or layer.outputs is None:
        yield "shape-unheld", pair.module
    given = Layer(_width(tensors, pair.a, 1), _width(tensors, pair.b, 0))
    if given.inputs != given.outputs and (given.inputs, given.outputs) == (layer.outputs, layer.inputs):
        yield "tensor-transposed", f"{pair.module}: {given.inputs} to {given.outputs}"
        return
    vocabulary = "A" if layer.embedding else "B" if pair.module.endswith("lm_head") else ""
    own = _rows(tensors, pair.module)  # a vocabulary that was resized: the base's weight in the file differs
    if vocabulary and own and own == (given.inputs if layer.embedding else given.outputs):
        given = replace(given, inputs=None) if layer.embedding else replace(given, outputs=None)
    yield from _widths(pair.module, given, layer, vocabulary)


def _widths(module: str, given: Layer, layer: Layer, vocabulary: str = "") -> Iterator[tuple[str, str]]:
    for side, has, wants in (("A", given.inputs, layer.inputs), ("B", given.outputs, layer.outputs)):
        if has is not None and wants is not None and has != wants:
            smaller = "tensor-too-small" if has < wants else "tensor-too-large"
            code = "vocabulary-differs" if side == vocabulary else smaller
            yield code, f"{module}: lora_{side} is {has} wide where the base is {wants}"


def _stack_misfit(
    tensors: Mapping[str, TensorInfo], pair: Pair, base: BaseShapes, key: str, rank: int
) -> Iterator[tuple[str, str]]:
    """Of a parameter with a matrix for each expert."""
    stack = base.stack(pair.module)
    if base.layer(pair.module) is None:
        yield "layer-missing", f"{pair.module}: the base has {base.depth} layers"
        return
    if name := base.renames(pair.module):
        yield "module-misnamed", f"{pair.module}: {name}"
    if not key:
        yield "parameter-unknown", pair.module
    layer = stack.layer(key.rpartition(".")[2]) if stack and key else None
    if stack is None or (key and layer is None):
        yield "shape-unheld", pair.module
    rows = tensors[pair.a].shape[0] if pair.a else 0
    if stack and is_rank(rank) and rows and rows != rank * stack.count:
        yield "experts-differ", f"{pair.module}: {rows / rank:g} where the base has {stack.count}"
    if layer:
        yield from _widths(pair.module, Layer(_width(tensors, pair.a, 1), _width(tensors, pair.b, 0)), layer)


def _experts(
    tensors: Mapping[str, TensorInfo], found: Mapping[str, Pair], base: BaseShapes, stacked: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """What vLLM does not take of experts (vllm/lora/model_manager.py, lora_weights.py)."""
    fused = base.architecture in FUSED_EXPERTS
    for module in stacked:
        inner = module.endswith(".base_layer")
        if not fused:
            yield "experts-fused", module
        elif not inner and f"{module}.base_layer" not in stacked:
            yield "experts-missing", f"{module}: one of gate_up_proj and down_proj"
    layers: dict[str, dict[tuple[int, str], int]] = {}
    for module, pair in found.items():
        if (match := EXPERT.match(module)) and match["number"]:
            here = layers.setdefault(match["stack"], {})
            here[int(match["number"]), match["part"]] = tensors[pair.a].shape[0] if pair.a else 0
    for module, each in layers.items():
        parts = {part for _, part in each}
        wanted = sum(name.startswith(f"{module}.0.") for name in base.layers) or 3
        count = stack.count if (stack := base.stack(module)) else 1 + max(number for number, _ in each)
        if fused:
            yield "experts-apart", module
        there = sum(number < count for number, _ in each)
        if there < wanted * count:
            yield "experts-missing", f"{module}: {there} of {wanted * count} projections"
        if any(len({rank for (_, part), rank in each.items() if part == one}) > 1 for one in parts):
            yield "experts-uneven", module


def _rows(tensors: Mapping[str, TensorInfo], module: str) -> int | None:
    """Those of the base's weight as the adapter itself holds it."""
    info = tensors.get(f"{ROOT}{module}.base_layer.weight")
    return info.shape[0] if info else None


def _width(tensors: Mapping[str, TensorInfo], name: str, axis: int) -> int | None:
    return tensors[name].shape[axis] if name and len(tensors[name].shape) == 2 else None
