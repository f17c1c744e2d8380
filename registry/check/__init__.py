"""The doctor: what rules an adapter out, read from its own files and the base's headers. No model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from loradock.registry.artifact import CONFIG, WEIGHTS, TensorInfo, read_header
from loradock.registry.check.config import in_config, rank_limit
from loradock.registry.check.files import in_files, in_manifest
from loradock.registry.check.findings import MENDINGS, VERBS, Diagnosis, Finding
from loradock.registry.check.fit import MISFITS, on_base
from loradock.registry.check.names import parse_all
from loradock.registry.check.settings import largest_rank, parameters, read_config
from loradock.registry.check.shapes import BaseShapes, read_shapes, shapes_of_config
from loradock.registry.check.tensors import in_names, in_pairs, pairs, ranks, sound
from loradock.registry.check.values import in_copies, in_values
from loradock.registry.check.vllm import MAX_RANK, RANKS
from loradock.registry.errors import BadInput, NotFound
from loradock.registry.records import Base

__all__ = [
    "MAX_RANK",
    "MENDINGS",
    "RANKS",
    "VERBS",
    "BaseShapes",
    "Diagnosis",
    "Finding",
    "examine",
    "findings",
    "judged",
    "largest_rank",
    "misfits",
    "read_config",
    "read_shapes",
    "shapes_of_config",
    "with_base",
]

_UNKNOWN: Final = BaseShapes()
_STACKED: Final = (".experts", ".experts.base_layer")
_BY_MODULE: Final = ("settings", "zero-layers", "plain-start", "one-rank")
"""Mendings that take a module for one matrix, which a parameter with one for each expert is not."""


def examine(directory: Path, *, base: BaseShapes = _UNKNOWN, max_rank: int = MAX_RANK) -> Diagnosis:
    """Everything that vLLM or PEFT would stumble over, or pass over in silence.

    Without `base`, shapes are held against nothing. Raises NotFound when there is no such directory and BadInput when
    it holds nothing of an adapter.
    """
    if not directory.is_dir():
        raise NotFound(f"there is no directory {directory}")
    if not any(directory.glob("*adapter*")) and not any(directory.glob("*.safetensors")):
        below = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
        hint = f"these below it do: {', '.join(below)}" if below else "give what PEFT's save_pretrained wrote"
        raise BadInput(f"{directory} holds no adapter", hint=hint)
    return Diagnosis((*in_manifest(directory), *_all(directory, base, max_rank)))


def with_base(diagnosis: Diagnosis, trained_on: Base, given: Base) -> Diagnosis:
    """The diagnosis, and whether the base that a version was trained on is the one that is given."""
    if trained_on.same_weights(given):
        return diagnosis
    text = f"it was trained on {trained_on.id}, and the weights or the configuration of {given.id} are others"
    return Diagnosis((Finding("other-base", text), *diagnosis.findings))


def judged(directory: Path, *, base: BaseShapes = _UNKNOWN, max_rank: int = MAX_RANK) -> Diagnosis:
    """What is found of an adapter whose files are verified."""
    return Diagnosis(tuple(_all(directory, base, max_rank)))


def findings(directory: Path, *, base: BaseShapes = _UNKNOWN, max_rank: int = MAX_RANK) -> list[str]:
    """Every reason why vLLM cannot serve this adapter, whose files are verified, as it is; empty when there is none."""
    return [finding.text for finding in judged(directory, base=base, max_rank=max_rank).blocking]


def misfits(directory: Path, base: BaseShapes) -> list[str]:
    """Every way in which an adapter's tensors say that it was trained on another base."""
    tensors = read_header(directory / WEIGHTS)
    found = on_base(read_config(directory), tensors, pairs(parse_all(tensors)), base)
    return [finding.text for finding in found if finding.code in MISFITS]


def _all(directory: Path, base: BaseShapes, max_rank: int) -> Iterator[Finding]:
    yield from in_files(directory)
    config = None
    if (directory / CONFIG).is_file():
        try:
            config = read_config(directory)
        except BadInput as error:
            yield Finding("config-unreadable", f"{CONFIG} cannot be read: {error}")
    tensors = None
    if (directory / WEIGHTS).is_file():
        try:
            tensors = read_header(directory / WEIGHTS)
        except BadInput as error:
            yield Finding("weights-unreadable", str(error))
    if config is None or tensors is None:
        return
    names = parse_all(tensors)
    found = pairs(names)
    stacked = any(module.endswith(_STACKED) for module in found) or bool(parameters(config, found))
    for finding in _in_weights(directory, config, tensors, base, max_rank):
        yield replace(finding, remedy="") if stacked and finding.remedy in _BY_MODULE else finding


def _in_weights(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], base: BaseShapes, max_rank: int
) -> Iterator[Finding]:
    names = parse_all(tensors)
    yield from in_config(config, names, base)
    if config.get("peft_type") not in ("LORA", None):
        return
    found = pairs(names)
    yield from in_names(config, names)
    yield from in_pairs(config, tensors, found)
    found = sound(config, tensors, found)
    yield from rank_limit(config, max(ranks(config, tensors, found), default=0), max_rank)
    yield from on_base(config, tensors, found, base)
    yield from in_values(directory / WEIGHTS, tensors, found)
    yield from in_copies(directory / WEIGHTS, tensors, names, base)
