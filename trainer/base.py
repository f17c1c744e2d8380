"""A base model in memory, in the precision that this machine computes fast, or quantised as the recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from loradock.registry.base import LocalBase, unscaled
from loradock.registry.errors import BadInput, first_line
from loradock.registry.records import Base
from loradock.trainer.recipe import Quantization, Recipe

_DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_PACKS: Final = "support_avx512bf16_for_cpu"
"""What makes bitsandbytes repack a 4-bit layer's weight the first time that it is used without gradients, on a CPU that
multiplies bfloat16. From then on no gradient passes through it, for which torch has only a warning."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base, ready to be trained on."""

    model: Any
    tokenizer: Any
    dtype: torch.dtype
    base: Base
    """What it is, and how it is held."""

    @property
    def cuda(self) -> bool:
        """Whether it is on a GPU."""
        return bool(self.model.device.type == "cuda")


def load(local: LocalBase, recipe: Recipe, tokenizer: Any = None) -> Loaded:
    """Load a base's model, and its tokenizer where that is not given; raises BadInput when either cannot be read.

    No code that comes with a model is run, and no pickled weight is read.
    """
    if local.quantized and not local.marked:
        raise unscaled(local.base.id)
    tokenizer = tokenizer or tokenizer_of(local)
    dtype = _DTYPES.get(recipe.training.dtype) or best_dtype()
    quantization = recipe.quantization
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if recipe.training.attn_implementation:
        options["attn_implementation"] = recipe.training.attn_implementation
    if torch.cuda.is_available():
        options["device_map"] = {"": torch.cuda.current_device()}
    if quantization:
        options["quantization_config"] = bits_and_bytes(quantization)
    try:
        model = AutoModelForCausalLM.from_pretrained(local.path, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(f"the model of {local.base.id} cannot be read: {first_line(error)}") from error
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
    held = quantization.kind if quantization else "none"
    return Loaded(model, tokenizer, dtype, local.base.model_copy(update={"quantization": held}))


def best_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32.

    On a CPU without AVX512-BF16 or AMX, bfloat16 takes 14 to 27 times as long as float32.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def bits_and_bytes(quantization: Quantization) -> BitsAndBytesConfig:
    """The recipe's quantisation as transformers takes it."""
    given = quantization.model_dump(exclude={"bnb_4bit_compute_dtype"})
    compute = _DTYPES.get(quantization.bnb_4bit_compute_dtype) or best_dtype()
    return BitsAndBytesConfig(**given, bnb_4bit_compute_dtype=compute)


def tokenizer_of(local: LocalBase) -> Any:
    """A base's tokenizer; raises BadInput when it cannot be read, or ends no text."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(local.path)
    except Exception as error:  # whatever its files lack
        raise BadInput(f"the tokenizer of {local.base.id} cannot be read: {first_line(error)}") from error
    if tokenizer.eos_token is None:
        raise BadInput(f"the tokenizer of {local.base.id} has no end-of-text token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
