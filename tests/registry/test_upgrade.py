"""A registry whose tables an older MLflow made, brought up as docs/how-to/upgrade.md says; and one of a newer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from mlflow.store.db import utils

from loradock.registry import history, promotion
from loradock.registry.store import Store
from tests.support.adapters import NAME, aliases, make_version, ref
from tests.support.docs.pages import marked, run
from tests.support.shell import loradock

pytestmark = pytest.mark.slow

PAGE = "how-to/upgrade.md"
OLDER = "c3d6457b6d8a"
"""Fifteen migrations before the newest of MLflow 3.17."""


def older(uri: str) -> None:
    """Take a store back to older tables, by MLflow's own migrations."""
    engine = sqlalchemy.create_engine(uri)
    config = utils._get_alembic_config(uri)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, OLDER)
    engine.dispose()


def revision(database: Path) -> str:
    with closing(sqlite3.connect(database)) as store:
        ((found,),) = store.execute("SELECT version_num FROM alembic_version")
    return str(found)


def test_a_store_of_an_older_mlflow_is_brought_up_and_goes_on(store: Store, tmp_path: Path) -> None:
    for seed in range(2):
        made = make_version(store, tmp_path / str(seed), seed=seed)
        promotion.promote(store, made.ref, "production", actor="ann")
    before = history.read(store, NAME).entries
    database = store.settings.root / "mlflow.db"
    older(store.uri)
    assert revision(database) == OLDER
    run(marked(PAGE, "MLflow's tables")[:1], tmp_path, {"LORADOCK_HOME": str(store.settings.root)})
    assert revision(database) == utils._get_latest_schema_revision()
    upgraded = Store(store.settings)
    assert history.read(upgraded, NAME).entries == before
    assert loradock("verify", NAME, "--all").exit_code == 0
    assert promotion.promote(upgraded, ref(1), "production", actor="bob")
    assert aliases(upgraded) == {"production": 1}


def test_a_store_of_a_newer_mlflow_is_told_and_left_alone(store: Store) -> None:
    database = store.settings.root / "mlflow.db"
    with closing(sqlite3.connect(database)) as newer:
        newer.execute("UPDATE alembic_version SET version_num = 'f0f0f0f0f0f0'")
        newer.commit()
    done = loradock("list")
    assert done.exit_code not in (0, None)
    assert "f0f0f0f0f0f0" in done.err
    assert len(done.err.splitlines()) <= 2, done.err
    assert revision(database) == "f0f0f0f0f0f0"
