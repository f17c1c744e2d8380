"""What is compared, and what a rollout decides by it: pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loradock.registry.errors import BadInput
from loradock.serving.calls import Role
from loradock.serving.rollout.blocks import Blocks, Comparison, Finding
from loradock.serving.rollout.measures import LIVE, MARGINS, MEANING, Limits, usual
from loradock.serving.rollout.plan import Abort, Promote, Raise, Rules, Seen, Wait, decide
from loradock.serving.rollout.record import Point, plot
from loradock.serving.signals import Ended

LIMITS = Limits(first_token=1.0, per_token=0.1, output_tokens=100)
ROW = Ended(
    seq=1,
    name="bot",
    version=1,
    role="production",
    started=0.0,
    outcome="ok",
    finish="stop",
    first_token=0.5,
    per_token=0.05,
    seconds=1.0,
    prompt_tokens=5,
    output_tokens=50,
)
FINE = Finding("error", 0.02, 0.0, 0.0, 500, 0.0, -0.01, 0.01, alarmed=False, shown=True)
OPEN = Finding("slow", 0.05, 0.05, 0.05, 100, 0.0, -0.1, 0.1, alarmed=False, shown=False)
BAD = Finding("long", 0.05, 0.9, 0.05, 40, 0.85, 0.5, 1.0, alarmed=True, shown=False)
SEEN = Seen(step=0, in_step=700, in_all=700, answers=150, findings=(FINE,), replicas=2, answering=2)
RULES = Rules()


def row(role: Role = "production", number: int = 1, **changes: Any) -> Ended:
    return replace(ROW, role=role, version=number, **changes)


@pytest.mark.parametrize(
    ("ended", "bad"),
    [
        (row(), set()),
        (row(outcome="error", finish="", first_token=None, per_token=None, output_tokens=0), {"error"}),
        (row(finish="length"), {"unstopped"}),
        (row(first_token=1.5), {"slow"}),
        (row(per_token=0.2), {"slow"}),
        (row(output_tokens=101), {"long"}),
        (row(output_tokens=100, first_token=1.0, per_token=None), set()),
    ],
)
def test_what_is_bad_about_an_answer(ended: Ended, bad: set[str]) -> None:
    assert {signal for signal, is_bad in LIMITS.bad(ended).items() if is_bad} == bad


def test_a_call_that_did_not_end_well_says_nothing_of_its_length() -> None:
    assert set(LIMITS.bad(row(outcome="aborted", finish=""))) == {"error", "slow"}
    assert set(LIMITS.bad(row(outcome="error", first_token=None))) == {"error"}


def test_every_signal_has_a_margin_and_a_meaning() -> None:
    assert set(MARGINS) == set(MEANING) == {*LIVE, "judge"}


def test_the_usual_is_what_one_in_twenty_is_beyond() -> None:
    rows = [row(first_token=n / 100, per_token=n / 1000, output_tokens=n) for n in range(1, 101)]
    found = usual(rows, {})
    assert sum(each.output_tokens > found.output_tokens for each in rows) == 4
    assert found.first_token == pytest.approx(0.96)
    assert usual(rows, {"output_tokens": 7}) == Limits(found.first_token, found.per_token, 7)
    assert not any(usual([], {}).bad(row()).values())


def test_blocks_use_every_answer_in_order_and_by_the_share_that_there_is() -> None:
    blocks, found = Blocks(), []
    for place in range(16):
        found += blocks.add("production", bad=place < 4)
    for place in range(4):
        found += blocks.add("canary", bad=place == 3)
    assert found == [-1.0, 0.0, 0.0, 1.0]
    for _ in range(4):
        found += [*blocks.add("canary", bad=True), *blocks.add("production", bad=False)]
    assert found[4:] == [1.0] * 4


def comparison(alpha: float = 0.01) -> Comparison:
    return Comparison({"error": 0.02, "long": 0.05}, LIMITS, alpha)


def test_only_the_two_versions_answers_to_the_bare_name_count() -> None:
    compared = comparison()
    rows = [
        row("canary", 2),
        row("canary", 3),
        row("alias", 2),
        row("pinned", 1),
        row("shadow", 2),
        row("production", 3),
    ]
    compared.add("one", [*rows, row()], canary=2, production=1)
    error, _ = compared.findings()
    assert (compared.answers, error.answers, error.canary, error.production) == (1, 1, 0.0, 0.0)


def test_productions_answers_from_before_the_canarys_first_do_not_count() -> None:
    compared = comparison()
    before = [row(started=5.0, output_tokens=500)] * 10
    compared.add("one", [*before, row("canary", 2, started=6.0), *before, row(started=6.5)], canary=2, production=1)
    compared.add("two", before, canary=2, production=1)
    assert compared.findings()[1].production == 0.0


def test_a_worse_canary_alarms_and_an_equal_one_is_shown_to_be_within() -> None:
    worse, equal = comparison(), comparison()
    for place in range(600):
        ours = row("canary", 2, output_tokens=500)
        worse.add("one", [ours if place < 40 else row("canary", 2), row()], canary=2, production=1)
        equal.add(f"process {place % 3}", [row("canary", 2), row()], canary=2, production=1)
        if place == 39:
            error, long = worse.findings()
            assert (error.alarmed, long.alarmed, long.shown) == (False, True, False)
            assert long.low > 0.05
            assert str(long).startswith("long: 100.0% of 40 against 0.0% of production's")
    assert [(each.alarmed, each.shown) for each in equal.findings()] == [(False, True)] * 2


def test_what_the_judge_says_is_compared_prompt_by_prompt() -> None:
    compared = Comparison({"judge": 0.05}, LIMITS, 0.01)
    assert str(compared.findings()[0]) == "judge: nothing to compare yet"
    for _ in range(30):
        compared.judged(canary=0.9, production=0.1)
    (judge,) = compared.findings()
    assert judge.alarmed
    assert (judge.canary, judge.production) == (pytest.approx(0.9), pytest.approx(0.1))


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        ({}, Raise(1)),
        ({"step": 1, "findings": (OPEN,)}, Raise(2)),
        ({"answers": 99}, Wait("99 of 100 answers of the canary at this share")),
        ({"in_step": 10}, Wait("10 of 600 s at this share")),
        ({"replicas": 3, "answering": 2}, Raise(1)),
        ({"answering": 1}, Wait("1 of 2 replicas answer")),
        ({"step": 2}, Promote()),
        ({"step": 2, "in_all": 1e9}, Promote()),
        ({"step": 2, "findings": (FINE, OPEN)}, Wait(f"not shown yet: {OPEN}")),
        (
            {"step": 2, "findings": (FINE, OPEN), "in_all": 90_000},
            Abort(f"undecided after 86400 s: not shown yet: {OPEN}"),
        ),
        ({"answering": 0, "in_all": 90_000}, Abort("undecided after 86400 s: 0 of 2 replicas answer")),
        ({"findings": (FINE, BAD)}, Abort(str(BAD))),
        ({"findings": (FINE, BAD), "answering": 0, "answers": 0}, Abort(str(BAD))),
        ({"quarantined": "no effect", "answers": 0}, Abort("every replica quarantined it: no effect")),
    ],
)
def test_what_is_done_next(seen: dict[str, Any], action: object) -> None:
    assert decide(replace(SEEN, **seen), RULES) == action


@pytest.mark.parametrize("steps", [(), (0.0, 0.5), (0.5, 0.25), (0.5, 0.5), (0.5, 1.0)])
def test_steps_that_do_not_rise_below_all_of_it_are_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="no steps of a rollout"):
        Rules(steps=steps)


@pytest.mark.parametrize(("weight", "step"), [(0.0, 0), (0.05, 0), (0.3, 1), (0.5, 2), (0.9, 2), (0.01, 0)])
def test_a_rollout_goes_on_at_the_step_of_its_share(weight: float, step: int) -> None:
    assert RULES.step_at(weight) == step


def test_the_picture_has_a_panel_for_the_share_and_one_for_each_signal() -> None:
    points = [
        Point(60.0 * n, 0.05 * n, (FINE, replace(OPEN, canary=None, answers=0, difference=None))) for n in range(4)
    ]
    assert len(plot(points, "bot/2").axes) == 3
    assert len(plot([], "bot/2").axes) == 1
    assert points[1].values()["weight"] == 0.05
    assert "slow/canary" not in points[1].values()
