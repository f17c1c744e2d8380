"""Texts of rows go by their age; what was measured on them stays, and is still evidence."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loradock.registry import entries, gates, history
from loradock.registry.evidence import Evidence, Scores
from loradock.registry.records import Version
from loradock.registry.store import Store
from loradock.registry.store.connection import default_store
from tests.support.adapters import NAME, SMOL, make_version
from tests.support.shell import loradock

SECRET = "my number is 4711"


@pytest.fixture
def version(store: Store, tmp_path: Path) -> Version:
    return make_version(store, tmp_path / "adapter")


def evaluated(store: Store, of: Version, *, days: float = 0, finished: bool = True, name: str = "") -> str:
    """An evaluation of a version, so many days ago."""
    run_id = store.begin_evaluation(f"{name or of.ref.name}/{of.ref.number} on rows.jsonl")
    table = {"row": [1, 2], "prompt": [SECRET, "b"], "candidate": ["c", SECRET]}
    if finished:
        loss = Scores(better="lower", weighted=True, candidate=(1.0, 2.0), base=(3.0, 3.0))
        found = Evidence(
            run_id=run_id,
            name=name or of.ref.name,
            candidate=of.facts.digest,
            incumbent="",
            base=SMOL.weights_digest,
            data_digest="d" * 64,
            at=datetime.now(UTC) - timedelta(days=days),
            metrics={"loss": loss},
            weights=(1.0, 1.0),
        )
        store.record_evidence(found, table=table)
    else:
        kept(store, run_id, "rows.json")
    return aged(store, run_id, days)


def kept(store: Store, run_id: str, file: str) -> None:
    with default_store(store.uri):
        store.client.log_table(run_id, {"prompt": [SECRET]}, file)


def aged(store: Store, run_id: str, days: float) -> str:
    """Let a run have begun so many days ago."""
    began = datetime.now(UTC) - timedelta(days=days)
    with closing(sqlite3.connect(store.settings.root / "mlflow.db")) as database, database:
        milliseconds = int(began.timestamp() * 1000)
        database.execute("UPDATE runs SET start_time = ? WHERE run_uuid = ?", (milliseconds, run_id))
    return run_id


def secrets(store: Store) -> set[Path]:
    """Files of the store that hold a row's text."""
    files = (path for path in store.settings.artifacts.rglob("*.json") if SECRET in path.read_text())
    return {path.relative_to(store.settings.artifacts) for path in files}


def runs(done: str) -> set[str]:
    return {row["run"] for row in json.loads(done)}


def test_it_deletes_nothing_unless_told_to_and_then_no_text_is_left(store: Store, version: Version) -> None:
    run_id = evaluated(store, version, days=40)
    before = store.find_evidence(NAME, version.facts.digest)
    dry = loradock("forget", "--json")
    assert runs(dry.out) == {run_id}
    assert "nothing was deleted; with --yes 1 texts" in dry.err
    assert secrets(store)
    done = loradock("forget", "--yes", "--json")
    assert runs(done.out) == {run_id}
    assert secrets(store) == set()
    assert store.find_evidence(NAME, version.facts.digest) == before
    assert store.client.get_run(run_id).data.metrics["candidate/loss"] == 1.5
    assert "rows.json" not in store.client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]
    assert loradock("verify", "--all").exit_code == 0
    assert json.loads(loradock("forget", "--json").out) == []


def test_a_policy_counts_evidence_whose_texts_are_gone(store: Store, version: Version) -> None:
    entries.set_policy(store, NAME, "production: {metrics: {loss: {max: 2}}, min_rows: 2}", actor="ann")
    evaluated(store, version, days=40)
    assert loradock("forget", "--yes").exit_code == 0
    verdicts = gates.judge(store, history.read(store, NAME), version, "production")
    assert [verdict.passed for verdict in verdicts] == [True]


def test_only_what_is_older_goes(store: Store, version: Version) -> None:
    old, young = evaluated(store, version, days=8), evaluated(store, version, days=6)
    assert runs(loradock("forget", "--older-than", "7", "--yes", "--json").out) == {old}
    assert {path.parts[1] for path in secrets(store)} == {young}


def test_one_adapters_texts_are_its_evaluations_and_its_versions_trainings(
    store: Store, version: Version, tmp_path: Path
) -> None:
    kept(store, version.facts.run_id, "samples.json")
    aged(store, version.facts.run_id, 40)
    others = make_version(store, tmp_path / "other", "support_bot", seed=1)
    mine = {evaluated(store, version, days=40), evaluated(store, version, days=40, finished=False)}
    theirs = {evaluated(store, others, days=40), evaluated(store, others, days=40, finished=False)}
    assert runs(loradock("forget", NAME, "--json").out) == mine | {version.facts.run_id}
    assert runs(loradock("forget", "support_bot", "--yes", "--json").out) == theirs
    assert runs(loradock("forget", "--yes", "--json").out) == mine | {version.facts.run_id}
    assert secrets(store) == set()


def test_a_run_that_was_deleted_in_mlflow_has_no_text_left_either(store: Store, version: Version) -> None:
    run_id = evaluated(store, version, days=40)
    store.client.delete_run(run_id)
    assert runs(loradock("forget", "--yes", "--json").out) == {run_id}
    assert secrets(store) == set()
