"""LLaMA-Factory's SFT recipes (https://github.com/hiyouga/LLaMA-Factory, Apache-2.0), key by key.

What its keys mean, and its defaults, are read from llamafactory.hparams and llamafactory.data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from loradock.trainer.dialects import evaluations, parts
from loradock.trainer.dialects.draft import Draft
from loradock.trainer.dialects.llamafactory_data import listed, rows_of
from loradock.trainer.dialects.llamafactory_keys import DEFAULTS, KEYS, NAME
from loradock.trainer.dialects.places import Places
from loradock.trainer.dialects.rules import PREFERENCE
from loradock.trainer.dialects.source import Source

_LORA: Final = (
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target",
    "use_dora",
    "use_rslora",
    "pissa_init",
    "pissa_iter",
)
_OFT: Final = ("oft_target", "oft_rank", "oft_block_size", "module_dropout")
_ATTENTION: Final = {
    "disabled": "eager",
    "sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "flash_attention_2": "flash_attention_2",
    "fa3": "flash_attention_3",
}


def translate(source: Source, draft: Draft, places: Places) -> None:
    """Fill `draft` from `source`, which is left with every fault and note."""
    source.apply(KEYS, draft)
    parts.base(source, draft, places, "model_name_or_path", ("model_revision",))
    if (stage := source.get("stage")) not in (None, "sft"):
        source.refuse(("stage",), f"{stage} is not sft: {PREFERENCE}, nor is pre-training")
    if source.get("do_train") not in (None, True):
        source.refuse(("do_train",), "there is nothing to train")
    _method(source, draft)
    _quantization(source, draft)
    rows = rows_of(source, draft, places)
    _training(source, draft)
    for key, value in DEFAULTS.items():
        if key == "training.num_train_epochs" and "training.max_steps" in draft:
            continue
        if key == "training.load_best_model_at_end" and source.peek("early_stopping_steps"):
            continue
        draft.default(key, value, f"{NAME}'s default")
    _evaluations(source, draft, rows)
    source.finish(KEYS)


def _method(source: Source, draft: Draft) -> None:
    kind = source.get("finetuning_type") or "lora"
    origin = ("finetuning_type",)
    unused = {"lora": _OFT, "oft": _LORA}.get(str(kind), (*_LORA, *_OFT, "additional_target"))
    for key in unused:
        if source.get(key):
            source.note((key,), f"it says nothing about {kind}")
    if kind == "full":
        draft.set("method.type", "full", origin)
    elif kind == "lora":
        four = source.peek("quantization_bit") == 4
        draft.set("method.type", "qlora" if four else "lora", origin if source.peek(*origin) else ())
        _lora(source, draft)
    elif kind == "oft":
        draft.set("method.type", "oft", origin)
        if rank := source.get("oft_rank"):
            draft.set("method.r", rank, ("oft_rank",))
        _given(source, draft, "method.oft_block_size", "oft_block_size", 32)
        _given(source, draft, "method.module_dropout", "module_dropout", 0.0)
        _targets(source, draft, "oft_target")
    else:
        source.refuse(origin, f"{kind} is none of lora, full and oft")


def _given(source: Source, draft: Draft, ours: str, key: str, default: Any) -> None:
    value = source.get(key)
    if value is None:
        draft.set(ours, default, (), f"{NAME}'s default")
    else:
        draft.set(ours, value, (key,))


def _lora(source: Source, draft: Draft) -> None:
    _given(source, draft, "method.r", "lora_rank", 8)
    rank = draft.get("method.r")
    _given(source, draft, "method.lora_alpha", "lora_alpha", rank * 2 if isinstance(rank, int) else 16)
    _given(source, draft, "method.lora_dropout", "lora_dropout", 0.0)
    for key in ("use_dora", "use_rslora"):
        if (value := source.get(key)) is not None:
            draft.set(f"method.{key}", value, (key,))
    rounds = source.get("pissa_iter")
    if source.typed(bool, "pissa_init"):
        rounds = 16 if rounds is None else rounds
        name = "pissa" if rounds == -1 else f"pissa_niter_{rounds}"
        draft.set("method.init_lora_weights", name, ("pissa_init",))
    elif rounds not in (None, 16):
        source.note(("pissa_iter",), "pissa_init is not set")
    _targets(source, draft, "lora_target")


def _targets(source: Source, draft: Draft, key: str) -> None:
    names = listed(source.get(key))
    if not names or names == ["all"]:
        draft.set("method.target_modules", "all-linear", (key,) if names else (), "" if names else f"{NAME}'s default")
    else:
        draft.set("method.target_modules", names, (key,))
    if more := listed(source.get("additional_target")):
        draft.set("method.modules_to_save", more, ("additional_target",))


def _quantization(source: Source, draft: Draft) -> None:
    bits = source.get("quantization_bit")
    method = source.get("quantization_method")
    kind, double = source.get("quantization_type"), source.get("double_quantization")
    if bits is None:
        for key in ("quantization_method", "quantization_type", "double_quantization"):
            if source.peek(key):
                source.note((key,), "quantization_bit is not set: the base is not quantised")
        return
    if method not in (None, "bnb", "bitsandbytes"):
        source.refuse(("quantization_method",), f"{method} is not bnb: bitsandbytes alone quantises here")
    if bits not in (4, 8):
        source.refuse(("quantization_bit",), "should be 4 or 8")
    elif draft.get("method.type") == "full":
        source.refuse(("quantization_bit",), "needs an adapter: what is quantised is not trained")
    else:
        draft.set(f"quantization.load_in_{bits}bit", True, ("quantization_bit",))
        if kind:
            draft.set("quantization.bnb_4bit_quant_type", kind, ("quantization_type",))
        if double is not None:
            draft.set("quantization.bnb_4bit_use_double_quant", double, ("double_quantization",))


def _training(source: Source, draft: Draft) -> None:
    parts.duration(source, draft, "num_train_epochs")
    parts.warmup(source, draft, 0, f"{NAME}'s default")
    wide = next((key for key in ("bf16", "pure_bf16") if source.typed(bool, key)), None)
    source.get("pure_bf16")
    if wide:
        draft.set("training.dtype", "bfloat16", (wide,))
    elif source.typed(bool, "fp16"):
        source.note(
            ("fp16",), "there is no float16 here: bfloat16 where the hardware has it, else float32 (dtype: auto)"
        )
    if source.typed(bool, "train_on_prompt"):
        draft.set("training.completion_only_loss", False, ("train_on_prompt",))
    neat, packing = source.typed(bool, "neat_packing"), source.typed(bool, "packing")
    if neat or packing:
        draft.set("training.packing", True, ("neat_packing",) if neat else ("packing",))
        if not neat:
            source.note(("packing",), "rows that share a sequence do not see each other here, as with neat_packing")
    if source.typed(bool, "disable_gradient_checkpointing"):
        draft.set("training.gradient_checkpointing", False, ("disable_gradient_checkpointing",))
    elif source.typed(bool, "gradient_checkpointing"):
        draft.set("training.gradient_checkpointing", True, ("gradient_checkpointing",))
    flash = source.get("flash_attn")
    if str(flash) in _ATTENTION:
        draft.set("training.attn_implementation", _ATTENTION[str(flash)], ("flash_attn",))
    elif flash not in (None, "auto"):
        source.refuse(("flash_attn",), f"should be one of auto, {', '.join(_ATTENTION)}")


def _evaluations(source: Source, draft: Draft, rows: Sequence[parts.Rows]) -> None:
    whole = evaluations.length(draft, rows, 8, draft.get("training.num_train_epochs"))
    evaluations.evaluations(source, draft, whole, ("eval_strategy",))
    evaluations.checkpoints(source, draft)
    evaluations.patience(source, draft, "early_stopping_steps")
