"""Random histories of promotions, failures, requests and restarts: no step breaks a rule, and every history settles."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.serving.desired import Desired, Refusal
from loradock.serving.reconcile import (
    Limits,
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
from loradock.serving.table import Table
from tests.support.chance import tries
from tests.support.serving.versions import held, version

DRAIN = 5.0
pytestmark = pytest.mark.chance

NAMES = st.sampled_from(["a", "a@canary", "b", "c", "d"])
NUMBERS = st.integers(1, 3)


class World(RuleBasedStateMachine):
    """A replica's state; every action of the plan is held against the rules as it is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.desired = Desired()
        self.limits = Limits(DRAIN, 32)
        self.forget()

    def forget(self) -> None:
        self.pointed: dict[str, VersionRef] = {}
        self.resident: dict[VersionRef, Resident] = {}
        self.loading: dict[VersionRef, Version] = {}
        self.quarantined: dict[VersionRef, Quarantine] = {}
        self.demanded: dict[VersionRef, Version] = {}

    @initialize(capacity=st.integers(2, 8), spare=st.integers(0, 3))
    def begin(self, capacity: int, spare: int) -> None:
        self.limits = Limits(DRAIN, capacity, spare)

    @rule(name=NAMES, number=NUMBERS, digest=st.sampled_from(["", "", "", "other"]))
    def promote(self, name: str, number: int, digest: str) -> None:
        item = version(name.partition("@")[0], number, digest)
        refused = {key: value for key, value in self.desired.refused.items() if key != name}
        self.desired = Desired({**self.desired.targets, name: item}, refused)

    @rule(name=NAMES, number=NUMBERS)
    def promote_another_base(self, name: str, number: int) -> None:
        targets = {key: value for key, value in self.desired.targets.items() if key != name}
        refusal = Refusal(version(name.partition("@")[0], number), "another base")
        self.desired = Desired(targets, {**self.desired.refused, name: refusal})

    @rule(name=NAMES)
    def delete_the_alias(self, name: str) -> None:
        self.desired = Desired(
            {key: value for key, value in self.desired.targets.items() if key != name},
            {key: value for key, value in self.desired.refused.items() if key != name},
        )

    @rule(name=NAMES)
    def request(self, name: str) -> None:
        """A request asks for a name: on a resident version it runs, and for a cold one it waits."""
        table = Table(desired=self.desired, pointed=self.pointed, quarantined=self.out_of_traffic())
        found = table.find(name, "")
        if found is None or found.ref is None:
            assert name not in self.pointed
            return
        if item := self.resident.get(found.ref):
            self.resident[found.ref] = held(item.version, item.in_flight + 1, item.idle_since)
        else:
            assert name not in self.pointed, "a name that points somewhere lets nobody wait"
            self.demanded[found.ref] = self.desired.targets[name]

    @rule(name=NAMES, number=NUMBERS)
    def come_up_and_be_asked(self, name: str, number: int) -> None:
        """A version is promoted, loaded and asked: what single steps seldom do in this order."""
        self.promote(name, number, "")
        self.turn()
        for ref in sorted(self.loading):
            self.end_load(ref, fails=False)
        self.turn()
        self.request(name)

    def out_of_traffic(self) -> set[VersionRef]:
        return {ref for ref, found in self.quarantined.items() if self.now < found.until}

    @precondition(lambda self: any(item.in_flight for item in self.resident.values()))
    @rule(data=st.data())
    def a_request_ends(self, data: st.DataObject) -> None:
        ref = data.draw(st.sampled_from(sorted(ref for ref, item in self.resident.items() if item.in_flight)))
        item = self.resident[ref]
        self.resident[ref] = held(item.version, item.in_flight - 1, self.now)

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), fails=st.booleans())
    def a_load_ends(self, data: st.DataObject, fails: bool) -> None:
        self.end_load(data.draw(st.sampled_from(sorted(self.loading))), fails=fails)

    def end_load(self, ref: VersionRef, *, fails: bool) -> None:
        item = self.loading.pop(ref)
        if fails:
            before = self.quarantined.get(ref)
            self.quarantined[ref] = quarantine(item, "bad", before, now=self.now, first=1.0)
            self.demanded.pop(ref, None)  # those who wait are told
        else:
            waiting = self.demanded.pop(ref, None)
            self.resident[ref] = held(item, 1 if waiting else 0, self.now)
            self.quarantined.pop(ref, None)

    @rule(seconds=st.floats(0, 2 * DRAIN))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        self.forget()

    @rule()
    def turn(self) -> None:
        before = dict(self.pointed)
        wanted = self.desired.targets.keys() | self.desired.refused.keys()
        for action in plan(self.desired, self.observed(), self.limits):
            match action:
                case Point(name, target):
                    assert self.resident[target.ref].version.facts.digest == target.facts.digest
                    assert self.desired.targets[name] == target
                    self.pointed[name] = target.ref
                case Unpoint(name):
                    if name in wanted:
                        assert self.target(name) == self.pointed[name], "an answer was lost that cannot come back"
                        rested = self.now - self.resident[self.pointed[name]].idle_since >= DRAIN
                        spared = rested or self.demanded or not self.there_is_room_for_all()
                        assert spared, "a move cost a name in use the answer"
                    del self.pointed[name]
                case Retire(ref):
                    assert ref not in self.pointed.values()
                    assert not self.resident[ref].in_flight
                    assert ref not in self.demanded
                    del self.resident[ref]
                case Load(target):
                    assert target.ref not in self.loading
                    assert target.ref not in self.resident
                    self.loading[target.ref] = target
        lost = (before.keys() - self.pointed.keys()) & wanted
        moving = any(self.target(name) not in (None, ref) for name, ref in before.items())
        assert not lost or self.demanded or moving, "a name was made cold for nobody"

    def target(self, name: str) -> VersionRef | None:
        found = self.desired.targets.get(name)
        return found.ref if found else None

    def there_is_room_for_all(self) -> bool:
        """Whether all that is promoted or asked for fits beside what cannot come back, and one more."""
        last = {ref for name, ref in self.pointed.items() if name in self.desired.refused}
        promoted = {item.ref for item in self.desired.targets.values()}
        return len(promoted | self.demanded.keys() | last | self.others()) < self.limits.capacity

    def others(self) -> set[VersionRef]:
        """Versions that are resident with other bytes than the registry, when it tells the truth, says."""
        return {ref for ref, item in self.resident.items() if item.version != version(ref.name, ref.number)}

    def observed(self) -> Observed:
        return Observed(
            self.now,
            dict(self.pointed),
            dict(self.resident),
            frozenset(self.loading),
            dict(self.demanded),
            dict(self.quarantined),
        )

    @invariant()
    def every_name_points_at_what_is_there(self) -> None:
        assert set(self.pointed.values()) <= self.resident.keys()

    @invariant()
    def no_more_is_held_than_there_is_room_for(self) -> None:
        assert len(self.resident) + len(self.loading) <= self.limits.capacity

    def teardown(self) -> None:
        """Left alone, with a registry that tells the truth and loads that succeed, what is promoted is served."""
        truth = {name: version(item.ref.name, item.ref.number) for name, item in self.desired.targets.items()}
        self.desired = Desired(truth, self.desired.refused)
        for _ in range(30):
            self.now += 4000
            for ref in sorted(self.loading):
                self.end_load(ref, fails=False)
            self.resident = {ref: held(item.version, 0, item.idle_since) for ref, item in self.resident.items()}
            self.turn()
        others = self.others()
        assert others <= set(self.pointed.values()), "bytes that nobody asks for keep their version's number"
        told = unmet(self.desired, self.observed(), self.limits)
        wrong = {name for name, item in truth.items() if item.ref in others}
        assert not self.loading
        if not self.there_is_room_for_all():
            # A name that waits for room keeps its answer.
            assert told.keys() - wrong <= self.pointed.keys()
            return
        assert told.keys() == wrong
        assert not self.demanded
        kept = {name: ref for name, ref in self.pointed.items() if name not in wrong | self.desired.refused.keys()}
        assert kept.items() <= {name: item.ref for name, item in truth.items()}.items()
        assert set(self.resident) == set(self.pointed.values())


TestHistories = World.TestCase
TestHistories.settings = settings(max_examples=tries(150), stateful_step_count=60)
