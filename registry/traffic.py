"""The share of an adapter's requests that its canary answers, or its shadow gets a copy of.

A share is an entry of the family's history, and holds for one version: once the alias moves on, it is void. Replicas
read it from a tag of the family, which is set afterwards from what history says, by whoever wrote last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import Field, TypeAdapter, ValidationError

from loradock.registry import entries, heads
from loradock.registry.errors import BadInput, Conflict
from loradock.registry.history import History, read
from loradock.registry.records import Record, Traffic, canonical_json
from loradock.registry.refs import CANARY, SHADOW, AliasRef, VersionRef
from loradock.registry.store import Store

ALIASES: Final = (CANARY, SHADOW)
"""The aliases that can have a share."""


class Share(Record):
    """What one alias's version gets of a plain name's requests."""

    version: int
    weight: float = Field(ge=0, le=1)


_SHARES: Final = TypeAdapter(dict[str, Share])


def parse_weight(text: str) -> float:
    """`10%` or `0.1`; raises BadInput."""
    number, percent, rest = text.strip().partition("%")
    try:
        weight = float(number) / (100 if percent else 1)
    except ValueError:
        weight = -1.0
    if rest or not 0 <= weight <= 1:
        raise BadInput(f"{text!r} is no share of requests", hint="write it as 10% or 0.1")
    return weight


def shares(tag: str) -> Mapping[str, Share]:
    """What a family's tag says, by alias; raises ValueError for a tag that somebody else wrote."""
    try:
        return _SHARES.validate_json(tag) if tag else {}
    except ValidationError as error:
        raise ValueError(f"its tag loradock.traffic cannot be read: {error.error_count()} faults") from error


def set_share(
    store: Store, ref: VersionRef, alias: str, weight: float, *, actor: str, reason: str = ""
) -> Traffic | None:
    """Give the version under an alias a share; None when it has just that already.

    Raises BadInput for an alias that takes none, Conflict when the alias is not at this version.
    """
    if alias not in ALIASES:
        raise BadInput(f"{alias!r} takes no share of requests", hint=f"only {' and '.join(ALIASES)} do")

    def decide(now: History) -> None:
        if (at := now.head(alias)) != ref.number:
            found = f"version {at}" if at else "no version"
            raise Conflict(str(AliasRef(ref.name, alias)), expected=f"version {ref.number}", found=found)

    past = heads.current(store, ref.name, whole=False)
    decide(past)
    before = past.traffic.get(alias)
    if (before.weight if before else 0.0) == weight:
        project(store, ref.name)
        return None
    entry = entries.write(
        store,
        past,
        lambda head: Traffic(**head, alias=alias, version=ref.number, weight=weight),
        decide,
        actor=actor,
        reason=reason,
    )
    project(store, ref.name)
    return entry


def project(store: Store, name: str) -> None:
    """Set the family's tag to what its history says. Each reads again once it has set, so the last is right."""
    while True:
        past = read(store, name, whole=False)
        text = canonical_json({a: {"version": e.version, "weight": e.weight} for a, e in past.traffic.items()})
        if (past.family.traffic or "{}") == text:
            return
        store.set_traffic(name, text)
