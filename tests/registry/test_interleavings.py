"""Promoters of one alias whose calls to MLflow come in every order, some of which die: no move is lost, none is drift.

MLflow is one in memory here, so that thousands of orders are tried; `test_race.py` has processes and real stores.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

from loradock.registry import history, promotion
from loradock.registry.errors import Conflict, NotFound
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, make_version, ref
from tests.support.chance import tries
from tests.support.registry.killed import Killed

VERSIONS: Final = 4
ALIAS: Final = "production"

ROLLBACK, RESTORE = -1, 0
Plan = Sequence[Sequence[int]]
"""For each promoter, what it does one after the other: move the alias to this version, or one of these two."""
Turn = tuple[int, int, bool]
"""Which promoter goes on, for how many calls, and whether it dies then."""


class FakeMLflowClient:
    """Of MLflow's client what a promotion calls: params that are written once, aliases whose last write wins."""

    def __init__(self, versions: Sequence[Any]) -> None:
        self._versions = {str(found.version): deepcopy(found) for found in versions}
        self._tags = dict(versions[0].tags)
        self._runs: defaultdict[str, FakeRun] = defaultdict(FakeRun)
        self._aliases: dict[str, str] = {}
        self._made = count()

    def get_model_version(self, _name: str, number: str) -> Any:
        return self._versions[number]

    def get_model_version_by_alias(self, _name: str, alias: str) -> Any:
        if alias not in self._aliases:
            raise MlflowException("no such alias", INVALID_PARAMETER_VALUE)
        return self._versions[self._aliases[alias]]

    def search_registered_models(self, _filter: str, *, max_results: int) -> list[Any]:
        found = self._versions["1"]
        return [SimpleNamespace(name=found.name, aliases=dict(self._aliases), tags=dict(self._tags))][:max_results]

    def set_registered_model_tag(self, _name: str, key: str, value: str) -> None:
        self._tags[key] = value

    def set_model_version_tag(self, _name: str, number: str, key: str, value: str) -> None:
        self._versions[number].tags[key] = value

    def set_registered_model_alias(self, _name: str, alias: str, number: str) -> None:
        self._aliases[alias] = number

    def get_experiment_by_name(self, _name: str) -> Any:
        return SimpleNamespace(experiment_id="0", lifecycle_stage="active")

    def create_run(self, _experiment: str, *, run_name: str) -> Any:
        run_id = f"{run_name} {next(self._made)}"
        self._runs[run_id] = FakeRun()
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def set_terminated(self, _run_id: str) -> None:
        pass

    def delete_run(self, run_id: str) -> None:
        del self._runs[run_id]

    def get_run(self, run_id: str) -> Any:
        run = self._runs[run_id]
        info = SimpleNamespace(run_name=f"{NAME} history")
        return SimpleNamespace(info=info, data=FakeRun(dict(run.params), dict(run.tags)))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._runs[run_id].tags[key] = value

    def log_param(self, run_id: str, key: str, value: str, *, synchronous: bool) -> None:
        assert synchronous
        if self._runs[run_id].params.setdefault(key, value) != value:
            raise MlflowException(f"Param {key!r} is already logged", INVALID_PARAMETER_VALUE)


@dataclass(frozen=True, slots=True)
class FakeRun:
    """One of MLflow's."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class SteppedClient:
    """A client of MLflow's that makes a call when it is told to, and the thread that promotes with it."""

    def __init__(self, store: Store, name: str, numbers: Sequence[int], machine: Settings) -> None:
        self._client, self._store = store.client, copy(store)
        self._store.client, self._store.settings, self._store._heads = self, machine, {}
        self._told, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._finished, self._dies, self.died = False, False, False
        self.error: Exception | None = None
        threading.Thread(target=self._promote, args=(name, numbers), daemon=True).start()
        self._done.acquire()

    def _promote(self, name: str, numbers: Sequence[int]) -> None:
        try:
            for number in numbers:
                with suppress(Conflict):
                    if number == ROLLBACK:
                        with suppress(NotFound):  # nothing came before
                            promotion.rollback(self._store, NAME, ALIAS, actor=name)
                    elif number == RESTORE:
                        assert promotion.restore(self._store, NAME, actor=name) == ()
                    else:
                        promotion.promote(self._store, ref(number), ALIAS, actor=name)
        except Killed:
            self.died = True
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            self.error = error
        self._finished = True
        self._done.release()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            self._done.release()
            self._told.acquire()
            if self._dies:
                raise Killed
            return getattr(self._client, name)(*words, **options)

        return call

    def go(self, calls: int | None, *, dies: bool = False) -> None:
        """Make so many calls, or all that are left, and die at the next one."""
        made = 0
        while not self._finished and (calls is None or made < calls + dies):
            self._dies = dies and made == calls
            self._told.release()
            self._done.acquire()
            made += 1


@pytest.fixture
def versions(store: Store, tmp_path: Path) -> tuple[Any, ...]:
    """What a real store says of a family's versions."""
    made = [make_version(store, tmp_path / str(seed), seed=seed) for seed in range(VERSIONS)]
    return tuple(store.client.get_model_version(NAME, str(version.ref.number)) for version in made)


@pytest.fixture
def intact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are not looked at."""
    monkeypatch.setattr("loradock.registry.versions.verify", lambda *_: None)


TURNS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 14), st.sampled_from([False] * 19 + [True])), max_size=40)
NUMBERS = st.lists(st.integers(ROLLBACK, VERSIONS), min_size=1, max_size=3)
# What a promoter set in another's stead was taken for drift: once it was marked as done before it was looked at, and
# once its mark stayed behind in a run of the ledger that was full by then, or was not yet in the next one.
EARLY = [(1, 12), (2, 5), (0, 5), (1, 21), (2, 4), (0, 7)]
BEHIND = [(1, 5), (2, 5)]
NOT_YET = [(2, 12), (0, 11), (2, 6)]


@pytest.mark.chance
@settings(max_examples=tries(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(room=st.sampled_from([2, 3, 100]), plan=st.tuples(NUMBERS, NUMBERS, NUMBERS), turns=TURNS, shared=st.booleans())
@example(shared=True, room=3, plan=([1], [2, 2], [1]), turns=[(*turn, False) for turn in EARLY])
@example(shared=True, room=2, plan=([1], [2], [2]), turns=[(*turn, False) for turn in BEHIND])
@example(shared=False, room=2, plan=([1], [2, 3], [1, 2]), turns=[(*turn, False) for turn in NOT_YET])
def test_in_whatever_order_their_calls_come_the_alias_ends_where_history_says(
    store: Store,
    versions: Sequence[Any],
    intact: None,
    room: int,
    plan: Plan,
    turns: Sequence[Turn],
    shared: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """`shared` is whether the promoters are on one machine, and remember in one file what they saw."""
    memory: Any = FakeMLflowClient(versions)
    store = copy(store)
    store.client, store.entries_per_run, store._heads = memory, room, {}
    homes = [tmp_path_factory.mktemp("machine") for _ in range(1 if shared else len(plan))]
    machines = [store.settings.model_copy(update={"home": home}) for home in homes]
    store.settings = machines[0]
    promotion.promote(store, ref(1), ALIAS, actor="ann")
    promoters = [
        SteppedClient(store, f"promoter {number}", numbers, machines[number % len(machines)])
        for number, numbers in enumerate(plan)
    ]
    for number, calls, dies in turns:
        promoters[number].go(calls, dies=dies)
        assert history.read(store, NAME, alias=ALIAS).drifts == ()
    for promoter in promoters:
        promoter.go(None)
        assert promoter.error is None
    past = history.read(store, NAME, alias=ALIAS)
    assert past.drifts == ()
    if not any(promoter.died for promoter in promoters):
        assert past.family.aliases == {ALIAS: past.head(ALIAS)}
    promotion.promote(store, ref(1), ALIAS, actor="the next")
    assert history.read(store, NAME, alias=ALIAS).family.aliases == {ALIAS: 1}
