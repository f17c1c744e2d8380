"""Examples as tokens: how long each is in the base's own chat template, and which are too long to train on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from registry.errors import BadInput
from trainer.data import Example, Row


@dataclass(frozen=True, slots=True)
class Side:
    """The examples of one side of the split that fit."""

    examples: tuple[Example, ...]
    lengths: tuple[int, ...]
    """Tokens of each, prompt and completion."""
    left_out: int
    """Examples that were longer than max_length."""

    def statistics(self) -> dict[str, str]:
        """Counts and lengths, as text."""
        return {
            "examples": str(len(self.examples)),
            "left_out": str(self.left_out),
            "tokens": str(sum(self.lengths)),
            "tokens_median": f"{statistics.median(self.lengths):g}",
            "tokens_max": str(max(self.lengths)),
        }


@dataclass(frozen=True, slots=True)
class Sides:
    """What is trained on, and what only measures."""

    train: Side
    heldout: Side


def fitting(train: Sequence[Row], heldout: Sequence[Row], tokenizer: Any, max_length: int) -> Sides:
    """The examples that are at most `max_length` tokens long; raises BadInput when a side has none."""
    return Sides(
        _side(train, tokenizer, max_length, what="train on"), _side(heldout, tokenizer, max_length, what="hold out")
    )


def _side(rows: Sequence[Row], tokenizer: Any, max_length: int, *, what: str) -> Side:
    examples = [example for row in rows for example in row.examples()]
    lengths = [_length(example, tokenizer) for example in examples]
    kept = [index for index, length in enumerate(lengths) if length <= max_length]
    if not kept:
        raise BadInput(
            f"none of the {len(examples)} examples to {what} fits into {max_length} tokens",
            hint=f"raise training.max_length: the shortest has {min(lengths)} tokens",
        )
    return Side(
        tuple(examples[index] for index in kept),
        tuple(lengths[index] for index in kept),
        len(examples) - len(kept),
    )


def _length(example: Example, tokenizer: Any) -> int:
    turns = [message.plain() for message in (*example.prompt, example.completion)]
    try:
        return len(tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"])
    except Exception as error:  # a template is a program that raises what it likes
        raise BadInput(f"the base's chat template cannot write a row: {error}") from error
