"""The registry on a real MLflow server, over HTTP and through its artifact proxy: what a team has."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from registry import history, promotion, versions
from registry.artifact import verify
from registry.errors import Conflict, NotFound, Unreachable
from registry.refs import VersionRef
from registry.settings import Settings
from registry.store import Store
from tests.adapters import log_adapter, make_version, write_adapter

pytestmark = pytest.mark.slow


@dataclass
class Server:
    uri: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it with its workers."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(timeout=30)


def start(directory: Path) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--workers", "1", "--backend-store-uri", f"sqlite:///{directory}/server.db"),
                *("--serve-artifacts", "--artifacts-destination", str(directory / "artifacts")),
            ],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, (directory / "server.log").read_text()
        try:
            httpx.get(f"{uri}/health", timeout=5).raise_for_status()
            return Server(uri, process)
        except httpx.HTTPError:
            time.sleep(0.2)
    raise TimeoutError((directory / "server.log").read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = start(tmp_path_factory.mktemp("server"))
    yield found
    if found.process.poll() is None:
        found.stop()


@pytest.fixture
def remote(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return Store(Settings())


def test_versions_moves_and_drift_over_http(remote: Store, tmp_path: Path) -> None:
    one, two, three = (make_version(remote, tmp_path / str(seed), "http-bot", seed=seed) for seed in range(3))
    assert [version.ref.number for version in (one, two, three)] == [1, 2, 3]
    assert make_version(remote, tmp_path / "again", "http-bot").ref == one.ref
    with versions.fetched(remote, one) as directory:
        verify(directory, one.facts.digest, what="http-bot/1")
    promotion.promote(remote, one.ref, "production", actor="ann")
    promotion.promote(remote, two.ref, "production", actor="ann", expect=1)
    with pytest.raises(Conflict, match="version 2 by ann"):
        promotion.promote(remote, three.ref, "production", actor="bob", expect=1)
    family = remote.family("http-bot")
    entry = remote.ledger(family).entries[0]
    assert (remote.append(family, 0, entry), remote.append(family, 0, "another")) == (True, False)
    assert promotion.rollback(remote, "http-bot", "production", actor="ann").to_version == 1
    remote.client.set_registered_model_alias("http-bot", "production", "3")
    assert history.read(remote, "http-bot").drifts == (history.Drift("production", 1, 3),)
    promotion.restore(remote, "http-bot", actor="ann")
    assert remote.family("http-bot").aliases == {"production": 1}


def test_what_is_not_there_is_not_found_over_http(remote: Store) -> None:
    for look in (
        lambda: remote.version(VersionRef("nobody", 1)),
        lambda: remote.family("nobody"),
        lambda: remote.adapter_of("f" * 32),
    ):
        with pytest.raises(NotFound):
            look()


def test_the_command_prints_data_alone_to_stdout(remote: Store, server: Server, tmp_path: Path) -> None:
    run_id = log_adapter(remote, write_adapter(tmp_path / "a", seed=7))
    done = subprocess.run(
        [Path(sys.executable).with_name("loradock"), "register", run_id, "--name", "cli-bot", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["version"] == "cli-bot/1"
    assert done.stderr == ""


def test_a_server_that_goes_is_unreachable(remote: Store, server: Server) -> None:
    server.stop()
    with pytest.raises(Unreachable, match="out of reach"):
        remote.families()
