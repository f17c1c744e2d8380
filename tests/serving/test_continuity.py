"""A replica holds the histories against what it has seen of them, beside its polls, and serves whatever comes of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import entries, promotion
from loradock.registry.errors import Unreachable
from loradock.registry.heads import Memory
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving import fleet
from loradock.serving.desired import Source
from tests.support.adapters import NAME, make_version, ref
from tests.support.registry.killed import KilledAtCall
from tests.support.serving.fakes import ReplicaHarness


@pytest.fixture
def moved(store: Store, tmp_path: Path) -> Store:
    """A family of three versions, whose production went from 1 to 2."""
    for seed in range(3):
        make_version(store, tmp_path / str(seed), seed=seed)
    for number in (1, 2):
        promotion.promote(store, ref(number), "production", actor="ann")
    return store


@pytest.fixture
def replica(moved: Store, tmp_path: Path) -> Settings:
    """Those of another machine on the same registry."""
    return moved.settings.model_copy(update={"home": tmp_path / "replica", "tracking_uri": moved.settings.store_uri})


def cut(store: Store) -> None:
    """Take the newest entry away, and put the alias where the rest says."""
    with closing(sqlite3.connect(store.settings.root / "mlflow.db")) as database, database:
        assert database.execute("DELETE FROM params WHERE key LIKE '00000001%'").rowcount
        database.execute("UPDATE registered_model_aliases SET version = 1")


def cut_with_its_tags(store: Store) -> None:
    """Leave no trace of it in MLflow."""
    cut(store)
    store.client.delete_registered_model_tag(NAME, "loradock.head")
    store.client.delete_model_version_tag(NAME, "2", "loradock.head")


def audited(source: Source) -> dict[str, str]:
    source.read()
    return dict(source.continuity.audit())


def test_a_poll_asks_for_no_history(moved: Store, replica: Settings) -> None:
    client = moved.client
    source = Source(replica, connect=lambda _: moved)
    asked = []
    for number in (None, None, 3, None):
        if number:
            promotion.promote(moved, ref(number), "production", actor="ann")
        moved.client = counted = KilledAtCall(client)
        source.read()
        moved.client = client
        asked.append(counted.calls)
        source.continuity.audit()
    first, again = ["search_registered_models", "get_model_version"], ["search_registered_models"]
    assert asked == [first, again, first, again]


def test_an_audit_reads_at_most_those_that_changed_and_four_in_turn(store: Store, replica: Settings) -> None:
    for number in range(9):
        store.create_family(f"bot-{number}")
    source = Source(replica, connect=lambda _: store)
    audited(source)
    client = store.client
    store.client = counted = KilledAtCall(client)
    source.continuity.audit()
    store.client = client
    assert counted.calls.count("search_registered_models") == 4


@pytest.mark.parametrize("damage", [cut, cut_with_its_tags])
def test_a_replica_tells_of_a_cut_history_and_a_restart_forgets_nothing(
    moved: Store, replica: Settings, damage: Callable[[Store], None]
) -> None:
    assert audited(Source(replica)) == {}
    damage(moved)
    for _ in range(2):
        told = audited(Source(replica))
        assert "does not continue from what this machine has seen: it ends with entry 0" in told[NAME]


def test_a_replica_follows_moves_and_tells_of_none(moved: Store, replica: Settings) -> None:
    source = Source(replica)
    for number in (3, 1, 2):
        assert audited(source) == {}
        promotion.promote(moved, ref(number), "production", actor="ann")
        assert audited(source) == {}
        assert Memory(replica).all() == Memory(moved.settings).all()
        assert not source.continuity.changed


def test_what_a_person_accepted_is_told_no_more(moved: Store, replica: Settings) -> None:
    source = Source(replica)
    audited(source)
    cut(moved)
    assert audited(source)
    entries.accept(moved, NAME, actor="ann", reason="restored")
    assert audited(source) == {}


def test_a_registry_out_of_reach_settles_nothing(moved: Store, replica: Settings) -> None:
    source = Source(replica, connect=lambda _: moved)
    audited(source)
    cut(moved)
    told = audited(source)

    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise Unreachable("out of reach")

    moved.client = Gone()  # type: ignore[assignment]
    assert source.continuity.audit() == told != {}


def test_requests_are_answered_while_the_status_tells_of_it(
    moved: Store, replica: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("loradock.serving.replica._AUDIT_SECONDS", 0.05)
    harness = ReplicaHarness()
    source = harness.replica._registry = Source(replica)
    source.read()
    source.continuity.audit()

    async def story() -> None:
        await harness.until(lambda: harness.engine.pointed == {NAME: ref(2)})
        cut(moved)
        await harness.until(lambda: harness.replica.status().histories)
        assert (await harness.replica.acquire(harness.engine.pointed[NAME])).ref.name == NAME
        await harness.until(lambda: harness.engine.pointed == {NAME: ref(1)})  # MLflow's alias is followed
        status = harness.replica.status()
        assert status.ready
        assert "it ends with entry 0" in fleet.page(status)[f"{NAME} (history)"]

    harness.follow(story)
    assert caplog.text.count("does not continue") == 1
