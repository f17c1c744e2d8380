"""A row of MLflow's that another adds in the moment between MLflow's look for it and its own insertion."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.event
from mlflow.exceptions import MlflowException

from loradock.registry import promotion
from loradock.registry.store import Store, upsert
from loradock.trainer import tracking
from tests.support.adapters import NAME, aliases, make_version, ref


@contextmanager
def overtaken(store: Store, table: str) -> Iterator[list[str]]:
    """The first row that MLflow adds to a table of the embedded store is there already: another has just added it."""
    done: list[str] = []

    def add_it_first(_: Any, __: Any, statement: str, row: Any, *___: Any) -> None:
        if statement.startswith(f"INSERT INTO {table} ") and not done:
            done.append(statement)
            with closing(sqlite3.connect(store.settings.root / "mlflow.db")) as other, other:
                other.execute(statement, row)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", add_it_first)
    try:
        yield done
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", add_it_first)


def promote(store: Store) -> None:
    promotion.promote(store, ref(1), "production", actor="tester")
    assert aliases(store) == {"production": 1}


def share(store: Store) -> None:
    store.set_traffic(NAME, "a text")
    assert store.client.get_registered_model(NAME).tags["loradock.traffic"] == "a text"


def train(store: Store) -> None:
    run = tracking.Run(store, tracking.create(store, "tiny"))
    run.data("rows.jsonl", "d" * 64, 12)
    assert [read.dataset.name for read in store.client.get_run(run.id).inputs.dataset_inputs] == ["rows.jsonl"]


WRITES = {"registered_model_aliases": promote, "registered_model_tags": share, "datasets": train}


@pytest.mark.parametrize("table", WRITES)
def test_what_another_adds_in_between_is_found_by_a_second_try(store: Store, tmp_path: Path, table: str) -> None:
    make_version(store, tmp_path / "adapter")
    with overtaken(store, table) as done:
        WRITES[table](store)
    assert len(done) == 1


def test_what_mlflow_refuses_for_another_reason_is_not_tried_again(store: Store, tmp_path: Path) -> None:
    make_version(store, tmp_path / "adapter")
    tries: list[int] = []
    with pytest.raises(MlflowException, match="not found"):
        upsert(lambda: (tries.append(1), store.client.set_registered_model_alias(NAME, "production", "9")))
    assert tries == [1]
