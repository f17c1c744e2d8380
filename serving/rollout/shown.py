"""A rollout on stderr: a table that stays in its place on a terminal, and lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

from loradock.serving.rollout.blocks import Finding

_SILENCE: Final = 60.0  # seconds


class Terminal:
    """What a rollout tells its watcher."""

    def __init__(self, console: Console, live: Live | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._live, self._clock = console, live, clock
        self._told = clock()

    def tell(self, text: str) -> None:
        """A line that stays."""
        self._told = self._clock()
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, weight: float, why: str, findings: Sequence[Finding]) -> None:
        """The table as it stands; where it would go into a log, a line from time to time."""
        if self._live:
            self._live.update(_table(weight, why, findings))
        elif self._clock() - self._told >= _SILENCE:
            self.tell(f"{weight:.0%} of requests; {why}")


@contextmanager
def shown(title: str) -> Iterator[Terminal]:
    """A place on stderr for as long as the rollout runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Terminal(console, None)
        return
    with Live(title, console=console, transient=True, refresh_per_second=2) as live:
        yield Terminal(console, live)


def _table(weight: float, why: str, findings: Sequence[Finding]) -> Table:
    table = Table(title=f"{weight:.0%} of requests; {why}", title_justify="left", box=None, pad_edge=False)
    for column in ("signal", "canary", "production", "answers", "difference", "allowed", ""):
        table.add_column(column, justify="left" if column == "signal" else "right")
    for each in findings:
        table.add_row(
            each.signal,
            "-" if each.canary is None else f"{each.canary:.1%}",
            "-" if each.production is None else f"{each.production:.1%}",
            str(each.answers),
            f"{100 * each.low:+.1f} to {100 * each.high:+.1f}",
            f"{100 * each.margin:+.1f}",
            "alarm" if each.alarmed else "within" if each.shown else "open",
        )
    return table
