"""The names in a store within the time of a keystroke: importing MLflow alone takes two seconds.

They are read from the tables of MLflow's SQLite file, or by its REST interface. Nothing but completion reads this way.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Final

from loradock.registry.settings import Settings

_SECONDS: Final = 1.0
_NEWEST: Final = 50


def matching(settings: Settings, start: str) -> list[str]:
    """Refs that begin with `start`, at most a page: names with their aliases, and versions where one name is meant.

    Raises OSError (requests' errors are such), sqlite3.Error or ValueError where the store does not answer, and has
    nothing of a PostgreSQL store.
    """
    uri = settings.store_uri
    if uri.startswith("sqlite:///"):
        path = uri.removeprefix("sqlite:///")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_SECONDS)) as database:
            return _refs(start, _families_in(database), lambda name: _versions_in(database, name))
    if uri.startswith(("http://", "https://")):
        asked = partial(_asked, uri, settings.workspace)
        return _refs(start, _families_at(asked), lambda name: _versions_at(asked, name))
    return []


def _refs(start: str, families: Mapping[str, Sequence[str]], versions: Callable[[str], Iterable[int]]) -> list[str]:
    name, _, number = start.partition("/")
    if "/" in start:
        return [f"{name}/{found}" for found in versions(name) if str(found).startswith(number)]
    refs = [*families, *(f"{name}@{alias}" for name, aliases in families.items() for alias in aliases)]
    refs = sorted(ref for ref in refs if ref.startswith(start))
    names = {ref.partition("@")[0] for ref in refs}
    if len(names) == 1 and "@" not in start:
        only = names.pop()
        refs += [f"{only}/{found}" for found in versions(only)]
    return refs


def _families_in(database: sqlite3.Connection) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for (name,) in database.execute("SELECT name FROM registered_models")}
    for name, alias in database.execute("SELECT name, alias FROM registered_model_aliases"):
        found[name].append(alias)
    return found


def _versions_in(database: sqlite3.Connection, name: str) -> Iterator[int]:
    newest = "SELECT version FROM model_versions WHERE name = ? ORDER BY version DESC LIMIT ?"
    return (number for (number,) in database.execute(newest, (name, _NEWEST)))


def _families_at(asked: Callable[..., Any]) -> dict[str, list[str]]:
    found = asked("registered-models", max_results="1000").get("registered_models", [])
    return {model["name"]: [row["alias"] for row in model.get("aliases", [])] for model in found}


def _versions_at(asked: Callable[..., Any], name: str) -> Iterator[int]:
    found = asked("model-versions", filter=f"name='{name}'", max_results=str(_NEWEST), order_by="version_number DESC")
    return (int(version["version"]) for version in found.get("model_versions", []))


def _asked(uri: str, workspace: str, what: str, **query: str) -> Any:
    import requests

    user, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    answer = requests.get(
        f"{uri.rstrip('/')}/api/2.0/mlflow/{what}/search",
        params=query,
        auth=(user, password) if user else None,
        headers={
            **({"Authorization": f"Bearer {token}"} if token and not user else {}),
            **({"X-MLFLOW-WORKSPACE": workspace} if workspace else {}),
        },
        timeout=_SECONDS,
    )
    answer.raise_for_status()
    return answer.json()
