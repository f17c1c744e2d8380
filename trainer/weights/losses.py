"""The held-out loss of what a version is, and of what is made of it, on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from loradock.registry.base import LocalBase
from loradock.registry.evidence import Subject
from loradock.registry.records import Version
from loradock.trainer.data import Rows
from loradock.trainer.evaluation import heldout
from loradock.trainer.evaluation.local import Local
from loradock.trainer.evaluation.scorer import shown
from loradock.trainer.recipe import Recipe

Say = Callable[[str], None]

_BASE = "base"


@dataclass(frozen=True, slots=True)
class Bench:
    """Rows to measure on."""

    rows: Rows
    say: Say

    def losses(self, local: LocalBase, recipe: Recipe, adapters: Mapping[str, Path]) -> dict[str, float]:
        """Nats a token of the completions: of a model alone, as `base`, and of each adapter on it.

        The model is loaded once, and held as the recipe says.
        """
        named = cast("dict[Subject, Path]", dict(adapters))  # a scorer tells them apart by any name
        scorer = Local(local, recipe, named)
        _, items = heldout.items(self.rows, scorer.tokenizer, scorer.max_length, self.say)
        weight = sum(item.weight for item in items)
        found = {}
        for who in (_BASE, *adapters):
            with shown(f"loss of {who}", len(items)) as step:
                found[who] = math.fsum(scorer.nats(cast("Subject", who), items, step)) / weight
        return found


def bench(data: str | None, version: Version, trained: Mapping[str, str], limit: int | None, say: Say) -> Bench | None:
    """The rows that a file names, but for those that the version was trained on; None for no file.

    `trained` is what the version's training logged. Raises NotFound, Unreachable or BadInput.
    """
    return Bench(heldout.load(data, version, trained, limit=limit, say=say), say) if data else None


def plainly(recipe: Recipe) -> Recipe:
    """The recipe with a base in float32 that is not quantised."""
    training = recipe.training.model_copy(update={"dtype": "float32"})
    return recipe.model_copy(update={"quantization": None, "training": training})
