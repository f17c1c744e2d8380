"""How long the registry's verbs take, from the command to its end, beside `python -c "import mlflow"`.

    .venv/bin/python benchmarks/verbs.py --store both --rounds 7

Each is a process of its own, and all take turns in one run: on a fresh embedded store, and on a real MLflow server with
two workers on a real PostgreSQL. Seconds and memory are medians; a ratio is the median of the ratios of a turn. The
memory is the peak of the process. `--tree DIRECTORY` measures another checkout with the same Python.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(ROOT := Path(__file__).resolve().parent.parent))

from loradock.registry import promotion
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, log_adapter, make_version, ref, write_adapter
from tests.support.mlflow_server import mlflow_server

ALIAS = "production"
IMPORT = "import mlflow"
VERBS = ("list", "show", "history", "promote", "rollback", "register")

_TIMED = """
import os, sys, time
begun = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(process, 0)
print(status, time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, file=sys.stderr)
"""
"""A small process starts each, for Linux counts to a process's peak what the one that started it had."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took."""

    seconds: float
    processor: float
    """Seconds of it, which others on the machine change less."""
    mebibytes: float


@dataclass(frozen=True, slots=True)
class Place:
    """A store with an adapter, and the runs that are left to register."""

    title: str
    environment: Mapping[str, str]
    runs: Iterator[str]

    def words(self, verb: str) -> Sequence[str]:
        """What a verb is given."""
        return {
            "list": lambda: [NAME],
            "show": lambda: [f"{NAME}@{ALIAS}"],
            "history": lambda: [NAME],
            "promote": lambda: [f"{NAME}/2", "--alias", ALIAS],
            "rollback": lambda: [NAME, "--alias", ALIAS],
            "register": lambda: [next(self.runs), "--name", NAME, "--no-reference"],
        }[verb]()


def cost(command: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Run a command to its end."""
    timed = [sys.executable, "-I", "-S", "-c", _TIMED, *command]
    done = subprocess.run(timed, env=environment, capture_output=True, text=True, check=False)
    status, seconds, processor, kibibytes = done.stderr.splitlines()[-1].split()
    assert status == "0", done.stderr
    return Cost(float(seconds), float(processor), int(kibibytes) / 1024)


def filled(title: str, settings: Settings, scratch: Path, rounds: int) -> Place:
    """A store with two versions, one of them promoted, and a run for each round."""
    store = Store(settings)
    for seed in range(2):
        make_version(store, scratch / f"version-{seed}", seed=seed)
    promotion.promote(store, ref(1), ALIAS, actor="ann")
    runs = [log_adapter(store, write_adapter(scratch / f"run-{seed}", seed=seed)) for seed in range(2, 2 + rounds)]
    address = {"LORADOCK_HOME": str(settings.home), "MLFLOW_TRACKING_URI": settings.tracking_uri}
    return Place(title, os.environ | address, iter(runs))


def measured(places: Sequence[Place], rounds: int, tree: Path) -> dict[tuple[str, str], list[Cost]]:
    """By store and verb, what each turn took; the first turn, which reads from the disk, is left out."""
    found: dict[tuple[str, str], list[Cost]] = {}
    for turn in range(rounds + 1):
        costs = {("", IMPORT): cost([sys.executable, "-c", IMPORT], os.environ)}
        for place in places:
            for verb in VERBS:
                command = [sys.executable, "-P", "-m", "loradock", verb, *place.words(verb)]
                costs[place.title, verb] = cost(command, {**place.environment, "PYTHONPATH": str(tree)})
        for key, taken in costs.items() if turn else ():
            found.setdefault(key, []).append(taken)
    return found


def report(found: Mapping[tuple[str, str], Sequence[Cost]]) -> Table:
    """A line for each verb on each store."""
    table = Table("store", "command", "seconds", "of import mlflow", "processor seconds", "of import mlflow", "MiB")
    for (place, verb), costs in found.items():
        turns = list(zip(costs, found["", IMPORT], strict=True))
        figures = (
            [cost.seconds for cost in costs],
            [cost.seconds / beside.seconds for cost, beside in turns],
            [cost.processor for cost in costs],
            [cost.processor / beside.processor for cost, beside in turns],
        )
        memory = statistics.median(cost.mebibytes for cost in costs)
        table.add_row(place, verb, *(f"{statistics.median(each):.2f}" for each in figures), f"{memory:.0f}")
    return table


def main() -> None:
    """Fill the stores, take turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("sqlite", "server", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tree", type=Path, default=ROOT)
    given = parser.parse_args()
    with ExitStack() as open_:
        scratch, places = Path(open_.enter_context(tempfile.TemporaryDirectory())), []
        if given.store != "server":
            settings = Settings(home=scratch / "home", tracking_uri="")
            places.append(filled("SQLite", settings, scratch / "sqlite", given.rounds + 1))
        if given.store != "sqlite":
            server = open_.enter_context(mlflow_server(scratch))
            settings = Settings(home=scratch / "away", tracking_uri=server.uri)
            places.append(filled("server", settings, scratch / "server", given.rounds + 1))
        Console().print(report(measured(places, given.rounds, given.tree)))


if __name__ == "__main__":
    main()
