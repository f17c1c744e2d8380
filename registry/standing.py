"""What a replica does with one version, in words, by its status: pure."""

from __future__ import annotations

from collections.abc import Iterator

from loradock.registry.records import Version
from loradock.registry.replica_status import ReplicaStatus


def standing(version: Version, status: ReplicaStatus) -> str:
    """Whether a replica answers with a version, and else why not."""
    return next(_true(version, status))


def _true(version: Version, status: ReplicaStatus) -> Iterator[str]:
    """What is true of it there, and first what matters most."""
    ref = version.ref
    if found := status.quarantined.get(ref):
        yield f"quarantined: {found.reason}"
    for row in status.refused.values():
        if row.version == ref:
            yield f"refused: {row.reason}"
    digests = {name: row.digest for name, row in status.adapters.items() if row.version == ref}
    if not {version.facts.digest, ""}.issuperset(digests.values()):
        yield f"answers with other bytes of that name: its registry is {status.registry.uri}"
    if digests:
        yield f"answers as {', '.join(sorted(digests))}"
    if ref in status.loading:
        yield "loading"
    if ref in status.resident:  # only what was proven is
        yield "proven, no name points at it"
    if ref in status.cold.values():
        yield "cold"
    yield "not held"
