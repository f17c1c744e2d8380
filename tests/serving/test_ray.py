"""Two replicas on a local Ray, behind Ray's own proxy: they follow the registry, and one of them is killed.

The application is that of `examples/ray/serve.yaml`, on a smaller base and with what this machine has.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from loradock.registry import promotion
from loradock.registry.base import resolve
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import make_version
from tests.support.clients import at_work
from tests.support.ports import free_port
from tests.support.serving.server import KEY
from tests.support.serving.shallow import SETTINGS, told

pytestmark = [pytest.mark.slow, pytest.mark.minutes]

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray" / "serve.yaml"
START_SECONDS, MOVE_SECONDS = 600, 120
# Ray's command, which a SIGINT ends also where the tests run in a shell's background, and children begin without it.
SERVE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ray.serve.scripts import cli; cli()"
)
ASKED = {"prompt": "The keeper", "max_tokens": 8, "temperature": 0}


class Cluster:
    """`serve run` with two replicas, each of which listens on a port of its own too."""

    def __init__(self, scratch: Path, base_dir: Path) -> None:
        self.home, self.log = scratch / "home", scratch / "ray.log"
        settings = Settings(home=self.home)
        self.store, base = Store(settings), resolve(str(base_dir), settings)
        self.versions = [
            make_version(self.store, scratch / f"bot-{seed}", "bot", base=base.base, scale=8.0, seed=seed)
            for seed in (1, 2)
        ]
        self.promote(1)
        port, own = free_port(), free_port(count=2)
        self.url = f"http://127.0.0.1:{port}"
        self.own = [f"http://127.0.0.1:{own + rank}" for rank in (0, 1)]
        whole = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
        whole["http_options"] = {"host": "127.0.0.1", "port": port}
        [application] = whole["applications"]
        del application["runtime_env"]
        application["args"] |= {"base": str(base_dir), "host": "127.0.0.1", "port": own}
        application["args"]["vllm"] = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16"]
        [deployment] = application["deployments"]
        deployment["ray_actor_options"] = {"num_cpus": 1}
        config = scratch / "serve.yaml"
        config.write_text(yaml.safe_dump(whole))
        ours = {
            "LORADOCK_HOME": str(self.home),
            "RAY_ADDRESS": "local",
            "RAY_process_group_cleanup_enabled": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",
        }
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, "run", config],
                env=os.environ | SETTINGS | ours,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )

    def promote(self, number: int) -> Version:
        version = self.versions[number - 1]
        promotion.promote(self.store, version.ref, "production", actor="tester")
        return version

    def get(self, url: str, path: str) -> Any:
        return httpx.get(url + path, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)

    def ask(self) -> httpx.Response:
        key = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.url}/v1/completions", json={"model": "bot", **ASKED}, headers=key, timeout=120)

    def until_all_answer(self, number: int, seconds: float) -> None:
        """Wait until both replicas answer with a version, each at its own port."""
        deadline = time.monotonic() + seconds
        while not all(self._answers(url, number) for url in self.own):
            assert self.process.poll() is None, self.text[-4000:]
            assert time.monotonic() < deadline, self.text[-4000:]
            time.sleep(0.1)

    def _answers(self, url: str, number: int) -> bool:
        with suppress(httpx.TransportError):
            found = self.get(url, "/loradock/status").json()
            return bool(found["ready"] and found["adapters"]["bot"]["version"] == f"bot/{number}")
        return False

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def started(self, what: str) -> list[psutil.Process]:
        """The processes of this Ray with such a command line."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("LORADOCK_HOME") == str(self.home)
                if ours and what in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def two_of_each(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """The replicas' processes and their engines', once all are seen: they are looked up one after the other."""
        deadline = time.monotonic() + MOVE_SECONDS
        while True:
            found = self.started("ray::ServeReplica"), self.started("EngineCore")
            if [len(each) for each in found] == [2, 2]:
                return found
            assert time.monotonic() < deadline, [process.cmdline() for process in self.started("")]
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=90)
        finally:
            for left in self.started(""):
                with suppress(psutil.Error):
                    left.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("ray"), shallow_dir)
    try:
        found.until_all_answer(1, START_SECONDS)
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize(("said", "why"), [("", "no keys are configured"), (", open=True", "no base model")])
def test_a_replica_without_keys_does_not_start_wherever_it_listens_unless_that_is_said(
    said: str, why: str, home: Path
) -> None:
    code = f"""
import asyncio
from loradock.serving.ray import Actor, Options
asyncio.run(Actor.__init__(object.__new__(Actor), Options(base="no such base"{said})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"RuntimeError: {why}" in done.stderr


class Load:
    """Clients that ask without a pause, and what they got."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.over = cluster, threading.Event()
        self.answers: list[tuple[int, str, str]] = []
        """Status, version and words of each."""

    def _ask(self, _number: int) -> None:
        while not self.over.is_set():
            try:
                answer = self.cluster.ask()
            except httpx.TransportError as error:
                self.answers.append((0, type(error).__name__, ""))
                continue
            whole = answer.json() if answer.status_code == 200 else {}
            words = whole["choices"][0]["text"] if whole else answer.text[:200]
            self.answers.append((answer.status_code, whole.get("model", ""), words))

    @contextmanager
    def running(self, clients: int = 4) -> Iterator[None]:
        with at_work(self._ask, clients, self.over):
            yield


def test_what_ray_serves_is_what_is_promoted_and_each_replica_says_so(cluster: Cluster) -> None:
    answer = cluster.ask()
    assert (answer.status_code, answer.json()["model"]) == (200, "bot/1")
    assert answer.headers["x-loradock-version"] == "bot/1"
    assert httpx.post(f"{cluster.url}/v1/completions", json={"model": "bot", **ASKED}).status_code == 401
    assert [(row["url"], row["error"], row["differs"]) for row in told(cluster.own)] == [
        (url, None, []) for url in cluster.own
    ]


def test_replicas_and_their_engines_come_after_nobody_on_the_machine(cluster: Cluster) -> None:
    actors, engines = cluster.two_of_each()
    assert [process.nice() for process in (*actors, *engines)] == [0] * 4
    assert "niceness" not in cluster.text


def test_a_replica_that_comes_after_all_others_says_so() -> None:
    code = "import os, logging; os.nice(15); from loradock.serving.ray import _tell_niceness; _tell_niceness()"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "niceness 15" in told
    assert "RAY_worker_niceness=0" in told


@pytest.mark.chance
def test_a_flip_under_load_fails_no_request_and_mixes_no_versions(cluster: Cluster) -> None:
    one = cluster.ask().json()["choices"][0]["text"]
    load = Load(cluster)
    with load.running():
        cluster.promote(2)
        cluster.until_all_answer(2, MOVE_SECONDS)
        deadline = time.monotonic() + MOVE_SECONDS
        while not any(version == "bot/2" for _, version, _ in [*load.answers]):  # the clients' own, on a busy machine
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert Counter(status for status, _, _ in load.answers) == {200: len(load.answers)}
    two = cluster.ask().json()["choices"][0]["text"]
    said = {(version, words) for _, version, words in load.answers}
    assert said == {("bot/1", one), ("bot/2", two)}
    assert one != two


@pytest.mark.chance
def test_a_replica_that_is_killed_is_replaced_and_nothing_of_it_is_left(cluster: Cluster) -> None:
    actors, _ = cluster.two_of_each()
    load = Load(cluster)
    with load.running(clients := 4):
        actors[0].kill()
        deadline = time.monotonic() + START_SECONDS
        while actors[0].is_running() or len(cluster.started("ray::ServeReplica")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        cluster.until_all_answer(2, START_SECONDS)
    failed = [answer for answer in load.answers if answer[0] != 200]
    assert len(failed) <= clients, failed  # what ran on it broke off
    assert {version for status, version, _ in load.answers if status == 200} == {"bot/2"}
    cluster.two_of_each()
    print(f"{len(load.answers)} answers, failed: {failed}")  # noqa: T201
