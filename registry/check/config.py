"""What adapter_config.json alone says against an adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from loradock.registry.check.findings import Finding, some
from loradock.registry.check.names import TensorName
from loradock.registry.check.settings import TIED, largest_rank
from loradock.registry.check.shapes import BaseShapes
from loradock.registry.check.vllm import NO_LORA, PLAIN_STARTS, RANKS
from loradock.registry.outside import printable, quoted
from loradock.registry.patterns import is_tame

_CONVERTED: Final = (
    "ADALORA", "C3A", "DEFT", "DELORA", "GRALORA", "HIRA", "HRA", "LOHA", "LOKR", "MISS", "PEANUT", "PSOFT", "PVERA",
    "RANDLORA", "TINYLORA", "UNILORA", "VBLORA", "VERA",
)  # fmt: skip
"""Methods that change a weight by something of low rank, or nearly."""
_MERGED: Final = (
    "ADAMSS", "BEFT", "BOFT", "FOURIERFT", "FROD", "GLORA", "IA3", "LILY", "LN_TUNING", "OFT", "OSF", "ROAD", "SHIRA",
    "SUPERTUNING", "TRAINABLE_TOKENS", "WAVEFT",
)  # fmt: skip
"""Methods that change weights, but by nothing of low rank. What is in neither list changes no weight."""


def in_config(config: Mapping[str, Any], tensors: Mapping[str, TensorName], base: BaseShapes) -> Iterator[Finding]:
    """Findings on the method, on missing and impossible keys, and on what vLLM does not do."""
    if base.architecture in NO_LORA:
        text = f"vLLM serves {base.architecture} without LoRA only"
        yield Finding("base-takes-no-lora", text, "merge")
    method = config.get("peft_type")
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM"):
        text = (
            f"its task_type is {quoted(task)}, and what is served is CAUSAL_LM: its head, where it has one, is left out"
        )
        yield Finding("task-differs", text)
    if method is None:
        yield Finding("method-missing", "its configuration names no peft_type, so PEFT cannot load it", "settings")
    elif method != "LORA":
        yield Finding("not-lora", f"its method is {printable(str(method))}, and vLLM serves LORA", _cure(str(method)))
        return
    yield from _numbers(config)
    yield from _keys(config)
    yield from _patterns(config)
    yield from _variants(config, tensors, base)
    yield from _start(config, base)


def rank_limit(config: Mapping[str, Any], found: int, limit: int) -> Iterator[Finding]:
    """The rank above the limit; `found` is the largest rank of any tensor, 0 when there is none."""
    try:
        told = largest_rank(config)
    except (TypeError, ValueError, AttributeError):
        told = 0
    if (rank := max(told, found)) <= limit:
        return
    if 0 < found <= limit < told and is_rank(config.get("r")) and config["r"] <= limit:
        text = f"its rank is {told} by rank_pattern, and the limit is {limit}, though no tensor has more than {found}"
        yield Finding("rank-above-limit", text, "one-rank")
        return
    enough = next((allowed for allowed in RANKS if allowed >= rank), None)
    way = f"; vLLM takes it with --max-lora-rank {enough}" if enough else f", and vLLM goes to {RANKS[-1]}"
    text = f"its rank is {rank}, and the limit is {limit}{way}; convert lowers it with --rank {limit}"
    yield Finding("rank-above-limit", text, "convert")


def _cure(method: str) -> str:
    return "convert" if method in _CONVERTED else "merge" if method in _MERGED else ""


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number, which `true` is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_rank(value: Any) -> bool:
    """Whether a JSON value is a rank."""
    return type(value) is int and value > 0


def _numbers(config: Mapping[str, Any]) -> Iterator[Finding]:
    if "r" not in config:
        yield Finding("rank-missing", "its configuration does not name its rank, r", "settings")
    elif not is_rank(config["r"]):
        yield Finding("rank-invalid", f"its rank is {quoted(config['r'])}, and a rank is a whole number above 0")
    if "lora_alpha" not in config:
        yield Finding("alpha-missing", "its configuration names no lora_alpha, which PEFT takes for 8", "settings")
    elif not is_number(config["lora_alpha"]):
        yield Finding("alpha-invalid", f"its lora_alpha is {quoted(config['lora_alpha'])}, which is no number")
    elif config["lora_alpha"] == 0:
        yield Finding("no-effect", "it has no effect: lora_alpha is 0")
    if "target_modules" not in config or not (config["target_modules"] or config.get("target_parameters")):
        yield Finding("targets-missing", "its configuration names no target_modules", "settings")
    elif not isinstance(config.get("target_modules") or [], list | str):
        yield Finding("targets-invalid", f"its target_modules are {quoted(config['target_modules'])}", "settings")


def _keys(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Keys that nobody here can read, unless they are off."""
    if odd := [f"{key}: {quoted(config[key])}" for key in sorted(config.keys() - _READ - _SILENT) if config[key]]:
        yield Finding("setting-unknown", f"it is not known what these of its settings do: {some(odd)}", unknown=True)


_READ: Final = frozenset(
    {
        *("alora_invocation_tokens", "alpha_pattern", "arrow_config", "bias", "ensure_weight_tying", "exclude_modules"),
        *("init_lora_weights", "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform"),
        *("lora_alpha", "lora_bias", "modules_to_save", "peft_type", "r", "rank_pattern", "target_modules"),
        *("target_parameters", "task_type", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora"),
        "use_rslora",
    }
)
"""Keys that a finding or a shape depends on."""
IDLE: Final = frozenset({"unsloth_fixed", "unsloth_version", "transformers_version", "_name_or_path"})
"""Keys that others add, and that say nothing of what an adapter does."""
_SILENT: Final = IDLE | frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
        *("corda_config", "eva_config", "loftq_config", "lora_dropout", "lora_ga_config", "velora_config"),
        *("megatron_config", "megatron_core", "qalora_group_size", "runtime_config", "fan_in_fan_out"),
    }
)
"""Keys that say nothing of what a trained adapter does: how it was started, trained, or is written down."""


def _patterns(config: Mapping[str, Any]) -> Iterator[Finding]:
    for key, fits in (("rank_pattern", is_rank), ("alpha_pattern", is_number)):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict):
            yield Finding("pattern-invalid", f"its {key} is {quoted(pattern)}, and not a mapping from modules")
            continue
        if wrong := [f"{name}: {quoted(value)}" for name, value in pattern.items() if not fits(value)]:
            yield Finding("pattern-invalid", f"its {key} holds what cannot be: {some(wrong)}")
        if wild := [name for name in pattern if not is_tame(name)]:
            yield Finding("pattern-unsafe", f"its {key} holds expressions that may never end: {some(wild)}")
        if pattern and not wrong and not wild:
            text = f"its layers differ by {key} ({len(pattern)} keys), which vLLM reads, and older servers do not"
            yield Finding("uneven-layers", text, "one-rank", blocks=False)


def _variants(config: Mapping[str, Any], tensors: Mapping[str, TensorName], base: BaseShapes) -> Iterator[Finding]:
    parts = {name.part for name in tensors.values()}
    if config.get("use_dora"):
        yield Finding("dora", "it is a DoRA adapter (use_dora)", "convert")
    elif "magnitude_vector" in parts:
        text = "it holds magnitudes, and its configuration does not say use_dora: PEFT leaves them out"
        yield Finding("magnitudes-unclaimed", text)
    yield from _ties(config, tensors, base)
    yield from _biases(config, tensors, base)
    yield from _whole_modules(config, tensors)
    if config.get("trainable_token_indices") or any("trainable_tokens" in name.module for name in tensors.values()):
        yield Finding("trainable-tokens", "it trains tokens of its own (trainable_token_indices)", "merge")
    if config.get("layer_replication"):
        yield Finding("layers-replicated", "it replicates layers (layer_replication)")
    if config.get("alora_invocation_tokens"):
        yield Finding("activated-lora", "it is an activated LoRA (alora_invocation_tokens)")
    if config.get("use_bdlora"):
        yield Finding("bdlora", "it is a block-diagonal LoRA (use_bdlora)", "merge")
    if config.get("use_qalora"):
        yield Finding("qalora", "it is a QALoRA adapter (use_qalora), which PEFT does not merge")
    if config.get("kasa_config"):
        yield Finding("kasa", "it is a KaSA adapter, which cuts a part of its base away (kasa_config)")
    if config.get("arrow_config"):
        yield Finding("arrow", "it routes among other adapters (arrow_config)")


def _ties(config: Mapping[str, Any], tensors: Mapping[str, TensorName], base: BaseShapes) -> Iterator[Finding]:
    held = {name.module.rsplit(".", 1)[-1] for name in tensors.values() if name.side} & {*TIED}
    if config.get("ensure_weight_tying") and base.config.get("tie_word_embeddings", True) and 0 < len(held) < len(TIED):
        text = f"PEFT ties embed_tokens and lm_head (ensure_weight_tying), and vLLM finds tensors of {min(held)} alone"
        yield Finding("tied-adapter", text, "merge")


def _biases(config: Mapping[str, Any], tensors: Mapping[str, TensorName], base: BaseShapes) -> Iterator[Finding]:
    told = config.get("bias", "none") not in ("none", None) or bool(config.get("lora_bias"))
    of_lora = [name.module for name in tensors.values() if name.part == "bias"]
    of_base = [name.module for name in tensors.values() if not name.part and name.module.endswith(".bias")]
    if told and not of_lora and not of_base:
        yield Finding("bias", "its configuration says that it trains biases, and it holds none", "settings")
    elif of_lora:
        # A bias cannot be merged into a layer that has none.
        merges = bool(base.layers) and all((layer := base.layer(name)) and layer.bias for name in of_lora)
        yield Finding("bias", f"it trains biases of its own ({len(of_lora)}, lora_bias)", "merge" if merges else "")
    elif told:
        kind = printable(str(config.get("bias")))
        yield Finding("bias", f"it trains biases of the base ({len(of_base)}, bias: {kind})", "merge")


def _whole_modules(config: Mapping[str, Any], tensors: Mapping[str, TensorName]) -> Iterator[Finding]:
    if not (kept := config.get("modules_to_save")):
        return
    names = [str(name) for name in kept] if isinstance(kept, list) else [str(kept)]
    if any(replaces(config, name) for name in tensors.values()):
        text = f"it replaces whole modules (modules_to_save: {some(names)})"
        yield Finding("modules-to-save", text, "merge")
    else:
        text = f"it says that it replaces whole modules (modules_to_save: {some(names)}), and it holds none"
        yield Finding("modules-to-save", text, "settings")


def replaces(config: Mapping[str, Any], name: TensorName) -> bool:
    """Whether a tensor is a part of a module that modules_to_save means: each whose name ends as one of these.

    Under ensure_weight_tying a head that is one with the embeddings goes with them, and they with it.
    """
    kept = config.get("modules_to_save") or []
    ends = tuple(str(end) for end in kept) if isinstance(kept, list) else (str(kept),)
    parts = name.module.split(".")
    modules = [".".join(parts[:length]) for length in range(1, len(parts))]
    tied = bool(ends and config.get("ensure_weight_tying") and is_embedding(modules[-1] if modules else ""))
    return not name.part and (tied or "modules_to_save" in parts or any(module.endswith(ends) for module in modules))


def is_embedding(module: str) -> bool:
    """Whether a module is the embeddings or the head, which a base may hold as one."""
    return module.rsplit(".", 1)[-1] in TIED


def _start(config: Mapping[str, Any], base: BaseShapes) -> Iterator[Finding]:
    start = config.get("init_lora_weights", True)
    if not isinstance(start, str):
        return
    kind = start.lower()
    told = f"it starts from a changed base (init_lora_weights: {printable(start)})"
    if kind == "lora_ga":
        text = f"{told}: as it is saved, neither PEFT nor vLLM takes its start out again"
        yield Finding("start-left-in", text, blocks=False)
    elif kind in PLAIN_STARTS:
        return
    elif start == "pissa" or (kind == "olora" and not base.transposed):
        yield Finding("start-left-in", told, "plain-start")
    elif kind == "olora":
        yield Finding("start-left-in", f"{told}, which PEFT does not do on the base's Conv1D layers")
    elif kind.startswith("pissa_niter"):
        yield Finding("start-left-in", f"{told}, which was sampled at random and cannot be computed again")
    elif kind.startswith("corda"):
        yield Finding("start-left-in", f"{told}, which took the data of its training")
    elif kind == "loftq":
        text = f"{told}: it fits only the quantised copy that its training made, and no other base"
        yield Finding("start-left-in", text)
    else:
        yield Finding("start-unknown", f"its init_lora_weights is {quoted(start)}, which vLLM refuses", "")
