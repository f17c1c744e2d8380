"""What a replica asks of the services around it; each is described where it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from loradock.registry.records import Version
from loradock.registry.reference import Reference
from loradock.registry.refs import VersionRef
from loradock.serving.cache import Verified
from loradock.serving.desired import Reading
from loradock.serving.probe import Scored
from loradock.serving.reconcile import Resident


class Continuity(Protocol):
    """What a replica asks of `continuity.Continuity`."""

    @property
    def changed(self) -> Sequence[str]:
        """Those that should be read now."""

    def audit(self) -> Mapping[str, str]:
        """What is wrong with them; it blocks."""


class Registry(Protocol):
    """What a replica asks of `desired.Source`; it blocks."""

    @property
    def registry(self) -> str:
        """Where it is."""

    @property
    def continuity(self) -> Continuity:
        """Whether the histories there go on."""

    def read(self) -> Reading:
        """What is promoted."""

    def version(self, ref: VersionRef) -> Version:
        """One version."""

    def forget(self, ref: VersionRef) -> None:
        """Read it anew."""


class References(Protocol):
    """What a replica asks of `references.References`; it blocks."""

    def of(self, version: Version) -> Reference | None:
        """What PEFT says with a version; None where nobody recorded it."""

    def keep(self, reference: Reference) -> None:
        """Hold it for a restart without the registry."""


class Watcher(Protocol):
    """What a replica tells `metrics.Metrics`."""

    def flipped(self, name: str) -> None:
        """A name moved."""

    def loaded(self, ref: VersionRef, seconds: float) -> None:
        """A version was loaded and proven."""

    def quarantined(self, ref: VersionRef, kind: str) -> None:
        """A version failed to be brought up, and takes no traffic."""

    def forget(self, ref: VersionRef) -> None:
        """A version left."""

    def poll_failed(self) -> None:
        """The registry gave no answer."""


class Adapters(Protocol):
    """What a replica asks of `cache.Cache`; it blocks."""

    def directory(self, version: Version, keep: Collection[str]) -> Verified:
        """A version's files, verified; what has these digests makes no room for them."""


class Engine(Protocol):
    """What a replica asks of `engine.Engine`, which describes each of these."""

    @property
    def served_as(self) -> frozenset[str]:
        """The base's names."""

    @property
    def pointed(self) -> Mapping[str, VersionRef]:
        """What answers."""

    @property
    def resident(self) -> Mapping[VersionRef, Resident]:
        """What is loaded."""

    async def add(self, version: Version, directory: Path) -> None:
        """Load."""

    def admit(self, ref: VersionRef) -> None:
        """Allow pointing at it."""

    def point(self, name: str, ref: VersionRef) -> None:
        """Move a name."""

    def unpoint(self, name: str) -> None:
        """Take a name off."""

    def hold(self, ref: VersionRef) -> Version | None:
        """Keep it loaded, if it is."""

    def release(self, ref: VersionRef) -> None:
        """Let it go."""

    async def remove(self, ref: VersionRef) -> None:
        """Unload."""

    async def lost(self) -> Sequence[VersionRef]:
        """What vLLM dropped by itself."""

    async def scores(self, tokens: Sequence[int], ref: VersionRef | None) -> Sequence[Scored]:
        """Measure."""

    def tokens(self, prompt: str) -> list[int]:
        """Tokenize."""
