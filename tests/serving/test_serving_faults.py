"""Whatever goes wrong with one adapter, its files, the registry or a client: the others are answered.

One real server, and a real MLflow server behind a proxy that does what a test tells it to; adapters of its own for each
test. docs/faults.md has a row for each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from loradock.registry import promotion
from loradock.registry.artifact import WEIGHTS, verify
from loradock.registry.base import resolve
from loradock.registry.check import shapes_of_config
from loradock.registry.errors import LoradockError
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Family, Store
from loradock.serving.cache import Cache
from loradock.serving.desired import Source
from tests.support.adapters import BASE_CONFIG, make_version
from tests.support.mlflow_server import MLflowServer
from tests.support.serving.faulty_proxy import SEARCH, VERSION, FaultyProxy, proxy
from tests.support.serving.shallow import Shallow, shallow, whole

slow = pytest.mark.slow


@dataclass
class FaultsHarness:
    server: Shallow
    registry: FaultyProxy
    artifacts: Path
    """Of the MLflow server."""

    def cached(self, version: Version) -> Path:
        return self.server.home / "adapters" / version.facts.digest

    def bot(self, name: str) -> tuple[Version, Version]:
        """Two versions of an adapter, the first of which answers."""
        one, two = self.server.make(name), self.server.make(name)
        self.server.until_answered_by(self.server.promote(one))
        return one, two

    def quarantined(self, version: Version) -> str:
        """Wait until it is, and return why."""
        found = self.server.until(lambda status: str(version.ref) in status["quarantined"])
        return str(found["quarantined"][str(version.ref)]["reason"])

    def stored(self, version: Version) -> Path:
        """Its weights in the MLflow server's own files."""
        model = version.source.removeprefix("models:/")
        return next(path for path in self.artifacts.rglob(WEIGHTS) if model in path.parts)

    @contextmanager
    def others_are_answered(self) -> Iterator[None]:
        """Ask another adapter for as long as this lasts, and at least three times."""
        stop, answers, failures = threading.Event(), [], []

        def ask() -> None:
            while not stop.is_set() or len(answers) < 3:
                try:
                    answers.append(self.server.complete("first", 2)[0])
                except Exception as error:  # noqa: BLE001 - any failure is the finding
                    failures.append(error)
                    return

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=120)
        assert failures == []
        assert set(answers) == {"first/1"}
        assert self.server.process.poll() is None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path) -> Iterator[FaultsHarness]:
    scratch = tmp_path_factory.mktemp("faults")
    home = scratch / "home"
    with ExitStack() as stack:
        mlflow = MLflowServer(f"sqlite:///{scratch / 'mlflow.db'}", scratch)
        stack.callback(mlflow.kill)
        mlflow.start()
        settings = Settings(home=home, tracking_uri=mlflow.uri)
        store, base = Store(settings), resolve(str(shallow_dir), settings)
        version = make_version(store, scratch / "first", "first", base=base.base, scale=8.0, seed=1000)
        promotion.promote(store, version.ref, "production", actor="tester")
        registry = stack.enter_context(proxy(mlflow.uri))
        stack.enter_context(small_disk(home / "adapters"))
        environ = {"MLFLOW_TRACKING_URI": registry.url, "LORADOCK_SERVE_RETRY_SECONDS": "0.5"}
        environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # with a worker of its own, as users have it on a CPU
        server = stack.enter_context(shallow(home, base, store, scratch, environ))
        yield FaultsHarness(server, registry, scratch / "artifacts")


@contextmanager
def small_disk(at: Path) -> Iterator[bool]:
    """A disk of 8 MB, where this user may mount one; else a directory."""
    at.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(at)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(at)], check=True)


@pytest.fixture
def harness(running: FaultsHarness) -> Iterator[FaultsHarness]:
    with running.others_are_answered():
        yield running
    running.registry.honest()


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """A disk without a free byte; skips where the directory has none of its own."""
    if not directory.is_mount():
        pytest.skip("a small disk can be mounted by root only")
    filler = directory / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(directory).free == 0
    try:
        yield
    finally:
        filler.unlink()


@slow
@pytest.mark.parametrize("damage", ["deleted", "changed"])
def test_files_that_are_deleted_or_changed_in_use_harm_no_request_and_are_fetched_again(
    damage: str, harness: FaultsHarness
) -> None:
    server = harness.server
    one, two = harness.bot(damage)
    said = server.complete(damage)
    with server.stream(damage, 200) as events:
        first = json.loads(next(events))
        harness.cached(one).chmod(0o755)
        if damage == "deleted":
            shutil.rmtree(harness.cached(one))
        else:
            (harness.cached(one) / WEIGHTS).chmod(0o644)
            (harness.cached(one) / WEIGHTS).write_bytes(b"nothing of use")
        rest = [*events]
    assert (first["model"], whole(rest)) == (f"{damage}/1", 200)
    assert server.complete(damage) == said
    server.until_answered_by(server.promote(two))
    server.until(lambda status: f"{damage}/1" not in status["resident"])
    server.until_answered_by(server.promote(one))
    assert server.complete(damage) == said
    verify(harness.cached(one), one.facts.digest, what="the copy that was fetched again")


@slow
def test_a_full_disk_holds_a_version_back_until_there_is_room(harness: FaultsHarness) -> None:
    one, two = harness.bot("roomy")
    with full(harness.server.home / "adapters"):
        harness.server.promote(two)
        assert "no space left" in harness.quarantined(two)
        assert harness.server.complete("roomy")[0] == str(one.ref)
    harness.server.until_answered_by(two)


@slow
def test_other_bytes_in_the_store_take_no_traffic(harness: FaultsHarness) -> None:
    one, two = harness.bot("spoilt")
    stored = harness.stored(two)
    good = stored.read_bytes()
    stored.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    harness.server.promote(two)
    assert "does not hold the bytes that were registered" in harness.quarantined(two)
    assert harness.server.complete("spoilt")[0] == str(one.ref)
    stored.write_bytes(good)
    harness.server.until_answered_by(two)


@slow
def test_a_slow_registry_holds_up_moves_and_no_request(harness: FaultsHarness) -> None:
    _, two = harness.bot("patient")
    harness.registry.delay = 1.5
    harness.server.promote(two)
    harness.server.until(lambda status: status["registry"]["staleness_seconds"] > 1)
    assert harness.server.status()["registry"]["reachable"]
    harness.server.until_answered_by(two)


@slow
@pytest.mark.parametrize("answer", [b"<html>", b"{}", b'{"registered_models": "x"}', b'[{"name": 1}]', None])
def test_a_registry_that_is_gone_or_talks_nonsense_changes_nothing(
    answer: bytes | None, harness: FaultsHarness
) -> None:
    name = f"calm-{len(answer or b'')}"
    one, two = harness.bot(name)
    if answer is None:
        harness.registry.gone = True
    else:
        harness.registry.change = lambda path, body: answer if SEARCH in path else body
    harness.server.promote(two)
    harness.server.until(lambda status: not status["registry"]["reachable"])
    assert harness.server.complete(name)[0] == str(one.ref)
    harness.registry.honest()
    harness.server.until_answered_by(two)
    assert harness.server.status()["registry"]["reachable"]


@slow
def test_an_adapter_that_is_missing_from_the_registrys_answer_stays(harness: FaultsHarness) -> None:
    one, two = harness.bot("missing")
    _, other = harness.bot("moving")

    def fewer(answer: Any) -> Any:
        kept = [model for model in answer["registered_models"] if model["name"] != "missing"]
        return answer | {"registered_models": kept}

    harness.registry.changed(SEARCH, fewer)
    harness.server.promote(two)
    harness.server.until_answered_by(harness.server.promote(other))  # what is read meanwhile is followed
    assert harness.server.complete("missing")[0] == str(one.ref)
    harness.registry.honest()
    harness.server.until_answered_by(two)


@slow
def test_a_digest_that_the_registry_makes_up_takes_no_traffic(harness: FaultsHarness) -> None:
    one, two = harness.bot("forged")

    def forged(answer: Any) -> Any:
        tags = answer["model_version"]["tags"]
        changed = [tag | {"value": "0" * 64} if tag["key"] == "loradock.digest" else tag for tag in tags]
        assert changed != tags
        return {"model_version": answer["model_version"] | {"tags": changed}}

    harness.registry.changed(VERSION, forged)
    harness.server.promote(two)
    assert "does not hold the bytes that were registered" in harness.quarantined(two)
    assert harness.server.complete("forged")[0] == str(one.ref)
    assert not (harness.server.home / "adapters" / ("0" * 64)).exists()
    harness.registry.honest()
    harness.server.until_answered_by(two)


@slow
def test_an_adapter_that_is_called_as_the_base_is_refused(harness: FaultsHarness) -> None:
    name = harness.server.base.name
    said = harness.server.complete(name)
    version = harness.server.promote(harness.server.make(name))
    status = harness.server.until(lambda found: name in found["refused"])
    assert "the base model itself" in status["refused"][name]["reason"]
    assert harness.server.complete(name) == said
    assert str(version.ref) not in harness.server.status()["resident"]


@slow
def test_clients_that_hang_up_leave_nothing_behind(harness: FaultsHarness) -> None:
    server = harness.server
    one, two = harness.bot("abandoned")
    with ExitStack() as stack:
        for _ in range(4):
            next(stack.enter_context(server.stream("abandoned", 240, choices=8)))  # twice what runs at once
    aborted = 'loradock_requests_total{adapter="abandoned",outcome="aborted",role="production",version="1"}'
    server.until(lambda _: aborted in server.get("/metrics", key="")[1].decode())
    server.until(lambda status: status["resident"]["abandoned/1"] == 0)
    server.until_answered_by(server.promote(two))
    server.until(lambda status: str(one.ref) not in status["resident"])
    with pytest.raises(openai.NotFoundError):
        server.complete(str(one.ref))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk"):
        yield tmp_path / "disk"


def test_a_full_disk_leaves_nothing_half_done(store: Store, tmp_path: Path, disk: Path) -> None:
    version = make_version(store, tmp_path / "adapter")

    def download(item: Version, into: Path) -> None:
        store.download(item.source, into, what=str(item.ref))

    cache = Cache(disk, download, base=shapes_of_config(BASE_CONFIG), max_rank=16)
    with full(disk), pytest.raises(LoradockError, match=r"no space left in .* for support-bot/1"):
        cache.directory(version)
    assert not [path for path in disk.iterdir() if path.name not in (".locks", ".used")]
    assert cache.directory(version).path.is_dir()


def test_a_full_disk_gets_room_from_what_nobody_asks_for(store: Store, tmp_path: Path, disk: Path) -> None:
    old, new = (make_version(store, tmp_path / name, name, seed=seed) for seed, name in enumerate(("old", "new")))

    def download(item: Version, into: Path) -> None:
        store.download(item.source, into, what=str(item.ref))

    cache = Cache(disk, download, base=shapes_of_config(BASE_CONFIG), max_rank=16)
    cache.directory(old)
    with full(disk):
        with pytest.raises(LoradockError, match="no space left"):
            cache.directory(new)
        os.utime(disk / ".used" / old.facts.digest, (0, 0))
        with pytest.raises(LoradockError, match="no space left"):
            cache.directory(new, {old.facts.digest})
        assert cache.directory(new).path.is_dir()
        assert not (disk / old.facts.digest).exists()


class ForgetfulStore(Store):
    """Leaves families out of its answers."""

    forgets: str = ""

    def families(self) -> tuple[Family, ...]:
        return tuple(family for family in super().families() if family.name != self.forgets)


def test_a_family_that_is_missing_stays_as_it_was_and_one_whose_alias_goes_does_not(
    store: Store, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bot", "cat"):
        version = make_version(store, tmp_path / name, name)
        promotion.promote(store, version.ref, "production", actor="tester")
    forgetful = ForgetfulStore(settings)
    source = Source(settings, connect=lambda _: forgetful)
    honest = source.read().promoted
    forgetful.forgets = "cat"
    assert [source.read().promoted for _ in range(2)] == [honest] * 2
    assert Source(settings, connect=lambda _: forgetful).read().promoted == honest, "after a restart, too"
    assert caplog.text.count("cat is missing from what") == 2, "said once, and once after the restart"
    forgetful.forgets = ""
    store.client.delete_registered_model_alias("cat", "production")
    assert source.read().promoted.versions.keys() == {"bot"}
