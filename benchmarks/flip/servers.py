"""The servers that are measured, each a process: `loradock serve`, and vLLM without loradock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from loradock.registry.base import LocalBase
from tests.support.ports import free_port
from tests.support.serving import exact

KEY = "a-key-for-the-benchmark"
SLOTS = 6
"""Adapters in one batch: what `loradock serve` chooses for four promoted ones."""
KEPT = 32
"""Adapters that stay loaded: what `loradock serve` chooses."""

_START_SECONDS = 900
_STOP_SECONDS = 30
"""Between SIGTERM and SIGKILL: Kubernetes' default."""
_ROOT = Path(__file__).resolve().parents[2]
_VLLM = {"VLLM_API_KEY": KEY, "HF_HUB_OFFLINE": "1", **exact.ENVIRON}
_STOCK = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"} | (
    # As `loradock serve` sets them on few cores.
    {} if exact.ON_GPU else {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_TARGET_DEVICE": "cpu"}
)


class Died(RuntimeError):
    """A server's process ended by itself."""


@dataclass(slots=True)
class Server:
    """A process that answers HTTP at `url`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def http(self) -> httpx.Client:
        """A client with the key."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120)

    def wait(self, path: str) -> None:
        """Return when the server answers `path` with 200; raises Died with the end of its log."""
        deadline = time.monotonic() + _START_SECONDS
        with self.http() as http:
            while time.monotonic() < deadline:
                self.check()
                try:
                    if http.get(path).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        raise Died(f"not ready within {_START_SECONDS} s; see {self.log}")

    def check(self) -> None:
        """Raise Died when the process has ended."""
        if self.process.poll() is not None:
            raise Died(self.log.read_text(encoding="utf-8", errors="replace")[-3000:])

    def stop(self) -> None:
        """End it as an operator would, and wait."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # as a container ends: with its engine
            self.process.wait()


def limits(dtype: str) -> list[str]:
    """Arguments that every server gets."""
    return [*exact.SHARED, "--dtype", dtype, "--max-model-len", "512", "--max-num-seqs", "16"]


@contextmanager
def loradock(local: LocalBase, home: Path, log: Path, dtype: str, settings: Mapping[str, str]) -> Iterator[Server]:
    """`loradock serve` on the registry in `home`."""
    port = free_port()
    program = str(Path(sys.executable).with_name("loradock"))
    command = [program, "serve", "--base", local.base.id, "--port", str(port), "--", *limits(dtype)]
    with running(command, {"LORADOCK_HOME": str(home), **settings}, port, log) as server:
        server.wait("/loradock/ready")
        yield server


@contextmanager
def stock(
    local: LocalBase,
    log: Path,
    dtype: str,
    *,
    modules: Mapping[str, Path] | None = None,
    port: int | None = None,
    plugins: str = "",
) -> Iterator[Server]:
    """VLLM as it comes, with `modules` given at its start, and with the routes that load and unload adapters."""
    port = port or free_port()
    command = [
        *(sys.executable, "-m", "benchmarks.flip.vllm_server"),
        *("--model", str(local.path), "--served-model-name", local.name, "--host", "127.0.0.1", "--port", str(port)),
        *("--enable-lora", "--max-loras", str(SLOTS), "--max-cpu-loras", str(KEPT), "--max-lora-rank", "16"),
        *("--shutdown-timeout", str(_STOP_SECONDS - 10)),  # requests in flight may end
        *limits(dtype),
        *(["--lora-modules", *(f"{name}={path}" for name, path in modules.items())] if modules else []),
    ]
    with running(command, _STOCK | {"VLLM_PLUGINS": plugins}, port, log) as server:
        server.wait("/health")
        yield server


@contextmanager
def running(command: Sequence[str], environ: Mapping[str, str], port: int, log: Path) -> Iterator[Server]:
    """A server until the end of the block, and its log; its processes go with it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LORADOCK_SERVE_", "VLLM_"))}
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**kept, **_VLLM, **environ},
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        yield server
    finally:
        server.stop()
