"""An evaluation as a table that a person reads: a line for each completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loradock.registry.evidence import Subject
from loradock.trainer.evaluation.heldout import Item


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of one subject, for each example."""

    scores: Mapping[str, Sequence[float]]
    """By metric."""
    answers: Sequence[str]
    """Empty where no metric needs any."""


def columns(
    items: Sequence[Item], tokenizer: Any, measured: Mapping[Subject, Measured], *, texts: bool = True
) -> dict[str, list[Any]]:
    """By the column's head: the row, counted from 1, the prompt, the reference, answers, then figures.

    Without `texts` the row and the figures alone.
    """
    found: dict[str, list[Any]] = {"row": [item.row + 1 for item in items]}
    subjects: tuple[Subject, ...] = ("candidate", "incumbent", "base")
    there = [(subject, measured[subject]) for subject in subjects if subject in measured]
    if texts:
        found["prompt"] = [tokenizer.decode(item.prompt, skip_special_tokens=True) for item in items]
        found["reference"] = [item.reference for item in items]
        found |= {subject: list(each.answers) for subject, each in there if each.answers}
    return found | {
        f"{metric} of {subject}": [round(value, 4) for value in each.scores[metric]]
        for metric in there[0][1].scores
        for subject, each in there
    }
