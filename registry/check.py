"""What rules an adapter out, read from its own files: no model is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from registry.artifact import CONFIG, WEIGHTS, TensorInfo, read_header, read_values
from registry.errors import BadInput

MAX_RANK: Final = 512
"""The largest rank that vLLM can be started for."""

_START_FROM_BASE: Final = ("pissa", "olora", "corda", "loftq", "eva_lora", "lora_ga")
_PROJECTIONS: Final = {
    # module: (input width, output width), as config.json names them; families that share Llama's module names
    "q_proj": ("hidden", "heads"),
    "k_proj": ("hidden", "kv_heads"),
    "v_proj": ("hidden", "kv_heads"),
    "o_proj": ("heads", "hidden"),
    "gate_proj": ("hidden", "intermediate"),
    "up_proj": ("hidden", "intermediate"),
    "down_proj": ("intermediate", "hidden"),
}
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


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


def findings(directory: Path, *, base_config: Mapping[str, Any] | None = None, max_rank: int = MAX_RANK) -> list[str]:
    """Every reason why vLLM cannot serve this adapter as it is; empty when it can.

    With `base_config`, a base's config.json, the shape of each tensor is held against the base's layers.
    """
    if not (directory / WEIGHTS).is_file():
        return [f"it has no {WEIGHTS}: pickled weights are not loaded"]
    config = read_config(directory)
    try:
        tensors = read_header(directory / WEIGHTS)
    except BadInput as error:
        return [str(error)]
    return [
        *_in_config(config, max_rank),
        *_in_tensors(config, tensors),
        *_in_values(directory / WEIGHTS, tensors),
        *_on_base(tensors, base_config or {}),
    ]


def misfits(directory: Path, base_config: Mapping[str, Any]) -> list[str]:
    """Every tensor whose shape or layer says that this adapter was trained on another base."""
    return list(_on_base(read_header(directory / WEIGHTS), base_config))


def _in_config(config: Mapping[str, Any], max_rank: int) -> Iterator[str]:
    if (method := str(config.get("peft_type"))) != "LORA":
        yield f"its method is {method}, and vLLM serves LORA"
    if (rank := largest_rank(config)) > max_rank:
        yield f"its rank is {rank}, and the limit is {max_rank}"
    if config.get("use_dora"):
        yield "it is a DoRA adapter (use_dora)"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield "it trains biases"
    if kept := config.get("modules_to_save"):
        yield f"it replaces whole modules (modules_to_save: {', '.join(kept)})"
    if config.get("layer_replication"):
        yield "it replicates layers (layer_replication)"
    if config.get("alora_invocation_tokens"):
        yield "it is an activated LoRA (alora_invocation_tokens)"
    if str(config.get("init_lora_weights", "")).startswith(_START_FROM_BASE):
        yield f"it starts from a changed base (init_lora_weights: {config['init_lora_weights']})"


def _in_tensors(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        return
    sides: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if match := _TENSOR.fullmatch(name):
            sides.setdefault(match["module"], {})[match["side"]] = info
        else:
            yield f"it has a tensor that is no LoRA weight: {name}"
    if not sides:
        yield "it has no LoRA weights"
    for module, pair in sides.items():
        if set(pair) != {"A", "B"}:
            yield f"{module} has only one of lora_A and lora_B"
        elif pair["A"].shape[:1] != pair["B"].shape[1:2]:
            yield f"{module} has lora_A of {pair['A'].shape} and lora_B of {pair['B'].shape}: their ranks differ"


def _in_values(path: Path, tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """NaN and infinity, and the two matrices whose product is nothing. Types without a reader here pass unread."""
    import numpy as np

    largest: dict[str, float] = {}
    for name, values in read_values(path, tensors):
        peak = float(np.abs(values).max()) if values.size else 0.0
        if not np.isfinite(peak):
            yield f"{name} holds a value that is no finite number"
        if match := _TENSOR.fullmatch(name):
            largest[match["side"]] = max(largest.get(match["side"], 0.0), peak)
    if 0.0 in largest.values():
        side = next(side for side, peak in largest.items() if peak == 0.0)
        yield f"it has no effect: every lora_{side} is zero"


def _on_base(tensors: Mapping[str, TensorInfo], base: Mapping[str, Any]) -> Iterator[str]:
    if "hidden_size" not in base or "num_attention_heads" not in base:
        return
    heads = int(base["num_attention_heads"])
    head = int(base.get("head_dim") or base["hidden_size"] // heads)
    widths = {
        "hidden": int(base["hidden_size"]),
        "heads": heads * head,
        "kv_heads": int(base.get("num_key_value_heads") or heads) * head,
        "intermediate": int(base.get("intermediate_size") or 0),
    }
    layers = int(base.get("num_hidden_layers") or 0)
    for name, info in tensors.items():
        match = _TENSOR.fullmatch(name)
        if not match:
            continue
        if (layer := _LAYER.search(match["module"])) and layers and int(layer[1]) >= layers:
            yield f"{match['module']}: the base has {layers} layers"
        projection = _PROJECTIONS.get(match["module"].rsplit(".", 1)[-1])
        if not projection or len(info.shape) != 2:
            continue
        side = match["side"]
        wanted = widths[projection[0 if side == "A" else 1]]
        given = info.shape[1 if side == "A" else 0]
        if given != wanted:
            yield f"{match['module']}: lora_{side} is {given} wide where the base is {wanted}"
