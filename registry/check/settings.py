"""An adapter's configuration: reading it, and the rank and scaling of each of its layers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from registry.artifact import CONFIG
from registry.errors import BadInput
from registry.patterns import is_tame, matches

PEFT_ALPHA: Final = 8
"""What PEFT takes lora_alpha for when a configuration does not name it; for r too."""


def read_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json; raises BadInput."""
    path = directory / CONFIG
    if not path.is_file():
        raise BadInput(f"{directory} holds no {CONFIG}", hint="give the directory that PEFT's save_pretrained wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
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

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Scaling:
        """The scaling of a configuration that was found to be whole."""
        return cls(
            config.get("r", PEFT_ALPHA),
            config.get("lora_alpha", PEFT_ALPHA),
            config.get("rank_pattern") or {},
            config.get("alpha_pattern") or {},
            bool(config.get("use_rslora")),
        )

    def rank_of(self, module: str) -> int:
        """The rank that a module is configured to have."""
        return next((rank for key, rank in self.ranks.items() if matches(key, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """What B·A is multiplied by."""
        alpha = next((alpha for key, alpha in self.alphas.items() if matches(key, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def targets(config: Mapping[str, Any], module: str) -> bool | None:
    """Whether PEFT would put LoRA on a module; None where that cannot be told from the configuration alone."""
    wanted = config.get("target_modules")
    if isinstance(wanted, str):
        if wanted == "all-linear" or not is_tame(wanted):
            return None
        try:
            return bool(re.fullmatch(wanted, module))
        except re.error:
            return None
    if not isinstance(wanted, list) or config.get("target_parameters"):
        return None
    return any(module == name or module.endswith(f".{name}") for name in wanted)
