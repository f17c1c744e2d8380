"""How a version comes to take traffic: fetched, verified, loaded, proven.

Whatever goes wrong on the way, the version is out of the engine again, and its name stays where it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final, Literal

from loradock.registry.errors import NotServable
from loradock.registry.records import Version
from loradock.registry.reference import PROMPTS, Reference
from loradock.registry.refs import VersionRef
from loradock.serving.ports import Adapters, Engine, References
from loradock.serving.probe import Proof
from loradock.serving.prober import Prober
from loradock.serving.references import missing

_FETCHES: Final = 4
"""How many versions are downloaded and hashed at once."""

log = logging.getLogger(__name__)


class Admission:
    """The way into one engine; use it on the server's event loop only."""

    def __init__(
        self,
        adapters: Adapters,
        references: References,
        engine: Engine,
        *,
        proof: Literal["parity", "effect"],
        precision: str,
    ) -> None:
        self._adapters, self._references, self._engine = adapters, references, engine
        self._asks_for_parity = proof == "parity"
        self._fetching = asyncio.Semaphore(_FETCHES)
        self._turn = asyncio.Lock()
        self._proofs: dict[VersionRef, Proof] = {}
        self._prober = Prober(
            lambda tokens: engine.scores(tokens, None),
            lambda: [engine.tokens(prompt) for prompt in PROMPTS],
            precision,
        )

    @property
    def proofs(self) -> Mapping[VersionRef, Proof]:
        """What the versions that are loaded showed."""
        return MappingProxyType(self._proofs)

    async def admit(self, version: Version, keep: Collection[str] = ()) -> None:
        """Fetch, verify, load and prove a version; from then on names may point at it.

        What has the digests in `keep` stays in the cache. What the engine read is what was hashed: the files are looked
        at again once it has read them.

        Raises what `cache.Cache.directory` does, and NotServable when the engine or the proof refuses it.
        """
        async with self._fetching:
            files = await asyncio.to_thread(self._adapters.directory, version, keep)
            reference = await self._reference(version)
        added = False
        try:
            async with self._turn:
                await self._engine.add(version, files.path)
                added = True
                await asyncio.to_thread(files.check, str(version.ref))
                await self._prove(version, reference)
            self._engine.admit(version.ref)
        except BaseException:
            if added:
                await self._discard(version.ref)
            raise

    def forget(self, ref: VersionRef) -> None:
        """Drop what is known of a version that was unloaded."""
        self._proofs.pop(ref, None)

    async def lost(self) -> tuple[VersionRef, ...]:
        """The versions that the engine dropped by itself, asked for while none is on its way in."""
        async with self._turn:
            return tuple(await self._engine.lost())

    async def _reference(self, version: Version) -> Reference | None:
        if not self._asks_for_parity:
            return None
        found = await asyncio.to_thread(self._references.of, version)
        if found is None:
            raise missing(version)
        return found

    async def _prove(self, version: Version, reference: Reference | None) -> None:
        proof = await self._prober.prove(lambda tokens: self._engine.scores(tokens, version.ref), reference)
        if proof.fault:
            raise NotServable(str(version.ref), [proof.fault])
        self._proofs[version.ref] = proof
        if reference:
            await asyncio.to_thread(self._references.keep, reference)

    async def _discard(self, ref: VersionRef) -> None:
        try:
            await self._engine.remove(ref)
        except Exception:  # it was never pointed at, so nobody is harmed
            log.exception("%s cannot be unloaded", ref)
