"""What readers older than transformers 5, and others, look for in a model's files: in other places than today's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_BESIDE: Final = ("rope_theta", "partial_rotary_factor")
"""What of today's rope_parameters lies at the top level elsewhere (transformers 4, mlx-lm)."""
_COUNTED: Final = ("qwen3_moe", "qwen3_vl_moe_text")
"""Types whose num_local_experts is num_experts in transformers 4, which takes a number of its own for a missing one."""
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


def readable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that older readers read as today's do; it holds all that it held.

    They take `rope_theta` for 10000, and weights for float32, where they do not find them.
    """
    found = {**_rotary(config), **config}
    if "num_local_experts" in found and found.get("model_type") in _COUNTED:
        found["num_experts"] = found["num_local_experts"]
    if isinstance(found.get("text_config"), dict):
        found["text_config"] = readable(found["text_config"])
    if "dtype" in found:
        found["torch_dtype"] = found["dtype"]
    return found


def readable_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json whose class older readers know: the same one bears another name there."""
    if config.get("tokenizer_class") != "TokenizersBackend":
        return dict(config)
    return {**config, "tokenizer_class": "PreTrainedTokenizerFast"}


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary embeddings as transformers 4 writes them, of a model whose layers have one kind, or two as Gemma's."""
    given = config.get("rope_parameters")
    if not isinstance(given, Mapping):
        return {}
    main, local = given.get(_GLOBAL, given), given.get(_LOCAL)
    found = {key: main[key] for key in _BESIDE if key in main}
    if isinstance(local, Mapping) and "rope_theta" in local:
        found["rope_local_base_freq"] = local["rope_theta"]
    scaling = {key: value for key, value in main.items() if key not in _BESIDE}
    if scaling.get("rope_type", "default") != "default":
        found["rope_scaling"] = scaling
    return found
