"""Many processes that move one alias at once: who won, who was told, and whether a move was lost.

    .venv/bin/python benchmarks/promotion_race.py --store both --promoters 32 --rounds 5

Three races on a fresh embedded SQLite store, and on a real MLflow server with two workers on a real PostgreSQL:

- `same state`: each process has decided on the same state of the alias, and all write in the same moment. One wins.
- `free`: each promotes its own version, round after round. Who reads later may win again.
- `killed`: the same, and half of them are killed (SIGKILL) at one of their calls to MLflow, before or after it.

It exits with 1 when a move that was acknowledged is not in the history, when a conflict does not name a winner, or when
the alias is not where the history ends.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loradock.registry import promotion
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, make_version
from tests.support.mlflow_server import mlflow_server
from tests.support.registry.racing import ALIAS, Outcome, Racer, race


@contextmanager
def store_of(kind: str, scratch: Path) -> Iterator[Settings]:
    """Settings that name a fresh store."""
    if kind == "sqlite":
        yield Settings(home=scratch / "home", tracking_uri="")
        return
    with mlflow_server(scratch) as server:
        yield Settings(home=scratch / "home", tracking_uri=server.uri)


def races(settings: Settings, promoters: int, rounds: int, scratch: Path) -> Iterator[tuple[str, Outcome]]:
    """Each race's name and outcome, on a family of one version a promoter."""
    store = Store(settings)
    for number in range(promoters + 1):
        make_version(store, scratch / "adapters" / str(number), seed=number)
    first, others = VersionRef(NAME, 1), range(2, promoters + 2)
    promotion.promote(store, first, ALIAS, actor="the benchmark")
    yield "same state", race(settings, NAME, [Racer(number, expect=1, together=True) for number in others])
    yield "free", race(settings, NAME, [Racer(number, rounds=rounds) for number in others])
    promotion.promote(store, first, ALIAS, actor="the benchmark")
    dying = [
        Racer(number, rounds=rounds, dies_at=number // 4 if number % 2 else None, after=number % 4 == 1)
        for number in others
    ]
    killed = race(settings, NAME, dying)
    promotion.promote(store, first, ALIAS, actor="the benchmark")  # what the dead left is made good by the next
    yield "killed", killed


def alone(settings: Settings, times: int) -> list[float]:
    """Seconds of promotions that nobody contests."""
    store, seconds = Store(settings), []
    for turn in range(times):
        began = time.perf_counter()
        promotion.promote(store, VersionRef(NAME, 2 + turn % 2), ALIAS, actor="the benchmark")
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> int:
    """Race, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--store", choices=("sqlite", "postgres", "both"), default="both", help="default: both")
    parser.add_argument("--promoters", type=int, default=32, help="processes (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="promotions of each process (default: 5)")
    options = parser.parse_args()
    columns = ("store", "race", "processes", "killed", "attempts", "won", "conflicts", "errors", "lost moves")
    table = Table(*columns, "written, untold", "alias = history", "ms a won move: median", "p95")
    faults = 0
    for kind in ("sqlite", "postgres") if options.store == "both" else (options.store,):
        with tempfile.TemporaryDirectory() as scratch, store_of(kind, Path(scratch)) as settings:
            for name, found in races(settings, options.promoters, options.rounds, Path(scratch)):
                table.add_row(kind, name, str(options.promoters), *figures(found))
                for text in sorted({attempt.error for attempt in found.broken}):
                    print(f"{kind}, {name}: {text}", file=sys.stderr)
                settled = found.past.drifts == () if found.killed else found.replays
                faults += len(found.broken) + found.missing + (not settled)
            table.add_row(kind, "alone", "1", "0", "20", "20", "0", "0", "0", "0", "yes", *spread(alone(settings, 20)))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 1 if faults else 0


def figures(found: Outcome) -> tuple[str, ...]:
    """A row's cells."""
    counts = (found.killed, len(found.attempts), len(found.won), len(found.lost), len(found.broken), found.missing)
    agrees = "yes" if found.replays else "left behind by the dead" if not found.past.drifts else "NO"
    return (*map(str, counts), str(found.untold), agrees, *spread([attempt.seconds for attempt in found.won]))


def spread(seconds: list[float]) -> tuple[str, str]:
    """Median and 95th percentile, in milliseconds."""
    if len(seconds) < 2:
        return (f"{seconds[0] * 1000:.0f}", "-") if seconds else ("-", "-")
    return f"{statistics.median(seconds) * 1000:.0f}", f"{statistics.quantiles(seconds, n=20)[-1] * 1000:.0f}"


if __name__ == "__main__":
    sys.exit(main())
