"""A registry that goes out of reach in the middle of a rollout: it stands still, and ends as it would have."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from loradock.registry import promotion, traffic
from loradock.registry.errors import Unreachable
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.store.rollouts import Rollouts
from loradock.serving.rollout.blocks import Finding
from loradock.serving.rollout.drive import Rollout
from loradock.serving.rollout.moves import Moves
from loradock.serving.rollout.plan import Rules
from loradock.serving.rollout.record import Record
from loradock.serving.rollout.task import Outcome, Task
from loradock.serving.rollout.watching import Replicas
from tests.support.adapters import NAME, aliases, make_version, ref
from tests.support.serving.fake_replica import FakeReplica, replica


class UnreachableMoves(Moves):
    """A registry that is away each time for so many calls of one kind."""

    def __init__(self, store: Store, settings: Settings, *, checks: int = 0, withdrawals: int = 0) -> None:
        super().__init__(store, settings, ref(2))
        self.left = {"checks": checks, "withdrawals": withdrawals}

    def check(self) -> None:
        self.miss("checks", but=self._weight == 0)
        super().check()

    def withdraw(self, reason: str) -> bool:
        self.miss("withdrawals")
        return super().withdraw(reason)

    def miss(self, kind: str, *, but: bool = False) -> None:
        if self.left[kind] and not but:
            self.left[kind] -= 1
            raise Unreachable("MLflow is out of reach")


@dataclass
class FakeShown:
    told: list[str] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)

    def tell(self, text: str) -> None:
        self.told.append(text)

    def show(self, weight: float, why: str, findings: Sequence[Finding]) -> None:
        self.shown.append(weight)


@pytest.fixture
def versions(store: Store, tmp_path: Path) -> Store:
    for seed in (1, 2):
        make_version(store, tmp_path / str(seed), seed=seed)
    promotion.promote(store, ref(1), "production", actor="tester")
    return store


def drive(running: FakeReplica, moves: Moves, heard: FakeShown, settings: Settings) -> Outcome:
    task = Task(
        ref=ref(2),
        rules=Rules(steps=(0.2, 0.5), answers=20, seconds=0.0, within=60.0),
        margins={"error": 0.05, "long": 0.05},
        alpha=0.01,
        baseline=100,
        limits={},
        urls=(running.url,),
        api_key=SecretStr(""),
        every=0.01,
    )
    replicas = Replicas(task.ref, task.urls, task.api_key)
    record = Record(lambda: Rollouts(settings), "a rollout")
    return Rollout(task, moves, replicas, record, heard, threading.Event(), clock=lambda: 0.0).run()


@pytest.mark.slow
@pytest.mark.chance
def test_one_that_was_promoted_when_the_registry_went_away_is_not_taken_for_anothers(
    versions: Store, settings: Settings
) -> None:
    heard = FakeShown()
    with replica(settings, {}) as running:
        outcome = drive(running, UnreachableMoves(versions, settings, checks=3, withdrawals=2), heard, settings)
    assert outcome.result == "promoted"
    assert sum("nothing moves until it answers" in line for line in heard.told) == 2
    assert aliases(versions) == {"production": 2, "canary": 2}
    assert not traffic.shares(versions.family(NAME).traffic)


@pytest.mark.chance
def test_a_bad_canary_loses_its_share_as_soon_as_the_registry_answers(versions: Store, settings: Settings) -> None:
    heard = FakeShown()
    with replica(settings, {2: {"error": 0.9}}) as running:
        outcome = drive(running, UnreachableMoves(versions, settings, withdrawals=5), heard, settings)
    assert outcome.result == "rolled back"
    assert outcome.reason.startswith("error: ")
    assert any("nothing moves until it answers" in line for line in heard.told)
    assert aliases(versions)["production"] == 1
    assert not traffic.shares(versions.family(NAME).traffic)


def test_without_mlflows_runs_it_goes_on_unrecorded(
    versions: Store, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    class UnreachableRollouts(Rollouts):
        def begin(self, *_: object) -> str:
            raise Unreachable("MLflow is out of reach")

    record = Record(lambda: UnreachableRollouts(settings), "a rollout")
    record.begin({}, {})
    record.end("promoted", "{}")
    assert record.run_id == ""
    assert "the rollout is not recorded" in caplog.text
