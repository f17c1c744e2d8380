"""The rows to measure on: read as a training reads them, each once, and the examples that come of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loradock.registry.errors import BadInput
from loradock.registry.records import Version
from loradock.trainer import data, tokens
from loradock.trainer.data import Rows
from loradock.trainer.recipe import Data
from loradock.trainer.rows import ChatExample, Example, Row
from loradock.trainer.tokens import Tokens

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Item:
    """One completion to measure, and the row that it is of."""

    row: int
    """Counted from 0."""
    example: Example
    tokens: Tokens

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids as serving gives them to the model; none for a plain text."""
        return self.tokens.prompt

    @property
    def reference(self) -> str:
        """The completion as the data has it."""
        completion = self.example.completion
        return completion if isinstance(completion, str) else completion.content

    @property
    def weight(self) -> int:
        """Tokens that carry loss: a text's first one follows from nothing."""
        return sum(self.tokens.completion_mask[1:])


def load(
    path: str, version: Version, trained: Mapping[str, str], *, limit: int | None, say: Callable[[str], None]
) -> Rows:
    """Read rows, each once, and only those that a training of the version held out, where it had the same file.

    `trained` is what that training logged. Raises NotFound, Unreachable, or BadInput with every fault.
    """
    template = trained.get("recipe.data.template", "alpaca")
    rows = data.load(Data.model_validate({"path": path, "template": template}), Path.cwd())
    if rows.digest == version.facts.data_digest:
        rows = _held_out(rows, version, trained, say)
    kept = tuple({row.canonical(): row for row in reversed(rows.rows)}.values())[::-1]
    if dropped := len(rows.rows) - len(kept):
        say(f"warning: {dropped} rows are skipped: they are duplicates")
    return Rows(rows.name, kept[:limit])


def _held_out(rows: Rows, version: Version, trained: Mapping[str, str], say: Say) -> Rows:
    share = trained.get("recipe.data.heldout")
    if share is None:
        say(f"warning: {version.ref} was trained on these rows, and on which of them is not known")
        return rows
    if not float(share):
        raise BadInput(
            f"{version.ref} was trained on all rows of {rows.name}", hint="give --data rows that it never saw"
        )
    kept = replace(rows, rows=rows.split(float(share))[1])
    say(f"{rows.name} is what {version.ref} was trained on: only the {len(kept.rows)} rows held out are used")
    return kept


def items(rows: Rows, tokenizer: Any, max_length: int, say: Say) -> tuple[Rows, tuple[Item, ...]]:
    """The examples of rows that a model of `max_length` tokens can read, and the rows that have any.

    Raises BadInput when no row fits.
    """
    side = tokens.fitting((), rows.rows, tokenizer, max_length).heldout
    fitting = iter(zip(side.examples, side.tokens, strict=True))
    waiting = next(fitting, None)
    kept: list[Row] = []
    found: list[Item] = []
    for row in rows.rows:
        before = len(found)
        for example in row.examples():
            if waiting and waiting[0] == example:
                item = Item(len(kept), *waiting)
                found += [item] if item.weight else []
                waiting = next(fitting, None)
        if len(found) > before:
            kept.append(row)
    if side.left_out:
        say(f"warning: {side.left_out} examples exceed the model's {max_length} tokens and are skipped")
    for words in tokens.oddities(side):
        say(f"warning: {words}")
    return replace(rows, rows=tuple(kept)), tuple(found)


def check_answers(rows: Rows) -> None:
    """Raise BadInput where a row has nothing to answer."""
    if any(row.format == "text" for row in rows.rows):
        raise BadInput(
            f"{rows.name} has plain texts, which have no completion to compare an answer with",
            hint="measure them by --metric loss alone",
        )


def hashes(rows: Rows) -> tuple[str, ...]:
    """SHA-256 of each row's canonical text."""
    return tuple(hashlib.sha256(row.canonical().encode()).hexdigest() for row in rows.rows)


def weights(items: Sequence[Item]) -> tuple[float, ...]:
    """Completion tokens of each row."""
    found = [0.0] * (items[-1].row + 1)
    for item in items:
        found[item.row] += item.weight
    return tuple(found)


def by_row(items: Sequence[Item], values: Sequence[float], weights: Sequence[float]) -> tuple[float, ...]:
    """The weighted mean of each row's examples."""
    count = items[-1].row + 1
    sums, whole = [0.0] * count, [0.0] * count
    for item, value, weight in zip(items, values, weights, strict=True):
        sums[item.row] += value * weight
        whole[item.row] += weight
    return tuple(total / weight for total, weight in zip(sums, whole, strict=True))


def messages(item: Item) -> list[dict[str, str]] | None:
    """The prompt as messages; None where it is a text."""
    example = item.example
    return [message.plain() for message in example.prompt] if isinstance(example, ChatExample) else None
