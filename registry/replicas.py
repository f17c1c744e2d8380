"""What serving replicas report: all of them asked at once, or a move told to each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pydantic import SecretStr

from loradock.registry import room
from loradock.registry.errors import LoradockError
from loradock.registry.refs import VersionRef
from loradock.registry.replica_client import SECONDS, ReplicaClient
from loradock.registry.replica_status import ReplicaStatus
from loradock.registry.room import Room
from loradock.registry.settings import Settings
from loradock.registry.store import Store

_SHORT_TIMEOUT: Final = 2.0
"""Seconds, for what a promotion waits for."""


def fetch_status(url: str, api_key: SecretStr, *, seconds: float = SECONDS) -> ReplicaStatus:
    """A replica's status; raises Unreachable, NotFound for another server or version, or BadInput for a key or URL."""
    return ReplicaClient(url, api_key, seconds=seconds).status()


def nudge(settings: Settings) -> list[str]:
    """Tell each replica in LORADOCK_REPLICAS to ask the registry now; returns what went wrong, which harms nothing.

    A replica that was not told finds out by itself, at its next poll.
    """
    problems = []
    for url in settings.replica_urls:
        try:
            ReplicaClient(url, settings.api_key, seconds=_SHORT_TIMEOUT, needs="an admin key").nudge()
        except LoradockError as error:
            problems.append(f"{url} could not be nudged, and sees the move at its next poll: {error}")
    return problems


def unfit(store: Store, ref: VersionRef, alias: str, report: Callable[[str], None]) -> str:
    """Why no replica in LORADOCK_REPLICAS could serve a version under an alias; empty where one could.

    `report` gets a warning of each replica that does not answer, or that the version does not fit.
    """
    if not store.settings.replica_urls:
        return ""
    found, problems = rooms(store.settings)
    fit = room.fit(store.version(ref), alias, found)
    for warning in (*problems, *fit.warnings):
        report(f"warning: {warning}")
    return fit.refusal


def rooms(settings: Settings) -> tuple[list[Room], list[str]]:
    """What each replica in LORADOCK_REPLICAS has room for, all asked at once; and why others did not say."""
    found, problems = [], []
    for url, status in statuses(settings).items():
        if isinstance(status, ReplicaStatus):
            found.append(Room(url, status))
        else:
            problems.append(f"{url} does not report its capacity: {status}")
    return found, problems


def held(urls: Iterable[str], api_key: SecretStr) -> Mapping[VersionRef, str]:
    """Every version that a replica holds, answers with, loads, wants or has quarantined, and the replica's URL.

    Raises what `fetch_status` does: a replica that does not answer is not one that needs nothing.
    """
    return {ref: url for url in urls for ref in _refs(fetch_status(url, api_key))}


def _refs(status: ReplicaStatus) -> Iterator[VersionRef]:
    for row in status.adapters.values():
        yield row.version
        if row.promoted:
            yield row.promoted
    for refused in status.refused.values():
        yield refused.version
    yield from (*status.loading, *status.quarantined, *status.resident)


def statuses(settings: Settings) -> dict[str, ReplicaStatus | str]:
    """By URL in LORADOCK_REPLICAS, a replica's status, or why there is none; all asked at once, and briefly."""

    def ask(url: str) -> ReplicaStatus | str:
        try:
            return fetch_status(url, settings.api_key, seconds=_SHORT_TIMEOUT)
        except LoradockError as error:
            return str(error)

    urls = settings.replica_urls
    with ThreadPoolExecutor(max_workers=max(1, len(urls))) as pool:
        return dict(zip(urls, pool.map(ask, urls), strict=True))
