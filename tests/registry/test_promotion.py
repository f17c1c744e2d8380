from __future__ import annotations

import hashlib
import sys
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from loradock.registry import entries, history, promotion
from loradock.registry.errors import BadInput, Conflict, NotFound, NotServable, WrongBase
from loradock.registry.refs import AliasRef, parse_ref
from loradock.registry.store import Store
from tests.support.adapters import NAME, SMOL, aliases, make_version, ref


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, store: Store) -> Store:
    """The embedded store, and a server on PostgreSQL."""
    return store if request.param == "sqlite" else request.getfixturevalue("remote")


@pytest.fixture
def three(store: Store, tmp_path: Path) -> Store:
    """A family of three versions."""
    for seed in range(3):
        make_version(store, tmp_path / str(seed), seed=seed)
    return store


def test_a_promotion_moves_the_alias_and_stands_in_history(three: Store) -> None:
    move = promotion.promote(three, ref(2), "production", actor="ann", reason="better")
    assert move is not None
    assert aliases(three) == {"production": 2}
    assert history.read(three, NAME).moves == (move,)
    assert (move.from_version, move.to_version, move.actor, move.reason) == (None, 2, "ann", "better")
    assert move.digest == three.version(ref(2)).facts.digest
    assert promotion.resolve(three, parse_ref(NAME)).ref == ref(2)


def test_history_is_chained_and_replays_to_every_alias(three: Store) -> None:
    for number, alias in ((1, "production"), (2, "canary"), (2, "production"), (3, "canary"), (3, "production")):
        promotion.promote(three, ref(number), alias, actor="ann")
    promotion.rollback(three, NAME, "production", actor="bob")
    past = history.read(three, NAME)
    entries = list(three.ledger(past.family).entries.values())
    assert [move.seq for move in past.moves] == list(range(6))
    assert [move.prev for move in past.moves[1:]] == [
        hashlib.sha256(entry.encode()).hexdigest() for entry in entries[:-1]
    ]
    assert (
        {alias: past.head(alias) for alias in ("production", "canary")}
        == aliases(three)
        == {"production": 2, "canary": 3}
    )


def test_promoting_what_is_there_already_is_no_move(three: Store) -> None:
    promotion.promote(three, ref(1), "production", actor="ann")
    assert promotion.promote(three, ref(1), "production", actor="bob") is None
    assert len(history.read(three, NAME).moves) == 1


def test_expect_refuses_when_the_alias_is_elsewhere_and_names_who_moved_it(three: Store) -> None:
    promotion.promote(three, ref(1), "production", actor="ann", expect=None)
    promotion.promote(three, ref(2), "production", actor="bob", expect=1)
    with pytest.raises(Conflict, match="version 2 by bob, not at version 1") as caught:
        promotion.promote(three, ref(3), "production", actor="ann", expect=1)
    assert caught.value.exit_code == 4
    assert aliases(three) == {"production": 2}


def test_rollback_undoes_one_promotion_after_the_other(three: Store) -> None:
    for number in (1, 2, 3):
        promotion.promote(three, ref(number), "production", actor="ann")
    assert promotion.rollback(three, NAME, "production", actor="ann").to_version == 2
    assert promotion.rollback(three, NAME, "production", actor="ann").to_version == 1
    with pytest.raises(NotFound, match="no earlier version"):
        promotion.rollback(three, NAME, "production", actor="ann")
    assert aliases(three) == {"production": 1}
    promotion.promote(three, ref(3), "production", actor="ann")
    assert promotion.rollback(three, NAME, "production", actor="ann").to_version == 1


def test_rollback_goes_nowhere_where_only_the_version_in_force_is_left(three: Store) -> None:
    for number in (1, 2, 1):
        promotion.promote(three, ref(number), "production", actor="ann")
    three.client.delete_model_version(NAME, "2")
    with pytest.raises(NotFound, match="no earlier version"):
        promotion.rollback(three, NAME, "production", actor="ann")
    with pytest.raises(BadInput, match="is at version 1 already"):
        promotion.rollback(three, NAME, "production", actor="ann", to=1)
    assert len(history.read(three, NAME).moves) == 3


def test_rollback_to_a_version_of_the_past_but_to_no_other(three: Store) -> None:
    for number in (1, 2):
        promotion.promote(three, ref(number), "production", actor="ann")
    with pytest.raises(BadInput, match="never at version 3"):
        promotion.rollback(three, NAME, "production", actor="ann", to=3)
    assert promotion.rollback(three, NAME, "production", actor="ann", to=1).to_version == 1


def test_what_the_check_found_is_refused_unless_forced_with_a_reason(store: Store, tmp_path: Path) -> None:
    make_version(store, tmp_path / "a", config={"use_dora": True})
    with pytest.raises(NotServable, match="DoRA"):
        promotion.promote(store, ref(1), "production", actor="ann")
    with pytest.raises(BadInput, match="reason"):
        promotion.promote(store, ref(1), "production", actor="ann", force=True)
    assert aliases(store) == {}
    move = promotion.promote(store, ref(1), "production", actor="ann", force=True, reason="an experiment")
    assert move is not None
    assert move.forced


def test_an_adapter_of_another_base_does_not_replace_one_that_is_served(store: Store, tmp_path: Path) -> None:
    make_version(store, tmp_path / "a")
    make_version(
        store, tmp_path / "b", seed=1, base=SMOL.model_copy(update={"id": "other", "weights_digest": "f" * 64})
    )
    make_version(store, tmp_path / "c", seed=2, base=SMOL.model_copy(update={"id": "the same under another name"}))
    promotion.promote(store, ref(1), "production", actor="ann")
    with pytest.raises(WrongBase, match="trained on other"):
        promotion.promote(store, ref(2), "production", actor="ann")
    promotion.promote(store, ref(3), "production", actor="ann")
    assert aliases(store) == {"production": 3}


def test_a_reason_that_mlflow_would_cut_is_refused(three: Store) -> None:
    with pytest.raises(BadInput, match="1000 characters"):
        promotion.promote(three, ref(1), "production", actor="ann", reason="x" * 1001)
    assert history.read(three, NAME).moves == ()
    promotion.promote(three, ref(1), "production", actor="ann", reason="é" * 1000)
    assert history.read(three, NAME).moves[0].reason == "é" * 1000


def test_an_unknown_version_or_alias(three: Store) -> None:
    with pytest.raises(NotFound, match="support-bot/9"):
        promotion.promote(three, ref(9), "production", actor="ann")
    with pytest.raises(NotFound, match="no alias 'canary'"):
        promotion.resolve(three, AliasRef(NAME, "canary"))


def test_a_promoter_who_died_after_writing_history_is_made_good_by_the_next(
    three: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote(three, ref(1), "production", actor="ann")
    with monkeypatch.context() as dying:
        dying.setattr(three, "set_alias", lambda *move: sys.exit("killed"))
        with pytest.raises(SystemExit):
            promotion.promote(three, ref(2), "production", actor="ann")
    assert aliases(three) == {"production": 1}
    assert promotion.promote(three, ref(2), "production", actor="bob") is None
    assert aliases(three) == {"production": 2}


def test_a_clock_that_lags_or_leads_puts_no_move_before_the_one_it_follows(
    three: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = timedelta(hours=1)
    for number, skew in ((1, hour), (2, -hour), (3, 0 * hour)):
        with monkeypatch.context() as skewed:
            skewed.setattr(entries, "datetime", FakeDatetime(datetime.now(UTC) + skew))
            promotion.promote(three, ref(number), "production", actor="ann")
    past = history.read(three, NAME)
    moments = [move.at for move in past.moves]
    assert moments == sorted(moments)
    assert [move.to_version for move in past.moves] == [1, 2, 3]
    assert past.at(moments[-1]) == {"production": 3}
    assert past.at(moments[0] - timedelta(microseconds=1)) == {}


class FakeDatetime:
    """A clock that stands at one moment."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self, zone: tzinfo) -> datetime:
        return self._moment.astimezone(zone)
