"""An adapter's configuration: reading it, and the rank and scaling of each of its layers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loradock.registry.artifact import CONFIG
from loradock.registry.errors import BadInput
from loradock.registry.patterns import is_tame, matches

PEFT_ALPHA: Final = 8
"""What PEFT takes lora_alpha for when a configuration does not name it; for r too."""
TIED: Final = ("embed_tokens", "lm_head")
"""Of which PEFT gives the one the other's LoRA under ensure_weight_tying, where the base ties their weights."""
_WRAPPED: Final = ".base_layer"
_INNERMOST_FIRST: Final = ("gate_up_proj", "down_proj")
"""The order in which transformers' experts hold their parameters, and so PEFT's wrappers lie in one another."""


def read_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json; raises BadInput."""
    path = directory / CONFIG
    if not path.is_file():
        raise BadInput(f"{directory} holds no {CONFIG}", hint="give the directory that PEFT's save_pretrained wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise BadInput(f"{path} is nested too deep to be read") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path} is not a JSON object")
    return config


def largest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of any layer, `rank_pattern` included; 0 for a method that has none.

    AdaLoRA's pattern has a list for each layer, which says of every rank whether it was kept.
    """
    pattern = (config.get("rank_pattern") or {}).values()
    return max(int(config.get("r") or 0), *(sum(rank) if isinstance(rank, list) else int(rank) for rank in pattern), 0)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Rank and scaling of each layer, as PEFT reads them from a configuration (https://arxiv.org/abs/2312.03732)."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    stabilised: bool
    parameters: Mapping[str, str] = field(default_factory=dict)
    """What `parameters` finds."""

    @classmethod
    def of(cls, config: Mapping[str, Any], modules: Iterable[str] = ()) -> Scaling:
        """The scaling of a configuration that was found to be whole, for an adapter's modules as its file names them.

        `modules` are needed only where it targets parameters.
        """
        return cls(
            config.get("r", PEFT_ALPHA),
            config.get("lora_alpha", PEFT_ALPHA),
            config.get("rank_pattern") or {},
            config.get("alpha_pattern") or {},
            bool(config.get("use_rslora")),
            parameters(config, modules),
        )

    def rank_of(self, module: str) -> int:
        """The rank that a module is configured to have."""
        name = self.parameters.get(module) or module
        return next((rank for key, rank in self.ranks.items() if matches(key, name)), self.rank)

    def scale_of(self, module: str) -> float:
        """What B·A is multiplied by."""
        return self.scale_named(self.parameters.get(module) or module)

    def scale_named(self, name: str) -> float:
        """What B·A is multiplied by where the patterns are held against this very name."""
        rank = next((rank for key, rank in self.ranks.items() if matches(key, name)), self.rank)
        alpha = next((alpha for key, alpha in self.alphas.items() if matches(key, name)), self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def parameters(config: Mapping[str, Any], modules: Iterable[str]) -> dict[str, str]:
    """The parameter that LoRA is for (target_parameters), by the module that a file names; other modules are left out.

    PEFT holds patterns against the parameter's name, and wraps one wrapper in the other where a module has several:
    `experts.base_layer` is gate_up_proj, `experts` is down_proj. The name is empty where the order cannot be told.
    """
    wanted = config.get("target_parameters")
    split = [str(name).rpartition(".") for name in wanted] if isinstance(wanted, list) else []
    grouped: dict[str, list[str]] = {}
    for module in modules if split else ():
        grouped.setdefault(module.replace(_WRAPPED, ""), []).append(module)
    found = {}
    for bare, names in grouped.items():
        several = bare.endswith("experts") or len(names) > 1
        ends = {end for path, _, end in split if (_is_end(path, bare) if path else several)}
        order = [*ends] if len(ends) == 1 else [name for name in _INNERMOST_FIRST if ends == {*_INNERMOST_FIRST}]
        for name in names if ends else ():
            outer = name.count(_WRAPPED) + 1
            found[name] = f"{bare}.{order[-outer]}" if outer <= len(order) else ""
    return found


def _is_end(name: str, module: str) -> bool:
    return module == name or module.endswith(f".{name}")


def targets(config: Mapping[str, Any], module: str) -> bool | None:
    """Whether PEFT puts LoRA on a module; None where that cannot be told from the configuration alone.

    As peft/tuners/tuners_utils.py, `check_target_module_exists`, and for parameters `_inject_parameters`.
    """
    if module in parameters(config, [module]):
        return True
    wanted, excluded, kept = (config.get(key) for key in ("target_modules", "exclude_modules", "modules_to_save"))
    whole = isinstance(kept, list) and any(_is_part(str(name), module) for name in kept)
    if whole or (excluded and _names(excluded, module)):
        return False
    if isinstance(wanted, str):
        return None if wanted == "all-linear" else _names(wanted, module)
    if not isinstance(wanted, list):
        return False if config.get("target_parameters") else None
    if config.get("ensure_weight_tying") and module.rsplit(".", 1)[-1] in TIED and {*TIED} & {*map(str, wanted)}:
        return True
    return _names(wanted, module) and (module in wanted or _in_layers(config, module))


def _names(given: Any, module: str) -> bool | None:
    """Whether a list of names, or an expression, means a module; None where that is neither."""
    if isinstance(given, list):
        return any(_is_end(str(name), module) for name in given)
    if not isinstance(given, str) or not is_tame(given):
        return None
    try:
        return bool(re.fullmatch(given, module))
    except re.error:
        return None


def _is_part(name: str, module: str) -> bool:
    return f".{name}." in f".{module}."


def _in_layers(config: Mapping[str, Any], module: str) -> bool | None:
    """Whether layers_to_transform takes in a module that target_modules names."""
    layers, stacks = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if layers is None or layers == []:
        return True
    named = [rf"(?:^|.*?\.){stack}" for stack in (stacks if isinstance(stacks, list) else [stacks])]
    for stack in named or [r".*?\.[^.]*"]:
        try:
            match = re.match(rf"{stack}\.(\d+)\.", module) if is_tame(stack.removeprefix("(?:^|.*?\\.)")) else None
        except re.error:
            return None
        if match:
            return int(match[1]) in (layers if isinstance(layers, list) else [layers])
    return False
