"""What resolving, promoting and listing cost as families grow, beside MLflow's own calls for the same.

    .venv/bin/python benchmarks/registry_scale.py --store both --versions 10,1000,10000 --families 1000 --rounds 30

A family of each size, on a fresh SQLite store and on a real MLflow server with two workers on a real PostgreSQL. Its
first ten versions, and the first family, are made through the API; the others are copies of the last one's rows,
written by SQL straight into MLflow's tables, for the API takes 26 ms for each. Calls of ours and of the raw MLflow
client take turns in the same process, and each figure is a median in milliseconds.

- `resolve`: alias to version. Raw: get_model_version_by_alias.
- `page`: the newest 50 versions. Raw: search_model_versions with max_results=50.
- `promote`: a compare-and-set with history. Raw: get_model_version and set_registered_model_alias, which has neither.
- `families`: every family with its aliases. Raw: search_registered_models, page by page.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loradock.registry import promotion
from loradock.registry.refs import AliasRef, VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import make_version
from tests.support.mlflow_server import mlflow_server

ALIAS = "production"
MADE = 10
"""How many versions are made through the API."""

Calls = dict[str, tuple[Callable[[], Any], Callable[[], Any]]]
"""What is timed: ours, and the raw client's."""


@contextmanager
def store_of(kind: str, scratch: Path) -> Iterator[tuple[Store, str]]:
    """A fresh store, and its database."""
    if kind == "sqlite":
        settings = Settings(home=scratch / "home", tracking_uri="")
        yield Store(settings), settings.store_uri
        return
    with mlflow_server(scratch) as server:
        yield Store(Settings(home=scratch / "home", tracking_uri=server.uri)), server.database


def copies(database: sqlalchemy.Engine, table: str, column: str, value: str, where: str, first: int, last: int) -> None:
    """Copy the rows that `where` finds, once for each n from `first` to `last`, with `value` in `column`."""
    names = [info["name"] for info in sqlalchemy.inspect(database).get_columns(table)]
    values = ", ".join(value if name == column else f"t.{name}" for name in names)
    with database.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                f"WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last}) "  # noqa: S608
                f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM n, {table} t WHERE {where}"
            )
        )


def fill(store: Store, database: sqlalchemy.Engine, name: str, size: int, scratch: Path) -> None:
    """Make a family of `size` versions with its first in production."""
    for seed in range(MADE):
        make_version(store, scratch / name / str(seed), name, seed=seed)
    if size > MADE:
        for table in ("model_versions", "model_version_tags"):
            copies(database, table, "version", "n.i", f"t.name = '{name}' AND t.version = {MADE}", MADE + 1, size)
    promotion.promote(store, VersionRef(name, 1), ALIAS, actor="the benchmark")


def add_families(database: sqlalchemy.Engine, like: str, count: int) -> None:
    """Copies of a family's registered model, with its tags and aliases, and none of its versions."""
    for table in ("registered_models", "registered_model_tags", "registered_model_aliases"):
        copies(database, table, "name", "'copy-' || n.i", f"t.name = '{like}'", 1, count)


def calls_on(store: Store, name: str) -> Calls:
    """What is timed on one family."""
    client, turns = store.client, iter(range(1, 1_000_000))

    def ours() -> None:
        promotion.promote(store, VersionRef(name, 2 + next(turns) % 2), ALIAS, actor="the benchmark")

    def raw() -> None:
        number = str(2 + next(turns) % 2)
        client.get_model_version(name, number)
        client.set_registered_model_alias(name, "raw", number)

    return {
        "resolve": (
            lambda: promotion.resolve(store, AliasRef(name, ALIAS)),
            lambda: client.get_model_version_by_alias(name, ALIAS),
        ),
        "page": (
            lambda: store.page(name, limit=50),
            lambda: client.search_model_versions(f"name = '{name}'", max_results=50),
        ),
        "promote": (ours, raw),
    }


def raw_families(client: Any) -> None:
    """Every registered model, page by page."""
    token = None
    while True:
        token = client.search_registered_models(max_results=1000, page_token=token).token
        if not token:
            return


def timed(calls: Calls, rounds: int) -> dict[str, tuple[float, float]]:
    """Medians in milliseconds, the two sides taking turns; the first round does not count."""
    seconds: dict[str, tuple[list[float], list[float]]] = {what: ([], []) for what in calls}
    for turn in range(rounds + 1):
        for what, sides in calls.items():
            for side in (0, 1) if turn % 2 else (1, 0):
                began = time.perf_counter()
                sides[side]()
                if turn:
                    seconds[what][side].append(time.perf_counter() - began)
    return {what: tuple(statistics.median(side) * 1000 for side in sides) for what, sides in seconds.items()}  # type: ignore[misc]


def main() -> None:
    """Fill, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--store", choices=("sqlite", "postgres", "both"), default="both", help="default: both")
    parser.add_argument("--versions", default="10,1000,10000", help="sizes of families (default: 10,1000,10000)")
    parser.add_argument("--families", type=int, default=1000, help="how many there are beside (default: 1000)")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each kind (default: 30)")
    options = parser.parse_args()
    sizes = [int(size) for size in options.versions.split(",")]
    table = Table("store", "what", "size", "ours, ms", "MLflow's, ms", "ours / MLflow's", f"ours / ours at {sizes[0]}")
    for kind in ("sqlite", "postgres") if options.store == "both" else (options.store,):
        with tempfile.TemporaryDirectory() as scratch, store_of(kind, Path(scratch)) as (store, uri):
            database = sqlalchemy.create_engine(uri)
            smallest: dict[str, float] = {}
            for size in sizes:
                fill(store, database, f"family-{size}", size, Path(scratch))
            add_families(database, f"family-{sizes[0]}", options.families)
            with database.begin() as connection:
                connection.execute(sqlalchemy.text("ANALYZE"))  # as autovacuum does a minute after so many writes
            for size in sizes:
                for what, (ours, raw) in timed(calls_on(store, f"family-{size}"), options.rounds).items():
                    growth = ours / smallest.setdefault(what, ours)
                    table.add_row(kind, what, f"{size:,}", *(f"{f:.3g}" for f in (ours, raw, ours / raw, growth)))
            listing: Calls = {"families": (store.families, lambda: raw_families(store.client))}
            ours, raw = timed(listing, options.rounds)["families"]
            table.add_row(
                kind, "families", f"{options.families:,}", f"{ours:.3g}", f"{raw:.3g}", f"{ours / raw:.3g}", ""
            )
            database.dispose()
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
