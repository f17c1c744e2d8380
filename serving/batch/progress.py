"""What a run has done so far, on stderr where somebody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loradock.serving.batch.journal import Answer


@dataclass(slots=True)
class Spent:
    """Counted up while rows are answered."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the first row."""
        return time.monotonic() - self.started

    def add(self, answers: list[Answer]) -> None:
        """Count these."""
        for answer in answers:
            self.failed += answer.error is not None
            if answer.usage:
                self.prompt_tokens += answer.usage.prompt_tokens
                self.completion_tokens += answer.usage.completion_tokens

    def __str__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.completion_tokens / max(self.seconds, 1e-9):.0f} tokens/s{failed}"


@contextmanager
def shown(rows: int, kept: int, spent: Spent) -> Iterator[Callable[[list[Answer]], None]]:
    """A bar on a terminal or in a notebook; what it gives is told of every answer."""
    console = Console(stderr=True)
    columns = (
        TextColumn("answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    watched = console.is_terminal or console.is_jupyter
    with Progress(*columns, console=console, transient=True, disable=not watched) as bar:
        task = bar.add_task("", total=rows, completed=kept)

        def watch(answers: list[Answer]) -> None:
            spent.add(answers)
            bar.update(task, advance=len(answers), description=str(spent))

        yield watch
