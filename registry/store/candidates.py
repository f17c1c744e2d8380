"""Versions in the making: MLflow knows them, and no reader of ours sees one before it is admitted.

MLflow makes a second version of a request that is sent again, and one for each of several who register the same bytes
at once. So a version is made without the tag by which its digest is known, and of all with the same bytes the lowest
one gets it. As numbers only grow, everybody who looks finds the same lowest one, and whoever looks can admit it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

from loradock.registry.records import Facts, canonical_json
from loradock.registry.refs import VersionRef
from loradock.registry.store.connection import Connection, default_store, translated, upsert
from loradock.registry.store.families import DOUBTS, FINDINGS, LEDGER, Family
from loradock.registry.store.tags import PREFIX, child_tag, facts_from, tags_of

_OFFERED: Final = f"{PREFIX}offered"
"""The tag with the digest that a version has from the beginning."""
_DIGEST: Final = f"{PREFIX}digest"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version, admitted or not."""

    ref: VersionRef
    source: str
    facts: Facts
    admitted: bool


def offer(
    store: Connection,
    family: Family,
    source: str,
    facts: Facts,
    findings: tuple[str, ...],
    doubts: tuple[str, ...] = (),
) -> None:
    """Make a version that nobody sees yet. It is not idempotent."""
    tags = {key: value for key, value in tags_of(facts).items() if key not in _withheld(facts)}
    checked = {FINDINGS: canonical_json(findings), DOUBTS: canonical_json(doubts)}
    with translated(store.uri, f"adapter {family.name!r}"), _looked_up(store):
        store.client.create_model_version(
            family.name,
            source,
            run_id=facts.run_id,
            tags={**tags, LEDGER: family.ledger, _OFFERED: facts.digest, **checked},
            model_id=source.removeprefix("models:/"),
            await_creation_for=0,  # it is there at once; waiting is for other registries, and logs
        )


def _looked_up(store: Connection) -> AbstractContextManager[None]:
    """MLflow looks for the source in the process's default store, unless a server does."""
    return nullcontext() if store.uri.startswith(("http:", "https:")) else default_store(store.uri)


def same(store: Connection, name: str, digest: str) -> tuple[Candidate, ...]:
    """All that were made of these bytes, admitted or not, lowest first."""
    with translated(store.uri):
        found = store.client.search_model_versions(
            f"name = '{name}' AND tags.`{_OFFERED}` = '{digest}'", order_by=["version_number ASC"]
        )
    return tuple(
        Candidate(
            ref=VersionRef(item.name, int(item.version)),
            source=item.source or "",
            facts=facts_from({**item.tags, _DIGEST: digest}),
            admitted=_DIGEST in item.tags,
        )
        for item in found
        if _OFFERED in item.tags  # MLflow reads tags in a second query, and has none for what was deleted in between
    )


def admit(store: Connection, candidate: Candidate) -> None:
    """Let everybody see a version; any number of times. Raises NotFound where it was withdrawn."""
    ref = candidate.ref
    with translated(store.uri, f"version {str(ref)!r}"):
        for key, value in _withheld(candidate.facts).items():
            upsert(partial(store.client.set_model_version_tag, ref.name, str(ref.number), key, value))


def _withheld(facts: Facts) -> dict[str, str]:
    """The tags that make a version seen: by what it was made from, and last by its digest."""
    return {**{child_tag(parent): "yes" for parent in facts.parents}, _DIGEST: facts.digest}
