"""What a replica should serve: every family's promoted version, as the registry tells it.

The registry's answer is kept in three states. It was read now; it was read earlier and the registry is out of reach
(the last good answer stays in force, and stays on disk for a restart); or it was never read, which is `Unreachable`.
None of them is "nothing is promoted".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from loradock.registry import scratch
from loradock.registry.errors import LoradockError, Unreachable
from loradock.registry.records import Base, Record, Version
from loradock.registry.refs import CANARY, PRODUCTION, SHADOW, AliasRef, VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Family, Store, masked
from loradock.registry.traffic import Share, shares
from loradock.serving.continuity import Continuity

_MANY: Final = 20
"""From so many versions on, searching for them takes less than asking for each."""
_SQLITE: Final = "sqlite:///"

BASE_NAME: Final = "the base model itself answers under this name"

log = logging.getLogger(__name__)


class Promoted(Record):
    """Every family's versions under the aliases that are followed, whatever their base, as they were read at once."""

    versions: dict[str, Version]
    """By the name that the endpoint answers to: `support-bot` for its production, else `support-bot@canary`."""
    shares: dict[str, dict[str, Share]] = Field(default_factory=dict)
    """By the family's name, and then by alias: what its canary or shadow gets of its requests."""


def public_name(ref: AliasRef) -> str:
    """What clients ask for to be answered by an alias's version: the bare name for production."""
    return ref.name if ref.alias == PRODUCTION else str(ref)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A promoted version that this replica must never hand to its engine, and why."""

    version: Version
    reason: str


@dataclass(frozen=True, slots=True)
class Desired:
    """What one replica, which has one base, should serve."""

    targets: Mapping[str, Version] = field(default_factory=dict)
    """Public name to version."""
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    """Names whose promoted version belongs elsewhere. A name here keeps what it points at, if anything."""
    shares: Mapping[str, Mapping[str, Share]] = field(default_factory=dict)
    """By the family's name, and then by alias: what its canary or shadow gets of its requests."""


def for_base(promoted: Promoted, base: Base, *, served_as: frozenset[str]) -> Desired:
    """The part of what is promoted that a replica of `base`, known to clients as `served_as`, should serve."""
    targets: dict[str, Version] = {}
    refused: dict[str, Refusal] = {}
    for name, version in sorted(promoted.versions.items()):
        if reason := why_refused(version, base, served_as=served_as):
            refused[name] = Refusal(version, reason)
        else:
            targets[name] = version
    return Desired(targets, refused, promoted.shares)


def why_refused(version: Version, base: Base, *, served_as: frozenset[str]) -> str:
    """Why a version never answers where `base` does under the names `served_as`; empty where it may."""
    if version.ref.name in served_as:
        return BASE_NAME
    if version.facts.base.same_weights(base):
        return ""
    return f"it was trained on {version.facts.base.id}, which is not the base served here"


@dataclass(frozen=True, slots=True)
class Reading:
    """The newest answer there is, and how fresh it is."""

    promoted: Promoted
    age: float | None
    """Seconds since the registry gave it; None for an answer kept on disk by an earlier process."""
    error: str = ""
    """Why the registry gave no newer one; empty when it did."""


class Source:
    """The registry as a replica sees it; every method blocks, so call it off the event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        aliases: frozenset[str] = frozenset({PRODUCTION, CANARY, SHADOW}),
        connect: Callable[[Settings], Store] = Store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._aliases = aliases
        self._connect = connect
        self._clock = clock
        self._store: Store | None = None
        self._versions: dict[VersionRef, Version] = {}
        self._last: Promoted | None = None
        self._read_at: float | None = None
        self._complaints: Collection[str] = ()
        """What was wrong with the newest answer."""
        self.continuity = Continuity(settings, self.store)
        self._path = settings.root / f"promoted-{settings.which}.json"

    @property
    def registry(self) -> str:
        """Where the registry is, without a password."""
        return masked(self._settings.registry)

    def read(self) -> Reading:
        """Ask the registry what is promoted, or fall back on the last good answer.

        Raises Unreachable when the registry is out of reach and there never was an answer.
        """
        try:
            promoted = self._ask()
        except LoradockError as error:
            last = self._last or self._saved()
            if last is None:
                raise
            self._last = last
            age = None if self._read_at is None else self._clock() - self._read_at
            return Reading(last, age, str(error))
        if promoted != self._last:
            self._last = promoted
            self._save(promoted)
        self._read_at = self._clock()
        return Reading(promoted, 0.0)

    def store(self) -> Store:
        """The registry's calls, for fetching an adapter; raises Unreachable."""
        self._refuse_a_new_sqlite_file()
        if self._store is None:
            self._store = self._connect(self._settings)
        return self._store

    def _ask(self) -> Promoted:
        store = self.store()
        families = store.families()
        known = self._last or self._saved()
        if not families and known and known.versions:
            # Families are never deleted. A registry without any, where there were some, is another or an emptied one.
            raise Unreachable(f"MLflow at {self.registry} answers, but holds none of the adapters it held before")
        self.continuity.saw(families)
        self._look_up(store, families)
        found: dict[str, Version] = {}
        given: dict[str, dict[str, Share]] = {}
        complaints: list[str] = []
        for family in families:
            for alias in sorted(self._aliases & family.aliases.keys()):
                name = public_name(AliasRef(family.name, alias))
                try:
                    found[name] = self._version(store, VersionRef(family.name, family.aliases[alias]))
                except LoradockError as error:
                    complaints.append(_dangling(f"{family.name}@{alias}", error))
                    found |= _kept(known, name)
            if held := _shares(family, found):
                given[family.name] = held
        self._confirm(store, _taken_off(known, families))
        lost = _without(known, {family.name for family in families})
        gone = sorted({version.ref.name for version in lost.versions.values()})
        self._complain([*complaints, *(f"{name} is missing from what {self.registry} answers" for name in gone)])
        return Promoted(versions=found | lost.versions, shares=given | lost.shares)

    def _confirm(self, store: Store, gone: Iterable[AliasRef]) -> None:
        """Raise Unreachable where an alias that one search has not is there: one that failed half may have none."""
        for ref in gone:
            if store.standing(ref.name, (ref.alias,)):
                raise Unreachable(f"MLflow at {self.registry} answers without {ref}, which is there")

    def _complain(self, complaints: Collection[str]) -> None:
        """Log each that was not true of the answer before."""
        for complaint in complaints:
            if complaint not in self._complaints:
                log.warning("%s; it stays as it was", complaint)
        self._complaints = complaints

    def _look_up(self, store: Store, families: Iterable[Family]) -> None:
        """Read versions that are new here all at once, where they are many, as at a start."""
        new = {
            VersionRef(family.name, family.aliases[alias])
            for family in families
            for alias in self._aliases & family.aliases.keys()
        } - self._versions.keys()
        if len(new) > _MANY:
            self._versions |= store.newest(new)

    def version(self, ref: VersionRef) -> Version:
        """One version, whatever points at it; raises NotFound or Unreachable."""
        return self._version(self.store(), ref)

    def forget(self, ref: VersionRef) -> None:
        """Ask for a version anew at the next reading: what was told of it, which never changes, was not true."""
        self._versions.pop(ref, None)

    def _version(self, store: Store, ref: VersionRef) -> Version:
        if ref not in self._versions:
            self._versions[ref] = store.version(ref)
        return self._versions[ref]

    def _refuse_a_new_sqlite_file(self) -> None:
        """SQLite makes a missing file anew, empty; where there is a last good answer, that file is lost and not new."""
        uri = self._settings.store_uri
        if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists() and (self._last or self._saved()):
            self._store = None
            raise Unreachable(f"MLflow at {self.registry} is unreachable: its file does not exist")

    def _saved(self) -> Promoted | None:
        try:
            return Promoted.model_validate_json(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("the last good plan in %s cannot be read: %s", self._path, error)
            return None

    def _save(self, promoted: Promoted) -> None:
        """Write the answer in one step, so that a reader or a crash never meets half of it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.replace(self._path, promoted.canonical())
        except OSError as error:  # a full disk must not stop a replica that can serve
            log.warning("the plan cannot be kept in %s for a restart: %s", self._path, error)


def _taken_off(known: Promoted | None, families: Iterable[Family]) -> Iterator[AliasRef]:
    """The aliases that had a version, and that their family is answered without."""
    aliases = {family.name: family.aliases for family in families}
    for name, version in known.versions.items() if known else ():
        ref = AliasRef(version.ref.name, name.partition("@")[2] or PRODUCTION)
        if ref.alias not in aliases.get(ref.name, {ref.alias: 0}):
            yield ref


def _without(known: Promoted | None, families: Collection[str]) -> Promoted:
    """What was known of other families: one that is missing from an answer is unknown, and not nothing."""
    if known is None:
        return Promoted(versions={})
    return Promoted(
        versions={name: version for name, version in known.versions.items() if version.ref.name not in families},
        shares={name: held for name, held in known.shares.items() if name not in families},
    )


def _dangling(alias: str, error: LoradockError) -> str:
    """What is to be said of an alias whose version cannot be read; raises where that is the registry's fault.

    It dangles, or something wrote over the version's tags: unknown, and not nothing. One such must not hide the others.
    """
    if isinstance(error, Unreachable):
        raise error
    return f"{alias} cannot be read: {error}"


def _kept(known: Promoted | None, name: str) -> dict[str, Version]:
    return {name: known.versions[name]} if known and name in known.versions else {}


def _shares(family: Family, found: Mapping[str, Version]) -> dict[str, Share]:
    """The shares of the aliases that stand at the version that each was given for."""
    try:
        given = shares(family.traffic)
    except ValueError as error:
        log.warning("%s: %s; its canary and shadow get no requests", family.name, error)
        return {}
    at = {alias: found.get(f"{family.name}@{alias}") for alias in given}
    return {
        alias: share
        for alias, share in given.items()
        if (version := at[alias]) and version.ref.number == share.version and share.weight
    }
