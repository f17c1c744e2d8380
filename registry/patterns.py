"""Settings by module, `rank_pattern` and its like: which key means which module, whatever order a file has them in.

Of several keys that match one module PEFT and vLLM take the first, and PEFT sorts them when it saves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_REGEX = re.compile(r"[^\w.-]")
_GROUP_REPEATED = re.compile(r"\)[*+{]")
_REPEATED = re.compile(r"[*+]|,\}")


@dataclass(frozen=True, slots=True)
class Rule:
    """How one of PEFT's methods reads the keys."""

    expression: str
    """What has to match from a module's name on, `{}` standing for the key."""
    tail: bool = False
    """Whether something has to stand before the key."""

    def matches(self, key: str, module: str) -> bool:
        """Whether a key means a module; one that is no valid or no tame expression means none."""
        try:
            return is_tame(key) and bool(re.match(self.expression.replace("{}", key), module))
        except re.error:
            return False

    def whole(self, module: str) -> str:
        """The key that means this module alone."""
        return module.partition(".")[2] if self.tail else f"^{module}"


SUFFIX: Final = Rule(r"(.*\.)?({})$")
"""LoRA's rule, and vLLM's (peft/utils/other.py, `get_pattern_key`; vllm/lora/peft_helper.py)."""
_TAIL: Final = Rule(r".*\.{}$", tail=True)
_ANYWHERE: Final = Rule(r".*?(?:{})")
_RANK_AND_ALPHA: Final = {"rank_pattern": SUFFIX, "alpha_pattern": SUFFIX}
RULES: Final[Mapping[str, Mapping[str, Rule]]] = {
    **dict.fromkeys(("LORA", "LOHA", "LOKR"), _RANK_AND_ALPHA),
    "DELORA": {"rank_pattern": SUFFIX, "lambda_pattern": SUFFIX},
    "WAVEFT": {"n_frequency_pattern": SUFFIX},
    "FOURIERFT": {"n_frequency_pattern": _TAIL},
    "C3A": {"block_size_pattern": _TAIL},
    "OSF": {"rank_pattern": _ANYWHERE},
}
"""The settings of each of PEFT's types that go by module, as its `_create_and_replace` reads them.

AdaLoRA's rank_pattern is its own note of the ranks that it kept, by the names of weights, and HiRA reads none.
"""
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)\.(?:lora|hada|lokr|delora|waveft|fourierft|c3a|osf)_")


def is_tame(pattern: str) -> bool:
    """Whether a regular expression from outside ends in a time that its length bounds."""
    return not _GROUP_REPEATED.search(pattern) and len(_REPEATED.findall(pattern)) <= 5 and len(pattern) <= 2000


def is_plain(key: str) -> bool:
    """Whether a key is the end of modules' names, and no expression."""
    return not _REGEX.search(key)


def matches(key: str, module: str) -> bool:
    """Whether a key of rank_pattern or alpha_pattern means a module, by LoRA's rule."""
    if is_plain(bare := key.removeprefix("^")):
        return module == bare or (bare == key and module.endswith(f".{key}"))
    return SUFFIX.matches(key, module)


def by_module(keys: Iterable[str], modules: Iterable[str], rule: Rule = SUFFIX) -> dict[str, list[str]]:
    """The keys that mean each module, in their order, of which the first is taken; modules without one are left out."""
    order = {key: place for place, key in enumerate(keys)}
    odd = [key for key in order if rule is not SUFFIX or not is_plain(key.removeprefix("^"))]
    found = {}
    for module in modules:
        parts = module.split(".")
        ends = {".".join(parts[start:]) for start in range(len(parts))} | {f"^{module}"}
        there = ends & order.keys() if rule is SUFFIX else set()
        if there := there | {key for key in odd if rule.matches(key, module)}:
            found[module] = sorted(there, key=order.__getitem__)
    return found


def settled(config: Mapping[str, Any], modules: Iterable[str]) -> dict[str, Any]:
    """The configuration with each setting by module so written that the order of its keys means nothing.

    `modules` are those that carry the adapter. A key that shares one of them with another of a different value gives
    way to the names of those that it is the first for. What cannot be written so is left in its order.
    """
    found, names = dict(config), sorted(set(modules))
    for field, rule in RULES.get(str(config.get("peft_type")), {}).items():
        if isinstance(given := config.get(field), Mapping) and names:
            found[field] = _settled(given, names, rule)
    return found


def modules_of(config: Mapping[str, Any], tensors: Iterable[str]) -> set[str]:
    """The modules that PEFT holds the keys against, by an adapter's tensors: for fused experts, their parameters."""
    found = {match["module"] for name in tensors if (match := _TENSOR.match(name))}
    parameters = {str(name).rpartition(".")[2] for name in config.get("target_parameters") or ()}
    return found | {f"{name.removesuffix('.base_layer')}.{end}" for name in found for end in parameters}


def _settled(given: Mapping[str, Any], modules: list[str], rule: Rule) -> dict[str, Any]:
    keys = by_module(given, modules, rule)
    torn = {key for among in keys.values() if any(given[key] != given[among[0]] for key in among) for key in among}
    own = {rule.whole(module): given[among[0]] for module, among in keys.items() if among[0] in torn}
    found = dict(sorted(({key: value for key, value in given.items() if key not in torn} | own).items()))
    again = by_module(found, modules, rule)
    meant = {module: given[among[0]] for module, among in keys.items()}
    same = again.keys() == meant.keys() and all(
        found[key] == meant[module] for module, among in again.items() for key in among
    )
    return found if same and all(map(is_tame, given)) else dict(given)
