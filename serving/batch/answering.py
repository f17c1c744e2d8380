"""Rows into an engine, answers out of it and into the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from loradock.registry.records import Version
from loradock.registry.reference import Reference
from loradock.registry.refs import VersionRef
from loradock.serving.batch.journal import Answer, Journal, Usage
from loradock.serving.batch.order import Queue
from loradock.serving.batch.rows import Row


class Unanswerable(Exception):
    """A row that has no answer, though others have; its text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an engine made of a row."""

    text: str
    finish_reason: str
    usage: Usage


class Engine(Protocol):
    """What generates."""

    slots: int
    """Adapters that it computes with at once."""
    window: int
    """Rows that are worth handing to it at once."""

    def load(self, version: Version, directory: Path, reference: Reference | None) -> None:
        """Load a version, and prove its effect and that it says what its reference says; raises NotServable."""

    def start(self, row: Row, ref: VersionRef | None, sampling: Mapping[str, Any]) -> str:
        """Begin a row under a loaded version, or under the base; its number. Raises Unanswerable."""

    def step(self) -> Iterable[tuple[str, Outcome | Unanswerable]]:
        """Work on all that was begun; the numbers of the rows that ended, with what became of them."""


@dataclass(frozen=True, slots=True)
class Model:
    """Who answers a row, as the output names it."""

    ref: VersionRef | None
    """None for the base."""
    name: str
    digest: str


def answer(
    rows: Iterable[tuple[Row, Model]],
    engine: Engine,
    journal: Journal,
    settings: Mapping[str, Any],
    watch: Callable[[list[Answer]], None],
) -> None:
    """Give every row its line; `settings` hold where a row sets nothing itself. `watch` is told what was written."""
    queue = Queue((((row, model), model.ref) for row, model in rows), slots=engine.slots, window=engine.window)
    inside: dict[str, tuple[Row, Model]] = {}
    while queue:
        ended: list[tuple[Row, Model, Outcome | Unanswerable]] = []
        while taken := queue.take():
            (row, model), ref = taken
            try:
                inside[engine.start(row, model.ref, {**settings, **row.sampling})] = row, model
            except Unanswerable as error:
                ended.append((row, model, error))
                queue.leave(ref)
        for number, outcome in engine.step() if inside else ():
            row, model = inside.pop(number)
            ended.append((row, model, outcome))
            queue.leave(model.ref)
        if ended:
            answers = [_line(*each) for each in ended]
            journal.add(answers)
            watch(answers)


def _line(row: Row, model: Model, outcome: Outcome | Unanswerable) -> Answer:
    line = Answer(id=row.id, index=row.index, model=model.name, digest=model.digest)
    if isinstance(outcome, Unanswerable):
        return line.model_copy(update={"error": str(outcome)})
    told = {"text": outcome.text, "finish_reason": outcome.finish_reason, "usage": outcome.usage}
    return line.model_copy(update=told)
