"""A base model in memory, in the precision that this machine computes fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from registry.base import LocalBase
from registry.errors import BadInput


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base, ready to be trained on."""

    model: Any
    tokenizer: Any
    dtype: torch.dtype
    cuda: bool


def load(local: LocalBase) -> Loaded:
    """Load a base's model and tokenizer; raises BadInput when it cannot be chatted with or not be read.

    No code that comes with a model is run, and no pickled weight is read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(local.path)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"the tokenizer of {local.base.id} cannot be read: {_first_line(error)}") from error
    if not tokenizer.chat_template:
        raise BadInput(
            f"the tokenizer of {local.base.id} has no chat template, so chat rows cannot be written for it",
            hint="use the instruct model of the family, or put a chat_template.jinja beside its tokenizer",
        )
    if tokenizer.eos_token is None:
        raise BadInput(f"the tokenizer of {local.base.id} has no end-of-text token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = best_dtype()
    try:
        model = AutoModelForCausalLM.from_pretrained(local.path, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"the model of {local.base.id} cannot be read: {_first_line(error)}") from error
    return Loaded(model, tokenizer, dtype, torch.cuda.is_available())


def best_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32.

    On a CPU without AVX512-BF16 or AMX, bfloat16 takes 14 to 27 times as long as float32.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
