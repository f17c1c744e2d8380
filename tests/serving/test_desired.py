"""What is promoted, read from a real store; and what a registry that cannot be read must never become: empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from loradock.registry import promotion
from loradock.registry.errors import Unreachable
from loradock.registry.records import Base, Version
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Family, Store
from loradock.serving.desired import Promoted, Reading, Source, for_base
from tests.support.adapters import SMOL, make_version
from tests.support.registry.forgetful import Forgetful

OTHER = Base(id="other/base", config_digest="1" * 64, weights_digest="2" * 64)


def promoted(store: Store, version: Version) -> Version:
    promotion.promote(store, version.ref, "production", actor="tester", force=True, reason="a test")
    return version


@pytest.fixture
def one(store: Store, tmp_path: Path) -> Version:
    return promoted(store, make_version(store, tmp_path / "one", "support-bot"))


def lose(settings: Settings) -> Path:
    """Move the registry's file away."""
    return (settings.root / "mlflow.db").rename(settings.root / "gone.db")


def test_it_reads_the_promoted_version_of_every_family(store: Store, settings: Settings, tmp_path: Path) -> None:
    bot = promoted(store, make_version(store, tmp_path / "a", "support-bot", seed=1))
    sql = promoted(store, make_version(store, tmp_path / "b", "sql", seed=2))
    make_version(store, tmp_path / "c", "never-promoted", seed=3)
    reading = Source(settings).read()
    assert reading.promoted.versions == {"support-bot": bot, "sql": sql}
    assert (reading.age, reading.error) == (0.0, "")


def test_it_follows_a_move_and_other_aliases_do_not_matter(store: Store, settings: Settings, tmp_path: Path) -> None:
    source = Source(settings)
    first = promoted(store, make_version(store, tmp_path / "a", seed=1))
    second = make_version(store, tmp_path / "b", seed=2)
    promotion.promote(store, second.ref, "staging", actor="tester")
    assert source.read().promoted.versions == {"support-bot": first}
    promotion.promote(store, second.ref, "production", actor="tester")
    assert source.read().promoted.versions == {"support-bot": second}


def test_a_version_is_asked_for_once(
    one: Version, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[VersionRef] = []
    real = store.version
    monkeypatch.setattr(store, "version", lambda ref: asked.append(ref) or real(ref))
    source = Source(settings, connect=lambda _: store)
    for _ in range(3):
        assert source.read().promoted.versions == {"support-bot": one}
    assert asked == [one.ref]
    source.forget(one.ref)
    assert source.read().promoted.versions == {"support-bot": one}
    assert asked == [one.ref, one.ref]


def test_an_unreadable_registry_leaves_the_last_answer_in_force(one: Version, settings: Settings) -> None:
    now = [100.0]
    source = Source(settings, clock=lambda: now[0])
    source.read()
    back = lose(settings)
    now[0] = 107.5
    reading = source.read()
    assert reading.promoted.versions == {"support-bot": one}
    assert reading.age == 7.5
    assert "unreachable" in reading.error
    back.rename(settings.root / "mlflow.db")
    assert source.read().error == ""


def test_a_restart_without_the_registry_goes_on_from_the_last_plan(one: Version, settings: Settings) -> None:
    Source(settings).read()
    lose(settings)
    reading = Source(settings).read()
    assert reading.promoted.versions == {"support-bot": one}
    assert reading.age is None
    assert not (settings.root / "mlflow.db").exists(), "it must not make an empty store where one was lost"


def test_a_plan_belongs_to_its_own_workspace(one: Version, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(_: Settings) -> Store:
        raise Unreachable("refused")

    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    Source(Settings()).read()
    assert Source(Settings(), connect=dead).read().promoted.versions == {"support-bot": one}
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-b")
    with pytest.raises(Unreachable):
        Source(Settings(), connect=dead).read()


def test_a_plan_belongs_to_its_own_registry(one: Version, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    Source(settings).read()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # discard: nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unreachable):
        Source(Settings()).read()


class EmptyStore(Store):
    """A registry that answers and holds nothing, as after a reset of its database."""

    def families(self) -> tuple[Family, ...]:
        return ()


def test_an_emptied_registry_is_unknown_and_not_empty(one: Version, settings: Settings) -> None:
    Source(settings).read()
    reading = Source(settings, connect=EmptyStore).read()
    assert reading.promoted.versions == {"support-bot": one}
    assert "holds none" in reading.error


def test_a_search_that_forgets_aliases_takes_no_name_off(one: Version, store: Store, settings: Settings) -> None:
    Source(settings).read()
    reading = Source(settings, connect=Forgetful).read()
    assert reading.promoted.versions == {"support-bot": one}
    assert "answers without support-bot@production, which is there" in reading.error
    store.client.delete_registered_model_alias("support-bot", "production")
    assert Source(settings, connect=Forgetful).read() == Reading(Promoted(versions={}), 0.0)


class Broken(Store):
    """A registry that goes away between the list of families and their versions."""

    def version(self, ref: VersionRef) -> Version:
        raise Unreachable("MLflow is out of reach")


def test_half_an_answer_is_none(one: Version, settings: Settings) -> None:
    with pytest.raises(Unreachable):
        Source(settings, connect=Broken).read()
    Source(settings).read()
    reading = Source(settings, connect=Broken).read()
    assert (reading.promoted.versions, reading.error) == ({"support-bot": one}, "MLflow is out of reach")


def test_the_password_of_the_registry_is_not_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://replica:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    source = Source(Settings())
    assert source.registry == "http://***@127.0.0.1:9"
    with pytest.raises(Unreachable) as raised:
        source.read()
    assert "secret" not in str(raised.value)


def test_a_new_store_has_nothing_promoted_and_that_is_an_answer(settings: Settings) -> None:
    reading = Source(settings).read()
    assert (reading.promoted.versions, reading.error) == ({}, "")


@pytest.mark.parametrize("text", ["", "{", '{"versions": 3}', '{"versions": {}, "more": 1}'])
def test_a_damaged_plan_on_disk_is_no_plan(one: Version, settings: Settings, text: str) -> None:
    Source(settings).read()
    (plan,) = settings.root.glob("promoted-*.json")
    plan.write_text(text)
    assert Source(settings).read().promoted.versions == {"support-bot": one}


def test_one_family_that_cannot_be_read_hides_no_other_and_keeps_what_it_had(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    bot = promoted(store, make_version(store, tmp_path / "a", "support-bot", seed=1))
    sql = promoted(store, make_version(store, tmp_path / "b", "sql", seed=2))
    Source(settings).read()
    store.client.delete_model_version_tag("sql", "1", "loradock.base")
    assert Source(settings).read().promoted.versions == {"support-bot": bot, "sql": sql}


def test_only_versions_of_this_base_are_targets(store: Store, settings: Settings, tmp_path: Path) -> None:
    mine = promoted(store, make_version(store, tmp_path / "a", "mine", seed=1))
    other = promoted(store, make_version(store, tmp_path / "b", "other", seed=2, base=OTHER))
    desired = for_base(Source(settings).read().promoted, SMOL, served_as=frozenset({"smol"}))
    assert desired.targets == {"mine": mine}
    assert desired.refused["other"].version == other
    assert "other/base" in desired.refused["other"].reason


def test_a_base_is_the_same_by_its_weights_whatever_it_is_called(one: Version) -> None:
    renamed = SMOL.model_copy(update={"id": "/somewhere/else", "quantization": "nf4"})
    desired = for_base(Promoted(versions={"support-bot": one}), renamed, served_as=frozenset())
    assert desired.targets == {"support-bot": one}


def test_an_adapter_never_takes_the_name_of_the_base(one: Version) -> None:
    desired = for_base(Promoted(versions={"support-bot": one}), SMOL, served_as=frozenset({"support-bot"}))
    assert not desired.targets
    assert "base model itself" in desired.refused["support-bot"].reason
