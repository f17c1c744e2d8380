"""What the adapter in a directory adds to each module of a base: as its files are meant, and as PEFT takes them up.

Nothing here is shared with what mends an adapter, so that a mending is measured by another than itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loradock.registry.artifact import WEIGHTS, TensorInfo, read_header
from loradock.registry.check.findings import some
from loradock.registry.check.matrices import largest_difference, read_tensors
from loradock.registry.check.names import TensorName, parse_all
from loradock.registry.check.settings import PEFT_ALPHA, parameters, read_config, targets
from loradock.registry.check.shapes import BaseShapes
from loradock.registry.check.tensors import Pair, pairs
from loradock.registry.errors import LoradockError, NotServable
from loradock.registry.patterns import matches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Factors = tuple[NDArray[Any], NDArray[Any]]
    """B, its scaling included, and A, in float64."""

_SET_ASIDE: Final = frozenset(
    {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"),
        *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "bias", "lora_bias", "peft_type", "inference_mode", "lora_dropout"),
    }
)
"""What of a configuration is in the effect already, or says nothing of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """The LoRA of one module."""

    pair: Pair
    scale: float
    count: int = 1
    """How many matrices its parameter has: one for each expert."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What an adapter does, on disk."""

    path: Path
    header: Mapping[str, TensorInfo]
    parts: Mapping[str, Part]
    """By the base's name of the module, or of the parameter."""
    others: Mapping[str, str]
    """Each other tensor by its name, with a digest of its type, shape and bytes."""
    rest: str
    """The rest of its configuration, as JSON."""

    def factors(self, name: str) -> list[Factors]:
        """The two matrices of a module, or those of each expert; none for a module that it leaves alone.

        For experts PEFT holds A as experts x rank rows, and B as rank x experts columns (peft/tuners/lora/layer.py,
        `ParamWrapper.get_delta_weight`). A convolution's are flattened.
        """
        if (part := self.parts.get(name)) is None:
            return []
        found = read_tensors(self.path, {key: self.header[key] for key in (part.pair.b, part.pair.a)})
        b, a = found[part.pair.b].values() * part.scale, found[part.pair.a].values()
        if part.count == 1:
            return [(b.reshape(-1, a.shape[0]), a.reshape(a.shape[0], -1))]
        return [(b[:, number :: part.count], rows) for number, rows in enumerate(a.reshape(part.count, -1, a.shape[1]))]


def meant(directory: Path, base: BaseShapes) -> Effect:
    """What was trained, whatever its tensors are called: patterns mean the names that the file has, or the base's own.

    Raises NotServable where a name has two meanings, and for experts whose rank is not told.
    """
    config, header = read_config(directory), read_header(directory / WEIGHTS)
    named = _named(config, header)
    found = pairs(named)
    own = {parsed.module: parsed.own for parsed in named.values() if parsed.side}
    spellings = list(zip(*((own[module], module, base.renames(module) or module) for module in found), strict=True))
    keys = [parameters(config, spelling) for spelling in spellings]
    parts = {}
    for place, (module, pair) in enumerate(found.items()):
        names = [spelling[place] for spelling in spellings]
        said = [key[name] for key, name in zip(keys, names, strict=True) if name in key]
        if said:
            end = said[0].rpartition(".")[2]
            names = [f"{name.replace('.base_layer', '')}.{end}" for name in names]
            if not end:
                raise NotServable("it", [f"which of its target_parameters {module} is for cannot be told"])
        rows = header[pair.a].shape[0]
        rank = _setting(config, "rank_pattern", names, config.get("r", 0 if said else rows))
        alpha = _setting(config, "alpha_pattern", names, config.get("lora_alpha", PEFT_ALPHA))
        parts[names[-1]] = _part(pair, rank, alpha, config, rows if said else rank)
    return Effect(directory / WEIGHTS, header, parts, _others(directory, header, named, base), _rest(config))


def taken_up(directory: Path, base: BaseShapes) -> Effect:
    """What PEFT makes of the files; raises LoradockError for whatever it would leave out, or could not load."""
    config, header = read_config(directory), read_header(directory / WEIGHTS)
    named = _named(config, header)
    found = pairs(named)
    keys = parameters(config, found)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    faults = [f"{name} is not named as PEFT does" for name, parsed in named.items() if parsed.faults]
    parts = {}
    for module, pair in found.items():
        name = keys.get(module) or module
        if targets(config, module) is False or keys.get(module) == "":
            faults.append(f"PEFT leaves {module} out")
        if base.renames(module) or base.layer(module) is None:
            faults.append(f"the base has no {module}")
        rank = next((rank for key, rank in ranks.items() if matches(key, name)), config["r"])
        alpha = next((a for key, a in alphas.items() if matches(key, name)), config["lora_alpha"])
        rows = header[pair.a].shape[0]
        if rows % rank or (rows != rank and module not in keys):
            faults.append(f"{module} has rank {rows}, and {rank} is configured")
        parts[name] = _part(pair, rank, alpha, config, rows)
    if faults:
        raise LoradockError(f"the repair would lose part of the adapter: {some(faults)}; nothing was written")
    return Effect(directory / WEIGHTS, header, parts, _others(directory, header, named, BaseShapes()), _rest(config))


def _named(config: Mapping[str, Any], header: Mapping[str, TensorInfo]) -> Mapping[str, TensorName]:
    """The names, taken apart for LoRA; what another method holds is not looked into."""
    is_lora = config.get("peft_type") in ("LORA", None)
    return parse_all(header) if is_lora else {name: TensorName(name, "", own=name) for name in header}


def _setting(config: Mapping[str, Any], field: str, names: list[str], default: float) -> float:
    """What a pattern says of a module that has several names; the first key that matches a name counts."""
    pattern = config.get(field) or {}
    said = [[value for key, value in pattern.items() if matches(key, name)][:1] for name in names]
    values = {value[0] for value in said if value}
    if len(values) > 1:
        raise NotServable("it", [f"its {field} says {some(map(str, values))} of {names[-1]}, by its several names"])
    return values.pop() if values else default


def _part(pair: Pair, rank: float, alpha: float, config: Mapping[str, Any], rows: float) -> Part:
    if rank <= 0 or rows % rank:
        raise NotServable("it", [f"the rank of {pair.module} is not told: it has {rows} rows, for rank {rank:g}"])
    return Part(pair, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), int(rows // rank))


def _others(
    directory: Path, header: Mapping[str, TensorInfo], named: Mapping[str, TensorName], base: BaseShapes
) -> dict[str, str]:
    found = {}
    for name, parsed in named.items():
        if not parsed.side:
            content = read_tensors(directory / WEIGHTS, {name: header[name]})[name]
            said = f"{content.dtype} {content.shape} ".encode() + content.data
            key = name if parsed.own == name else parsed.written(base.renames(parsed.owner))
            found[key] = hashlib.sha256(said).hexdigest()
    return found


def _rest(config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in _SET_ASIDE and value}
    return json.dumps(kept, sort_keys=True)


def apart(
    before: Effect, after: Effect, taken: Mapping[str, Factors] | None = None
) -> Iterator[tuple[str, float, float]]:
    """Each module, the largest difference of any entry of what is added there, and the largest entry before.

    `taken` is what was taken out of the base before training. Raises LoradockError where anything else than LoRA's
    matrices differs.
    """
    import numpy as np

    if before.others != after.others or before.rest != after.rest:
        raise LoradockError("the repair would change more than LoRA weights; nothing was written")
    for name in sorted({*before.parts, *after.parts}):
        old, new = before.factors(name), after.factors(name)
        if old and new and len(old) != len(new):
            raise LoradockError(f"the repair would change how many experts {name} has; nothing was written")
        if taken and name in taken:
            b0, a0 = taken[name]
            old = [(np.concatenate([b, -b0], axis=1), np.concatenate([a, a0], axis=0)) for b, a in old]
        old, new = old or [_none(each) for each in new], new or [_none(each) for each in old]
        far = max(largest_difference(one, other) for one, other in zip(old, new, strict=True))
        yield name, far, max(largest_difference(each, _none(each)) for each in old)


def _none(like: Factors) -> Factors:
    return like[0][:, :0], like[1][:0]
