"""Greedy answers to prompts that are token ids, in one batch, by nothing but the logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, GenerationMixin


def stops(directory: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer of the base in `directory`, as vLLM has them.

    They are its tokenizer's, and those of generation_config.json, or of config.json where there is none.
    """
    try:
        config = GenerationConfig.from_pretrained(directory)
    except OSError:
        config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(directory))
    return _stops(config, tokenizer)


def generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int, **inputs: Any) -> list[str]:
    """What the model says to each prompt, greedily, in at most `new_tokens` tokens; `inputs` go to it as they are."""
    longest = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode(), _without_defaults(model, tokenizer):
        said = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            **inputs,
        ).cpu()
    whole = len(said[0]) >= longest and said[:, :longest].equal(ids)  # the prompt methods give the new tokens alone
    return [tokenizer.decode(row[longest:] if whole else row, skip_special_tokens=True) for row in said]


def _stops(config: GenerationConfig, tokenizer: Any) -> frozenset[int]:
    named = config.eos_token_id
    return frozenset({tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None})


@contextmanager
def _without_defaults(model: Any, tokenizer: Any) -> Iterator[None]:
    """Let no setting of generation_config.json be in force but where answers end; transformers adds the others."""
    held = [(module, module.generation_config) for module in model.modules() if isinstance(module, GenerationMixin)]
    for module, config in held:
        ends = sorted(_stops(config, tokenizer))
        module.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
        )
    try:
        yield
    finally:
        for module, config in held:
            module.generation_config = config
