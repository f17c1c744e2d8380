"""Flips as vLLM alone has them: `load_inplace`, unload and load under the same name, or a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from benchmarks.flip.adapters import Cast
from benchmarks.flip.flips import Flip, Flipped
from benchmarks.flip.servers import Died, Server
from benchmarks.flip.servers import stock as serve
from loradock.registry.base import LocalBase
from tests.support.ports import free_port

CPU_OPS = "loradock-cpu-ops"
"""The plugin that mends vLLM's LoRA operations on a CPU, and nothing else."""

Move = Callable[[Flip], None]


def inplace(server: Server) -> Move:
    """`load_inplace`: one call."""

    def move(flip: Flip) -> None:
        body = {"lora_name": flip.to.name, "lora_path": str(flip.to.directory), "load_inplace": True}
        _post(server, "/v1/load_lora_adapter", body)

    return move


def reload(server: Server) -> Move:
    """Unload, then load other files under the same name."""

    def move(flip: Flip) -> None:
        _post(server, "/v1/unload_lora_adapter", {"lora_name": flip.to.name})
        _post(server, "/v1/load_lora_adapter", {"lora_name": flip.to.name, "lora_path": str(flip.to.directory)})

    return move


def make(move: Move, flips: Sequence[Flip], go_on: Callable[[], None]) -> list[Flipped]:
    """Make each flip, and let the traffic go on; it ends early where the server is dead."""
    made: list[Flipped] = []
    for flip in flips:
        at, error = time.time(), ""
        try:
            move(flip)
        except Died as failure:
            made.append(Flipped(flip, "", at, time.time(), None, error=f"the server died: {failure}"))
            break
        except httpx.HTTPError as failure:
            error = f"{type(failure).__name__}: {failure}"[:300]
        told = time.time()
        made.append(Flipped(flip, "", at, told, None if error else told, error=error))
        go_on()
    return made


class Restarts:
    """A server that is stopped and started with other `--lora-modules`, on the same port."""

    def __init__(self, local: LocalBase, log: Path, dtype: str, modules: Mapping[str, Path]) -> None:
        self._how = (local, log, dtype)
        self._modules, self._port = dict(modules), free_port()
        self._stack = ExitStack()
        self.server = self._start()

    def move(self, flip: Flip) -> None:
        """Stop it, and return when it answers again."""
        self._modules[flip.to.name] = flip.to.directory
        self.close()
        self.server = self._start()

    def close(self) -> None:
        """Stop the server that runs now."""
        self._stack.close()

    def _start(self) -> Server:
        return self._stack.enter_context(serve(*self._how, modules=self._modules, port=self._port))


@contextmanager
def restarts(local: LocalBase, log: Path, dtype: str, cast: Cast) -> Iterator[Restarts]:
    """A server with each name's first version, to be restarted."""
    running = Restarts(local, log, dtype, {name: several[0].directory for name, several in cast.items()})
    try:
        yield running
    finally:
        running.close()


def _post(server: Server, path: str, body: dict[str, object]) -> None:
    server.check()
    with server.http() as http:
        http.post(path, json=body).raise_for_status()
