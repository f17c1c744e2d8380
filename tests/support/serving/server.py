"""`loradock serve` as a process of its own, on a real registry and a real model, for the tests that ask it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from loradock.registry import promotion
from loradock.registry.base import LocalBase
from loradock.registry.records import Version
from loradock.registry.store import Store
from tests.support import warm
from tests.support.adapters import SMOL, make_version
from tests.support.clients import at_work
from tests.support.ports import free_port
from tests.support.serving import exact

KEY = "a-key-for-tests"
PROMPT = "The keeper of the lighthouse wrote in his diary:"
START_SECONDS = 600
MOVE_SECONDS = 120
QUICK = {
    "LORADOCK_SERVE_POLL_SECONDS": "0.2",
    "LORADOCK_SERVE_DRAIN_SECONDS": "1",
    "LORADOCK_SERVE_PINNED": "1",
    "LORADOCK_SERVE_PROOF": "effect",  # test_parity has the whole proof
    "LORADOCK_SERVE_RETRY_SECONDS": "300",
}


@dataclass
class Asked:
    """What clients were told who asked without pause."""

    answers: list[tuple[str, str, str]] = field(default_factory=list)
    """Each the name that was asked, which model answered, and what."""
    failures: list[Exception] = field(default_factory=list)


@dataclass
class Server:
    """A running `loradock serve`."""

    url: str
    home: Path
    log: Path
    process: subprocess.Popen[bytes]
    base: LocalBase
    store: Store
    scratch: Path
    made: int = 0

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str, key: str = KEY) -> tuple[int, Any]:
        return self.ask("GET", path, key=key)

    def ask(self, method: str, path: str, body: Any = None, key: str = KEY, *, api_key: str = "") -> tuple[int, Any]:
        """`key` goes as a bearer's, `api_key` as Anthropic's clients send it."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        headers |= {"x-api-key": api_key} if api_key else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                text = answer.read()
                return answer.status, json.loads(text) if text.startswith(b"{") else text
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            return error.code, json.loads(text) if text.startswith(b"{") else text

    def names(self) -> list[str]:
        return [card.id for card in self.client.models.list()]

    def status(self) -> Any:
        return self.get("/loradock/status")[1]

    def complete(self, model: str, tokens: int = 12) -> tuple[str, str]:
        """Which model answered, and what."""
        answer = self.client.completions.create(model=model, prompt=PROMPT, max_tokens=tokens, temperature=0)
        return answer.model, answer.choices[0].text

    @contextmanager
    def under_load(self, *models: str) -> Iterator[Asked]:
        """A client for each of these names, for as long as this lasts."""
        asked, stop = Asked(), threading.Event()

        def client(number: int) -> None:
            while not stop.is_set():
                try:
                    asked.answers.append((models[number], *self.complete(models[number])))
                except Exception as error:  # noqa: BLE001 - any failure is the finding
                    asked.failures.append(error)

        with at_work(client, len(models), stop):
            yield asked

    def until_more(self, asked: Asked, count: int) -> None:
        """Wait for so many more answers, or a failure."""
        enough = len(asked.answers) + count
        self.until(lambda _: len(asked.answers) >= enough or asked.failures)

    def make(self, name: str, *, other_base: bool = False, **kind: Any) -> Version:
        self.made += 1
        base = SMOL if other_base else self.base.base
        kind = {"scale": 8.0, "seed": self.made} | kind
        return make_version(self.store, self.scratch / str(self.made), name, base=base, **kind)

    def promote(self, version: Version, **how: Any) -> Version:
        promotion.promote(self.store, version.ref, "production", actor="tester", **how)
        return version

    def until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self.text[-4000:]
            assert time.monotonic() < deadline, self.text[-4000:]
            with suppress(OSError):
                self.get("/loradock/ready")
                return
            time.sleep(0.2)

    def until(self, true: Callable[[Any], Any], seconds: float = MOVE_SECONDS) -> Any:
        """Poll the status until something is true of it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.text[-4000:]
            if true(status := self.status()):
                return status
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {self.status()}")

    def until_answered_by(self, version: Version) -> Any:
        name = version.ref.name
        return self.until(lambda status: status["adapters"].get(name, {}).get("version") == str(version.ref))


@contextmanager
def serving(
    home: Path, base: LocalBase, store: Store, scratch: Path, *options: str, settings: Mapping[str, str] = QUICK
) -> Iterator[Server]:
    """A running one, given such options of vLLM beside those for exact answers; it may not be ready yet."""
    port, log = free_port(), scratch / f"serve-{time.time_ns()}.log"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "LORADOCK_HOME": str(home),
        **settings,
        "VLLM_API_KEY": KEY,
        **exact.ENVIRON,
        **exact.WITHIN,
    }
    command = [warm.LORADOCK, "serve", "--base", base.base.id, "--port", str(port), "--"]
    command += ["--max-model-len", "512", *exact.OPTIONS, *options]
    with log.open("wb") as sink:
        process = warm.Popen(command, kind="serving", env=environ, stdout=sink, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", home, log, process, base, store, scratch)
    try:
        server.until_ready()
        yield server
        assert process.poll() is None, server.text[-4000:]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, server.text[-4000:]
    finally:
        process.terminate()  # killed, it would leave vLLM's engine behind
        process.wait()
