"""Versions as values, which no registry holds, for tests that decide by them alone."""

from __future__ import annotations

from datetime import UTC, datetime

from loradock.registry.records import Facts, TextSettings, Version
from loradock.registry.refs import VersionRef
from loradock.serving.reconcile import Resident
from tests.support.adapters import SMOL

UNKNOWN = TextSettings()


def version(name: str = "bot", number: int = 1, digest: str = "", text: TextSettings = UNKNOWN) -> Version:
    facts = Facts(
        digest=digest or f"{name}{number}",
        base=SMOL,
        method="lora",
        rank=8,
        targets=("q_proj",),
        run_id="run",
        data_digest="",
        text=text,
    )
    return Version(
        ref=VersionRef(name, number), facts=facts, source="models:/m-1", created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )


def held(item: Version, in_flight: int = 0, idle_since: float = 0.0) -> Resident:
    return Resident(item, in_flight, idle_since)


ONE, TWO, CAT = version(number=1), version(number=2), version("cat")
