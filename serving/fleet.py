"""What one replica, or several of them side by side, look like to a person: pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loradock.registry.replica_status import RegistryView, ReplicaStatus, Weight

COLUMNS: Final = ("replica", "ready", "converged", "registry", "loaded", "in_flight")
ANSWERS: Final = ("adapter", "version", "digest", "share", "replicas")
TROUBLES: Final = ("what", "replicas", "why")


@dataclass(frozen=True, slots=True)
class Asked:
    """A replica's status, or why there is none."""

    url: str
    status: ReplicaStatus | None
    error: str = ""


def page(found: ReplicaStatus) -> dict[str, Any]:
    """One replica: a line each, and only what is there."""
    registry = found.registry
    page: dict[str, Any] = {
        "base": found.base.names,
        "ready": _ready(found),
        "converged": "yes" if found.converged else "no",
        "registry": f"{registry.uri}, {_age(registry)}" + ("" if registry.reachable else f"; {registry.error}"),
    }
    for name, row in found.adapters.items():
        page[name] = f"{row.version}  {row.digest[:12]}  since {row.since.isoformat(timespec='milliseconds')}"
    for name, ref in found.cold.items():
        page[name] = f"{ref}  loaded when it is asked for"
    for name, alias, weight in _shares(found):
        page[f"{name}@{alias} (share)"] = f"{weight.version} gets {weight.weight:.4g} of the requests for {name}"
    page |= dict(_troubles(found))
    resident = found.resident.items()
    return page | {
        "room": f"{_loaded(found)} loaded",
        "loaded": [f"{ref} ({requests} in flight)" for ref, requests in resident],
    }


def replicas(asked: Iterable[Asked]) -> list[dict[str, Any]]:
    """A row for each replica, in `COLUMNS`."""
    rows = []
    for one in asked:
        row: dict[str, Any] = {"replica": one.url, "ready": "no answer", "registry": one.error}
        if found := one.status:
            row |= {
                "ready": _ready(found),
                "converged": "yes" if found.converged else "no",
                "registry": _age(found.registry),
                "loaded": _loaded(found),
                "in_flight": sum(found.resident.values()),
            }
        rows.append(row)
    return rows


def answers(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """A row for each adapter and each way in which replicas answer it, in `ANSWERS`: one where all agree."""
    at: dict[tuple[str, str, str, str], list[str]] = {}
    for one in asked:
        for name, answer in _answers(one.status).items():
            at.setdefault((name, *answer), []).append(one.url)
    there = sum(one.status is not None for one in asked)
    return [
        {
            **dict(zip(ANSWERS, (name, version, digest[:12], share), strict=False)),
            "replicas": "all" if len(urls) == there else urls,
        }
        for (name, version, digest, share), urls in sorted(at.items())
    ]


def troubles(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """A row for each thing that a person should see to, in `TROUBLES`; what several replicas say is told once."""
    at: dict[tuple[str, str], list[str]] = {}
    for one in asked:
        for trouble in _troubles(one.status, timeless=True):
            at.setdefault(trouble, []).append(one.url)
    for name, urls in differing(asked).items():
        at[f"{name} (differs)", "replicas of one base answer it differently"] = urls
    return [{"what": what, "why": why, "replicas": urls} for (what, why), urls in sorted(at.items())]


def differing(asked: Sequence[Asked]) -> dict[str, list[str]]:
    """Adapters that replicas of the same base answer differently, or that not all of them answer, with these replicas.

    What is loaded and what would be loaded at the first request is the same answer.
    """
    found: dict[str, list[str]] = {}
    for group in _by_base(asked):
        ways = {one.url: _answers(one.status) for one in group}
        for name in sorted({name for way in ways.values() for name in way}):
            if not _same([way.get(name) for way in ways.values()]):
                found.setdefault(name, []).extend(ways)
    return found


def as_json(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """For each replica its URL, its status or the error, and the adapters that another replica answers differently."""
    differs = differing(asked)
    return [
        {
            "url": one.url,
            "error": one.error or None,
            "status": one.status.as_json() if one.status else None,
            "differs": [name for name, urls in differs.items() if one.url in urls],
        }
        for one in asked
    ]


def _troubles(found: ReplicaStatus | None, *, timeless: bool = False) -> Iterator[tuple[str, str]]:
    """What does not stand as it should; `timeless` leaves out when something is tried again."""
    if found is None:
        return
    if timeless and not found.registry.reachable:
        yield "the registry", found.registry.error
    for name, why in found.waiting.items():
        answering, brief = found.adapters.get(name), why.partition(": ")[0]  # the rest stands with the version
        yield f"{name} (waiting)", f"{answering.version if answering else 'nothing'} answers it: {brief}"
    for ref in found.loading:
        yield f"{ref} (loading)", "being fetched, verified, loaded and proven"
    for ref, quarantined in found.quarantined.items():
        again = "" if timeless else f"; tried again in {quarantined.retry_in_seconds:.0f} s"
        yield f"{ref} (quarantined)", quarantined.reason + again
    for ref, words in found.unlike.items():
        yield f"{ref} (answers otherwise)", words
    for name, fault in found.histories.items():
        yield f"{name} (history)", fault
    for name, refusal in found.refused.items():
        yield f"{name} (refused)", f"{refusal.version}: {refusal.reason}"


def _answers(found: ReplicaStatus | None) -> dict[str, tuple[str, str, str]]:
    """By name: version, digest where it is loaded, and share."""
    if found is None:
        return {}
    shares = {f"{name}@{alias}": f"{row.weight:.4g}" for name, alias, row in _shares(found)}
    answers = {name: (str(row.version), row.digest, shares.get(name, "")) for name, row in found.adapters.items()}
    return answers | {name: (str(ref), "", shares.get(name, "")) for name, ref in found.cold.items()}


def _same(ways: Sequence[tuple[str, str, str] | None]) -> bool:
    there = [way for way in ways if way is not None]
    digests = {digest for _, digest, _ in there if digest}
    return len(there) == len(ways) and len(digests) <= 1 and len({(ref, share) for ref, _, share in there}) == 1


def _by_base(asked: Sequence[Asked]) -> list[list[Asked]]:
    groups: dict[str, list[Asked]] = {}
    for one in asked:
        if one.status is not None:
            groups.setdefault(one.status.base.weights_digest, []).append(one)
    return list(groups.values())


def _shares(found: ReplicaStatus) -> Iterator[tuple[str, str, Weight]]:
    for name, aliases in found.shares.items():
        for alias, row in aliases.items():
            yield name, alias, row


def _ready(found: ReplicaStatus) -> str:
    if found.stopping:
        return "no, it stops"
    return "yes" if found.ready else "no"


def _age(registry: RegistryView) -> str:
    stale = registry.staleness_seconds
    return "from the last good plan on disk" if stale is None else f"read {stale:.0f} s ago"


def _loaded(found: ReplicaStatus) -> str:
    return f"{len(found.resident)} of {found.capacity}"
