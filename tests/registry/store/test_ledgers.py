"""A history that goes on from one MLflow run to the next, and is one chain all the same."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import entries, history, promotion
from loradock.registry.errors import Conflict, HistoryDamaged, NotFound
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, aliases, make_version, ref
from tests.support.registry.killed import Killed, KilledAtCall
from tests.support.shell import loradock

PER_RUN = 4


@pytest.fixture
def three(store: Store, tmp_path: Path) -> Store:
    """A family of three versions whose ledger takes four entries a run."""
    store.entries_per_run = PER_RUN
    for seed in range(3):
        make_version(store, tmp_path / str(seed), seed=seed)
    return store


def move_about(store: Store, moves: int) -> None:
    """So many moves of production, among three versions."""
    for count in range(moves):
        promotion.promote(store, ref(count % 3 + 1), "production", actor=f"p{count}")


@pytest.mark.parametrize("moves", [4, 5, 11])
def test_a_history_of_several_runs_is_one(three: Store, moves: int) -> None:
    move_about(three, moves)
    whole, end = history.read(three, NAME), history.read(three, NAME, whole=False)
    assert [move.actor for move in whole.moves] == [f"p{count}" for count in range(moves)]
    assert [entry.seq for entry in whole.entries] == list(range(moves))
    assert (end.heads, end.end, end.last) == (whole.heads, whole.end, whole.last)
    assert len(end.entries) <= PER_RUN + 1
    assert aliases(three) == {"production": whole.head("production")}
    assert whole.drifts == end.drifts == ()


def test_reading_the_end_asks_for_one_run_however_long_the_history(three: Store) -> None:
    move_about(three, 11)
    client = three.client
    three.client = counted = KilledAtCall(client)
    history.read(three, NAME, whole=False)
    assert counted.calls == ["search_registered_models", "get_run", "get_run"]
    three.client = client
    three.version(ref(1))
    three.client = counted = KilledAtCall(client)
    history.read(three, NAME, whole=False, alias="production")
    assert counted.calls == ["get_model_version_by_alias", "get_run", "get_run"]
    three.client = client
    client.delete_tag(three.family(NAME).ledger, "loradock.ledger.newest")  # it was lost, or is about to be made
    assert history.read(three, NAME, whole=False).end == 11


def test_what_still_matters_goes_along(three: Store) -> None:
    promotion.promote(three, ref(1), "staging", actor="ann")
    entries.set_policy(three, NAME, "production: {}", actor="ann")
    entries.remove(three, NAME, (3,), actor="ann", reason="", decided_on=history.read(three, NAME))
    three.client.set_registered_model_alias(NAME, "staging", "2")  # past loradock
    for count in range(9):
        promotion.promote(three, ref(count % 2 + 1), "production", actor="ann")
    end = history.read(three, NAME, whole=False)
    assert end.head("staging") == 1
    assert end.policy is not None
    assert end.policy.policy == "production: {}"
    assert end.removed == {3}
    assert end.drifts == (history.Drift("staging", 1, 2),)
    with pytest.raises(NotFound, match="is deleted"):
        promotion.promote(three, ref(3), "production", actor="ann")


def test_two_who_need_a_new_run_at_once_get_the_same(three: Store) -> None:
    move_about(three, PER_RUN)
    past = history.read(three, NAME)
    entries = [past.moves[-1].model_copy(update={"seq": past.end, "actor": name}).canonical() for name in "ab"]
    wrote = [three.append(past.family, past.ledger, past.end, entry, carry=past.carry) for entry in entries]
    assert wrote == [True, False]
    runs = three.client.search_runs([three.client.get_run(past.family.ledger).info.experiment_id])
    assert len(runs) == 2  # the loser's is deleted


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_whoever_is_killed_while_a_run_is_made_leaves_a_history_that_goes_on(three: Store, after: bool) -> None:
    client = three.client
    move_about(three, PER_RUN)
    promoted = PER_RUN
    for step in range(100):
        three.client = killed = KilledAtCall(client, step, after=after)
        with contextlib.suppress(Killed):
            promotion.promote(three, ref(promoted % 3 + 1), "production", actor="the dead")
        three.client = client
        if step >= len(killed.calls):
            break
        promotion.promote(three, ref((promoted + 1) % 3 + 1), "production", actor="the next")
        past = history.read(three, NAME)
        assert past.drifts == ()
        assert aliases(three) == {"production": past.head("production")}
        promoted += 2
        while history.read(three, NAME, whole=False).ledger.room:  # on to the next time that a run is full
            move_about_once(three)
    else:
        pytest.fail("it was never finished")


def move_about_once(store: Store) -> None:
    here = aliases(store)["production"]
    promotion.promote(store, ref(here % 3 + 1), "production", actor="ann")


def test_a_copy_that_was_edited_is_found(three: Store, settings: Settings) -> None:
    move_about(three, 6)
    with sqlite3.connect(settings.root / "mlflow.db") as database:
        changed = "UPDATE params SET value = replace(value, 'p3', 'p9') WHERE key = '00000003.carried'"
        assert database.execute(changed).rowcount == 1
    database.close()
    with pytest.raises(HistoryDamaged, match="entry 3 is not what it was copied as"):
        history.read(three, NAME)
    with pytest.raises(HistoryDamaged, match="entry 4 does not follow"):
        history.read(three, NAME, whole=False)


def test_a_version_that_took_an_alias_meanwhile_is_not_removed(three: Store) -> None:
    promotion.promote(three, ref(1), "production", actor="ann")
    decided_on = history.read(three, NAME)
    promotion.promote(three, ref(2), "production", actor="bob")
    with pytest.raises(Conflict, match=r"production is at 2 by bob"):
        entries.remove(three, NAME, (2, 3), actor="ann", reason="", decided_on=decided_on)
    removal = entries.remove(three, NAME, (3,), actor="ann", reason="old", decided_on=decided_on)
    assert (removal.versions, removal.reason) == ((3,), "old")
    with pytest.raises(NotFound):
        promotion.promote(three, ref(3), "production", actor="ann")
    assert aliases(three) == {"production": 2}


def test_two_policies_at_once_do_not_overwrite_each_other(three: Store) -> None:
    class SlowStore:
        overtaken = False

        def __getattr__(self, name: str) -> Any:
            return getattr(three, name)

        def append(self, *args: Any, **options: Any) -> bool:
            if not self.overtaken:
                self.overtaken = True
                entries.set_policy(three, NAME, "staging: {}", actor="the quick")
            return three.append(*args, **options)

    slow: Any = SlowStore()
    with pytest.raises(Conflict, match="changed by the quick"):
        entries.set_policy(slow, NAME, "production: {}", actor="the slow")


def cut_in_two(store: Store) -> str:
    """Take from the first part what leads to the next one."""
    first = store.family(NAME).ledger
    with contextlib.closing(sqlite3.connect(store.settings.root / "mlflow.db")) as database, database:
        database.execute("DELETE FROM params WHERE key = 'next' AND run_uuid = ?", (first,))
    return "entry 4 is reached from its newest part only"


def without_its_policy(store: Store) -> str:
    """Take the policy from what the newest part begins with, so that promotions go by none."""
    with contextlib.closing(sqlite3.connect(store.settings.root / "mlflow.db")) as database, database:
        assert database.execute("DELETE FROM params WHERE key = '00000000.carried'").rowcount
    assert history.read(store, NAME, whole=False).policy is None
    return "its newest part does not have its policy as the parts before"


def another_newest_part(store: Store) -> str:
    """Let promotions read a run that somebody made, and that is whole in itself."""
    run, key = store.new_ledger(NAME), "00000000"
    store.client.log_param(run, key, history.read(store, NAME).ledger.entries[0].replace('"ann"', '"eve"'))
    store.client.set_tag(store.family(NAME).ledger, "loradock.ledger.newest", run)
    assert history.read(store, NAME, whole=False).end == 1
    return "entry 0 is another one in its newest part"


def another_run(store: Store) -> str:
    """Let the family name another run as the beginning."""
    was = store.family(NAME).ledger
    store.client.set_registered_model_tag(NAME, "loradock.ledger", store.new_ledger(NAME))
    return f"run {was} has entries of a history of {NAME}, and nothing leads to it"


def without_its_newest_entry(store: Store) -> str:
    """Cut the history."""
    with contextlib.closing(sqlite3.connect(store.settings.root / "mlflow.db")) as database, database:
        assert database.execute("DELETE FROM params WHERE key LIKE '00000006%'").rowcount
    return "it ends with entry 5, and went on to entry 6"


@pytest.mark.parametrize(
    "damage", [cut_in_two, without_its_policy, another_newest_part, another_run, without_its_newest_entry]
)
def test_verify_reads_a_history_from_its_first_part_and_back_from_its_newest(
    three: Store, damage: Callable[[Store], str]
) -> None:
    entries.set_policy(three, NAME, "production: {}", actor="ann")
    move_about(three, 6)
    assert loradock("verify", "--all").exit_code == 0
    told = damage(three)
    done = loradock("verify", "--all")
    assert done.exit_code == 3, done
    assert told in done.err
