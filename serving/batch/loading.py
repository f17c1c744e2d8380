"""From versions to an engine that answers by them: fetched, verified, loaded and proven, each before its first row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from loradock.registry.base import LocalBase
from loradock.registry.check import read_shapes
from loradock.registry.errors import LoradockError
from loradock.registry.records import Version
from loradock.registry.reference import Reference
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving import launch
from loradock.serving.batch.answering import Engine, Outcome, Unanswerable
from loradock.serving.batch.rows import Row
from loradock.serving.cache import Cache, Verified
from loradock.serving.references import References, missing

Found = TypeVar("Found")


class Boot(Protocol):
    """How an engine is made: `loradock.serving.batch.offline.boot`."""

    def __call__(
        self, local: LocalBase, ranks: Sequence[int], *, max_loras: int | None, extra: Sequence[str]
    ) -> Engine:
        """Load a base, ready for adapters of these ranks."""


@dataclass(frozen=True, slots=True)
class Loading:
    """What an engine for one base needs besides the versions."""

    settings: Settings
    local: LocalBase
    proof: Literal["parity", "effect"]
    boot: Boot

    def engine(self, versions: Collection[Version], *, max_loras: int | None, extra: Sequence[str]) -> Engine:
        """An engine that holds every version; raises the first error, with all others among its problems."""
        ranks = [version.facts.rank for version in versions]
        cache = Cache(
            self.settings.adapters,
            lambda version, into: Store(self.settings).download(version.source, into, what=str(version.ref)),
            base=read_shapes(self.local.path),
            max_rank=launch.rank_limit(ranks),
        )
        references = References(
            self.settings.root / "references",
            self.local.base,
            lambda digest: Store(self.settings).find_reference(digest, self.local.base),
        )

        keep = {version.facts.digest for version in versions}

        def fetch(version: Version) -> tuple[Verified, Reference | None]:
            return cache.directory(version, keep), self._reference(version, references)

        def load(version: Version) -> None:
            files, reference = fetched[version.ref]
            engine.load(version, files.path, reference)
            files.check(str(version.ref))
            if reference:
                references.keep(reference)

        fetched = _each(versions, fetch)
        engine = self.boot(self.local, ranks, max_loras=max_loras, extra=extra)
        _each(versions, load)
        return _Sealed(engine, {ref: files for ref, (files, _) in fetched.items()})

    def _reference(self, version: Version, references: References) -> Reference | None:
        """What PEFT says with a version; None where its effect is proof enough."""
        if self.proof == "effect":
            return None
        if found := references.of(version):
            return found
        raise missing(version)


class _Sealed:
    """An engine whose answers come out only while the files that it may read again are those that were hashed.

    vLLM lets go of adapters beyond `--max-cpu-loras`, and reads them again for their next row.
    """

    def __init__(self, engine: Engine, files: Mapping[VersionRef, Verified]) -> None:
        self.slots, self.window, self.load = engine.slots, engine.window, engine.load
        self._engine, self._files = engine, files
        self._inside: dict[str, VersionRef] = {}

    def start(self, row: Row, ref: VersionRef | None, sampling: Mapping[str, Any]) -> str:
        number = self._engine.start(row, ref, sampling)
        if ref:
            self._inside[number] = ref
        return number

    def step(self) -> Iterator[tuple[str, Outcome | Unanswerable]]:
        for number, outcome in self._engine.step():
            if ref := self._inside.pop(number, None):
                self._files[ref].check(str(ref))
            yield number, outcome


def _each(versions: Collection[Version], action: Callable[[Version], Found]) -> dict[VersionRef, Found]:
    """The action's result for each version; raises the first error, with the others among its problems."""
    results: dict[VersionRef, Found] = {}
    errors: list[LoradockError] = []
    for version in versions:
        try:
            results[version.ref] = action(version)
        except LoradockError as error:
            errors.append(error)
    if errors:
        errors[0].problems += tuple(str(error) for error in errors[1:])
        raise errors[0]
    return results
