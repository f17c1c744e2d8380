"""What a recipe need not say of a method, where PEFT's own default is none, or not what we would advise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from loradock.trainer.targets import architecture, common_size, has_fused_experts

_SAME_FOR_ALL: Final[Mapping[str, dict[str, Any]]] = {
    "prompt_tuning": {"num_virtual_tokens": 20},
    "p_tuning": {"num_virtual_tokens": 20},
    "prefix_tuning": {"num_virtual_tokens": 20},
    "cartridge": {"num_virtual_tokens": 20},
    "multitask_prompt_tuning": {"num_virtual_tokens": 20, "num_tasks": 1},
    "frod": {"progressbar": False},
}
_OWN_TARGETS: Final = ("adaption_prompt", "beft", "ln_tuning", "shadow", "osf")
"""Types that adapt something else than linear layers, or choose the layers well themselves."""


def of(peft_type: str, given: Mapping[str, Any], model: Any, steps: int) -> dict[str, Any]:
    """The hyper-parameters to use where the recipe gives none, which may follow from those that it gives."""
    found = dict(_SAME_FOR_ALL.get(peft_type, {}))
    match peft_type:
        case "lora":
            dropout = 0.0 if given.get("target_parameters") or has_fused_experts(model) else 0.05  # PEFT has none there
            found |= {"r": 16, "lora_alpha": 2 * given.get("r", 16), "lora_dropout": dropout}
        case "adalora":  # from half as many ranks again down to the target, between a tenth and a half of the training
            rank = given.get("target_r", 8)
            found |= {"target_r": rank, "init_r": rank * 3 // 2, "lora_alpha": 2 * rank, "lora_dropout": 0.05}
            found |= {"total_step": max(steps, 1), "tinit": steps // 10, "tfinal": steps // 2, "deltaT": 1}
        case "ia3" if "target_modules" not in given:
            names = list(architecture(model).ia3)
            found |= {"target_modules": names, "feedforward_modules": names[-1:]}
        case "adaption_prompt":  # the paper's: ten tokens, in all layers but the lowest two
            layers = model.config.get_text_config().num_hidden_layers
            found |= {"adapter_len": 10, "adapter_layers": max(1, layers - 2)}
        case "c3a":
            found |= {"block_size": common_size(model)}
        case "vblora":  # PEFT's own length where it fits
            found |= {"vector_length": math.gcd(256, common_size(model))}
        case "xlora":
            found |= {"hidden_size": model.config.get_text_config().hidden_size}
    return found


def targets(peft_type: str) -> Any:
    """Attention and MLP; None where the type's own choice is better."""
    if peft_type == "trainable_tokens":
        return ["embed_tokens"]
    return None if peft_type in _OWN_TARGETS else "all-linear"
