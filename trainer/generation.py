"""Greedy answers to prompts that are token ids, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig


def stops(directory: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer of the base in `directory`: its tokenizer's, and those of its generation settings.

    As vLLM has it: what config.json says counts where there is no generation_config.json.
    """
    try:
        config = GenerationConfig.from_pretrained(directory)
    except OSError:
        config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(directory))
    named = config.eos_token_id
    return frozenset({tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None})


def generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int, **inputs: Any) -> list[str]:
    """What the model says to each prompt, greedily, in at most `new_tokens` tokens; `inputs` go to it as they are."""
    longest = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        said = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
            **inputs,
        ).cpu()
    whole = len(said[0]) >= longest and said[:, :longest].equal(ids)  # the prompt methods give the new tokens alone
    return [tokenizer.decode(row[longest:] if whole else row, skip_special_tokens=True) for row in said]
