"""Many promoters at once, in processes of their own, on both stores: one wins, all others hear of it, none is lost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import history, promotion
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, aliases, make_version, ref
from tests.support.registry.racing import Racer, race

PROMOTERS = 32


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, store: Store) -> Store:
    return store if request.param == "sqlite" else request.getfixturevalue("remote")


@pytest.fixture
def versions(store: Store, tmp_path: Path) -> Store:
    """A family of one version for each promoter, and a first one that is in production."""
    for number in range(PROMOTERS + 1):
        make_version(store, tmp_path / str(number), seed=number)
    promotion.promote(store, ref(1), "production", actor="ann")
    return store


@pytest.mark.chance
@pytest.mark.slow
@pytest.mark.story
def test_of_32_processes_that_decided_on_the_same_state_one_wins_and_the_others_name_it(versions: Store) -> None:
    racers = [Racer(number + 2, expect=1, together=True) for number in range(PROMOTERS)]
    found = race(versions.settings, NAME, racers)
    (winner,) = found.won
    assert [attempt.error for attempt in found.broken] == []
    assert {attempt.winner for attempt in found.lost} == {f"promoter {winner.number}"}
    assert (len(found.lost), found.missing, found.untold) == (PROMOTERS - 1, 0, 0)
    assert aliases(versions) == {"production": winner.number}
    assert found.replays


@pytest.mark.chance
@pytest.mark.slow
def test_of_32_processes_some_killed_at_every_step_no_move_is_lost(versions: Store) -> None:
    racers = [
        Racer(number + 2, rounds=2, dies_at=number // 4 if number % 2 else None, after=number % 4 == 1)
        for number in range(PROMOTERS)
    ]
    found = race(versions.settings, NAME, racers)
    assert [attempt.error for attempt in found.broken] == []
    assert found.killed == PROMOTERS // 2
    assert len(found.past.moves) > found.before  # the dead may have won all of them
    assert found.missing == 0
    assert found.past.drifts == ()  # a death is no drift
    promotion.promote(versions, ref(1), "production", actor="the next")
    past = history.read(versions, NAME)
    assert aliases(versions) == {"production": 1} == {alias: past.head(alias) for alias in past.heads}


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_one_that_was_overtaken_and_dies_when_it_has_set_the_alias_back_is_no_drift(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    for number in range(3):
        make_version(store, tmp_path / str(number), seed=number)
    promotion.promote(store, ref(1), "production", actor="ann")
    quick = Store(settings)

    class SlowClient:
        def __getattr__(self, name: str) -> Any:
            return getattr(quick.client, name)

        def set_registered_model_alias(self, *move: str) -> None:
            promotion.promote(quick, ref(3), "production", actor="the quick")
            quick.client.set_registered_model_alias(*move)
            sys.exit("killed")

    slow = Store(settings)
    slow.client = SlowClient()  # type: ignore[assignment]
    with pytest.raises(SystemExit):
        promotion.promote(slow, ref(2), "production", actor="the slow")
    past = history.read(store, NAME)
    assert [move.actor for move in past.moves] == ["ann", "the slow", "the quick"]
    assert aliases(store) == {"production": 2}  # what it did last
    assert past.drifts == ()
    assert promotion.promote(store, ref(3), "production", actor="bob") is None
    assert aliases(store) == {"production": 3}
