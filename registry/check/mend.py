"""Mending an adapter: each step keeps what the adapter does, and changes how it is written down."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from registry import artifact
from registry.check import Diagnosis, examine
from registry.check.matrices import Tensor, largest_difference, read_tensors, tensor, write_tensors
from registry.check.names import parse, parse_all
from registry.check.settings import PEFT_ALPHA, Scaling, read_config, targets
from registry.check.shapes import BaseShapes
from registry.check.starts import taken_out
from registry.check.tensors import Pair, pairs
from registry.errors import BadInput, LoradockError, NotServable
from registry.scratch import beside

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
    """By module: the largest difference that any entry of its scaled B·A has from what it was, in float64."""
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
    """By module, what was taken out of the base before training."""

    def pairs(self) -> dict[str, Pair]:
        """Its LoRA matrices by module."""
        return pairs(parse_all(self.tensors))

    def factors(self, pair: Pair) -> Factors:
        """A module's B and A, scaled, less what was taken out of the base."""
        import numpy as np

        scale = Scaling.of(self.config).scale_of(pair.module)
        b, a = self.tensors[pair.b].values() * scale, self.tensors[pair.a].values()
        if pair.module not in self.taken:
            return b, a
        b0, a0 = self.taken[pair.module]
        return np.concatenate([b, -b0 * scale], axis=1), np.concatenate([a, a0], axis=0)


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
    before = _read(directory, diagnosis.mendings, base)
    after = before
    for name in diagnosis.mendings:
        after = _STEPS[name](after) if name in _STEPS else after
    return _write(before, after, out, diagnosis.mendings, base=base, max_rank=max_rank)


def _read(directory: Path, mendings: tuple[str, ...], base: BaseShapes) -> Adapter:
    """The adapter with what names and settings leave open filled in, which says no more than was meant."""
    path = directory / artifact.WEIGHTS
    found = read_tensors(path, artifact.read_header(path))
    named = {}
    for name, content in found.items():
        parsed = parse(name)
        named[parsed.written(base.renames(parsed.module))] = content
    if len(named) != len(found):
        raise NotServable(str(directory), ["two of its tensors get the same name"])
    adapter = Adapter(read_config(directory), named)
    if "settings" in mendings:
        adapter = replace(adapter, config=_completed(adapter, base))
    if "plain-start" in mendings:
        adapter = replace(adapter, taken=dict(_taken(adapter, base)))
    return adapter


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
    if all(name.side for name in parsed):
        config["modules_to_save"] = None
    wanted = config.get("target_modules")
    idle = isinstance(wanted, list) and not all(
        any(targets({"target_modules": [name]}, module) for module in found) for name in wanted
    )
    if idle or not isinstance(wanted, list | str) or any(targets(config, module) is False for module in found):
        config["target_modules"] = _targets(list(found), base)
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


def _write(
    before: Adapter, after: Adapter, out: Path, mendings: tuple[str, ...], *, base: BaseShapes, max_rank: int
) -> Mended:
    differences = dict(_differences(before, after))
    try:
        with beside(out) as scratch:
            write_tensors(scratch / artifact.WEIGHTS, after.tensors)
            (scratch / artifact.CONFIG).write_text(json.dumps(after.config), encoding="utf-8")
            artifact.canonicalise(scratch)
            artifact.write_manifest(scratch)
            diagnosis = examine(scratch, base=base, max_rank=max_rank)
    except OSError as error:
        raise LoradockError(f"{out} cannot be written: {error.strerror}") from error
    return Mended(mendings, differences, diagnosis)


def _differences(before: Adapter, after: Adapter) -> Iterator[tuple[str, float]]:
    """How far each module's scaled B·A went; raises LoradockError where that is more than rounding."""
    import numpy as np

    left = after.pairs()
    for module, pair in before.pairs().items():
        old = before.factors(pair)
        none = np.zeros((len(old[0]), 0)), np.zeros((0, old[1].shape[1]))
        far = largest_difference(old, after.factors(left[module]) if module in left else none)
        narrow = any(before.tensors[name].dtype in _NARROW for name in (pair.a, pair.b))
        if not far <= (1e-2 if narrow else 1e-5) * max(largest_difference(old, none), 1.0 if before.taken else 1e-30):
            raise LoradockError(f"mending would change {module} by {far:.2g}; nothing was written")
        yield module, far
