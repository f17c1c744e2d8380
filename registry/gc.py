"""Which versions nothing needs any more, and deleting those.

A deletion is an entry of the family's history first. From there on no alias moves to these versions, since whoever
moves one must write the entry after it, and reads it before. Then the bytes go, and the version itself goes last: as
long as it is there, a clean-up that was killed is finished by the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from loradock.registry import entries, heads
from loradock.registry import history as histories
from loradock.registry.errors import Conflict
from loradock.registry.history import History
from loradock.registry.records import Record, Version
from loradock.registry.refs import VersionRef
from loradock.registry.store import Store
from loradock.registry.store.removal import Held
from loradock.registry.tenures import tenures

_BATCH: Final = 400
"""Versions that one entry of a history deletes; an entry has at most 5,000 characters."""


class Rules(Record):
    """What stays though nothing points at it now."""

    keep: int = 10
    """So many of a family's newest versions, and so many that each alias would be rolled back to."""
    window: timedelta = timedelta(days=30)
    """Versions that an alias stood at within this time."""
    min_age: timedelta = timedelta(days=1)
    """Versions made, or left by an alias, within this time: somebody may be about to promote them."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a family's clean-up is decided on."""

    past: History
    held: tuple[Held, ...]
    """Its versions, newest first."""
    made_from: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """By number: what was made or copied from a version."""
    reported: Mapping[VersionRef, str] = field(default_factory=dict)
    """The versions that replicas hold, and by which replica."""


class Stay(Record):
    """A version that something needs."""

    ref: VersionRef
    why: tuple[str, ...]
    """Everything that needs it."""


class Go(Record):
    """A version that nothing needs."""

    ref: VersionRef
    why: str


class Gone(Record):
    """A version that was deleted."""

    ref: VersionRef
    freed: int
    """Bytes; 0 where another version has the same ones."""


def plan(known: Known, rules: Rules, *, now: datetime) -> tuple[Stay | Go, ...]:
    """What stays and what goes, and why, newest first."""
    removed, precautions = known.past.removed, _precautions(known, rules, now)
    decided: list[Stay | Go] = []
    for held in known.held:
        ref = held.version.ref
        why = list(_needs(held, known))
        if ref.number not in removed:  # what is half deleted cannot be promoted, whatever its age
            why += precautions[ref.number]
        if why:
            decided.append(Stay(ref=ref, why=tuple(why)))
        else:
            begun = "its deletion was begun and not finished" if ref.number in removed else "nothing needs it"
            decided.append(Go(ref=ref, why=begun))
    return tuple(decided)


def _needs(held: Held, known: Known) -> Iterator[str]:
    """What points at a version now."""
    ref = held.version.ref
    yield from (f"{alias} stands at it" for alias in _standing(known.past, ref.number))
    yield from (f"{child} was made from it" for child in known.made_from.get(ref.number, ()))
    yield from (f"it was published as {it.repo}@{it.revision[:12]}" for it in held.publications)
    if replica := known.reported.get(ref):
        yield f"the replica at {replica} holds it"


def _standing(past: History, number: int) -> list[str]:
    """The aliases at a version, by MLflow or by the history."""
    aliases = past.family.aliases
    return [a for a in sorted({*aliases, *past.heads}) if number in (aliases.get(a), past.head(a))]


def _precautions(known: Known, rules: Rules, now: datetime) -> Mapping[int, list[str]]:
    """By number: why an alias may be moved to a version soon."""
    past, why = known.past, defaultdict[int, list[str]](list)
    for alias in sorted(past.heads):
        for number in past.earlier(alias)[: rules.keep]:
            why[number].append(f"{alias} could be rolled back to it")
    window = max(rules.window, rules.min_age)
    left = {(t.number, t.alias) for t in tenures(past.moves) if t.until is not None and t.until > now - window}
    for number, alias in sorted(left):
        why[number].append(f"{alias} stood at it within {_days(window)}")
    versions = [held.version for held in known.held if held.version.ref.number not in past.removed]
    for version in versions[: rules.keep]:
        why[version.ref.number].append(f"it is among the newest {rules.keep}")
    for version in versions:
        if version.created_at > now - rules.min_age:
            why[version.ref.number].append(f"it is younger than {_days(rules.min_age)}")
    return why


def _days(span: timedelta) -> str:
    days = span / timedelta(days=1)
    return f"{days:g} day{'' if days == 1 else 's'}"


def look(store: Store, name: str, reported: Mapping[VersionRef, str]) -> Known:
    """Read what a family's clean-up is decided on; its history first, so that a move after it is noticed later."""
    past = heads.current(store, name)
    return Known(past, store.holdings(name), store.made_from(name), reported)


def collect(
    store: Store, name: str, rules: Rules, reported: Mapping[VersionRef, str], *, actor: str, reason: str
) -> Iterator[Gone]:
    """Delete a family's versions that nothing needs.

    It is decided anew once they are in the history and no alias can move to them any more; one that is needed by then
    stays. Raises Unreachable; called again, it finishes.
    """
    written: set[int] = set()
    while True:
        known = look(store, name, reported)
        goes = {one.ref for one in plan(known, rules, now=datetime.now(UTC)) if isinstance(one, Go)}
        going = [held.version for held in known.held if held.version.ref in goes]
        for version in going:
            number = version.ref.number
            if number in written and not (
                _standing(histories.read(store, name, whole=False), number) or store.aliases_of(version.ref)
            ):
                yield delete(store, version)
        numbers = tuple(version.ref.number for version in going if version.ref.number not in written)[:_BATCH]
        if not numbers:
            return
        with suppress(Conflict):  # an alias was moved to one of them: decide again
            entries.remove(store, name, numbers, actor=actor, reason=reason, decided_on=known.past)
            written.update(numbers)


def delete(store: Store, version: Version) -> Gone:
    """Delete a version that its family's history says is deleted, and its bytes where no other version has them."""
    freed = 0
    if store.condemn(version.source):
        if set(store.users(version.source)) - {version.ref}:
            store.spare(version.source)
        else:
            freed = store.free(version.source)
    store.delete_version(version.ref)
    return Gone(ref=version.ref, freed=freed)
