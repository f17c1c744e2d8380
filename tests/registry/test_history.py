from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import history, promotion
from loradock.registry.errors import Drifted, HistoryDamaged, LoradockError
from loradock.registry.refs import AliasRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, aliases, make_version, ref
from tests.support.registry.forgetful import Forgetful
from tests.support.registry.killed import Killed, KilledAtCall


@pytest.fixture
def three(store: Store, tmp_path: Path) -> Store:
    """A family of three versions, with the first in production."""
    for seed in range(3):
        make_version(store, tmp_path / str(seed), seed=seed)
    promotion.promote(store, ref(1), "production", actor="ann")
    return store


def past_loradock(store: Store, alias: str, number: int | None) -> None:
    """What a person does in MLflow's UI."""
    if number is None:
        store.client.delete_registered_model_alias(NAME, alias)
    else:
        store.client.set_registered_model_alias(NAME, alias, str(number))


def test_a_move_past_loradock_is_drift_and_bars_the_next_one(three: Store) -> None:
    past_loradock(three, "production", 3)
    assert history.read(three, NAME).drifts == (history.Drift("production", 1, 3),)
    for move in (
        lambda: promotion.promote(three, ref(2), "production", actor="ann"),
        lambda: promotion.rollback(three, NAME, "production", actor="ann"),
    ):
        with pytest.raises(Drifted, match="changed out of band: it is at version 3, not at version 1"):
            move()
    assert aliases(three) == {"production": 3}
    promotion.promote(three, ref(2), "canary", actor="ann")  # another alias is not held up


def test_even_a_move_back_to_the_version_before_is_drift(three: Store) -> None:
    promotion.promote(three, ref(2), "production", actor="ann")
    past_loradock(three, "production", 1)
    assert history.read(three, NAME).drifts == (history.Drift("production", 2, 1),)


@pytest.mark.parametrize(("alias", "number"), [("production", 3), ("production", None), ("by-hand", 2)])
def test_drift_is_adopted_or_taken_back_and_both_stand_in_history(three: Store, alias: str, number: int | None) -> None:
    before = aliases(three)
    past_loradock(three, alias, number)
    after = aliases(three)
    (move,) = promotion.adopt(three, NAME, actor="bob", reason="it was right")
    assert (move.op, move.to_version, move.actor, move.reason) == ("adopt", number, "bob", "it was right")
    assert aliases(three) == after
    assert history.read(three, NAME).drifts == ()
    past_loradock(three, alias, before.get(alias))
    (move,) = promotion.restore(three, NAME, actor="bob")
    assert (move.op, move.from_version, move.to_version) == ("restore", before.get(alias), number)
    assert aliases(three) == after
    assert history.read(three, NAME).drifts == ()


def test_a_search_that_forgets_aliases_is_no_drift_and_nothing_is_adopted_of_it(three: Store) -> None:
    forgetful = Forgetful(three.settings)
    assert history.read(forgetful, NAME).drifts == ()
    assert promotion.adopt(forgetful, NAME, actor="bob") == promotion.restore(forgetful, NAME, actor="bob") == ()
    assert aliases(three) == {"production": 1}


def test_an_alias_that_went_with_its_deleted_version_bars_nothing(three: Store) -> None:
    for number in (2, 3):
        promotion.promote(three, ref(number), "production", actor="ann")
    three.client.delete_model_version(NAME, "3")
    three.client.delete_model_version(NAME, "2")
    assert aliases(three) == {}
    assert promotion.rollback(three, NAME, "production", actor="ann").to_version == 1
    assert aliases(three) == {"production": 1}


def test_promoting_what_history_has_but_mlflow_lost_puts_it_back(three: Store) -> None:
    past_loradock(three, "production", None)
    assert promotion.promote(three, ref(1), "production", actor="ann") is not None
    assert aliases(three) == {"production": 1}


def test_where_an_alias_stood_at_a_moment(three: Store) -> None:
    promotion.promote(three, ref(2), "production", actor="ann")
    first, second = history.read(three, NAME).moves
    past = history.read(three, NAME)
    assert past.at(first.at - timedelta(milliseconds=1)) == {}
    assert past.at(first.at) == {"production": 1}
    assert past.at(second.at) == {"production": 2}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("DELETE FROM params WHERE key = '00000001'", "entry 1 is missing"),
        ("DELETE FROM params WHERE key = '00000000'", "entry 0 is missing"),
        ("UPDATE params SET value = replace(value, '\"ann\"', '\"eve\"') WHERE key = '00000000'", "entry 1 does not"),
        (
            "UPDATE params SET value = replace(value, '\"seq\":1', '\"seq\":7') WHERE key = '00000001'",
            "entry 1 does not",
        ),
        ("UPDATE params SET value = 'x' WHERE key = '00000001'", "entry 1 cannot be read"),
    ],
)
def test_an_entry_that_was_edited_or_is_missing_is_found(
    three: Store, settings: Settings, change: str, fault: str
) -> None:
    for number in (2, 3):
        promotion.promote(three, ref(number), "production", actor="ann")
    with sqlite3.connect(settings.root / "mlflow.db") as database:
        assert database.execute(change).rowcount == 1
    database.close()
    for look in (
        lambda: history.read(three, NAME),
        lambda: promotion.promote(three, ref(1), "production", actor="ann"),
    ):
        with pytest.raises(HistoryDamaged, match=fault):
            look()


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_promoter_killed_at_any_step_leaves_nothing_that_the_next_does_not_mend(three: Store, after: bool) -> None:
    finished = False
    for calls in range(30):
        here, there = (2, 3) if aliases(three)["production"] != 2 else (3, 2)
        killed: Any = KilledAtCall(three, calls, after=after)
        try:
            promotion.promote(killed, ref(here), "production", actor="the dead")
            finished = True
        except Killed:
            pass
        assert history.read(three, NAME).drifts == ()  # a death is no drift
        promotion.promote(three, ref(there), "production", actor="the next")
        past = history.read(three, NAME)
        assert past.drifts == ()
        assert aliases(three) == {"production": there} == {alias: past.head(alias) for alias in past.heads}
        if finished:
            break
    assert finished


def test_a_promoter_overtaken_between_its_steps_leaves_the_head(three: Store) -> None:
    """The slow one has written its move and is about to set the alias when another moves it on."""

    class SlowStore:
        def __init__(self) -> None:
            self.overtaken = False

        def __getattr__(self, name: str) -> Any:
            return getattr(three, name)

        def set_alias(self, ref_: AliasRef, number: int) -> None:
            if not self.overtaken:
                self.overtaken = True
                promotion.promote(three, ref(3), "production", actor="the quick")
            three.set_alias(ref_, number)

    slow: Any = SlowStore()
    promotion.promote(slow, ref(2), "production", actor="the slow")
    past = history.read(three, NAME)
    assert [move.actor for move in past.moves] == ["ann", "the slow", "the quick"]
    assert aliases(three) == {"production": 3}
    assert past.drifts == ()


def test_the_error_of_a_damaged_history_is_one_of_ours() -> None:
    assert issubclass(HistoryDamaged, LoradockError)
    assert HistoryDamaged("a", 1, "is missing").exit_code == 3
    assert Drifted("a", "b", recorded=None, found=1).exit_code == 4
