"""Rows that several verbs print."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from loradock.registry.records import Version


def moment(at: datetime) -> str:
    """A time as verbs print it."""
    return at.isoformat(timespec="milliseconds")


def row(version: Version) -> dict[str, Any]:
    """What lists tell of a version."""
    facts = version.facts
    return {
        "version": str(version.ref),
        "digest": facts.digest,
        "method": facts.method,
        "rank": facts.rank,
        "base": facts.base.id,
        "run_id": facts.run_id,
        "created": moment(version.created_at),
    }
