"""Many processes that move one alias at once: who won, who was told, and whether a move was lost.

    .venv/bin/python benchmarks/promotion_race.py --promoters 32 --rounds 5

Each process promotes its own version in each round, all of them at the same moment. Of those who decided on the same
state, one wins and the others hear of it; who reads later may win again. It runs on a fresh embedded store, or on
MLFLOW_TRACKING_URI. It exits with 1 when a move that was acknowledged is not in the history, or when the alias is not
where the history ends.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from rich.console import Console
from rich.table import Table

from registry import history, promotion
from registry.errors import Conflict
from registry.refs import VersionRef
from registry.settings import Settings
from registry.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.adapters import make_version

Attempt = tuple[str, float, str]
"""What came of it (`won`, `conflict`), the seconds it took, and the winner's nonce or the name that was told."""


def promoter(
    settings: Settings, name: str, number: int, rounds: int, start: Barrier, out: multiprocessing.Queue[Attempt]
) -> None:
    """Promote version `number` once in each round."""
    store = Store(settings)
    store.families()
    for _ in range(rounds):
        start.wait()
        began = time.perf_counter()
        try:
            move = promotion.promote(store, VersionRef(name, number), "production", actor=f"promoter {number}")
        except Conflict as error:
            out.put(("conflict", time.perf_counter() - began, error.winner))
        else:
            out.put(("won" if move else "there already", time.perf_counter() - began, move.nonce if move else ""))


def main() -> int:
    """Race, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--promoters", type=int, default=32, help="processes (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="promotions of each process (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(home=Path(scratch) / "home")
        store, name = Store(settings), f"race-{int(time.time())}"
        for seed in range(options.promoters):
            make_version(store, Path(scratch) / str(seed), name, seed=seed)
        spawn = multiprocessing.get_context("spawn")
        start, out = spawn.Barrier(options.promoters), spawn.Queue()
        racers = [
            spawn.Process(target=promoter, args=(settings, name, number, options.rounds, start, out))
            for number in range(1, options.promoters + 1)
        ]
        for racer in racers:
            racer.start()
        attempts: list[Attempt] = [out.get(timeout=600) for _ in range(options.promoters * options.rounds)]
        for racer in racers:
            racer.join()
        past = history.read(store, name)
    written = {move.nonce for move in past.moves}
    won = [attempt for attempt in attempts if attempt[0] == "won"]
    lost = sum(nonce not in written for _, _, nonce in won)
    unnamed = sum(kind == "conflict" and not winner.startswith("promoter ") for kind, _, winner in attempts)
    agrees = past.family.aliases["production"] == past.head("production") and not past.drifts
    seconds = statistics.median(attempt[1] for attempt in won)
    table = Table("what", "count")
    for what, count in (
        ("attempts", len(attempts)),
        ("moves made", len(won)),
        ("moves in the history", len(written)),
        ("conflicts told", sum(kind == "conflict" for kind, _, _ in attempts)),
        ("conflicts that do not name the winner", unnamed),
        ("acknowledged moves that are lost", lost),
        ("alias is where the history ends", "yes" if agrees else "NO"),
        ("median of a move that was made", f"{seconds:.2f} s"),
    ):
        table.add_row(what, str(count))
    Console().print(table)
    return 1 if lost or unnamed or not agrees or len(written) != len(won) else 0


if __name__ == "__main__":
    sys.exit(main())
