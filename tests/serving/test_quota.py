"""Nobody gets more than the limit in any period, and nobody waits longer than he is told."""

from __future__ import annotations

import random

import pytest

from serving.quota import Limit, Window
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
    window, now, admitted = Window(limit), 1e6 * chance.random(), []
    for _ in range(2000):
        now += chance.expovariate(limit.most / limit.seconds) * chance.choice([0.0, 0.1, 1.0, 3.0])
        if window.wait(now) == 0:
            window.add(now, 1)
            admitted.append(now)
        elif chance.random() < 0.2:
            now += window.wait(now)
            assert window.wait(now) == 0
    for first, last in zip(admitted, admitted[limit.most :], strict=False):
        assert last - first >= limit.seconds * (1 - 1e-9)  # sums begin and end at rounded moments
    assert len(admitted) > limit.most


def test_an_amount_beyond_the_limit_is_paid_for_by_waiting() -> None:
    window = Window(Limit(100, 60))
    window.add(0.0, 40)
    window.add(30.0, 500)
    assert window.used(30.0) == 540
    assert window.remaining(30.0) == 0
    assert window.wait(30.0) == 61.0  # until the second amount no longer counts: the first alone makes no room
    assert window.used(61.0) == 500
    assert window.remaining(91.0) == 100
    assert window.reset(91.0) == 0


def test_what_is_kept_does_not_grow() -> None:
    window = Window(Limit(10**9, 3600))
    for second in range(10_000):
        window.add(float(second), 1)
        assert len(window._sums) <= 61
    assert 3600 <= window.used(9_999.0) <= 3660
