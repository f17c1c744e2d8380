"""A home that was moved or copied: what it holds is read there, and nothing is written anywhere else."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from loradock.registry import promotion, versions
from loradock.registry.artifact import WEIGHTS
from loradock.registry.errors import Refused
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import log_adapter, make_version, ref, write_adapter


@pytest.fixture
def one(store: Store, tmp_path: Path) -> Version:
    return make_version(store, tmp_path / "one")


def files(home: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_a_home_that_was_moved_is_read_where_it_is(
    store: Store, one: Version, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = one.facts.run_id
    new = store.settings.root.rename(tmp_path / "another place")
    moved = Store(Settings(home=new))
    assert f"this home was {store.settings.root} before" in caplog.text
    assert versions.verify(moved, moved.version(one.ref)).digest == one.facts.digest
    moved.client.log_text(run_id, "a resumed run", "log.txt")
    assert (new / "artifacts/loradock" / run_id / "artifacts/log.txt").read_text() == "a resumed run"
    two = make_version(moved, tmp_path / "two", seed=2)
    promotion.promote(moved, two.ref, "production", actor="ann")
    assert not store.settings.root.exists()
    caplog.clear()
    Store(Settings(home=new))
    assert not caplog.records


def test_a_copy_of_a_home_reads_its_own_files_and_leaves_the_first_as_it_is(
    store: Store, one: Version, tmp_path: Path
) -> None:
    new = Path(shutil.copytree(store.settings.root, tmp_path / "copy"))
    before = files(store.settings.root)
    copy = Store(Settings(home=new))
    next((new / "artifacts").rglob(WEIGHTS)).write_bytes(b"damaged")
    with pytest.raises(Refused, match=f"{WEIGHTS} changed"):
        versions.verify(copy, copy.version(one.ref))
    log_adapter(copy, write_adapter(tmp_path / "two", seed=2))
    copy.client.log_text(one.facts.run_id, "x", "log.txt")
    assert files(store.settings.root) == before


def test_a_database_without_its_files_is_refused_and_writes_nothing_beside_them(
    store: Store, one: Version, tmp_path: Path
) -> None:
    new = tmp_path / "database alone"
    new.mkdir()
    shutil.copy(store.settings.root / "mlflow.db", new)
    with pytest.raises(Refused, match="came without its files"):
        Store(Settings(home=new))
    shutil.copytree(store.settings.artifacts, new / "artifacts")
    copy = Store(Settings(home=new))
    assert versions.verify(copy, copy.version(ref(1))).digest == one.facts.digest


def test_a_link_to_a_home_is_that_home(
    store: Store, one: Version, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (store.settings.root / "mlflow.db").read_bytes()
    (tmp_path / "link").symlink_to(store.settings.root)
    linked = Store(Settings(home=tmp_path / "link"))
    assert versions.verify(linked, linked.version(one.ref)).digest == one.facts.digest
    assert (store.settings.root / "mlflow.db").read_bytes() == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
