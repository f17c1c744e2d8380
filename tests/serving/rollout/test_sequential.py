"""The test's two promises, by simulation under optional stopping: how often it is wrong, and how soon it is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradock.serving.rollout.sequential import Differences, least
from tests.support.chance import SEED, tries

pytestmark = pytest.mark.chance

ALPHA = 0.05
RUNS = tries(2000)


def differences(*values: float) -> Differences:
    found = Differences()
    for value in values:
        found.add(value)
    return found


def ever(canary: float, production: float, margin: float, *, ratio: int, blocks: int, runs: int, seed: int) -> float:
    """How often a canary alarms at any of many looks: one that stops at the first is wrong as often as it can be."""
    random = np.random.default_rng(SEED + seed)
    alarms = 0
    for _ in range(runs):
        theirs = random.binomial(ratio, production, blocks) / ratio
        found = Differences()
        for place, difference in enumerate(random.binomial(1, canary, blocks) - theirs, 1):
            found.add(float(difference))
            if place % 10 == 0 and found.above(margin) >= math.log(1 / ALPHA):
                alarms += 1
                break
    return alarms / runs


@pytest.mark.parametrize(
    ("rate", "margin", "ratio"), [(0.05, 0.0, 1), (0.05, 0.0, 19), (0.3, 0.0, 3), (0.05, 0.02, 3), (0.01, 0.02, 19)]
)
def test_a_canary_just_within_alarms_no_more_often_than_was_agreed(rate: float, margin: float, ratio: int) -> None:
    alarms = ever(rate + margin, rate, margin, ratio=ratio, blocks=300, runs=RUNS, seed=ratio)
    assert alarms <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)


def test_rates_that_change_with_the_hour_and_the_share_raise_no_alarm() -> None:
    """Pooled, such a canary has twice production's rate: most of its answers come at the bad hour."""
    random = np.random.default_rng(SEED + 7)
    alarms = 0
    for _ in range(RUNS):
        found = Differences()
        for rate, ratio in ((0.05, 19), (0.4, 1)):
            canary, production = random.binomial(1, rate, 100), random.binomial(ratio, rate, 100) / ratio
            for difference in canary - production:
                found.add(float(difference))
            if found.above(0.0) >= math.log(1 / ALPHA):
                alarms += 1
                break
    assert alarms / RUNS <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)


@pytest.mark.parametrize(
    ("canary", "production", "margin", "blocks"),
    [(1.0, 0.0, 0.05, 20), (0.3, 0.05, 0.05, 150), (0.2, 0.1, 0.0, 700)],
)
def test_one_that_does_worse_is_found(canary: float, production: float, margin: float, blocks: int) -> None:
    assert ever(canary, production, margin, ratio=19, blocks=blocks, runs=tries(200), seed=1) >= 0.9


def test_one_that_does_as_well_is_shown_to_be_within_and_one_at_the_margin_is_not() -> None:
    random = np.random.default_rng(SEED + 3)
    runs, shown = tries(400), {0.05: 0, 0.10: 0}
    for rate in shown:
        for _ in range(runs):
            found = differences(*map(float, random.binomial(1, rate, 1000) - random.binomial(1, 0.05, 1000)))
            shown[rate] += found.below(0.05) >= math.log(1 / ALPHA)
    assert shown[0.05] >= 0.9 * runs
    assert shown[0.10] <= (ALPHA + 3 * math.sqrt(ALPHA / runs)) * runs


values = st.lists(st.floats(-1, 1, allow_nan=False), min_size=1, max_size=40)


@given(values, st.floats(-0.9, 0.9), st.floats(0.001, 0.09))
def test_the_evidence_falls_with_the_bound(found: list[float], bound: float, more: float) -> None:
    whole = differences(*found)
    assert whole.above(bound + more) <= whole.above(bound) + 1e-9
    assert whole.below(bound + more) >= whole.below(bound) - 1e-9


@given(values)
def test_the_interval_holds_the_mean_and_agrees_with_the_evidence(found: list[float]) -> None:
    whole = differences(*found)
    low, high = whole.interval(ALPHA, ALPHA)
    assert whole.mean is not None
    assert -1 <= low <= whole.mean + 1e-6
    assert whole.mean - 1e-6 <= high <= 1
    if low - 1e-5 > -1:
        assert whole.above(low - 1e-5) >= math.log(1 / ALPHA) - 1e-3
    if low < 0.99:
        assert whole.above(low + 1e-5) < math.log(1 / ALPHA) + 1e-3


def test_nothing_was_seen_and_nothing_is_known() -> None:
    assert Differences().interval(ALPHA, ALPHA) == (-1.0, 1.0)
    assert Differences().above(0.0) == pytest.approx(0.0)
    assert Differences().mean is None


def test_what_is_no_difference_of_rates_is_refused() -> None:
    with pytest.raises(ValueError, match="no difference"):
        differences(1.5)


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.3])
def test_so_many_equal_answers_show_a_margin_and_fewer_do_not(margin: float) -> None:
    enough = least(margin, ALPHA)
    assert differences(*[0.0] * enough).below(margin) >= math.log(1 / ALPHA)
    assert differences(*[0.0] * (enough * 9 // 10)).below(margin) < math.log(1 / ALPHA)
