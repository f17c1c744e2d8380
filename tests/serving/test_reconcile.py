"""The plan is pure, so each rule of it is tried here; `test_histories` tries what random histories do to it."""

from __future__ import annotations

import pytest

from loradock.serving.desired import Desired, Refusal
from loradock.serving.reconcile import (
    Limits,
    Load,
    Observed,
    Point,
    Quarantine,
    Retire,
    Unpoint,
    plan,
    quarantine,
    unmet,
)
from tests.support.serving.versions import ONE, TWO, held, version

DRAIN = 5.0


ROOMY = Limits(DRAIN, capacity=32)


def decide(desired: Desired, observed: Observed, limits: Limits = ROOMY) -> tuple[object, ...]:
    return plan(desired, observed, limits)


def test_nothing_promoted_and_nothing_held_is_nothing_to_do() -> None:
    assert decide(Desired(), Observed(now=0)) == ()


def test_a_promoted_version_is_loaded_and_not_yet_pointed_at() -> None:
    assert decide(Desired({"bot": ONE}), Observed(now=0)) == (Load(ONE),)


def test_a_version_that_is_loading_is_not_loaded_twice() -> None:
    assert decide(Desired({"bot": ONE}), Observed(now=0, loading=frozenset({ONE.ref}))) == ()


def test_a_resident_version_is_pointed_at() -> None:
    assert decide(Desired({"bot": ONE}), Observed(now=0, resident={ONE.ref: held(ONE)})) == (Point("bot", ONE),)


def test_what_is_as_it_should_be_stays() -> None:
    observed = Observed(now=99, pointed={"bot": ONE.ref}, resident={ONE.ref: held(ONE)})
    assert decide(Desired({"bot": ONE}), observed) == ()


def test_the_old_version_answers_until_the_new_one_is_resident() -> None:
    observed = Observed(now=99, pointed={"bot": ONE.ref}, resident={ONE.ref: held(ONE)})
    assert decide(Desired({"bot": TWO}), observed) == (Load(TWO),)


def test_a_move_back_to_a_version_that_is_still_resident_costs_no_load() -> None:
    observed = Observed(now=99, pointed={"bot": TWO.ref}, resident={ONE.ref: held(ONE), TWO.ref: held(TWO)})
    assert decide(Desired({"bot": ONE}), observed) == (Point("bot", ONE),)


@pytest.mark.parametrize(
    ("in_flight", "idle_since", "goes"),
    [(0, 94.0, True), (0, 94.1, False), (1, 0.0, False), (0, 99.0, False)],
)
def test_a_version_goes_only_when_idle_for_the_whole_drain(in_flight: int, idle_since: float, goes: bool) -> None:
    observed = Observed(
        now=99.0,
        pointed={"bot": TWO.ref},
        resident={ONE.ref: held(ONE, in_flight, idle_since), TWO.ref: held(TWO)},
    )
    assert decide(Desired({"bot": TWO}), observed) == ((Retire(ONE.ref),) if goes else ())


def test_a_pointed_version_is_never_retired_however_idle() -> None:
    observed = Observed(now=1e9, pointed={"bot": ONE.ref}, resident={ONE.ref: held(ONE)})
    assert decide(Desired({"bot": ONE}), observed) == ()


def test_a_name_without_an_alias_is_taken_off_at_once_and_its_version_later() -> None:
    observed = Observed(now=1.0, pointed={"bot": ONE.ref}, resident={ONE.ref: held(ONE, 1)})
    assert decide(Desired(), observed) == (Unpoint("bot"),)


def test_a_version_of_another_base_is_never_loaded_and_the_one_before_stays() -> None:
    desired = Desired(refused={"bot": Refusal(TWO, "another base")})
    assert decide(desired, Observed(now=99)) == ()
    observed = Observed(now=99, pointed={"bot": ONE.ref}, resident={ONE.ref: held(ONE)})
    assert decide(desired, observed) == ()


def test_a_quarantined_version_waits_and_the_one_before_stays() -> None:
    observed = Observed(
        now=10.0,
        pointed={"bot": ONE.ref},
        resident={ONE.ref: held(ONE)},
        quarantined={TWO.ref: Quarantine(TWO, "no effect", 1, until=40.0)},
    )
    assert decide(Desired({"bot": TWO}), observed) == ()


def test_a_quarantined_version_is_tried_again_after_its_wait() -> None:
    waiting = {TWO.ref: Quarantine(TWO, "no effect", 1, until=40.0)}
    assert decide(Desired({"bot": TWO}), Observed(now=40.0, quarantined=waiting)) == (Load(TWO),)


def test_another_version_does_not_wait_for_a_quarantined_one() -> None:
    waiting = {ONE.ref: Quarantine(ONE, "no effect", 1, until=1e9)}
    assert decide(Desired({"bot": TWO}), Observed(now=0, quarantined=waiting)) == (Load(TWO),)


def test_other_bytes_under_a_resident_number_are_not_pointed_at() -> None:
    observed = Observed(now=0, resident={ONE.ref: held(ONE)})
    assert decide(Desired({"bot": version(number=1, digest="other")}), observed) == ()


def test_moves_come_first_then_room_is_made_then_loads() -> None:
    cat, dog = version("cat"), version("dog")
    observed = Observed(now=99.0, pointed={"old": ONE.ref}, resident={TWO.ref: held(TWO), cat.ref: held(cat)})
    assert decide(Desired({"cat": cat, "dog": dog}), observed) == (
        Point("cat", cat),
        Unpoint("old"),
        Retire(TWO.ref),
        Load(dog),
    )


def test_two_aliases_at_one_version_load_it_once() -> None:
    desired = Desired({"bot": ONE, "bot@canary": ONE})
    assert decide(desired, Observed(now=0)) == (Load(ONE),)
    both = {"bot": ONE.ref, "bot@canary": ONE.ref}
    observed = Observed(now=99, pointed=both, resident={ONE.ref: held(ONE)})
    assert decide(Desired({"bot": ONE}), observed) == (Unpoint("bot@canary"),)


CAT, DOG = version("cat"), version("dog")
FULL = Limits(DRAIN, capacity=2, spare=1)
ROOM_FOR_TWO = Limits(DRAIN, capacity=3, spare=1)


def test_what_does_not_fit_stays_cold_and_is_not_called_unmet() -> None:
    desired = Desired({"bot": ONE, "cat": CAT, "dog": DOG})
    observed = Observed(now=0, pointed={"bot": ONE.ref}, resident={ONE.ref: held(ONE)})
    assert decide(desired, observed, FULL) == ()
    assert unmet(desired, observed, FULL) == {}


def test_demand_loads_a_cold_version_into_the_spare_room() -> None:
    desired = Desired({"bot": ONE, "cat": CAT})
    observed = Observed(now=0, pointed={"bot": ONE.ref}, resident={ONE.ref: held(ONE)}, demanded={CAT.ref: CAT})
    assert decide(desired, observed, ROOM_FOR_TWO) == (Load(CAT),)


def test_where_there_is_no_room_what_was_used_least_recently_goes_with_its_names() -> None:
    desired = Desired({"bot": ONE, "bot@canary": ONE, "cat": CAT, "dog": DOG})
    pointed = {"bot": ONE.ref, "bot@canary": ONE.ref, "cat": CAT.ref}
    resident = {ONE.ref: held(ONE, idle_since=1.0), CAT.ref: held(CAT, idle_since=2.0)}
    observed = Observed(now=3, pointed=pointed, resident=resident, demanded={DOG.ref: DOG})
    assert decide(desired, observed, FULL) == (Unpoint("bot"), Unpoint("bot@canary"), Retire(ONE.ref), Load(DOG))


def test_a_version_with_requests_never_makes_room() -> None:
    desired = Desired({"bot": ONE, "cat": CAT, "dog": DOG})
    pointed = {"bot": ONE.ref, "cat": CAT.ref}
    resident = {ONE.ref: held(ONE, 1), CAT.ref: held(CAT, 1)}
    observed = Observed(now=3, pointed=pointed, resident=resident, demanded={DOG.ref: DOG})
    assert decide(desired, observed, FULL) == ()


@pytest.mark.parametrize(("asked_at", "goes"), [(4.0, True), (4.1, False)])
def test_a_move_costs_only_a_name_its_answer_that_nobody_asked_for(asked_at: float, goes: bool) -> None:
    desired = Desired({"bot": TWO, "cat": CAT})
    pointed = {"bot": ONE.ref, "cat": CAT.ref}
    resident = {ONE.ref: held(ONE, idle_since=0.0), CAT.ref: held(CAT, idle_since=asked_at), DOG.ref: held(DOG, 1)}
    observed = Observed(now=9, pointed=pointed, resident=resident)
    made_cold = (Unpoint("cat"), Retire(CAT.ref), Load(TWO))
    assert decide(desired, observed, ROOM_FOR_TWO) == (made_cold if goes else ())


def test_a_load_that_nobody_wants_any_more_costs_no_name_its_answer() -> None:
    desired = Desired({"bot": version(number=3), "cat": CAT})
    pointed = {"bot": ONE.ref, "cat": CAT.ref}
    resident = {ONE.ref: held(ONE, 1), CAT.ref: held(CAT, idle_since=8.0)}
    observed = Observed(now=9, pointed=pointed, resident=resident, loading=frozenset({TWO.ref}))
    assert decide(desired, observed, ROOM_FOR_TWO) == ()


def test_an_answer_that_could_not_come_back_never_makes_room() -> None:
    desired = Desired({"cat": CAT}, {"bot": Refusal(TWO, "another base")})
    observed = Observed(now=9, pointed={"bot": ONE.ref}, resident={ONE.ref: held(ONE)}, demanded={CAT.ref: CAT})
    assert decide(desired, observed, FULL) == ()


def test_demand_leaves_the_place_that_a_move_needs() -> None:
    desired = Desired({"bot": ONE, "cat": CAT})
    observed = Observed(now=9, pointed={"bot": ONE.ref}, resident={ONE.ref: held(ONE)}, demanded={CAT.ref: CAT})
    assert decide(desired, observed, FULL) == (Unpoint("bot"), Retire(ONE.ref), Load(CAT))


def test_names_that_all_move_do_so_one_after_the_other_and_none_loses_its_answer() -> None:
    desired = Desired({"bot": TWO, "cat": version("cat", 2)})
    pointed = {"bot": ONE.ref, "cat": CAT.ref}
    resident = {ONE.ref: held(ONE, 1), CAT.ref: held(CAT)}
    first = Observed(now=9, pointed=pointed, resident=resident)
    assert decide(desired, first, ROOM_FOR_TWO) == (Load(TWO),)
    resident[TWO.ref] = held(TWO, idle_since=8.0)
    draining = Observed(now=9, pointed=pointed, resident=resident)
    assert decide(desired, draining, ROOM_FOR_TWO) == (Point("bot", TWO),)
    resident[ONE.ref] = held(ONE, idle_since=9.0)
    ended = Observed(now=9, pointed=pointed | {"bot": TWO.ref}, resident=resident)
    assert decide(desired, ended, ROOM_FOR_TWO) == (Retire(ONE.ref), Load(version("cat", 2)))


def test_a_name_that_leaves_another_behind_waits_where_there_is_room_for_one_of_them() -> None:
    desired = Desired({"bot": ONE, "bot@canary": TWO})
    both = {"bot": ONE.ref, "bot@canary": ONE.ref}
    observed = Observed(now=9, pointed=both, resident={ONE.ref: held(ONE)})
    assert decide(desired, observed, ROOM_FOR_TWO) == (Load(TWO),)
    assert decide(desired, observed, FULL) == ()
    told = "bot/2 waits for room: 2 are loaded at most, by --max-cpu-loras"
    assert unmet(desired, observed, FULL) == {"bot@canary": told}


def test_a_version_that_a_request_waits_for_is_not_retired() -> None:
    observed = Observed(now=99, resident={ONE.ref: held(ONE)}, demanded={ONE.ref: ONE})
    assert decide(Desired(), observed) == ()


def test_two_names_with_the_same_bytes_are_two_versions() -> None:
    first, second = version("bot", 1, "same"), version("cat", 1, "same")
    desired = Desired({"bot": first, "cat": second})
    assert decide(desired, Observed(now=0)) == (Load(first), Load(second))


def test_the_wait_doubles_with_each_failure_up_to_an_hour() -> None:
    before, waits = None, []
    for _ in range(9):
        before = quarantine(ONE, "no", before, now=100.0, first=30.0)
        waits.append(before.until - 100.0)
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert before is not None
    assert before.attempts == 9


def test_unmet_says_why_for_each_name_and_leaves_out_what_is_refused() -> None:
    desired = Desired({"bot": ONE, "cat": version("cat")}, {"dog": Refusal(version("dog"), "another base")})
    observed = Observed(now=0, quarantined={ONE.ref: Quarantine(ONE, "no effect", 1, 9.0)})
    assert unmet(desired, observed, ROOMY) == {
        "bot": "bot/1 is quarantined: no effect",
        "cat": "cat/1 is being loaded",
    }
    assert unmet(Desired({"bot": ONE}), Observed(now=0, pointed={"bot": ONE.ref}), ROOMY) == {}


def test_a_name_is_unmet_while_its_version_is_loaded_with_other_bytes() -> None:
    observed = Observed(now=0, pointed={"bot": ONE.ref}, resident={ONE.ref: held(version(digest="other"))})
    told = "bot/1 is loaded with other bytes than are promoted: restart the replica to load those"
    assert unmet(Desired({"bot": ONE}), observed, ROOMY) == {"bot": told}
