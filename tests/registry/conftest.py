"""The registry's second store: an MLflow server on PostgreSQL, one for all tests that ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.mlflow_server import MLflowServer, mlflow_server


@pytest.fixture(scope="session")
def the_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def server(the_server: MLflowServer) -> MLflowServer:
    """It, running, whatever the test before did to it, and without a family."""
    the_server.start()
    with psycopg.connect(the_server.database) as connection:
        connection.execute("TRUNCATE registered_models CASCADE")
        connection.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE name LIKE '% history'")
    return the_server


@pytest.fixture
def remote(server: MLflowServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return Store(Settings())
