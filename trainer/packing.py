"""Packing: several rows in one sequence, where the model's attention keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from loradock.registry.errors import BadInput
from loradock.trainer.tokens import Tokens

_ROW: Final = 24  # tokens of each of the two rows that are compared
_TOLERANCE: Final = 0.05  # of the logits' own spread; bfloat16 alone makes 0.01, and a row that is seen 0.2 or more


def contamination(model: Any, first: Sequence[int], second: Sequence[int]) -> float:
    """How far a row's logits move when another is packed before it: root mean square, over the spread of its own.

    Rows are told apart as TRL does it: positions that start again, no attention mask, no cache.
    """
    was_training = model.training
    model.eval()
    apart = torch.tensor([[*second]], device=model.device)
    together = torch.tensor([[*first, *second]], device=model.device)
    positions = torch.tensor([[*range(len(first)), *range(len(second))]], device=model.device)
    with torch.inference_mode():
        alone = model(input_ids=apart, use_cache=False).logits[0].float()
        packed = model(input_ids=together, position_ids=positions, use_cache=False).logits[0, len(first) :]
    model.train(was_training)
    return float((packed.float() - alone).square().mean().sqrt() / alone.std())


def check(model: Any, examples: Sequence[Tokens]) -> None:
    """Raise BadInput when rows that share a sequence would see each other."""
    rows = [example.input_ids[:_ROW] for example in (examples[0], examples[-1])]
    found = _try(model, rows)
    if found > _TOLERANCE:
        raise BadInput(
            f"training.packing: packed rows of this base see each other with {model.config._attn_implementation} "  # noqa: SLF001
            f"attention (a row's logits move by {found:.0%} of their spread)",
            hint="set training.packing to false, or training.attn_implementation to flash_attention_2 on a GPU",
        )


def _try(model: Any, rows: Sequence[Sequence[int]]) -> float:
    try:
        return contamination(model, rows[0], rows[1])
    except TypeError:  # a model without position_ids
        return float("inf")
