"""A real MLflow server on a real PostgreSQL, with two workers and its artifact proxy: what a team has."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.postgres import postgres


class MLflowServer:
    """`mlflow server` on a database, as docs/operations.md says that it is started."""

    def __init__(self, database: str, directory: Path) -> None:
        self.database, self.directory = database, directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it where it does not run, and wait until it answers; a new database's tables take some seconds."""
        if self.process and self.process.poll() is None:
            return
        log = self.directory / "server.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--workers", "2", "--uvicorn-opts", "--timeout-worker-healthcheck 120 --log-level warning"),
                    *("--backend-store-uri", self.database),
                    *("--serve-artifacts", "--artifacts-destination", str(self.directory / "artifacts")),
                ],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, log.read_text()
            try:
                httpx.get(f"{self.uri}/health", timeout=5).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise TimeoutError(log.read_text())

    def kill(self) -> None:
        """End it with its workers, at once and in the midst of what they do."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)


@contextmanager
def mlflow_server(directory: Path) -> Iterator[MLflowServer]:
    """A started server on a PostgreSQL of its own."""
    with postgres() as database:
        server = MLflowServer(database, directory)
        server.start()
        try:
            yield server
        finally:
            server.kill()
