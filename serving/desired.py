"""What a replica should serve: every family's promoted version, as the registry tells it.

The registry's answer is kept in three states. It was read now; it was read earlier and the registry is out of reach
(the last good answer stays in force, and stays on disk for a restart); or it was never read, which is `Unreachable`.
None of them is "nothing is promoted".
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from registry.errors import LoradockError, Unreachable
from registry.records import Base, Record, Version
from registry.refs import PRODUCTION, VersionRef
from registry.settings import Settings
from registry.store import Store, masked

_SQLITE: Final = "sqlite:///"

log = logging.getLogger(__name__)


class Promoted(Record):
    """Every family's version under `production`, whatever its base, at one reading of the registry."""

    versions: dict[str, Version]
    """By the family's name, which is the name that the endpoint answers to."""


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


def for_base(promoted: Promoted, base: Base, *, served_as: frozenset[str]) -> Desired:
    """The part of what is promoted that a replica of `base`, known to clients as `served_as`, should serve."""
    targets: dict[str, Version] = {}
    refused: dict[str, Refusal] = {}
    for name, version in sorted(promoted.versions.items()):
        trained_on = version.facts.base
        if name in served_as:
            refused[name] = Refusal(version, "the base model itself is served under this name")
        elif not trained_on.same_weights(base):
            refused[name] = Refusal(version, f"it was trained on {trained_on.id}, which is not the base served here")
        else:
            targets[name] = version
    return Desired(targets, refused)


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
        connect: Callable[[Settings], Store] = Store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._clock = clock
        self._store: Store | None = None
        self._versions: dict[VersionRef, Version] = {}
        self._last: Promoted | None = None
        self._read_at: float | None = None
        # The file belongs to one registry: pointing a replica at another one must not bring back the first one's plan.
        which = hashlib.sha256(settings.store_uri.encode()).hexdigest()[:12]
        self._path = settings.root / f"promoted-{which}.json"

    @property
    def registry(self) -> str:
        """Where the registry is, without a password."""
        return masked(self._settings.store_uri)

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
        found: dict[str, Version] = {}
        for family in families:
            if (number := family.aliases.get(PRODUCTION)) is not None:
                ref = VersionRef(family.name, number)
                try:
                    found[family.name] = self._version(store, ref)
                except Unreachable:
                    raise
                except LoradockError as error:
                    # The alias dangles, or something wrote over the version's tags: unknown, and not nothing. One
                    # such family must not hide the others either.
                    log.warning("%s@%s cannot be read: %s", family.name, PRODUCTION, error)
                    if known and family.name in known.versions:
                        found[family.name] = known.versions[family.name]
        return Promoted(versions=found)

    def _version(self, store: Store, ref: VersionRef) -> Version:
        if ref not in self._versions:
            self._versions[ref] = store.version(ref)
        return self._versions[ref]

    def _refuse_a_new_sqlite_file(self) -> None:
        """SQLite makes a missing file anew, empty; where there is a last good answer, that file is lost and not new."""
        uri = self._settings.store_uri
        if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists() and (self._last or self._saved()):
            self._store = None
            raise Unreachable(f"MLflow at {self.registry} is out of reach: the file is not there")

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
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self._path.parent, prefix=".promoted-", delete=False
            ) as file:
                file.write(promoted.canonical())
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, self._path)
        except OSError as error:  # a full disk must not stop a replica that can serve
            log.warning("the plan cannot be kept in %s for a restart: %s", self._path, error)
