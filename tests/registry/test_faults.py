"""Faults, as the command shows them: one clear line, the exit code that fits, and nothing lost."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import history, promotion, refs, versions
from loradock.registry.errors import BadInput, NotFound, Refused, Unreachable
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import NAME, aliases, log_adapter, make_version, ref, write_adapter
from tests.support.mlflow_server import MLflowServer
from tests.support.shell import Done, loradock
from tests.support.web import running


def is_clear(done: Done, code: int, *words: str) -> None:
    """It ended with this code, said all these words in one line and perhaps a hint, and gave no data."""
    told = done.err.strip().splitlines()
    assert (done.exit_code, done.out) == (code, ""), done
    assert len(told) <= 2, done.err
    assert told[0].startswith("loradock: "), done.err
    assert told[1:] == [line for line in told[1:] if line.startswith("  -> ")]
    for word in words:
        assert word in done.err, done.err


@pytest.fixture
def two(store: Store, tmp_path: Path) -> Store:
    """A family of two versions, the second of them in production."""
    return filled(store, tmp_path)


def filled(store: Store, scratch: Path) -> Store:
    for number in (1, 2):
        make_version(store, scratch / str(number), seed=number)
        promotion.promote(store, ref(number), "production", actor="ann")
    return store


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            ".",
            "..",
            "a/b",
            "a:b",
            "a@b",
            "A",
            "a b",
            "a\n",
            "a\u00e9",
            "\U0001f600",
            "<b>",
            "-a",
            "_a",
            "m-1",
        ),
        *(
            "a..b",
            "text",
            "image",
            "a" * 64,
            "../../etc/passwd",
            "models:/a/1",
            "a%2fb",
            "a'b",
            'a"b',
            "a`b",
            "a\\b",
            "a\0b",
        ),
    ],
)
def test_a_name_that_mlflow_a_path_or_a_filter_could_take_otherwise_is_refused(name: str) -> None:
    for parse in (refs.parse_name, refs.parse_ref, lambda text: refs.parse_version(f"{text}/1")):
        if name == "a@b" and parse is refs.parse_ref:
            continue  # there it is an alias
        with pytest.raises(BadInput):
            parse(name)


@pytest.mark.parametrize("alias", ["", "latest", "v1", "V1", "a\n", "a b", "1a", "-a", "a_b", "a/b", "é", "a" * 32])
def test_an_alias_that_mlflow_keeps_for_itself_or_takes_otherwise_is_refused(alias: str) -> None:
    with pytest.raises(BadInput):
        refs.parse_alias(alias)


@pytest.mark.parametrize("number", ["", "0", "-1", "01", "1.0", "1e3", "one", " 1", "1\n", "9" * 10, "\u0661"])
def test_what_is_no_version_number_is_refused(number: str) -> None:
    with pytest.raises(BadInput):
        refs.parse_version(f"{NAME}/{number}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("promote", "Support Bot/1"), ("show", "a@latest"), ("promote", "a/1", "--alias", "v1")]
)
def test_an_illegal_name_ends_the_command_before_it_looks_for_a_store(words: tuple[str, ...], home: Path) -> None:
    is_clear(loradock(*words, MLFLOW_TRACKING_URI="http://127.0.0.1:9"), 2, "is not a")


@pytest.mark.slow
def test_a_full_disk_is_told_and_what_was_there_stays(two: Store, tmp_path: Path) -> None:
    run_id = log_adapter(two, write_adapter(tmp_path / "new", seed=9))
    before = history.read(two, NAME).moves
    is_clear(loradock("promote", f"{NAME}/1", limit=4096), 6, "disk is full", "free some space")
    half = (two.settings.root / "mlflow.db").stat().st_size // 2
    is_clear(loradock("register", run_id, "--name", NAME, limit=half), 6, "disk is full")
    assert history.read(two, NAME).moves == before
    assert aliases(two) == {"production": 2}
    assert loradock("promote", f"{NAME}/1").exit_code == 0
    assert loradock("register", run_id, "--name", NAME).exit_code == 0
    assert aliases(two) == {"production": 1}


@pytest.mark.slow
def test_a_store_that_may_only_be_read_can_be_looked_at_and_not_changed(
    two: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = settings.root / "mlflow.db"
    read_only = f"sqlite:///file:{database}?mode=ro&uri=true"
    looked = loradock("history", NAME, MLFLOW_TRACKING_URI=read_only)
    assert (looked.exit_code, looked.err) == (0, "")
    is_clear(loradock("promote", f"{NAME}/1", MLFLOW_TRACKING_URI=read_only), 6, "cannot be written")
    assert aliases(two) == {"production": 2}


@pytest.mark.slow
def test_a_version_of_another_store_is_not_found_and_the_store_is_named(
    two: Store, tmp_path: Path, empty_store: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(empty_store, other / "mlflow.db")
    for words in (("show", f"{NAME}/1"), ("promote", f"{NAME}/1"), ("rollback", NAME), ("history", NAME)):
        is_clear(loradock(*words, LORADOCK_HOME=str(other)), 5, NAME, str(other / "mlflow.db"))


@pytest.mark.slow
def test_a_database_of_something_else_is_refused_and_left_alone(home: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as shop:
        shop.execute("CREATE TABLE orders (id)")
        shop.commit()
        is_clear(loradock("list", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/shop.db"), 2, "not one of MLflow's")
        assert shop.execute("SELECT name FROM sqlite_master").fetchall() == [("orders",)]
    (tmp_path / "notes.db").write_text("no database at all " * 100)
    is_clear(loradock("list", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/notes.db"), 6, "no SQLite database")
    is_clear(loradock("list", MLFLOW_TRACKING_URI="htp://host"), 2, "no MLflow store")
    is_clear(loradock("list", MLFLOW_TRACKING_URI=str(tmp_path)), 2, "no MLflow store")


class NotMLflowHandler(BaseHTTPRequestHandler):
    """A web server that is no MLflow."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    do_POST = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Starts it with a status, and gives its address with a password in it."""
    with running(ThreadingHTTPServer(("127.0.0.1", 0), NotMLflowHandler)) as server:

        def answering(status: int) -> str:
            monkeypatch.setattr(NotMLflowHandler, "status", status)
            return f"http://ann:secret@127.0.0.1:{server.server_port}"

        yield answering


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "told"),
    [
        *((200, "is not MLflow"), (302, "is not MLflow"), (404, "is not MLflow")),
        *((401, "MLFLOW_TRACKING_USERNAME"), (403, "it denies you this"), (500, "with errors"), (503, "with errors")),
    ],
)
def test_what_answers_in_mlflows_place_is_told_without_the_password(
    web: Callable[[int], str], home: Path, status: int, told: str
) -> None:
    done = loradock("promote", f"{NAME}/1", MLFLOW_TRACKING_URI=web(status))
    is_clear(done, 6, told, "//***@127.0.0.1")
    assert "secret" not in done.err


@pytest.mark.slow
def test_a_server_that_does_not_know_its_name_is_told_with_the_option_that_gives_it(
    server: MLflowServer, home: Path
) -> None:
    elsewhere = server.uri.replace("127.0.0.1", "0x7f000001")  # the same address, as MLflow's guard sees another host
    done = loradock("list", MLFLOW_TRACKING_URI=elsewhere)
    is_clear(done, 6, "it rejects this host name", "--allowed-hosts")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long this process sleeps each time, in seconds."""
    found: list[float] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        found.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noted)
    return found


@pytest.mark.slow
def test_a_database_that_is_not_there_is_told_within_seconds(home: Path, waits: list[float]) -> None:
    uri = "postgresql://ann:secret@127.0.0.1:9/mlflow"
    is_clear(loradock("list", MLFLOW_TRACKING_URI=uri), 6, "//***@127.0.0.1:9/mlflow", "refused")
    with pytest.raises(Unreachable):
        Store(Settings(tracking_uri=uri)).families()
    assert 0 < sum(waits) < 3


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_is_told_and_the_command_again_succeeds(
    remote: Store, server: MLflowServer, tmp_path: Path, waits: list[float]
) -> None:
    filled(remote, tmp_path)
    run_id = log_adapter(remote, write_adapter(tmp_path / "new", seed=9))
    for act in (
        lambda store: promotion.promote(store, ref(1), "production", actor="ann"),
        lambda store: versions.register(store, run_id, NAME),
    ):
        store = Store(remote.settings)
        store.client = ServerKillingClient(store.client, server, 4)  # type: ignore[assignment]
        waits.clear()
        with pytest.raises(Unreachable, match="refused"):
            act(store)
        assert 0 < sum(waits) < 10
        server.start()
        act(remote)
        assert history.read(remote, NAME).drifts == ()
    assert aliases(remote) == {"production": 1}
    assert [version.ref.number for version in remote.versions(NAME)] == [1, 2, 3]
    written = [move.to_version for move in history.read(remote, NAME).moves]
    assert written == [1, 2, 1]  # the move was made before the server died, and is not made twice


class ServerKillingClient:
    """An MLflow client whose server is killed before its n-th call."""

    def __init__(self, client: Any, server: MLflowServer, call: int) -> None:
        self._client, self._server, self._left = client, server, call

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def watched(*args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                self._server.kill()
            return call(*args, **options)

        return watched


@pytest.mark.slow
def test_a_version_that_was_deleted_in_mlflow_while_in_production_is_rolled_back_from(two: Store) -> None:
    two.client.delete_model_version(NAME, "2")
    for words in (("show", NAME), ("verify", NAME)):
        is_clear(loradock(*words), 5, "stood at version 2", "was deleted there", f"loradock rollback {NAME}")
    is_clear(loradock("promote", f"{NAME}/2"), 5, f"{NAME}/2")
    past = loradock("history", NAME)
    assert (past.exit_code, past.out.count("promote")) == (0, 2)
    assert "warning" in past.err
    assert loradock("rollback", NAME).exit_code == 0
    assert aliases(two) == {"production": 1}
    assert loradock("history", NAME).err == ""


@pytest.mark.slow
def test_a_promoter_that_died_before_its_version_was_deleted_does_not_bar_another_alias(
    two: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dying:
        dying.setattr(two, "set_alias", lambda *move: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            promotion.promote(two, ref(2), "canary", actor="ann")
    two.client.delete_model_version(NAME, "2")
    promotion.promote(two, ref(1), "production", actor="bob")
    promotion.promote(two, ref(1), "canary", actor="bob")
    assert aliases(two) == {"production": 1, "canary": 1}


def test_a_history_whose_run_was_deleted_in_mlflow_says_how_it_comes_back(two: Store) -> None:
    ledger = two.family(NAME).ledger
    two.client.delete_run(ledger)
    with pytest.raises(Refused, match="deleted in MLflow") as caught:
        promotion.promote(two, ref(1), "production", actor="bob")
    assert ledger in caught.value.hint
    two.client.restore_run(ledger)
    promotion.promote(two, ref(1), "production", actor="bob")
    assert [move.actor for move in history.read(two, NAME).moves] == ["ann", "ann", "bob"]


@pytest.mark.slow
def test_an_adapter_whose_files_are_gone_is_told_by_verify_and_passed_over_by_rollback(
    two: Store, tmp_path: Path
) -> None:
    make_version(two, tmp_path / "3", seed=3)
    promotion.promote(two, ref(3), "production", actor="ann")
    source = two.version(ref(2)).source.removeprefix("models:/")
    shutil.rmtree(two.client.get_logged_model(source).artifact_location.removeprefix("file://"))
    is_clear(loradock("verify", f"{NAME}/2"), 3, "manifest.json is missing", "backup")
    done = loradock("rollback", NAME)
    assert done.exit_code == 0
    assert "passed over" in done.err
    assert aliases(two) == {"production": 1}


def test_a_family_that_was_deleted_in_mlflow_is_not_found(two: Store) -> None:
    two.client.delete_registered_model(NAME)
    for look in (
        lambda: promotion.resolve(two, refs.parse_ref(NAME)),
        lambda: promotion.promote(two, ref(1), "production", actor="ann"),
        lambda: promotion.rollback(two, NAME, "production", actor="ann"),
        lambda: history.read(two, NAME),
    ):
        with pytest.raises(NotFound, match=NAME):
            look()
    assert two.families() == ()
