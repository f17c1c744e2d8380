"""The registry on a real MLflow server on PostgreSQL, over HTTP and through its artifact proxy: what a team has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loradock.registry import history, promotion, versions
from loradock.registry.artifact import verify
from loradock.registry.errors import Conflict, NotFound, Unreachable
from loradock.registry.refs import VersionRef
from loradock.registry.store import Store
from tests.support import warm
from tests.support.adapters import log_adapter, make_version, write_adapter
from tests.support.mlflow_server import MLflowServer

pytestmark = pytest.mark.slow


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
    past = history.read(remote, "http-bot")
    again = [remote.append(past.family, past.ledger, 1, entry, carry={}) for entry in (past.last, "another")]
    assert again == [True, False]
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


def test_the_command_prints_data_alone_to_stdout(remote: Store, tmp_path: Path) -> None:
    run_id = log_adapter(remote, write_adapter(tmp_path / "a", seed=7))
    words = ["register", run_id, "--name", "cli-bot", "--no-reference", "--json"]
    done = warm.run([warm.LORADOCK, *words], kind="registry")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == "cli-bot/1"
    assert done.stderr == ""


def test_a_server_that_goes_is_unreachable(remote: Store, server: MLflowServer) -> None:
    server.kill()
    with pytest.raises(Unreachable, match="unreachable"):
        remote.families()
