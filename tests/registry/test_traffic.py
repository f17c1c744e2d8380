"""A canary's or a shadow's share: an entry of the history, told to replicas by a tag of the family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loradock.registry import history, promotion, traffic
from loradock.registry.errors import BadInput, Conflict
from loradock.registry.records import Version
from loradock.registry.store import Store
from loradock.registry.traffic import Share, parse_weight, set_share, shares
from tests.support.adapters import make_version


@pytest.fixture
def two(store: Store, tmp_path: Path) -> tuple[Version, Version]:
    return make_version(store, tmp_path / "a", seed=1), make_version(store, tmp_path / "b", seed=2)


def canary(store: Store, version: Version) -> None:
    promotion.promote(store, version.ref, "canary", actor="tester")


def told(store: Store) -> dict[str, Share]:
    return dict(shares(store.family("support-bot").traffic))


@pytest.mark.parametrize(("text", "weight"), [("10%", 0.1), ("0.1", 0.1), (" 100% ", 1.0), ("0", 0.0), ("2.5%", 0.025)])
def test_a_weight_is_a_share(text: str, weight: float) -> None:
    assert parse_weight(text) == weight


@pytest.mark.parametrize("text", ["", "10", "-1%", "101%", "1.5", "ten", "10%x", "nan", "10%%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="no share"):
        parse_weight(text)


def test_a_share_is_in_the_history_and_in_the_tag(store: Store, two: tuple[Version, Version]) -> None:
    canary(store, two[1])
    entry = set_share(store, two[1].ref, "canary", 0.1, actor="tester", reason="try it")
    assert entry
    past = history.read(store, "support-bot")
    assert past.entries[-1] == entry
    assert (past.traffic["canary"].weight, past.traffic["canary"].reason) == (0.1, "try it")
    assert told(store) == {"canary": Share(version=2, weight=0.1)}
    assert set_share(store, two[1].ref, "canary", 0.1, actor="tester") is None
    set_share(store, two[1].ref, "canary", 0.0, actor="tester")
    assert told(store) == {}
    assert not history.read(store, "support-bot").traffic


def test_a_share_ends_when_its_alias_moves_on(store: Store, two: tuple[Version, Version]) -> None:
    canary(store, two[1])
    set_share(store, two[1].ref, "canary", 0.5, actor="tester")
    canary(store, two[0])
    assert not history.read(store, "support-bot").traffic
    set_share(store, two[0].ref, "canary", 0.2, actor="tester")
    promotion.rollback(store, "support-bot", "canary", actor="tester")
    assert not history.read(store, "support-bot").traffic, "the last word on the canary was of another version"


def test_a_share_is_for_the_version_that_stands_there(store: Store, two: tuple[Version, Version]) -> None:
    with pytest.raises(Conflict, match="no version"):
        set_share(store, two[1].ref, "canary", 0.5, actor="tester")
    canary(store, two[0])
    with pytest.raises(Conflict, match="version 1"):
        set_share(store, two[1].ref, "canary", 0.5, actor="tester")
    with pytest.raises(BadInput, match="takes no share"):
        set_share(store, two[0].ref, "production", 0.5, actor="tester")


def test_a_tag_that_a_writer_who_died_left_behind_is_mended_by_the_next(
    store: Store, two: tuple[Version, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary(store, two[1])
    with monkeypatch.context() as patch:
        patch.setattr(traffic, "project", lambda store, name: None)
        set_share(store, two[1].ref, "canary", 0.5, actor="tester")
    assert told(store) == {}
    set_share(store, two[1].ref, "canary", 0.5, actor="tester")
    assert told(store) == {"canary": Share(version=2, weight=0.5)}


@pytest.mark.slow
def test_a_share_survives_many_entries(store: Store, two: tuple[Version, Version]) -> None:
    canary(store, two[1])
    set_share(store, two[1].ref, "canary", 0.25, actor="tester")
    for number in range(105):
        promotion.promote(store, two[number % 2].ref, "production", actor="tester")
    assert history.read(store, "support-bot", whole=False).traffic["canary"].weight == 0.25
    assert history.read(store, "support-bot").traffic["canary"].weight == 0.25


@pytest.mark.parametrize("tag", ["{", "[]", '{"canary": 3}', '{"canary": {"version": 1, "weight": 7}}'])
def test_a_tag_that_somebody_else_wrote_is_no_share(tag: str) -> None:
    with pytest.raises(ValueError, match=r"loradock\.traffic"):
        shares(tag)


def test_the_tag_is_canonical_json(store: Store, two: tuple[Version, Version]) -> None:
    canary(store, two[1])
    set_share(store, two[1].ref, "canary", 0.1, actor="tester")
    assert json.loads(store.family("support-bot").traffic) == {"canary": {"version": 2, "weight": 0.1}}
