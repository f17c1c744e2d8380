"""What an evaluation asks of a model, wherever that model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loradock.registry.evidence import Subject
from loradock.trainer.evaluation.heldout import Item

Step = Callable[[int], None]
"""Told how many more examples are done."""


class Scorer(Protocol):
    """Measures the candidate, the incumbent and the base on the same examples."""

    def nats(self, subject: Subject, items: Sequence[Item], step: Step) -> list[float]:
        """The loss of each example, summed over the tokens of its completion, in nats."""

    def answers(self, subject: Subject, items: Sequence[Item], new_tokens: int, step: Step) -> list[str]:
        """What is said to each prompt, greedily, in at most so many tokens."""


@contextmanager
def shown(words: str, total: int) -> Iterator[Step]:
    """A bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=total)
        yield lambda count: bar.advance(task, count)
