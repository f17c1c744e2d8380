"""Axolotl's recipes (https://github.com/axolotl-ai-cloud/axolotl, Apache-2.0), key by key.

What its keys mean, and its defaults, are read from axolotl.utils.schemas and axolotl.core.builders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from loradock.trainer.dialects import evaluations, parts
from loradock.trainer.dialects.axolotl_data import rows_of
from loradock.trainer.dialects.axolotl_keys import BNB, DEFAULTS, KEYS, LORA_DEFAULTS, NAME, TOKENS
from loradock.trainer.dialects.draft import Draft
from loradock.trainer.dialects.places import Places
from loradock.trainer.dialects.rules import DEVICES, MLFLOW, NUMBERS, VISION, VOCABULARY
from loradock.trainer.dialects.source import Source

_ATTENTION: Final = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flash": "flash_attention_2",
    "flash_attention_2": "flash_attention_2",
    "flash_attention_3": "flash_attention_3",
}
_PLUGINS: Final = {
    "liger": NUMBERS,
    "cut_cross_entropy": NUMBERS,
    "kernels": NUMBERS,
    "swanlab": MLFLOW,
    "expert_parallel": DEVICES,
}
_NO_ADAPTER: Final = "there is no adapter: every weight is trained"


def translate(source: Source, draft: Draft, places: Places) -> None:
    """Fill `draft` from `source`, which is left with every fault and note."""
    source.apply(KEYS, draft)
    parts.base(source, draft, places, "base_model", ("revision_of_model", "model_revision"))
    _model(source)
    _method(source, draft)
    _quantization(source, draft)
    _dtype(source, draft)
    rows = rows_of(source, draft, places)
    _training(source, draft)
    parts.heldout(source, draft, "val_set_size", parts.total(rows))
    for key, value in DEFAULTS.items():
        if key == "training.num_train_epochs" and "training.max_steps" in draft:
            continue
        if key == "training.load_best_model_at_end" and source.peek("early_stopping_patience"):
            continue
        draft.default(key, value, f"{NAME}'s default")
    _evaluations(source, draft, rows)
    source.finish(KEYS)


def _model(source: Source) -> None:
    """What is said of the base besides its name."""
    for key in ("base_model_config", "tokenizer_config"):
        if (given := source.get(key)) and given != source.peek("base_model"):
            source.refuse((key,), "the base's own configuration and tokenizer are used")
    for key in ("model_type", "type_of_model"):
        if not (kind := source.get(key)):
            continue
        if str(kind).endswith(("ForCausalLM", "LMHeadModel")):
            source.note((key,), "the class is found from the base's own configuration")
        else:
            source.refuse((key,), f"only causal language models are trained; {VISION}")
    source.typed(dict, "special_tokens")
    source.apply(TOKENS, Draft(), "special_tokens")
    if isinstance(source.get("tokens"), Mapping):  # an older name of special_tokens
        source.apply(TOKENS, Draft(), "tokens")
    elif source.peek("tokens"):
        source.refuse(("tokens",), VOCABULARY)
    for index, plugin in enumerate(source.typed(list, "plugins") or []):
        package = next((part for part in str(plugin).split(".") if part in _PLUGINS), None)
        if package:
            source.note(("plugins", index), _PLUGINS[package])
        else:
            source.refuse(("plugins", index), f"{plugin} is no part of loradock, and it may change what is trained")


def _method(source: Source, draft: Draft) -> None:
    adapter = source.get("adapter")
    if not adapter:
        source.get("full_finetune")
        draft.set("method.type", "full", (), "there is no adapter key")
        for key in [key for key in draft.entries if key.startswith("method.") and key != "method.type"]:
            origin = draft.entries.pop(key).origin
            if not KEYS[str(origin[0])].is_off(source.peek(*origin)):
                source.note(origin, _NO_ADAPTER)
        for key in ("lora_target_modules", "lora_target_linear", "lora_target_parameters", "peft"):
            if source.get(key):
                source.note((key,), _NO_ADAPTER)
        return
    if adapter in ("lora", "qlora"):
        draft.set("method.type", adapter, ("adapter",))
    else:
        source.refuse(
            ("adapter",),
            f"{adapter} is neither lora nor qlora; `loradock methods` lists what a recipe of ours can name",
        )
    for key, ours in (("lora_r", "method.r"), ("lora_alpha", "method.lora_alpha")):
        if ours not in draft:
            source.refuse((key,), f"is missing, and {NAME} has no default for it")
    for key, value in LORA_DEFAULTS.items():
        draft.default(key, value, f"{NAME}'s default")
    _targets(source, draft)
    _loftq(source, draft)


def _targets(source: Source, draft: Draft) -> None:
    linear, modules = source.typed(bool, "lora_target_linear"), source.get("lora_target_modules")
    parameters = source.get("lora_target_parameters")
    if linear:
        joined = f"with {modules}, as {NAME} joins them" if modules else ""
        draft.set("method.target_modules", "all-linear", ("lora_target_linear",), joined)
    elif modules or parameters:
        draft.set("method.target_modules", modules or [], ("lora_target_modules",))
    else:
        source.refuse(
            ("lora_target_linear",), "is missing, and so is lora_target_modules: one of them says what carries it"
        )
    if parameters:
        draft.set("method.target_parameters", parameters, ("lora_target_parameters",))


def _loftq(source: Source, draft: Draft) -> None:
    peft = source.typed(dict, "peft") or {}
    loftq = source.typed(dict, "peft", "loftq_config") or {}
    bits = loftq.get("loftq_bits")
    if set(peft) - {"loftq_config"} or set(loftq) - {"loftq_bits"}:
        source.refuse(("peft",), "holds loftq_config with loftq_bits, and no more")
    elif bits == 4:
        draft.set(
            "method.type", "loftq", ("peft", "loftq_config"), "it holds the base in the 4 bits that it starts from"
        )
    elif bits is not None:
        source.refuse(("peft", "loftq_config", "loftq_bits"), "LoftQ starts from 4 bits here")


def _quantization(source: Source, draft: Draft) -> None:
    four, eight = source.typed(bool, "load_in_4bit"), source.typed(bool, "load_in_8bit")
    source.typed(dict, "bnb_config_kwargs")
    if four and eight:
        source.refuse(("load_in_8bit",), "load_in_4bit is true too: choose one")
    elif (four or eight) and draft.get("method.type") == "full":
        source.refuse(
            ("load_in_4bit" if four else "load_in_8bit",), "needs an adapter: what is quantised is not trained"
        )
    elif eight:
        draft.set("quantization.load_in_8bit", True, ("load_in_8bit",))
    elif four or draft.get("method.type") == "qlora":
        draft.set("quantization.load_in_4bit", True, ("load_in_4bit",) if four else ("adapter",))
    else:
        if source.peek("bnb_config_kwargs"):
            source.note(("bnb_config_kwargs",), "the base is not quantised")
        return
    source.apply(BNB, draft, "bnb_config_kwargs")


def _dtype(source: Source, draft: Draft) -> None:
    given = {key: source.get(key) for key in ("bf16", "bfloat16", "fp16", "float16", "float32", "torch_dtype")}
    wide = next((key for key in ("bf16", "bfloat16") if given[key] and given[key] != "auto"), None)
    half = next((key for key in ("fp16", "float16") if given[key]), None)
    named = given["torch_dtype"]
    if wide or named == "bfloat16":
        draft.set("training.dtype", "bfloat16", (wide or "torch_dtype",))
    elif half or named == "float16":
        source.note(
            (half or "torch_dtype",),
            "there is no float16 here: bfloat16 where the hardware has it, else float32 (dtype: auto)",
        )
    elif given["float32"] or given["bf16"] is False or named == "float32":
        key = next(key for key in ("float32", "bf16", "torch_dtype") if given[key] is not None)
        draft.set("training.dtype", "float32", (key,))
    elif named:
        source.refuse(("torch_dtype",), "should be bfloat16, float16 or float32")


def _training(source: Source, draft: Draft) -> None:
    parts.duration(source, draft, "num_epochs")
    if "training.learning_rate" not in draft:
        source.refuse(("learning_rate",), f"is missing, and {NAME} has no default for it")
    parts.warmup(source, draft, 0.03, f"{NAME}'s default; it warms up for no more than 100 steps")
    batch, micro = source.get("batch_size"), source.peek("micro_batch_size") or 1
    if (
        batch
        and "training.gradient_accumulation_steps" not in draft
        and parts.is_number(batch)
        and parts.is_number(micro)
    ):
        steps = max(1, batch // micro)
        draft.set("training.gradient_accumulation_steps", steps, ("batch_size",), f"worked out: {batch} rows to a step")
    elif batch:
        source.note(("batch_size",), "gradient_accumulation_steps times micro_batch_size is the batch")
    if source.typed(bool, "train_on_inputs"):
        draft.set("training.completion_only_loss", False, ("train_on_inputs",))
    if (floor := source.get("cosine_min_lr_ratio")) and draft.get("training.lr_scheduler_type") in (None, "cosine"):
        draft.set("training.lr_scheduler_type", "cosine_with_min_lr", ("cosine_min_lr_ratio",))
        draft.set("training.lr_scheduler_kwargs", {"min_lr_rate": floor}, ("cosine_min_lr_ratio",))
    elif floor:
        source.note(("cosine_min_lr_ratio",), "it is for the cosine schedule")
    _attention(source, draft)
    checkpointing = source.get("gradient_checkpointing")
    if isinstance(checkpointing, bool):
        draft.set("training.gradient_checkpointing", checkpointing, ("gradient_checkpointing",))
    elif checkpointing:
        draft.set("training.gradient_checkpointing", True, ("gradient_checkpointing",), "activations are not offloaded")
        source.note(("gradient_checkpointing",), "activations are computed again here, not moved off the GPU")


def _attention(source: Source, draft: Draft) -> None:
    flags = {"flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager"}
    for key, ours in flags.items():
        if source.typed(bool, key):
            draft.set("training.attn_implementation", ours, (key,))
    if given := source.get("attn_implementation"):
        if str(given) in _ATTENTION:
            draft.set("training.attn_implementation", _ATTENTION[str(given)], ("attn_implementation",))
        else:
            known = ", ".join(sorted(set(_ATTENTION.values())))
            source.note(("attn_implementation",), f"attention computes the same another way; {known} can be chosen")


def _evaluations(source: Source, draft: Draft, rows: list[parts.Rows]) -> None:
    whole = evaluations.length(draft, rows, 1, source.peek("num_epochs"))
    evaluations.evaluations(source, draft, whole, ("eval_strategy", "evaluation_strategy"), "evals_per_epoch")
    evaluations.checkpoints(source, draft)
    evaluations.patience(source, draft, "early_stopping_patience")
