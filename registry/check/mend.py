"""Mending an adapter: each step keeps what the adapter does, and changes how it is written down."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loradock.registry import artifact
from loradock.registry.check import Diagnosis, examine
from loradock.registry.check.config import replaces
from loradock.registry.check.effect import Effect, apart, meant, taken_up
from loradock.registry.check.matrices import Tensor, read_tensors, tensor, write_tensors
from loradock.registry.check.names import parse, parse_all
from loradock.registry.check.settings import PEFT_ALPHA, Scaling, parameters, read_config, targets
from loradock.registry.check.shapes import BaseShapes
from loradock.registry.check.starts import is_taken_out, taken_out
from loradock.registry.check.tensors import Pair, pairs
from loradock.registry.errors import BadInput, LoradockError, NotServable
from loradock.registry.patterns import matches
from loradock.registry.scratch import beside

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Factors = tuple[NDArray[Any], NDArray[Any]]
    """B and A, in float64."""

_NARROW: Final = ("F16", "BF16")


@dataclass(frozen=True, slots=True)
class Mended:
    """What became of an adapter."""

    mendings: tuple[str, ...]
    differences: Mapping[str, float]
    """By module: the largest difference that any entry of its scaled B·A has from what it was, in float64.

    It is between the files as they were meant and the files as PEFT takes them up, not between what was mended.
    """
    diagnosis: Diagnosis
    """Of the mended adapter."""

    @property
    def largest(self) -> float:
        """The largest difference of any module."""
        return max(self.differences.values(), default=0.0)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in memory, with named tensors as PEFT names them."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    taken: Mapping[str, Factors] = field(default_factory=dict)
    """By module, what was taken out of the base before training, without its scaling."""

    def pairs(self) -> dict[str, Pair]:
        """Its LoRA matrices by module."""
        return pairs(parse_all(self.tensors))


def mend(directory: Path, out: Path, diagnosis: Diagnosis, *, base: BaseShapes, max_rank: int) -> Mended | None:
    """Write the mended adapter to `out`, a new directory; None when there is nothing to mend.

    `diagnosis` is that of the adapter in `directory`, on `base`. Either all is written or nothing. Raises BadInput
    when `out` holds something, or when the base's weights are needed and not at hand, and NotServable when something
    is in the way that has no remedy.
    """
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is there already", hint="give a new directory; nothing is written over")
    hopeless = [finding.text for finding in diagnosis.blocking if not finding.remedy]
    if hopeless or (diagnosis.blocking and not diagnosis.mendings):
        raise NotServable(str(directory), hopeless or [finding.text for finding in diagnosis.blocking])
    if not diagnosis.mendings:
        return None
    before = meant(directory, base)
    adapter = _read(directory, diagnosis.mendings, base)
    taken = {module: _verified(adapter, module, base) for module in adapter.taken}
    for name in diagnosis.mendings:
        adapter = _STEPS[name](adapter) if name in _STEPS else adapter
    try:
        with beside(out) as scratch:
            write_tensors(scratch / artifact.WEIGHTS, adapter.tensors)
            (scratch / artifact.CONFIG).write_text(json.dumps(adapter.config), encoding="utf-8")
            artifact.canonicalise(scratch)
            artifact.write_manifest(scratch)
            differences = dict(_differences(before, taken_up(scratch, base), taken))
            found = examine(scratch, base=base, max_rank=max_rank)
    except OSError as error:
        raise LoradockError(f"{out} cannot be written: {error.strerror}") from error
    return Mended(diagnosis.mendings, differences, found)


def _read(directory: Path, mendings: tuple[str, ...], base: BaseShapes) -> Adapter:
    """The adapter with what names and settings leave open filled in, which says no more than was meant."""
    path, config = directory / artifact.WEIGHTS, read_config(directory)
    found = read_tensors(path, artifact.read_header(path))
    if config.get("peft_type") not in ("LORA", None):
        return Adapter(config, found)
    named, own = {}, {}
    for name, content in found.items():
        parsed = parse(name)
        called = base.renames(parsed.owner)
        named[parsed.written(called)] = content
        if parsed.side:
            own[called or parsed.module] = (parsed.own, parsed.module)
    if len(named) != len(found):
        raise NotServable(str(directory), ["two of its tensors get the same name"])
    adapter = Adapter(config, named)
    if "names" in mendings:
        adapter = replace(adapter, config=_renamed(adapter.config, own, base))
    if "settings" in mendings:
        adapter = replace(adapter, config=_completed(adapter, base))
    if "plain-start" in mendings:
        adapter = replace(adapter, taken=dict(_taken(adapter, base)))
    return adapter


def _renamed(config: Mapping[str, Any], own: Mapping[str, tuple[str, ...]], base: BaseShapes) -> dict[str, Any]:
    """The configuration in the base's names, of modules that it named otherwise; `own` has their former names."""
    found = dict(config)
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        said = {new: _first(pattern, (*names, new)) for new, names in own.items()}
        if any(value != _first(pattern, (new,)) for new, value in said.items()):
            found[key] = {f"^{new}": value for new, value in said.items() if value is not None}
    for key in ("modules_to_save", "exclude_modules"):
        if isinstance(config.get(key), list):
            found[key] = [_called(str(name), base) for name in config[key]]
    if isinstance(config.get("target_parameters"), list):
        split = [str(name).rpartition(".") for name in config["target_parameters"]]
        found["target_parameters"] = [f"{_called(path, base)}{dot}{end}" for path, dot, end in split]
    if isinstance(config.get("target_modules"), list):
        found["target_modules"] = [_called(str(name), base) for name in config["target_modules"]]
    modules = [new for new in own if new not in parameters(found, own)]
    others = {name for name in base.layers if targets(found, name)} if base.complete else set()
    if modules and (any(targets(found, new) is False for new in modules) or not others <= set(modules)):
        found["target_modules"] = _targets(modules, base)
        found |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    return found


def _first(pattern: Mapping[str, Any], names: Iterable[str]) -> Any:
    """What a pattern says of a module by the first of its names that it knows."""
    return next((value for name in names for key, value in pattern.items() if matches(key, name)), None)


def _called(name: str, base: BaseShapes) -> str:
    """The name, or the end of one, that the base has for what a configuration names."""
    bare = parse(name).module
    known = any(f".{module}".endswith(f".{bare}") for module in base.layers)
    return bare if known or not bare else base.renames(bare) or bare


def _completed(adapter: Adapter, base: BaseShapes) -> dict[str, Any]:
    config, found = dict(adapter.config), adapter.pairs()
    config.setdefault("peft_type", "LORA")
    config.setdefault("lora_alpha", PEFT_ALPHA)
    if "r" not in config:
        ranks = {adapter.tensors[pair.a].shape[0] for pair in found.values()}
        if len(ranks) != 1:
            raise NotServable("it", [f"its configuration names no rank, and its tensors have {len(ranks)}"])
        config["r"] = ranks.pop()
    parsed = [parse(name) for name in adapter.tensors]
    if not any(name.part == "bias" or name.module.endswith(".bias") for name in parsed):
        config |= {"bias": "none", "lora_bias": False}
    if not any(replaces(config, name) for name in parsed):
        config["modules_to_save"] = None
    wanted = config.get("target_modules")
    idle = isinstance(wanted, list) and not all(
        any(targets({"target_modules": [name]}, module) for module in found) for name in wanted
    )
    if idle or not isinstance(wanted, list | str) or any(targets(config, module) is False for module in found):
        config["target_modules"] = _targets(list(found), base)
        config |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    return config


def _targets(modules: list[str], base: BaseShapes) -> list[str]:
    """The last parts of the modules' names, or the whole names where the base has other modules of such names."""
    ends = sorted({module.rsplit(".", 1)[-1] for module in modules})
    others = set(base.layers) - set(modules) if base.complete else set()
    return sorted(modules) if any(targets({"target_modules": ends}, other) for other in others) else ends


def _taken(adapter: Adapter, base: BaseShapes) -> Iterator[tuple[str, Factors]]:
    kind, scaling = str(adapter.config["init_lora_weights"]).lower(), Scaling.of(adapter.config)
    for pair in adapter.pairs().values():
        rank, scale = scaling.rank_of(pair.module), scaling.scale_of(pair.module)
        yield pair.module, taken_out(kind, base.weight(pair.module), rank, scale)


def _without_idle(adapter: Adapter) -> Adapter:
    idle = [
        pair
        for pair in adapter.pairs().values()
        if not (adapter.tensors[pair.a].values().any() and adapter.tensors[pair.b].values().any())
    ]
    gone = {name for pair in idle for name in (pair.a, pair.b)}
    config = dict(adapter.config)
    modules = [module for module in adapter.pairs() if module not in {pair.module for pair in idle}]
    if isinstance(config.get("target_modules"), list) and not config.get("exclude_modules"):
        config["target_modules"] = [
            name
            for name in config["target_modules"]
            if any(targets({"target_modules": [name]}, module) for module in modules)
        ]
        config["exclude_modules"] = sorted(pair.module for pair in idle if targets(config, pair.module))
    kept = {name: content for name, content in adapter.tensors.items() if name not in gone}
    return replace(adapter, config=config, tensors=kept)


def _plain(adapter: Adapter) -> Adapter:
    """W - s·B0·A0 + s·B·A is W + s·[B, -B0]·[A; A0]: twice the rank, the same scaling."""
    import numpy as np

    tensors, config = dict(adapter.tensors), dict(adapter.config)
    for module, (b0, a0) in adapter.taken.items():
        pair = adapter.pairs()[module]
        b, a = tensors[pair.b].values(), tensors[pair.a].values()
        tensors[pair.b] = tensor(np.concatenate([b, -b0], axis=1), "F32")
        tensors[pair.a] = tensor(np.concatenate([a, a0], axis=0), "F32")
    more = 2**0.5 if config.get("use_rslora") else 2
    config |= {"init_lora_weights": True, "r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * more}
    config["rank_pattern"] = {key: 2 * rank for key, rank in (config.get("rank_pattern") or {}).items()}
    config["alpha_pattern"] = {key: alpha * more for key, alpha in (config.get("alpha_pattern") or {}).items()}
    return Adapter(config, tensors)


def _one_rank(adapter: Adapter) -> Adapter:
    import numpy as np

    scaling, found = Scaling.of(adapter.config), adapter.pairs()
    rank = max(adapter.tensors[pair.a].shape[0] for pair in found.values())
    common = Counter(scaling.scale_of(module) for module in found).most_common(1)[0][0]
    tensors = dict(adapter.tensors)
    for module, pair in found.items():
        a, b, scale = tensors[pair.a], tensors[pair.b], scaling.scale_of(module)
        missing = rank - a.shape[0]
        if missing:
            tensors[pair.a] = tensor(np.pad(a.values(), ((0, missing), (0, 0))), a.dtype)
        if missing or scale != common:
            tensors[pair.b] = tensor(np.pad(b.values() * (scale / common), ((0, 0), (0, missing))), b.dtype)
    alpha = common * (rank**0.5 if scaling.stabilised else rank)
    config = dict(adapter.config) | {"r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}
    return replace(adapter, config=config | {"rank_pattern": {}, "alpha_pattern": {}}, tensors=tensors)


_STEPS: Final = {"zero-layers": _without_idle, "plain-start": _plain, "one-rank": _one_rank}
"""Names and settings are put right while the adapter is read."""


def _verified(adapter: Adapter, module: str, base: BaseShapes) -> Factors:
    """What was taken out of a module, scaled; raises LoradockError where that is not what the start takes out."""
    kind, (b, a) = str(adapter.config["init_lora_weights"]).lower(), adapter.taken[module]
    scaling = Scaling.of(adapter.config)
    scale = scaling.scale_of(module)
    projection = b if kind == "olora" else b * scale
    if not is_taken_out(kind, base.weight(module), scaling.rank_of(module), projection, a):
        raise LoradockError(f"what {kind} took out of {module} cannot be told from its base; nothing was written")
    return b * scale, a


def _differences(before: Effect, after: Effect, taken: Mapping[str, Factors]) -> Iterator[tuple[str, float]]:
    """How far each module's scaled B·A went; raises LoradockError where that is more than rounding."""
    for module, far, most in apart(before, after, taken):
        pair = before.parts[module].pair if module in before.parts else Pair(module)
        narrow = any(before.header[name].dtype in _NARROW for name in (pair.a, pair.b) if name)
        if not far <= (1e-2 if narrow else 1e-5) * max(most, 1.0 if taken else 1e-30):
            raise LoradockError(f"the repair would change {module} by {far:.2g}; nothing was written")
        yield module, far
