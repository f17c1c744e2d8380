"""What a replica does with one version, in words, by its status: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loradock.registry.records import Version


def standing(version: Version, status: Mapping[str, Any]) -> str:
    """Whether a replica answers with a version, and else why not."""
    try:
        return next(_true(str(version.ref), version.facts.digest, status))
    except (KeyError, TypeError, AttributeError):
        return "it is of another version of loradock, and does not say"


def _true(ref: str, digest: str, status: Mapping[str, Any]) -> Iterator[str]:
    """What is true of it there, and first what matters most."""
    if held := status["quarantined"].get(ref):
        yield f"held back: {held['reason']}"
    for row in status["refused"].values():
        if row["version"] == ref:
            yield f"refused: {row['reason']}"
    digests = {name: row["digest"] for name, row in status["adapters"].items() if row["version"] == ref}
    if not {digest, ""}.issuperset(digests.values()):
        yield f"answers with other bytes of that name: its registry is {status['registry']['uri']}"
    if digests:
        yield f"answers as {', '.join(sorted(digests))}"
    if ref in status["loading"]:
        yield "loading"
    if ref in status["resident"]:  # only what was proven is
        yield "proven, answers nobody"
    if ref in status["cold"].values():
        yield "cold"
    yield "not held"
