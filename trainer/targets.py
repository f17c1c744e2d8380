"""Which modules carry an adapter: names by architecture, held against the modules that a model really has."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers.pytorch_utils import Conv1D

from loradock.registry.errors import BadInput

LINEAR: Final = (torch.nn.Linear, Conv1D)
_CARRIERS: Final = (*LINEAR, torch.nn.Embedding)
GROUPS: Final = ("attention", "mlp")
"""The words that stand for modules by architecture; `all-linear` is PEFT's own."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The module names of a family of models."""

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    ia3: tuple[str, ...]
    """What IA3 scales: keys, values, and the MLP's last layer, which comes last (https://arxiv.org/abs/2205.05638)."""


_LLAMA: Final = Architecture(
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("k_proj", "v_proj", "down_proj"),
)
_FALCON: Final = Architecture(
    ("query_key_value", "self_attention.dense"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("query_key_value", "dense_4h_to_h"),
)
ARCHITECTURES: Final = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo", "olmo2", "granite"),
        _LLAMA,
    ),
    "phi": Architecture(("q_proj", "k_proj", "v_proj", "self_attn.dense"), ("fc1", "fc2"), ("k_proj", "v_proj", "fc2")),
    "phi3": Architecture(("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj"), ("qkv_proj", "down_proj")),
    "gpt2": Architecture(("c_attn", "attn.c_proj"), ("c_fc", "mlp.c_proj"), ("c_attn", "mlp.c_proj")),
    "gpt_neo": Architecture(
        ("q_proj", "k_proj", "v_proj", "out_proj"), ("c_fc", "c_proj"), ("k_proj", "v_proj", "c_proj")
    ),
    "gpt_neox": Architecture(
        ("query_key_value", "attention.dense"),
        ("dense_h_to_4h", "dense_4h_to_h"),
        ("query_key_value", "dense_4h_to_h"),
    ),
    "opt": Architecture(("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2"), ("k_proj", "v_proj", "fc2")),
    "falcon": _FALCON,
    "bloom": _FALCON,
}
"""By transformers' `model_type`."""


def architecture(model: Any) -> Architecture:
    """The names of a model's family; raises BadInput for a family that is not in the table."""
    kind = model.config.get_text_config().model_type
    if (found := ARCHITECTURES.get(kind)) is None:
        raise BadInput(
            f"which modules of a {kind} model are attention and which are MLP is not known here",
            hint=f"give method.target_modules as a list: this base has {', '.join(names(model))}; or all-linear",
        )
    return found


def named(target: str, model: Any) -> list[str]:
    """The module names that one of the GROUPS stands for."""
    return list(getattr(architecture(model), target))


def names(model: torch.nn.Module) -> tuple[str, ...]:
    """The last parts of the names of every module that multiplies by a matrix, sorted, each once."""
    return tuple(sorted({name.rsplit(".", 1)[-1] for name, found in model.named_modules() if _carries(found)}))


def check(targets: list[str], model: torch.nn.Module) -> None:
    """Raise BadInput for targets that are none of the model's modules: PEFT is content when one of a list is."""
    there = [f".{name}" for name, _ in model.named_modules() if name]
    problems = []
    for target in targets:
        if not any(name.endswith(f".{target}") for name in there):
            near = difflib.get_close_matches(target, names(model), n=1)
            problems.append(f"method.target_modules: {target!r}" + (f"; did you mean {near[0]}?" if near else ""))
    if problems:
        raise BadInput(
            "target modules that the base does not have",
            problems=problems,
            hint=f"this base has {', '.join(names(model))}; all-linear takes all but the embeddings and the head",
        )


def has_fused_experts(model: torch.nn.Module) -> bool:
    """Whether experts share one parameter, as transformers 5 holds them, which PEFT then adapts as a parameter."""
    return any(weight.dim() == 3 and ".experts." in name for name, weight in model.named_parameters())


def common_size(model: torch.nn.Module) -> int:
    """The largest block that the widths of all attention and MLP layers are whole multiples of."""
    layers = [found for name, found in model.named_modules() if isinstance(found, LINEAR) and "lm_head" not in name]
    return math.gcd(*(size for layer in layers for size in layer.weight.shape))


def _carries(module: torch.nn.Module) -> bool:
    return isinstance(module, _CARRIERS)
