"""Processes that die, answers that get lost, disks that fill while a version is made: there is one version in the end.

They are forked from a process that has imported MLflow, which takes seconds, but has opened no store.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

import pytest
import requests

from loradock.registry import versions
from loradock.registry.artifact import WEIGHTS
from loradock.registry.base import LocalBase
from loradock.registry.errors import DigestMismatch, LoradockError, Unreachable
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import log_adapter, write_adapter
from tests.support.mlflow_server import MLflowServer
from tests.support.web import running

pytestmark = pytest.mark.slow

LONGEST = 120.0  # seconds
NAME = "support-bot"
Work = Callable[[Store], Version]


def registering(run_id: str, name: str, store: Store) -> Version:
    return versions.register(store, run_id, name)


def importing(directory: Path, base: LocalBase, name: str, store: Store) -> Version:
    return versions.import_directory(store, directory, base, name)


class DyingClient:
    """An MLflow client that counts its calls; its process dies just after the n-th."""

    def __init__(self, client: Any, dies_after: int | None) -> None:
        self._client, self._dies_after, self.calls = client, dies_after, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def counted(*args: Any, **options: Any) -> Any:
            result = call(*args, **options)
            self.calls += 1
            if self.calls == self._dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted


def _child(
    settings: Settings, work: tuple[Any, ...], out: Connection, dies_after: int | None, start: Barrier | None
) -> None:
    store = Store(settings)
    store.families()  # the first call makes the connection
    client = DyingClient(store.client, dies_after)
    store.client = client  # type: ignore[assignment]
    if start:
        start.wait(LONGEST)
    function, *given = work
    out.send((function(*given, store).ref.number, client.calls))


class ChildProcess:
    """A process of its own that registers or imports."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "mlflow.store.tracking.sqlalchemy_store",
            "mlflow.store.model_registry.sqlalchemy_store",
            "mlflow.store.artifact.local_artifact_repo",
            "mlflow.tracking.client",
            __name__,
        ]
    )

    def __init__(
        self, settings: Settings, *work: Any, dies_after: int | None = None, start: Barrier | None = None
    ) -> None:
        self.answers, out = self.context.Pipe(duplex=False)
        self.process = self.context.Process(target=_child, args=(settings, work, out, dies_after, start))
        self.process.start()
        out.close()

    def finish(self) -> tuple[int, int] | None:
        """The version's number and the calls that it took; None when it was killed."""
        answer: tuple[int, int] | None = None
        with suppress(EOFError):
            assert self.answers.poll(LONGEST)
            answer = self.answers.recv()
        self.process.join(LONGEST)
        assert self.process.exitcode == (0 if answer else -signal.SIGKILL)
        return answer


def made(store: Store, name: str) -> list[int]:
    """Every version in MLflow, seen or not."""
    return [int(item.version) for item in store.client.search_model_versions(f"name = '{name}'")]


def holds(store: Store, version: Version) -> bool:
    versions.verify(store, version)
    return version == store.version(version.ref) == store.find_version(version.ref.name, version.facts.digest)


def killed_at_every_call(store: Store, work: Callable[[str], tuple[Any, ...]]) -> int:
    """Kill it after each call to MLflow and do it again, until it is through before; returns after how many."""
    for call in count(1):
        name = f"{NAME}-{call}"
        function, *given = work(name)
        if ChildProcess(store.settings, function, *given, dies_after=call).finish():
            return call - 1
        seen = store.versions(name)
        assert all(holds(store, version) for version in seen)
        version = function(*given, store)
        assert version.ref.number == 1
        assert holds(store, version)
        assert seen in ((), (version,))
        assert made(store, name) == [1]
    raise AssertionError


def test_a_registration_that_is_killed_at_any_call_is_done_again(store: Store, tmp_path: Path) -> None:
    run_id = log_adapter(store, write_adapter(tmp_path / "a"))
    assert killed_at_every_call(store, lambda name: (registering, run_id, name)) > 10


def test_an_import_that_is_killed_at_any_call_is_done_again(store: Store, base: LocalBase, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a", layers=1)
    assert killed_at_every_call(store, lambda name: (importing, directory, base, name)) > 20


@pytest.mark.chance
@pytest.mark.parametrize("dying", [False, True])
def test_processes_that_register_the_same_bytes_at_once_get_the_same_version(
    store: Store, tmp_path: Path, dying: bool
) -> None:
    runs = [log_adapter(store, write_adapter(tmp_path / str(number))) for number in range(2)]
    start = ChildProcess.context.Barrier(8)
    ends = (None, 4, 5, 6, 7, 8, 9, None) if dying else (None,) * 8
    children = [
        ChildProcess(store.settings, registering, runs[number % 2], NAME, dies_after=end, start=start)
        for number, end in enumerate(ends)
    ]
    seen = set()
    while any(child.process.is_alive() and not child.answers.poll() for child in children):
        seen.add(tuple(version.ref.number for version in store.versions(NAME)))
    answers = [child.finish() for child in children]
    assert answers.count(None) >= 4 * dying  # who comes late makes fewer calls, and lives
    (number,) = {answer[0] for answer in answers if answer}
    assert seen <= {(), (number,)}
    version = versions.register(store, runs[1], NAME)
    assert (version.ref.number, made(store, NAME)) == (number, [number])
    assert holds(store, version)


class DeafClient:
    """An MLflow client that does one thing and loses the answer, so often."""

    def __init__(self, client: Any, call: str, times: int) -> None:
        self._client, self._call, self._times = client, call, times

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def heard(*args: Any, **options: Any) -> Any:
            result = call(*args, **options)
            if name == self._call and self._times:
                self._times -= 1
                raise requests.ConnectionError("the answer was lost")
            return result

        return heard


@pytest.mark.parametrize(
    "call", ["create_registered_model", "create_model_version", "set_model_version_tag", "delete_model_version"]
)
def test_an_answer_that_was_lost_and_the_call_done_again(store: Store, tmp_path: Path, call: str) -> None:
    run_id = log_adapter(store, write_adapter(tmp_path / "a"))
    store.client = DeafClient(store.client, call, times=1)  # type: ignore[assignment]
    with suppress(Unreachable):
        versions.register(store, run_id, NAME)
    version = versions.register(store, run_id, NAME)
    assert (version.ref.number, made(store, NAME)) == (1, [1])
    assert holds(store, version)


class LossyProxy(ThreadingTCPServer):
    """A way to a server on which the answers to requests with certain words get lost, so often."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, words: bytes, times: int) -> None:
        super().__init__(("127.0.0.1", 0), _LossyHandler)
        self.port, self.words, self.times = port, words, times
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"


class _LossyHandler(BaseRequestHandler):
    server: LossyProxy
    request: socket.socket
    drop = False

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as server:
            answers = Thread(target=self.answer, args=(server,), daemon=True)
            answers.start()
            with suppress(OSError):
                while data := self.request.recv(65536):
                    if self.server.words in data and self.server.times:
                        self.server.times -= 1
                        self.drop = True
                    server.sendall(data)
                server.shutdown(socket.SHUT_WR)
            answers.join(LONGEST)

    def answer(self, server: socket.socket) -> None:
        with suppress(OSError):
            while (data := server.recv(65536)) and not self.drop:
                self.request.sendall(data)
            self.request.shutdown(socket.SHUT_RDWR)


@contextmanager
def lossy(server: MLflowServer, words: bytes, times: int) -> Iterator[LossyProxy]:
    with running(LossyProxy(server.port, words, times)) as found:
        yield found


@pytest.mark.parametrize("times", [1, 99], ids=["once", "until it gives up"])
def test_the_answer_of_a_real_server_that_was_lost(
    remote: Store, server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    run_id = log_adapter(remote, write_adapter(tmp_path / "a"))
    with lossy(server, b"model-versions/create", times) as way:
        far = Store(Settings(tracking_uri=way.uri))
        if times == 1:  # MLflow's client asks again by itself
            assert versions.register(far, run_id, NAME).ref.number == 1
        else:
            with pytest.raises(Unreachable):
                versions.register(far, run_id, NAME)
            assert remote.versions(NAME) == ()
            assert len(made(remote, NAME)) > 1
        assert way.times == times - (1 if times == 1 else len(made(remote, NAME)))
    version = versions.register(remote, run_id, NAME)
    assert (version.ref.number, made(remote, NAME)) == (1, [1])
    assert holds(remote, version)


@pytest.mark.chance
def test_processes_that_register_the_same_bytes_on_a_real_server_at_once(remote: Store, tmp_path: Path) -> None:
    run_id = log_adapter(remote, write_adapter(tmp_path / "a"))
    start = ChildProcess.context.Barrier(8)
    children = [ChildProcess(remote.settings, registering, run_id, NAME, start=start) for _ in range(8)]
    answers = {answer[0] for child in children if (answer := child.finish())}
    assert len(answers) == 1
    assert made(remote, NAME) == list(answers)


def test_a_version_in_the_making_whose_bytes_were_damaged_gives_way(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    first, second = (log_adapter(store, write_adapter(tmp_path / word)) for word in "ab")
    store.client = DeafClient(store.client, "create_model_version", times=1)  # type: ignore[assignment]
    with pytest.raises(Unreachable):
        versions.register(store, first, NAME)
    source, _ = store.adapter_of(first)
    (weights,) = settings.artifacts.rglob(f"{source.removeprefix('models:/')}/**/{WEIGHTS}")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    version = versions.register(store, second, NAME)
    assert (version.ref.number, made(store, NAME)) == (2, [2])
    assert holds(store, version)
    with pytest.raises(DigestMismatch):
        versions.register(store, first, NAME)


def test_bytes_that_a_clean_up_deletes_become_no_version(store: Store, tmp_path: Path) -> None:
    run_id = log_adapter(store, write_adapter(tmp_path / "a"))
    source, _ = store.adapter_of(run_id)
    store.client.set_logged_model_tags(source.removeprefix("models:/"), {"loradock.condemned": "yes"})
    with pytest.raises(LoradockError, match="a clean-up deletes them"):
        versions.register(store, run_id, NAME)
    assert made(store, NAME) == []


def _in_little_room(temporary: Path, settings: Settings, work: tuple[Any, ...], limit: int, out: Connection) -> None:
    tempfile.tempdir = str(temporary)
    store = Store(settings)
    store.families()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    function, *given = work
    try:
        function(*given, store)
    except LoradockError as error:
        out.send((type(error).__name__, str(error), error.hint))


@pytest.mark.parametrize("verb", ["register", "import"])
def test_a_full_disk_is_one_line_and_leaves_nothing(store: Store, base: LocalBase, tmp_path: Path, verb: str) -> None:
    directory, temporary = write_adapter(tmp_path / "a", rank=64, layers=10), tmp_path / "temporary"
    temporary.mkdir()
    run_id = log_adapter(store, directory, rank=64)
    work: Mapping[str, tuple[Any, ...]] = {
        "register": (registering, run_id, NAME),
        "import": (importing, directory, base, NAME),
    }
    limit = 4 << 20
    assert (directory / WEIGHTS).stat().st_size > limit > (store.settings.root / "mlflow.db").stat().st_size
    answers, out = ChildProcess.context.Pipe(duplex=False)
    process = ChildProcess.context.Process(
        target=_in_little_room, args=(temporary, store.settings, work[verb], limit, out)
    )
    process.start()
    out.close()
    told = answers.recv()
    process.join(LONGEST)
    assert told[:2] == ("LoradockError", f"there is no room left in {temporary}")
    assert "TMPDIR" in told[2]
    assert list(temporary.iterdir()) == []
    assert store.find_family(NAME) is None
    shutil.rmtree(temporary)
    function, *given = work[verb]
    assert holds(store, function(*given, store))
