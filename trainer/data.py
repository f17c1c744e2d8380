"""Rows to train on: read and checked whole, told apart by content, split so that a row never changes sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from loradock.registry.errors import BadInput
from loradock.trainer import sources
from loradock.trainer.formats import FORMATS, faults, parse, recognise, renamed, unread
from loradock.trainer.recipe import Data
from loradock.trainer.rows import Row
from loradock.trainer.sources import File

_SHOWN: Final = 20
_DUPLICATES_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The rows that say the same, word for word, as an earlier one."""

    count: int = 0
    places: tuple[str, ...] = ()
    """The first few, as `PLACE repeats PLACE`."""


@dataclass(frozen=True)
class Rows:
    """All rows of a recipe's data, in order."""

    name: str
    """What `data.path` names, without the directory of an absolute path; a Hub data set with its commit."""
    rows: tuple[Row, ...]
    duplicates: Duplicates = Duplicates()
    unread: tuple[str, ...] = ()
    """The columns that say nothing to a training, by name."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every row in order, 64 hex digits; spaces, key order and unused columns do not count."""
        total = hashlib.sha256()
        for row in self.rows:
            total.update(row.canonical().encode() + b"\n")
        return total.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each format."""
        return dict(Counter(row.format for row in self.rows))

    def statistics(self) -> dict[str, str]:
        """What is known of the rows before they are tokens, as text."""
        return {
            "file": self.name,
            "digest": self.digest,
            "rows": str(len(self.rows)),
            "duplicates": str(self.duplicates.count),
            **{f"rows.{name}": str(count) for name, count in self.counts.items()},
        }

    def split(self, heldout: float) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
        """The rows to train on, and those that only measure; raises BadInput when a side stays empty.

        The side follows from a row's content alone: data that grows moves no row, and equal rows stay together.
        At 0 all rows are trained on.
        """
        sides: tuple[list[Row], list[Row]] = ([], [])
        for row in self.rows:
            sides[_position(row) < heldout].append(row)
        if not sides[0] or (heldout and not sides[1]):
            empty = "hold out" if sides[0] else "train on"
            raise BadInput(
                f"{self.name} leaves no row to {empty}: {len(self.rows)} rows at data.heldout {heldout:g}",
                hint="give more rows, or another data.heldout; a row's side follows from its content",
            )
        return tuple(sides[0]), tuple(sides[1])


def _position(row: Row) -> float:
    """Where a row's content falls in [0, 1)."""
    return int.from_bytes(hashlib.sha256(row.canonical().encode()).digest()[:6], "big") / 2**48


def load(data: Data, directory: Path) -> Rows:
    """Read all rows of a recipe's data, relative paths being relative to `directory`.

    Raises NotFound, Unreachable, or BadInput with every fault as `place: what is wrong`, the place being `file:line`
    or `file: row N`.
    """
    names: dict[str, None] = {}
    rows: list[Row] = []
    problems: list[str] = []
    columns: set[str] = set()
    left: set[str] = set()
    for file in sources.read(data, directory):
        names[file.source] = None
        for place, row, wrong in _parsed(file, data, columns, left):
            problems += (f"{place}: {fault}" for fault in wrong)
            if row is not None:
                rows.append(row)
    name = ", ".join(names)
    if unknown := [f"{theirs} (for {ours})" for ours, theirs in data.columns.items() if theirs not in columns]:
        problems.append(f"data.columns: no row has {', '.join(unknown)}")
    if problems:
        more = [f"and {len(problems) - _SHOWN:,} more"] if len(problems) > _SHOWN else []
        raise BadInput(f"{name} cannot be used", problems=problems[:_SHOWN] + more)
    return Rows(name, tuple(rows), _duplicates(rows), tuple(sorted(left)))


def _parsed(file: File, data: Data, columns: set[str], left: set[str]) -> Iterator[tuple[str, Row | None, list[str]]]:
    """A file's rows with their places, or what is wrong with them.

    The names of its columns go into `columns`, and those that are not read into `left`.
    """
    layout: str = "" if data.format == "auto" else data.format
    first, empty = "", True
    for record in file.records:
        empty = False
        if record.fault or not isinstance(record.value, dict):
            yield record.place, None, [record.fault or "it is not a JSON object"]
            continue
        columns |= _names(record.value)
        value = renamed(record.value, data.columns)
        found = recognise(value, data.columns) if data.format == "auto" else layout
        if not layout and found:
            layout, first = found, record.place
        if not layout:
            if not first:
                first = record.place
                yield record.place, None, [_unknown(value)]
        elif found and found != layout:
            yield record.place, None, [f"its layout is {found}, and {first} is {layout}; a file has one layout"]
        elif wrong := list(faults(value, layout)):
            yield record.place, None, wrong
        else:
            left |= {*unread(value, layout)}
            yield record.place, replace(parse(value, layout, data), place=record.place), []
    if empty:
        yield file.name, None, ["it has no rows"]


def _names(value: dict[str, Any]) -> set[str]:
    """A row's columns, and the keys of its messages."""
    turns = [turn for item in value.values() if isinstance(item, list) for turn in item if isinstance(turn, dict)]
    return {*value, *(key for turn in turns for key in turn)}


def _unknown(row: dict[str, Any]) -> str:
    known = "; ".join(f"{name} has {' and '.join(format_.columns)}" for name, format_ in FORMATS.items())
    found = f"its columns are {', '.join(row)}" if row else "it has no columns"
    return f"{found}, which is no known layout: {known}. Map other names in data.columns"


def _duplicates(rows: list[Row]) -> Duplicates:
    seen: dict[bytes, int] = {}
    count, shown = 0, list[str]()
    for index, row in enumerate(rows):
        earlier = seen.setdefault(hashlib.sha256(row.canonical().encode()).digest(), index)
        if earlier != index:
            count += 1
            if len(shown) < _DUPLICATES_SHOWN:
                shown.append(f"{row.place} repeats {rows[earlier].place}")
    return Duplicates(count, tuple(shown))
