"""A home that was moved or copied: its database names every file by the address that it had where it was made.

MLflow writes an address into each row, and reads and writes there. So the rows are set to where the home is now, before
MLflow sees them: what is read is this home's, and nothing is written into another one.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from loradock.registry.errors import Refused
from loradock.registry.settings import Settings

_COLUMNS: Final = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
_OURS: Final = ("loradock", "loradock-ledgers", "loradock-evaluations", "loradock-references", "loradock-rollouts")
"""Experiments that are made in a home, and nowhere else."""
_SECONDS: Final = 20.0

log = logging.getLogger(__name__)


def settle(settings: Settings, database: Path) -> None:
    """Set the addresses of a home's database to this home; any number of times, by any number of processes at once.

    Raises Refused where the database came without its files.
    """
    here = settings.artifacts
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_SECONDS)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        there = set(_places(connection, {*_OURS, settings.experiment})) if "experiments" in tables else set()
    for uri in sorted(there - {here.as_uri()}):
        place = Path(unquote(uri.removeprefix("file://")))
        if place.exists() and here.exists() and place.samefile(here):
            continue
        if place.exists() and not here.exists():
            raise Refused(f"{database} came without its files: they are in {place}", hint=f"copy them to {here}")
        with closing(sqlite3.connect(database, timeout=_SECONDS)) as connection, connection:
            for table in sorted(_COLUMNS.keys() & tables):
                _rewrite(connection, table, _COLUMNS[table], f"{uri}/", f"{here.as_uri()}/")
        log.warning("this home was %s before: its database names the files in %s now", place.parent, here)


def _places(connection: sqlite3.Connection, names: set[str]) -> Iterator[str]:
    """Where the experiments of these names say that a home's files are."""
    found = "SELECT name, artifact_location FROM experiments WHERE artifact_location LIKE 'file:///%'"
    for name, location in connection.execute(found):
        end = f"/{quote(name)}"
        if name in names and location.endswith(f"/artifacts{end}"):
            yield location.removesuffix(end)


def _rewrite(connection: sqlite3.Connection, table: str, column: str, before: str, after: str) -> None:
    connection.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608 - ours
        (after, len(before) + 1, len(before), before),
    )
