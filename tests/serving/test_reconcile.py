"""The plan is pure, so every rule of it is tried here, and then thousands of random histories."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from registry.records import Facts, Version
from registry.refs import VersionRef
from serving.desired import Desired, Refusal
from serving.reconcile import (
    Load,
    Observed,
    Point,
    Quarantine,
    Resident,
    Retire,
    Unpoint,
    plan,
    quarantine,
    unmet,
)
from tests.adapters import SMOL

DRAIN = 5.0


def version(name: str = "bot", number: int = 1, digest: str = "") -> Version:
    facts = Facts(
        digest=digest or f"{name}{number}",
        base=SMOL,
        method="lora",
        rank=8,
        targets=("q_proj",),
        run_id="run",
        data_digest="",
    )
    return Version(
        ref=VersionRef(name, number), facts=facts, source="models:/m-1", created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )


ONE, TWO = version(number=1), version(number=2)


def held(item: Version, in_flight: int = 0, idle_since: float = 0.0) -> Resident:
    return Resident(item, in_flight, idle_since)


def decide(desired: Desired, observed: Observed) -> tuple[object, ...]:
    return plan(desired, observed, drain_seconds=DRAIN)


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


def test_another_version_is_not_held_back_by_a_quarantined_one() -> None:
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
    assert unmet(desired, observed) == {
        "bot": "bot/1 is held back: no effect",
        "cat": "cat/1 is being loaded",
    }
    assert unmet(Desired({"bot": ONE}), Observed(now=0, pointed={"bot": ONE.ref})) == {}


class World:
    """A replica's state under random events, which holds every action against the rules that must never break."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.now = 0.0
        self.desired = Desired()
        self.pointed: dict[str, VersionRef] = {}
        self.resident: dict[VersionRef, Resident] = {}
        self.loading: dict[VersionRef, Version] = {}
        self.quarantined: dict[VersionRef, Quarantine] = {}

    def promote(self) -> None:
        targets, refused = dict(self.desired.targets), dict(self.desired.refused)
        name, number = self.random.choice("abc"), self.random.randint(1, 3)
        targets.pop(name, None)
        refused.pop(name, None)
        match self.random.random():
            case chance if chance < 0.75:
                targets[name] = version(name, number)
            case chance if chance < 0.9:
                refused[name] = Refusal(version(name, number), "another base")
        self.desired = Desired(targets, refused)

    def traffic(self) -> None:
        """Requests come only to what names point at, and end anywhere."""
        for ref, item in list(self.resident.items()):
            if ref in self.pointed.values() and self.random.random() < 0.5:
                self.resident[ref] = held(item.version, item.in_flight + 1, item.idle_since)
            elif item.in_flight and self.random.random() < 0.5:
                self.resident[ref] = held(item.version, item.in_flight - 1, self.now)

    def loads_end(self, *, fail: float) -> None:
        for ref, item in list(self.loading.items()):
            if self.random.random() < fail:
                before = self.quarantined.get(ref)
                self.quarantined[ref] = quarantine(item, "bad", before, now=self.now, first=1.0)
            else:
                self.resident[ref] = held(item, 0, self.now)
                self.quarantined.pop(ref, None)
            del self.loading[ref]

    def turn(self) -> None:
        before = dict(self.pointed)
        observed = Observed(
            self.now, dict(self.pointed), dict(self.resident), frozenset(self.loading), dict(self.quarantined)
        )
        for action in plan(self.desired, observed, drain_seconds=DRAIN):
            match action:
                case Point(name, target):
                    assert target.ref in self.resident
                    assert self.desired.targets[name] == target
                    self.pointed[name] = target.ref
                case Unpoint(name):
                    del self.pointed[name]
                case Retire(ref):
                    assert ref not in self.pointed.values()
                    assert not self.resident[ref].in_flight
                    del self.resident[ref]
                case Load(target):
                    assert target.ref not in self.loading
                    assert target.ref not in self.resident
                    self.loading[target.ref] = target
        wanted = self.desired.targets.keys() | self.desired.refused.keys()
        assert before.keys() - self.pointed.keys() <= before.keys() - wanted, "a wanted name lost its answer"
        assert set(self.pointed.values()) <= self.resident.keys(), "a name points at nothing"


@pytest.mark.parametrize("seed", range(50))
def test_no_history_breaks_a_rule_and_every_one_settles(seed: int) -> None:
    world = World(seed)
    for _ in range(200):
        world.now += world.random.random() * 2
        for event in (world.promote, world.traffic, lambda: world.loads_end(fail=0.3)):
            if world.random.random() < 0.4:
                event()
        world.turn()
    for _ in range(20):
        world.now += 4000
        world.loads_end(fail=0.0)
        world.resident = {ref: held(item.version, 0, item.idle_since) for ref, item in world.resident.items()}
        world.turn()
    targets = {name: item.ref for name, item in world.desired.targets.items()}
    assert {name: ref for name, ref in world.pointed.items() if name not in world.desired.refused} == targets
    assert set(world.resident) == set(world.pointed.values())
