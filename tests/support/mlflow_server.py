"""A real MLflow server on a real PostgreSQL, with two workers and its artifact proxy: what a team has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.ports import free_port
from tests.support.postgres import postgres

STACK = Path(__file__).resolve().parents[2] / "stack"
USERS = ("trainer", "promoter", "replica", "reader")
ITS_DATABASE = "postgresql://mlflow@postgres/mlflow"
"""What the compose file's configuration names."""


class MLflowServer:
    """`mlflow server` on a database, as docs/operations.md says that it is started."""

    def __init__(
        self,
        database: str,
        directory: Path,
        *,
        workers: int = 2,
        artifacts: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.database, self.directory = database, directory
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.words = [
            *("--host", "127.0.0.1", "--port", str(self.port), "--workers", str(workers)),
            *("--uvicorn-opts", "--timeout-worker-healthcheck 120 --log-level warning"),
            *("--backend-store-uri", database),
            *("--serve-artifacts", "--artifacts-destination", artifacts or str(directory / "artifacts")),
        ]
        self.environ = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.environ |= environ or {}

    def start(self) -> None:
        """Start it where it does not run, and wait until it answers; a new database's tables take some seconds."""
        if self.process and self.process.poll() is None:
            return
        log = self.directory / "server.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *self.words],
                env=os.environ | self.environ,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 300
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


class TeamServer(MLflowServer):
    """The same with users and workspaces, as docker-compose.yml has it; stack/roles.py makes the users."""

    def __init__(self, database: str, directory: Path, **kind: Any) -> None:
        super().__init__(database, directory, **kind)
        configuration = (STACK / "mlflow/basic_auth.ini").read_text(encoding="utf-8")
        assert ITS_DATABASE in configuration
        (directory / "auth.ini").write_text(configuration.replace(ITS_DATABASE, database))
        self.passwords = directory / "passwords"
        self.passwords.mkdir()
        for user in USERS:
            (self.passwords / user).write_text(password(user))
        self.words += ["--app-name=basic-auth", "--enable-workspaces"]
        self.environ |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(directory / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password("admin"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the tests",
        }

    def start(self) -> None:
        """Start it, and make the users where they are not there yet."""
        new = self.process is None
        super().start()
        if new:
            done = self.roles()
            assert done.returncode == 0, done.stderr

    def roles(self) -> subprocess.CompletedProcess[str]:
        """What stack/roles.py says."""
        return subprocess.run(
            [sys.executable, "-W", "ignore", STACK / "roles.py", self.passwords],
            env=os.environ | self.login("admin"),
            capture_output=True,
            text=True,
            check=False,
        )

    def login(self, user: str) -> dict[str, str]:
        """The environment of whoever works as this user."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password(user),
        }

    def store(self, user: str, environment: pytest.MonkeyPatch) -> Store:
        """The registry as a user has it, who is who we are from then on: MLflow's client reads that at each call."""
        for name, value in self.login(user).items():
            environment.setenv(name, value)
        return Store(Settings())


def password(user: str) -> str:
    return f"the password of {user}"


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
