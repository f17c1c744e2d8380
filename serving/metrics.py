"""What a replica measures, by adapter, version and role, for Prometheus: vLLM's own `/metrics` shows it.

The number of series is bounded. A version's end with its stay on the replica, an adapter beyond the first
`most_adapters` is counted under `_other`, and a name that is not served is never a label.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loradock.registry.errors import DigestMismatch, NotServable, Unreachable, WrongBase
from loradock.registry.refs import PRODUCTION, VersionRef
from loradock.registry.replica_status import ReplicaStatus
from loradock.serving.calls import Call, Outcome

OTHER: Final = "_other"
"""The adapter label of all that have none of their own; no adapter's name begins so."""

T = TypeVar("T")

Kind = Literal["unreachable", "damaged", "unfit", "failed"]
"""Why a version is quarantined: it could not be fetched, its bytes are not the registered ones, it cannot be served
here or did not pass the proof, or anything else."""

_LATENCY: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_FIRST_TOKEN: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_PER_TOKEN: Final = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_LOAD: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_ANSWERED: Final = ("adapter", "version", "role")
_OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

_CACHE_SECONDS: Final = 60.0
_LOOP_SECONDS: Final = 5.0


def kind_of(error: Exception) -> Kind:
    """What an error that quarantines a version is counted as."""
    match error:
        case Unreachable():
            return "unreachable"
        case DigestMismatch():
            return "damaged"
        case NotServable() | WrongBase():
            return "unfit"
        case _:
            return "failed"


class Metrics:
    """Everything that is counted as it happens; use it on the server's event loop."""

    def __init__(self, registry: CollectorRegistry = REGISTRY, *, most_adapters: int = 100) -> None:
        self._registry, self._most = registry, most_adapters
        self._versions: dict[str, set[str]] = {}
        self._kinds: dict[VersionRef, Kind] = {}

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"loradock_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"loradock_{name}", text, labels, registry=registry, buckets=buckets)

        self._requests = counter(
            "requests", "HTTP requests that the engine worked for and that ended.", (*_ANSWERED, "outcome")
        )
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", _ANSWERED)
        self._output_tokens = counter("output_tokens", "Tokens of answers.", _ANSWERED)
        self._latency = histogram("request_seconds", "Whole requests that went well.", _ANSWERED, _LATENCY)
        self._first = histogram("time_to_first_token_seconds", "Until the first token.", _ANSWERED, _FIRST_TOKEN)
        self._each = histogram("time_per_output_token_seconds", "Per token after the first.", _ANSWERED, _PER_TOKEN)
        self._flips = counter("flips", "Moves of a name to another version.", ("adapter", "alias"))
        self._load = histogram("load_seconds", "Fetching, verifying, loading, proving.", ("adapter",), _LOAD)
        self._quarantines = counter("quarantines", "Quarantines, counted at each failed try.", ("adapter", "kind"))
        self._failed_polls = counter("polls_failed", "Readings of the registry that failed.")
        self._refused = counter("refusals", "HTTP requests refused for their key or model.", ("key", "status"))

    def ended(self, call: Call) -> None:
        """Count a request that the engine worked for, whatever became of it."""
        labels = (*self._label(call.version.name if call.version else call.asked.name, call.version), call.asked.role)
        for outcome in _OUTCOMES:  # all from zero with the first call, since no rate sees a series begin at one
            self._requests.labels(*labels, outcome).inc(outcome == call.outcome)
        self._prompt_tokens.labels(*labels).inc(call.prompt_tokens)
        self._output_tokens.labels(*labels).inc(call.output_tokens)
        if call.first_token is None:
            return
        self._first.labels(*labels).observe(call.first_token - call.started)
        if call.ended is None or call.outcome != "ok":
            return
        self._latency.labels(*labels).observe(call.ended - call.started)
        if call.longest > 1:
            self._each.labels(*labels).observe((call.ended - call.first_token) / (call.longest - 1))

    def flipped(self, name: str) -> None:
        """Count a move of a public name, `support-bot` or `support-bot@canary`."""
        family, _, alias = name.partition("@")
        self._flips.labels(self._adapter(family), alias or PRODUCTION).inc()

    def loaded(self, ref: VersionRef, seconds: float) -> None:
        """Observe how long it took until a version could take traffic."""
        self._kinds.pop(ref, None)
        self._load.labels(self._label(ref.name, ref)[0]).observe(seconds)

    def quarantined(self, ref: VersionRef, kind: Kind) -> None:
        """Count a version that failed to be brought up."""
        self._kinds[ref] = kind
        self._quarantines.labels(self._adapter(ref.name), kind).inc()

    def poll_failed(self) -> None:
        """Count a reading of the registry that failed."""
        self._failed_polls.inc()

    def refused(self, key: str, status: int) -> None:
        """Count a request that was refused; `key` is empty where it had none that is known."""
        self._refused.labels(key, str(status)).inc()

    def forget(self, ref: VersionRef) -> None:
        """Remove a version's series, since it left this replica, and with an adapter's last version that adapter's."""
        self._kinds.pop(ref, None)
        versions = self._versions.get(ref.name, set())
        versions.discard(str(ref.number))
        for metric in self._by_version:
            metric.remove_by_labels({"adapter": ref.name, "version": str(ref.number)})
        if not versions and self._versions.pop(ref.name, None) is not None:
            for metric in (self._flips, self._load, self._quarantines):
                metric.remove_by_labels({"adapter": ref.name})

    def watch(self, status: Callable[[], ReplicaStatus], cache: Path) -> None:
        """Show a replica's state, too, as its `status` has it; call this on the event loop that changes it."""
        self._registry.register(_State(status, cache, self._shown, self._kinds, asyncio.get_running_loop()))

    @property
    def _by_version(self) -> tuple[Counter | Histogram, ...]:
        return (self._requests, self._prompt_tokens, self._output_tokens, self._latency, self._first, self._each)

    def _adapter(self, name: str) -> str:
        """The label of an adapter: its name while there is room, which it keeps until its last version leaves."""
        if name in self._versions or len(self._versions) < self._most:
            self._versions.setdefault(name, set())
            return name
        return OTHER

    def _label(self, name: str, ref: VersionRef | None) -> tuple[str, str]:
        """The adapter and version labels; the base has its name, and no version."""
        if ref is None:
            return name, ""
        if (adapter := self._adapter(name)) == OTHER:
            return OTHER, ""
        self._versions[name].add(str(ref.number))
        return adapter, str(ref.number)

    def _shown(self, name: str) -> bool:
        return name in self._versions or len(self._versions) < self._most


class _State(Collector):
    """What a replica is at the moment of a scrape.

    A scrape runs on a thread of its own, so the state is read on the event loop that changes it.
    """

    def __init__(
        self,
        status: Callable[[], ReplicaStatus],
        cache: Path,
        shown: Callable[[str], bool],
        kinds: Mapping[VersionRef, Kind],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._status, self._cache, self._shown, self._kinds, self._loop = status, cache, shown, kinds, loop
        self._thread = threading.get_ident()
        self._cached = (float("-inf"), 0)

    def describe(self) -> Iterable[Metric]:
        """The names alone; the registry asks, so that no two metrics bear one."""
        return _families().values()

    def collect(self) -> Iterator[Metric]:
        """Every gauge, as the replica is now."""
        status, families = self._read(), _families()
        registry = status.registry
        families["ready"].add_metric([], status.ready)
        families["converged"].add_metric([], status.converged)
        families["registry_reachable"].add_metric([], registry.reachable)
        if registry.staleness_seconds is not None:
            families["registry_staleness_seconds"].add_metric([], registry.staleness_seconds)
        families["histories_cut"].add_metric([], len(status.histories))
        families["keys_file_valid"].add_metric([], not (status.keys and status.keys.error))
        families["cache_bytes"].add_metric([], self._bytes())
        for ref, in_flight in self._of_versions(status.resident):
            families["adapter_resident"].add_metric([ref.name, str(ref.number)], 1)
            families["requests_in_flight"].add_metric([ref.name, str(ref.number)], in_flight)
        for ref, _ in self._of_versions(dict.fromkeys({*status.loading, *status.quarantined})):
            families["adapter_resident"].add_metric([ref.name, str(ref.number)], 0)
        for ref, _ in self._of_versions(status.quarantined):
            families["quarantined"].add_metric([ref.name, str(ref.number), self._kinds.get(ref, "failed")], 1)
        for name, row in status.adapters.items():
            family, _, alias = name.partition("@")
            if self._shown(family):
                families["answering_version"].add_metric([family, alias or PRODUCTION], row.version.number)
        yield from families.values()

    def _of_versions(self, rows: Mapping[VersionRef, T]) -> Iterator[tuple[VersionRef, T]]:
        return ((ref, row) for ref, row in rows.items() if self._shown(ref.name))

    def _read(self) -> ReplicaStatus:
        if threading.get_ident() == self._thread:
            return self._status()
        found: concurrent.futures.Future[ReplicaStatus] = concurrent.futures.Future()

        def read() -> None:
            try:
                found.set_result(self._status())
            except BaseException as error:  # noqa: BLE001 - it belongs to the scrape
                found.set_exception(error)

        self._loop.call_soon_threadsafe(read)
        return found.result(timeout=_LOOP_SECONDS)

    def _bytes(self) -> int:
        """The size of the cached adapters, measured at most once a minute."""
        if time.monotonic() - self._cached[0] > _CACHE_SECONDS:
            paths = (Path(folder, name) for folder, _, names in os.walk(self._cache) for name in names)
            self._cached = (time.monotonic(), sum(map(_size, paths)))
        return self._cached[1]


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0  # removed meanwhile


def _families() -> dict[str, GaugeMetricFamily]:
    """The gauges of a replica's state, empty."""
    version, alias = ("adapter", "version"), ("adapter", "alias")
    rows: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("ready", "1 from when every promoted version was loaded and proven.", ()),
        ("converged", "1 while every name is answered by its promoted version.", ()),
        ("registry_reachable", "1 while the registry answers.", ()),
        ("registry_staleness_seconds", "Age of the replica's information from the registry.", ()),
        ("histories_cut", "Adapters whose history does not continue from the newest entry seen.", ()),
        ("keys_file_valid", "0 while the key file is invalid and the previous keys are in force.", ()),
        ("cache_bytes", "Size of the cached adapters.", ()),
        ("adapter_resident", "1 for a loaded version, 0 for one that is loading or quarantined.", version),
        ("requests_in_flight", "Running generations of the engine.", version),
        ("quarantined", "1 for a quarantined version.", (*version, "kind")),
        ("answering_version", "The number of the version that answers a name.", alias),
    )
    return {name: GaugeMetricFamily(f"loradock_{name}", text, labels=labels) for name, text, labels in rows}
