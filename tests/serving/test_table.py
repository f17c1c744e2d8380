"""Which version a name means, and for whom."""

from __future__ import annotations

from collections import Counter

import pytest

from loradock.registry.refs import VersionRef
from loradock.registry.traffic import Share
from loradock.serving.desired import Desired
from loradock.serving.table import Found, Table
from tests.support.serving.versions import CAT, ONE, TWO, version

DESIRED = Desired({"bot": ONE, "bot@canary": TWO, "bot@shadow": TWO, "cat": CAT})
CANARY = Found("bot", "canary", TWO.ref)
POINTED = {"bot": ONE.ref, "bot@canary": TWO.ref, "bot@shadow": TWO.ref}


def table(weight: float = 0.0, alias: str = "canary", **changes: object) -> Table:
    shares = {"bot": {alias: Share(version=2, weight=weight)}} if weight else {}
    desired = Desired(DESIRED.targets, {}, shares)
    return Table(**{"bases": frozenset({"smol"}), "desired": desired, "pointed": POINTED} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("smol", Found("smol", "base", None)),
        ("bot", Found("bot", "production", ONE.ref)),
        ("bot@production", Found("bot", "alias", ONE.ref)),
        ("bot@canary", Found("bot", "alias", TWO.ref)),
        ("cat", Found("cat", "production", CAT.ref)),
        ("bot@shadow", None),
        ("bot/1", None),
        ("dog", None),
        ("", None),
        ("../bot", None),
        ("bot@", None),
        ("BOT", None),
    ],
)
def test_names(model: str, expected: Found | None) -> None:
    assert table().find(model, "") == expected


def test_a_version_by_its_number_where_that_is_allowed() -> None:
    assert table(pinned=True).find("bot/7", "") == Found("bot", "pinned", VersionRef("bot", 7))


def test_what_is_listed_is_what_answers() -> None:
    every = {"bot", "bot@production", "bot@canary", "cat", "cat@production"}
    for one in (table(), table(public=frozenset({"canary"})), table(public=frozenset()), table(quarantined={CAT.ref})):
        named = one.names()
        assert named.keys() <= every
        for name in every:
            found = one.find(name, "")
            assert (found.ref if found else None) == named.get(name), name
    assert table(quarantined={CAT.ref}).names().keys() == {"bot", "bot@production", "bot@canary"}


def test_a_name_keeps_the_version_that_it_points_at_while_another_is_quarantined() -> None:
    desired = Desired({"bot": TWO})
    assert Table(desired=desired, pointed={"bot": ONE.ref}, quarantined={TWO.ref}).names()["bot"] == ONE.ref


def test_a_canary_gets_its_share_of_the_users_and_each_user_one_version() -> None:
    users = [f"user-{number}" for number in range(4000)]
    small, large = table(0.1), table(0.3)
    taken = {user: small.find("bot", user) for user in users}
    assert 300 < sum(found.role == "canary" for found in taken.values() if found) < 500
    assert all(small.find("bot", user) == taken[user] for user in users)
    before = {user for user, found in taken.items() if found and found.role == "canary"}
    after = {user for user in users if (found := large.find("bot", user)) and found.role == "canary"}
    assert before < after, "who had the canary keeps it when its share grows"


def test_a_user_gets_the_same_version_from_every_replica_and_after_a_restart() -> None:
    found = [number for number in range(24) if table(0.3).find("bot", f"user-{number}") == CANARY]
    assert found == [5, 13, 14, 16, 22], "where users stand is the same in every process"


def test_another_canary_tries_other_users() -> None:
    three = version(number=3)
    desired = Desired({"bot": ONE, "bot@canary": three}, {}, {"bot": {"canary": Share(version=3, weight=0.1)}})
    other = Table(desired=desired, pointed={"bot": ONE.ref, "bot@canary": three.ref})
    users = [f"user-{number}" for number in range(2000)]
    first, second = (
        {user for user in users if (found := one.find("bot", user)) and found.role == "canary"}
        for one in (table(0.1), other)
    )
    assert len(first & second) < len(first) / 2


def test_nobody_in_particular_falls_on_either_side() -> None:
    roles = Counter(found.role for _ in range(500) if (found := table(0.5).find("bot", "")))
    assert min(roles["canary"], roles["production"]) > 150


@pytest.mark.parametrize("name", ["bot@production", "bot@canary"])
def test_who_says_an_alias_gets_it(name: str) -> None:
    assert {table(0.5).find(name, f"user-{number}") for number in range(50)} == {table().find(name, "")}


def test_a_share_is_void_until_its_version_answers() -> None:
    assert table(1.0, pointed={"bot": ONE.ref}).find("bot", "x") == Found("bot", "production", ONE.ref)
    moved = {"bot": ONE.ref, "bot@canary": ONE.ref}
    assert table(1.0, pointed=moved).find("bot", "x") == Found("bot", "production", ONE.ref)


def test_a_shadow_gets_copies_and_answers_nobody() -> None:
    assert table(1.0, "shadow").shadow("bot") == TWO.ref
    assert table(1.0, "shadow").find("bot", "x") == Found("bot", "production", ONE.ref)
    assert table().shadow("bot") is None
