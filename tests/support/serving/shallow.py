"""`loradock serve` on the lowest two layers of the small base: it starts sooner, and what it says is nonsense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from loradock.registry.base import LocalBase
from loradock.registry.store import Store
from tests.support import warm
from tests.support.ports import free_port
from tests.support.serving import exact
from tests.support.serving.server import KEY, Server

SETTINGS = {
    "LORADOCK_SERVE_POLL_SECONDS": "0.2",
    "LORADOCK_SERVE_DRAIN_SECONDS": "0.5",
    "LORADOCK_SERVE_RETRY_SECONDS": "300",
    "LORADOCK_SERVE_PROOF": "effect",
    "VLLM_API_KEY": KEY,
    **exact.ENVIRON,
    **exact.WITHIN,
}


class Shallow(Server):
    """Such a server, with whatever it started in a process group of its own."""

    @property
    def engine(self) -> psutil.Process:
        """vLLM's engine, which is a process of its own and has workers below it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if "EngineCore" in " ".join(child.cmdline()))

    def ended(self, seconds: float = 120) -> int:
        """Wait for its end, and return its exit code; nothing that it started is left."""
        code = self.process.wait(timeout=seconds)
        self._all_gone()
        return code

    def _all_gone(self) -> None:
        deadline = time.monotonic() + 30
        while group := self.group():
            assert time.monotonic() < deadline, f"{group} outlive the server"
            time.sleep(0.1)

    def group(self) -> list[str]:
        """What still runs of all that it started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found

    def kill(self) -> None:
        """End it with whatever it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)
        self._all_gone()

    @contextmanager
    def stream(self, model: str, tokens: int, choices: int = 1) -> Iterator[Iterator[str]]:
        """Completions of so many tokens as their events come; leaving before the end hangs up."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": "The keeper",
            "max_tokens": tokens,
            "ignore_eos": True,
            "n": choices,
        }
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        with (
            httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as client,
            client.stream("POST", f"{self.url}/v1/completions", json=body) as answer,
        ):
            assert answer.status_code == 200
            yield (line.removeprefix("data: ") for line in answer.iter_lines() if line)


def told(urls: Sequence[str]) -> Sequence[Any]:
    """What `loradock status` says of replicas, a row each."""
    words = [word for url in urls for word in ("--replica", url)]
    done = warm.run(
        [warm.LORADOCK, "status", *words, "--json"], kind="registry", env=os.environ | {"VLLM_API_KEY": KEY}
    )
    done.check_returncode()
    rows: Sequence[Any] = json.loads(done.stdout)
    return rows


def whole(events: Sequence[str]) -> int:
    """How many tokens a stream had, by its last events; 0 for one that broke off, which vLLM ends with an error."""
    if len(events) < 2 or events[-1] != "[DONE]":
        return 0
    return int(json.loads(events[-2]).get("usage", {"completion_tokens": 0})["completion_tokens"])


def launch(
    home: Path,
    base: LocalBase,
    store: Store,
    scratch: Path,
    environ: Mapping[str, str] | None = None,
    *,
    program: Path | None = None,
    cwd: Path | None = None,
) -> Shallow:
    """Start one, and do not wait; whoever calls kills it in the end. A `program` of another environment starts cold."""
    start = partial(warm.Popen, kind="serving") if program is None else subprocess.Popen
    port, log = free_port(), scratch / f"serve-{time.time_ns()}.log"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    words = ["serve", "--base", str(base.path), "--port", str(port), "--"]
    words += [*exact.OPTIONS, "--max-model-len", "256", "--max-num-seqs", "16"]
    with log.open("wb") as sink:
        process = start(
            [program or warm.LORADOCK, *words],
            cwd=cwd,
            env=inherited | SETTINGS | {"LORADOCK_HOME": str(home)} | (environ or {}),
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Shallow(f"http://127.0.0.1:{port}", home, log, process, base, store, scratch)


@contextmanager
def shallow(
    home: Path,
    base: LocalBase,
    store: Store,
    scratch: Path,
    environ: Mapping[str, str] | None = None,
    **how: Path,
) -> Iterator[Shallow]:
    """A running one; what else `launch` takes is handed on."""
    server = launch(home, base, store, scratch, environ, **how)
    try:
        server.until_ready()
        yield server
    finally:
        server.kill()
