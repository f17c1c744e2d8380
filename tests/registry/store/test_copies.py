"""Versions that MLflow copied from one registered model to another, as it moves models between environments."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from loradock.cli import cli
from loradock.registry import diff, entries, gc, history, promotion, versions
from loradock.registry.artifact import WEIGHTS
from loradock.registry.errors import DigestMismatch, Refused, Taken
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.registry.store import Store
from tests.support.adapters import make_version

NONE = gc.Rules(keep=0, window=timedelta(0), min_age=timedelta(0))


@pytest.fixture
def bot(store: Store, tmp_path: Path) -> Version:
    """`bot/1`, in production."""
    version = make_version(store, tmp_path / "bot", "bot")
    promotion.promote(store, version.ref, "production", actor="ann")
    return version


def copied(store: Store, version: Version, name: str) -> Version:
    found = store.client.copy_model_version(f"models:/{version.ref}", name)
    return store.version(VersionRef(name, int(found.version)))


def test_a_copy_never_writes_into_the_history_of_what_it_was_copied_from(store: Store, bot: Version) -> None:
    before = history.read(store, "bot").entries
    copy = copied(store, bot, "other")
    with pytest.raises(Taken, match="something else made"):
        promotion.promote(store, copy.ref, "production", actor="bob")
    with pytest.raises(Taken, match="something else made"):
        entries.set_policy(store, "other", "rules: []", actor="bob")
    assert history.read(store, "bot").entries == before
    assert promotion.resolve(store, bot.ref).ref == bot.ref


@pytest.mark.parametrize("place", ["store", pytest.param("remote", marks=pytest.mark.slow)])
def test_a_copy_into_a_family_is_a_version_of_its_own(
    place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store: Store = request.getfixturevalue(place)
    bot = make_version(store, tmp_path / "bot", "bot")
    promotion.promote(store, bot.ref, "production", actor="ann")
    make_version(store, tmp_path / "other", "other", seed=7)
    copy = copied(store, bot, "other")
    again = store.client.copy_model_version(f"models:/{copy.ref}", "third")
    assert (str(copy.ref), copy.facts.digest, again.source) == ("other/2", bot.facts.digest, "models:/other/2")
    assert versions.verify(store, copy).digest == bot.facts.digest
    assert versions.verify(store, store.version(VersionRef("third", 1))).digest == bot.facts.digest
    promotion.promote(store, copy.ref, "production", actor="bob")
    assert [move.actor for move in history.read(store, "bot").moves] == ["ann"]
    assert [move.actor for move in history.read(store, "other").moves] == ["bob"]
    assert versions.register(store, bot.facts.run_id, "other").ref == copy.ref
    assert diff.compare(store, bot, copy).weights == diff.compare(store, bot, bot).weights


def test_a_copy_is_damaged_where_its_bytes_are(store: Store, bot: Version, tmp_path: Path) -> None:
    make_version(store, tmp_path / "other", "other", seed=7)
    copy = copied(store, bot, "other")
    weights = next(path for path in store.settings.artifacts.rglob(WEIGHTS) if bot.source[8:] in path.parts)
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    with pytest.raises(DigestMismatch, match=r"other/2 .*adapter_model.safetensors changed"):
        versions.verify(store, copy)


def test_the_clean_up_of_a_copy_leaves_the_bytes(store: Store, bot: Version, tmp_path: Path) -> None:
    make_version(store, tmp_path / "other", "other", seed=7)
    copied(store, bot, "other")
    gone = gc.collect(store, "other", NONE, {}, actor="gc", reason="")
    assert {str(one.ref): one.freed > 0 for one in gone} == {"other/2": False, "other/1": True}
    versions.verify(store, bot)


def test_a_renamed_family_is_refused_with_what_was_renamed(store: Store, bot: Version) -> None:
    store.client.rename_registered_model("bot", "robot")
    with pytest.raises(Refused, match="'bot history'"):
        promotion.promote(store, VersionRef("robot", 1), "staging", actor="ann")
    told = CliRunner().invoke(cli, ["verify", "--all"]).exception
    assert isinstance(told, Refused)
    assert "'bot history'" in told.text
    store.client.rename_registered_model("robot", "bot")
    assert len(history.read(store, "bot").moves) == 1
