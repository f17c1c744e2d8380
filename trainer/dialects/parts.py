"""What two dialects say alike: the base, how long to train, the warm-up, and where rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loradock.registry.base import is_hub_id, is_known
from loradock.trainer.dialects.draft import Draft
from loradock.trainer.dialects.length import count
from loradock.trainer.dialects.places import Places
from loradock.trainer.dialects.source import Location, Source
from loradock.trainer.recipe import ENDINGS, is_data_set


@dataclass(frozen=True, slots=True)
class Rows:
    """A file or directory of rows, or a data set on the Hub, as the other recipe names it."""

    path: str
    """As it stands in our recipe."""
    found: Path | None
    """None on the Hub."""
    count: int | None
    """How many rows there are; None on the Hub."""


def total(found: Sequence[Rows]) -> int | None:
    """How many rows there are in all; None when one part is on the Hub."""
    counts = [part.count for part in found if part.count is not None]
    return sum(counts) if len(counts) == len(found) else None


def is_number(value: Any) -> bool:
    """Whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(source: Source, key: str) -> Any:
    """The number at a key; anything else is a fault, and None."""
    value = source.get(key)
    if value is None or value is False or is_number(value):
        return value or None
    source.refuse((key,), "should be a number")
    return None


def base(source: Source, draft: Draft, places: Places, key: str, revisions: Sequence[str]) -> None:
    """The base, with its revision."""
    given = source.get(key)
    revision = next((found for name in revisions if (found := source.get(name))), None)
    if not isinstance(given, str) or not given:
        source.refuse((key,), "should be a directory or a Hub id")
        return
    found = places.find(given)
    if found:
        draft.set("base", places.write(found, given), (key,))
    elif revision and is_hub_id(given):
        draft.set("base", f"{given}@{revision}", (key,))
    elif is_known(given, relative_to=places.beside):
        draft.set("base", given, (key,))
    else:
        source.refuse((key,), f"{given} is no directory that is there, and no ORG/NAME on the Hub")


def rows(source: Source, places: Places, text: str, location: Location, revision: Any = None) -> Rows | None:
    """The rows that `text` names; None after a fault."""
    if found := places.find(text):
        if found.is_file() and found.suffix.lower() not in ENDINGS:
            source.refuse(location, f"{text} ends in none of {', '.join(ENDINGS)}")
            return None
        return Rows(places.write(found, text), found, count(found))
    if is_data_set(text):
        return Rows(f"{text}@{revision}" if revision else text, None, None)
    source.refuse(
        location, f"there is no {text}, neither in the working directory nor beside this file, nor ORG/NAME on the Hub"
    )
    return None


def duration(source: Source, draft: Draft, epochs: str) -> None:
    """Epochs, or steps, which end the training where both are given."""
    steps, given = source.get("max_steps"), source.get(epochs)
    if steps is not None and not (is_number(steps) and steps <= 0):
        draft.set("training.max_steps", steps, ("max_steps",))
        if given is not None:
            source.note((epochs,), "max_steps is given too, and ends the training")
    elif given is not None:
        draft.set("training.num_train_epochs", given, (epochs,))


def warmup(source: Source, draft: Draft, default: float, comment: str) -> None:
    """Steps, or a share of them, which give way to steps."""
    steps, ratio = source.get("warmup_steps"), source.get("warmup_ratio")
    if steps is not None and (steps != 0 or not ratio):
        draft.set("training.warmup_steps", steps, ("warmup_steps",))
        if ratio is not None:
            source.note(("warmup_ratio",), "warmup_steps is given too, and holds")
    elif is_number(ratio) and ratio >= 1:
        source.refuse(("warmup_ratio",), "should be a share of all steps, below 1")
    elif ratio is not None:
        draft.set("training.warmup_steps", ratio, ("warmup_ratio",), "below 1: a share of all steps")
    else:
        draft.set("training.warmup_steps", default, (), comment)


def heldout(source: Source, draft: Draft, key: str, total: int | None) -> None:
    """The share that only measures; a number of rows becomes a share."""
    given = source.get(key)
    content = "which rows, follows from their content"
    if not is_number(given) or given < 1:
        if given is not None:
            draft.set("data.heldout", given, (key,), content if given else "")
    elif total:
        draft.set("data.heldout", round(given / total, 6), (key,), f"{given:g} of {total} rows; {content}")
    else:
        source.refuse((key,), "how many rows there are is known only with the data: give a share below 1")
