"""A history that does not continue from what was seen of it: cut, moved, or replaced by another whole one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import entries, gc, heads, history, promotion, traffic
from loradock.registry.errors import HistoryCut
from loradock.registry.heads import Head, Memory
from loradock.registry.history import link
from loradock.registry.records import Acceptance, parse_entry
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, aliases, make_version, ref
from tests.support.registry.killed import KilledAtCall
from tests.support.shell import loradock


@pytest.fixture
def moved(store: Store, tmp_path: Path) -> Store:
    """A family of three versions, whose canary is at 1, and whose production went from 1 to 2 to 3."""
    for seed in range(3):
        make_version(store, tmp_path / str(seed), seed=seed)
    promotion.promote(store, ref(1), "canary", actor="ann")
    for number in (1, 2, 3):
        promotion.promote(store, ref(number), "production", actor="ann", reason=f"move {number}")
    return store


def change(store: Store, *statements: str | tuple[str, ...]) -> None:
    """What somebody does who may write to MLflow's database."""
    with closing(sqlite3.connect(store.settings.root / "mlflow.db")) as database, database:
        for statement in statements:
            text, *values = (statement,) if isinstance(statement, str) else statement
            assert database.execute(text, values).rowcount


def cut(store: Store) -> None:
    """Take the newest entry away, and put the alias where the rest says."""
    change(
        store,
        "DELETE FROM params WHERE key LIKE '00000003%'",
        "UPDATE registered_model_aliases SET version = 2 WHERE alias = 'production'",
    )


def chained(texts: Sequence[str]) -> list[str]:
    """Entries as a whole chain, written without the code that is tested."""
    found: list[str] = []
    for text in texts:
        entry = parse_entry(text).model_copy(update={"prev": link(found[-1]) if found else ""})
        found.append(entry.canonical())
    return found


def others(store: Store) -> list[str]:
    """Another history of as many moves, in which somebody else did all."""
    texts = history.read(store, NAME).ledger.entries.values()
    return chained([text.replace('"ann"', '"eve"') for text in texts])


def rewrite(store: Store) -> None:
    """Write another whole chain over the one that is there."""
    run = store.family(NAME).ledger
    for seq, text in enumerate(others(store)):
        change(store, ("UPDATE params SET value = ? WHERE key = ? AND run_uuid = ?", text, f"{seq:08d}", run))
    history.read(store, NAME)  # it is whole in itself


def move_tag_of_family(store: Store) -> None:
    """Let the family name a run that holds another whole chain."""
    run, texts = store.new_ledger(NAME), others(store)
    for seq, text in enumerate(texts):
        store.client.log_param(run, f"{seq:08d}", text)
        store.client.log_param(run, f"{seq:08d}.applied", "yes")
    store.client.set_registered_model_tag(NAME, "loradock.ledger", run)
    history.read(store, NAME)  # it is whole in itself


def move_tags(store: Store) -> None:
    """The same of the family and all of its versions."""
    move_tag_of_family(store)
    for number in (1, 2, 3):
        store.client.set_model_version_tag(NAME, str(number), "loradock.ledger", store.family(NAME).ledger)


def take_tag(store: Store) -> None:
    """Let the family name no history."""
    store.client.delete_registered_model_tag(NAME, "loradock.ledger")


def forget(settings: Settings) -> None:
    """Become a machine that has seen nothing."""
    (settings.root / f"heads-{settings.which}.json").unlink()


def writes(store: Store) -> dict[str, Callable[[], Any]]:
    """All that writes into a history."""
    known = history.read(store, NAME)
    return {
        "promote": lambda: promotion.promote(store, ref(1), "production", actor="bob"),
        "promote elsewhere": lambda: promotion.promote(store, ref(1), "staging", actor="bob"),
        "promote what is there": lambda: promotion.promote(store, ref(2), "production", actor="bob"),
        "what a policy says": lambda: promotion.verdicts(store, ref(1), "production"),
        "rollback": lambda: promotion.rollback(store, NAME, "production", actor="bob"),
        "adopt": lambda: promotion.adopt(store, NAME, actor="bob"),
        "restore": lambda: promotion.restore(store, NAME, actor="bob"),
        "policy": lambda: entries.set_policy(store, NAME, "{}", actor="bob"),
        "share": lambda: traffic.set_share(store, ref(1), "canary", 0.1, actor="bob"),
        "remove": lambda: entries.remove(store, NAME, (1,), actor="bob", reason="", decided_on=known),
        "gc": lambda: list(gc.collect(store, NAME, gc.Rules(), {}, actor="bob", reason="")),
    }


@pytest.mark.parametrize("damage", [cut, rewrite, move_tags])
def test_nothing_is_written_into_a_history_that_does_not_go_on_from_what_was_seen(
    moved: Store, damage: Callable[[Store], None]
) -> None:
    damage(moved)
    fresh = Store(moved.settings)
    before, standing = history.read(fresh, NAME).entries, aliases(fresh)
    for what in writes(fresh):
        with pytest.raises(HistoryCut, match="does not continue from what this machine has seen") as found:
            writes(Store(moved.settings))[what]()
        assert found.value.exit_code == 4
    assert (history.read(fresh, NAME).entries, aliases(fresh)) == (before, standing)


@pytest.mark.parametrize("damage", [take_tag, move_tag_of_family])
def test_where_versions_name_the_right_run_a_promotion_goes_on_and_all_else_tells(
    moved: Store, damage: Callable[[Store], None]
) -> None:
    damage(moved)
    for what in ("rollback", "adopt", "restore", "policy", "share", "gc"):
        with pytest.raises(HistoryCut, match="and began in run"):
            writes(Store(moved.settings))[what]()
    assert "and began in run" in loradock("history", NAME).err
    move = promotion.promote(Store(moved.settings), ref(2), "production", actor="bob")
    assert move is not None
    assert move.seq == 4


@pytest.mark.parametrize("damage", [cut, rewrite, move_tags])
def test_a_machine_that_has_seen_nothing_goes_by_the_tags_of_the_family_and_of_the_version(
    moved: Store, damage: Callable[[Store], None]
) -> None:
    damage(moved)
    forget(moved.settings)
    with pytest.raises(HistoryCut, match=f"what the tag of {NAME} has"):
        promotion.rollback(Store(moved.settings), NAME, "production", actor="bob")
    moved.client.delete_registered_model_tag(NAME, "loradock.head")
    with pytest.raises(HistoryCut, match=f"what the tag of {NAME}/3 has"):
        promotion.promote(Store(moved.settings), ref(3), "production", actor="bob")


def test_what_no_tag_has_is_not_missed_by_a_machine_that_has_not_seen_it(moved: Store) -> None:
    cut(moved)
    moved.client.delete_registered_model_tag(NAME, "loradock.head")
    moved.client.delete_model_version_tag(NAME, "3", "loradock.head")
    forget(moved.settings)
    assert promotion.promote(Store(moved.settings), ref(1), "production", actor="bob") is not None


def test_who_wrote_an_entry_is_what_was_said(moved: Store) -> None:
    assert loradock("promote", f"{NAME}/1", LORADOCK_ACTOR="ann").exit_code == 0
    assert history.read(moved, NAME).moves[-1].actor == "ann"


def test_a_tag_that_was_written_over_is_told(moved: Store) -> None:
    moved.client.set_registered_model_tag(NAME, "loradock.head", "x")
    with pytest.raises(HistoryCut, match="the tag was overwritten"):
        promotion.rollback(Store(moved.settings), NAME, "production", actor="bob")


def test_a_tag_that_a_slower_promoter_set_bars_nothing(moved: Store) -> None:
    first = history.read(moved, NAME).ledger.entries[0]
    older = Head(seq=0, digest=link(first), run=moved.family(NAME).ledger)
    moved.tell_head(NAME, 3, older.canonical())
    Memory(moved.settings).keep({NAME: older})
    assert Memory(moved.settings).all()[NAME].seq == 3, "a machine forgets nothing"
    assert promotion.rollback(Store(moved.settings), NAME, "production", actor="bob").to_version == 2


@pytest.mark.parametrize("late", [1, 3])
def test_a_history_that_is_read_too_early_is_no_cut_one(moved: Store, late: int) -> None:
    early = moved.ledger(moved.family(NAME))
    promotion.promote(moved, ref(1), "production", actor="quick")

    class Behind(Store):
        """A server that answers with what was true a moment ago."""

        reads = 0

        def ledger(self, *given: Any, **how: Any) -> Any:
            self.reads += 1
            return early if self.reads <= late else super().ledger(*given, **how)

        def version_at(self, ref_: Any) -> Any:
            return super().version(ref(3)) if self.reads < late else super().version_at(ref_)

    behind = Behind(moved.settings)
    move = promotion.promote(behind, ref(2), "production", actor="bob")
    assert move is not None
    assert (move.seq, move.from_version, aliases(moved)) == (5, 1, {"canary": 1, "production": 2})
    assert behind.reads > late


def test_a_person_accepts_a_restored_history_with_a_reason_and_others_follow(
    moved: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = moved.settings.model_copy(
        update={"home": tmp_path / "elsewhere", "tracking_uri": moved.settings.store_uri}
    )
    promotion.verdicts(Store(elsewhere), ref(1), "production")
    cut(moved)
    refused = loradock("promote", f"{NAME}/1")
    assert refused.exit_code == 4
    assert "it ends with entry 2, and went on to entry 3" in refused.err
    assert f"loradock history {NAME} --accept --reason WHY" in refused.err
    assert "warning: the history of" in loradock("history", NAME).err
    assert loradock("history", NAME, "--accept").exit_code == 2, "why?"
    done = loradock("history", NAME, "--accept", "--reason", "restored Monday's backup")
    assert done.exit_code == 0, done.err
    accepted = history.read(moved, NAME).accepted
    assert isinstance(accepted, Acceptance)
    assert (accepted.actor, accepted.reason, accepted.seq) == ("tester", "restored Monday's backup", 3)
    assert accepted.lacks[0].endswith("it ends with entry 2, and went on to entry 3")
    assert loradock("promote", f"{NAME}/1").exit_code == 0
    promotion.promote(Store(elsewhere), ref(2), "production", actor="bob")
    assert "tester accepted that on" in caplog.text
    assert "restored Monday's backup" in caplog.text
    caplog.clear()
    promotion.promote(Store(elsewhere), ref(1), "production", actor="bob")
    assert caplog.text == "", "it is said once"


def test_what_was_accepted_once_excuses_no_later_cut(moved: Store) -> None:
    cut(moved)
    entries.accept(moved, NAME, actor="ann", reason="restored")
    assert entries.accept(moved, NAME, actor="ann", reason="restored") is None
    promotion.promote(moved, ref(1), "production", actor="ann")
    promotion.promote(moved, ref(2), "production", actor="ann")
    change(
        moved,
        "DELETE FROM params WHERE key LIKE '00000005%'",
        "UPDATE registered_model_aliases SET version = 1 WHERE alias = 'production'",
    )
    with pytest.raises(HistoryCut, match="ends with entry 4"):
        promotion.promote(Store(moved.settings), ref(3), "production", actor="bob")


def test_a_history_that_began_again_by_a_persons_word_is_whole_to_verify(moved: Store) -> None:
    run = moved.new_ledger(NAME)
    moved.client.set_registered_model_tag(NAME, "loradock.ledger", run)
    for number in (1, 2, 3):
        moved.client.set_model_version_tag(NAME, str(number), "loradock.ledger", run)
    for alias in aliases(moved):
        moved.client.delete_registered_model_alias(NAME, alias)
    assert loradock("verify", "--all").exit_code == 3
    entries.accept(Store(moved.settings), NAME, actor="ann", reason="made again")
    done = loradock("verify", "--all")
    assert done.exit_code == 0, done.err


def test_a_head_that_is_older_than_the_end_of_a_long_history_is_looked_for_in_all_of_it(
    store: Store, tmp_path: Path
) -> None:
    store.entries_per_run = 3
    for seed in range(2):
        make_version(store, tmp_path / str(seed), seed=seed)
    for count in range(4):
        promotion.promote(store, ref(count % 2 + 1), "production", actor="ann")
    seen = Memory(store.settings).all()[NAME]
    elsewhere = Store(
        store.settings.model_copy(update={"home": tmp_path / "elsewhere", "tracking_uri": store.settings.store_uri})
    )
    elsewhere.entries_per_run = 3
    for count in range(7):
        promotion.promote(elsewhere, ref(count % 2 + 1), "production", actor="bob")
    assert Memory(store.settings).all()[NAME] == seen
    assert history.read(store, NAME, whole=False).text(seen.seq) == ""
    promotion.verdicts(store, ref(1), "production")
    newest = Memory(store.settings).all()[NAME]
    assert newest.seq == 10
    forged = seen.model_copy(update={"digest": "f" * 64})
    (store.settings.root / f"heads-{store.settings.which}.json").write_text(heads._written({NAME: forged}))
    with pytest.raises(HistoryCut, match="has another entry 3 than before"):
        promotion.verdicts(store, ref(1), "production")


def test_remembering_costs_a_promotion_two_calls_and_a_reading_none(moved: Store) -> None:
    client, store = moved.client, Store(moved.settings)
    store.client = counted = KilledAtCall(client)
    promotion.promote(store, ref(1), "production", actor="ann")
    assert len(counted.calls) == 11 + 2
    assert counted.calls[-2:] == ["set_registered_model_tag", "set_model_version_tag"]
    store.client = counted = KilledAtCall(client)
    history.read(store, NAME, whole=False, alias="production")
    assert counted.calls == ["get_model_version_by_alias", "get_run"]


@pytest.mark.parametrize("text", ["", "{", '{"support-bot": 1}'])
def test_a_memory_that_cannot_be_read_is_warned_of_and_ends_nothing(
    moved: Store, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = moved.settings.root / f"heads-{moved.settings.which}.json"
    path.write_text(text)
    assert promotion.promote(moved, ref(1), "production", actor="ann") is not None
    assert "no history is held against them" in caplog.text
    assert Memory(moved.settings).all()[NAME].seq == 4


def test_a_home_that_was_restored_elsewhere_remembers_nothing_of_the_one_before(moved: Store) -> None:
    elsewhere = moved.settings.model_copy(update={"home": moved.settings.root.with_name("restored")})
    moved.settings.root.rename(elsewhere.root)
    change_of = sqlite3.connect(elsewhere.root / "mlflow.db")
    with closing(change_of), change_of:
        for key in ("params", "registered_model_tags", "model_version_tags"):
            where = "key LIKE '00000003%'" if key == "params" else "key = 'loradock.head'"
            change_of.execute(f"DELETE FROM {key} WHERE {where}")  # noqa: S608 - ours
        change_of.execute("UPDATE registered_model_aliases SET version = 2 WHERE alias = 'production'")
    assert promotion.promote(Store(elsewhere), ref(1), "production", actor="ann") is not None
