"""What a model says to held-out prompts: something to read beside the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from loradock.trainer.generation import generate
from loradock.trainer.tokens import Tokens

_NEW_TOKENS: Final = 48
_OPENING: Final = 16  # tokens of a plain text that stand for its prompt


@dataclass(frozen=True, slots=True)
class Prompt:
    """One held-out example as a question and its answer in the data."""

    ids: tuple[int, ...]
    expected: tuple[int, ...]


def choose(examples: Sequence[Tokens], count: int) -> list[Prompt]:
    """The first `count` different prompts."""
    found: dict[tuple[int, ...], Prompt] = {}
    for example in examples:
        if len(found) == count:
            break
        ids = example.prompt or example.input_ids[:_OPENING]
        start = example.completion_mask.index(1) or len(ids)
        found.setdefault(ids, Prompt(ids, example.input_ids[start : start + _NEW_TOKENS]))
    return list(found.values())


def answers(model: Any, tokenizer: Any, prompts: Sequence[Prompt], **inputs: Any) -> list[str]:
    """What the model says to each prompt, greedily, in at most 48 tokens."""
    if not prompts:
        return []
    was_training = model.training
    model.eval()
    try:
        return generate(model, tokenizer, [prompt.ids for prompt in prompts], _NEW_TOKENS, **inputs)
    finally:
        model.train(was_training)


def table(
    tokenizer: Any, prompts: Sequence[Prompt], before: Sequence[str], after: Sequence[str]
) -> dict[str, list[str]]:
    """The columns of the table that a run keeps."""
    return {
        "prompt": [tokenizer.decode(prompt.ids, skip_special_tokens=True) for prompt in prompts],
        "in the data": [tokenizer.decode(prompt.expected, skip_special_tokens=True) for prompt in prompts],
        "before": list(before),
        "after": list(after),
    }
