"""A base's weights as bitsandbytes leaves them: quantised and back, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from loradock.trainer import base, meta
from loradock.trainer.recipe import Quantization

Source = Callable[[str], torch.Tensor]


def source(directory: Path, read: Source, quantization: Quantization, dtype: torch.dtype) -> Source:
    """What gives the base's weights as a training held them: loaded in `dtype`, then quantised where transformers does.

    `directory` holds the base's config.json, and `read` gives its weights as its files have them.
    """
    given = base.bits_and_bytes(quantization)
    model = meta.base(meta.config(directory))
    kept = get_keys_to_not_convert(model)
    with torch.device("meta"):
        model = replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=given)
    held = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, Linear4bit | Linear8bitLt)}

    def weight(name: str) -> torch.Tensor:
        value = read(name)
        if not value.is_floating_point():
            return value
        return _and_back(value.to(dtype), given) if name in held else value.to(dtype)

    return weight


def _and_back(value: torch.Tensor, given: Any) -> torch.Tensor:
    if given.load_in_8bit:
        codes, scales, _ = bnb.int8_vectorwise_quant(value.to(torch.float16))
        return bnb.int8_vectorwise_dequant(codes, scales).to(value.dtype)
    codes, state = bnb.quantize_4bit(
        value,
        quant_type=given.bnb_4bit_quant_type,
        compress_statistics=given.bnb_4bit_use_double_quant,
        quant_storage=given.bnb_4bit_quant_storage,
    )
    found: torch.Tensor = bnb.dequantize_4bit(codes, state)
    return found
