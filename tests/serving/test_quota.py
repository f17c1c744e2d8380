"""Nobody gets more than the limit in any period, and nobody waits longer than he is told."""

from __future__ import annotations

import random

import pytest

from loradock.serving.quota import Account, Limit, Window
from tests.support.chance import seeds


@pytest.mark.parametrize(
    ("text", "limit"),
    [("60/m", Limit(60, 60)), ("1/s", Limit(1, 1)), ("5/h", Limit(5, 3600)), ("100000/d", Limit(100000, 86400))],
)
def test_a_limit_is_read_as_it_is_written(text: str, limit: Limit) -> None:
    assert Limit.parse(text) == limit
    assert str(limit) == text


@pytest.mark.parametrize("text", ["", "60", "60/", "0/m", "-1/m", "60/w", "1.5/m", " 60/m", "60/m ", "1e3/m", 60, None])
def test_what_is_no_limit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a limit"):
        Limit.parse(text)


@pytest.mark.chance
@pytest.mark.parametrize("seed", seeds(20))
def test_no_period_sees_more_than_the_limit_and_whoever_waits_as_told_gets_in(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    limit = Limit(chance.choice([1, 3, 10]), chance.choice([1, 60, 3600]))
    window, now, admitted = Window(limit.seconds), 1e6 * chance.random(), []
    for _ in range(2000):
        now += chance.expovariate(limit.most / limit.seconds) * chance.choice([0.0, 0.1, 1.0, 3.0])
        if window.wait(now, limit.most) == 0:
            window.add(now, 1)
            admitted.append(now)
        elif chance.random() < 0.2:
            now += window.wait(now, limit.most)
            assert window.wait(now, limit.most) == 0
    for first, last in zip(admitted, admitted[limit.most :], strict=False):
        assert last - first >= limit.seconds * (1 - 1e-9)  # sums begin and end at rounded moments
    assert len(admitted) > limit.most


def test_an_amount_beyond_the_limit_is_paid_for_by_waiting() -> None:
    window = Window(60)
    window.add(0.0, 40)
    window.add(30.0, 500)
    assert window.used(30.0) == 540
    assert window.wait(30.0, 100) == 61.0  # until the second amount no longer counts: the first alone makes no room
    assert window.used(61.0) == 500
    assert window.used(91.0) == 0
    assert window.reset(91.0) == 0


def test_what_is_kept_does_not_grow() -> None:
    window = Window(3600)
    for second in range(10_000):
        window.add(float(second), 1)
        assert len(window._sums) <= 61
    assert 3600 <= window.used(9_999.0) <= 3660


def used(account: Account, now: float) -> list[int]:
    return [one.limit.most - one.remaining for one in account.left(now)]


@pytest.mark.parametrize(
    ("before", "after", "counted"),
    [
        (["60/m"], ["100/m"], [30]),
        (["60/m"], ["40/m", "1000/h"], [30, 30]),
        (["60/m", "1000/h"], ["2000/d"], [50]),
        (["5000/d"], ["100/m"], [50]),
        (["5000/d", "1000/h"], ["100/m"], [30]),
        (["60/m", "1000/h"], ["1000/h"], [50]),
    ],
)
def test_what_was_used_outlives_an_edit_of_the_limits(before: list[str], after: list[str], counted: list[int]) -> None:
    account = Account()
    account.allow([Limit.parse(limit) for limit in before], 1000.0)
    account.add(1000.0, 20)
    account.add(1300.0, 30)
    account.allow([Limit.parse(limit) for limit in after], 1310.0)
    assert used(account, 1310.0) == counted


def test_what_was_used_outlives_that_a_key_has_no_limit_for_a_while() -> None:
    account, limit = Account(), [Limit(100, 3600)]
    account.allow(limit, 0.0)
    account.add(0.0, 40)
    account.allow([], 10.0)
    account.add(20.0, 5)
    account.allow(limit, 30.0)
    assert used(account, 30.0) == [45]
    assert not account.is_clear(30.0)
    account.allow([], 40.0)
    assert account.is_clear(2 * 3600.0)


@pytest.mark.chance
@pytest.mark.parametrize("seed", seeds(20))
def test_no_edit_of_a_period_lets_anybody_use_more_than_the_limit(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    account, limit, now, admitted = Account(), Limit(5, 3600), 1e6, list[float]()
    for _ in range(3000):
        now += chance.expovariate(0.1)
        others = [Limit(1000, chance.choice([1, 60, 86400]))] if chance.random() < 0.2 else []
        account.allow([*others, limit] if chance.random() < 0.9 else others, now)
        if any(one.limit == limit and one.wait == 0 for one in account.left(now)):
            account.add(now, 1)
            admitted.append(now)
    assert all(last - first >= limit.seconds * (1 - 1e-9) for first, last in zip(admitted, admitted[5:], strict=False))
    assert len(admitted) > 5
