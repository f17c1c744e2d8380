"""Turning a run's adapter into an immutable version."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from registry import artifact, check
from registry.records import Version
from registry.store import Store


def register(store: Store, run_id: str, name: str) -> Version:
    """Make a version of the adapter that a run logged; the same bytes give the same version, however often.

    Its bytes are fetched and hashed first. What rules it out for serving is kept with it as findings.
    Raises NotFound, BadInput, DigestMismatch, Conflict or Unreachable.
    """
    source, facts = store.adapter_of(run_id)
    with _downloaded(store, source, what=f"run {run_id}") as directory:
        artifact.verify(directory, facts.digest, what=f"the adapter of run {run_id}")
        found = tuple(check.findings(directory))
    store.create_family(name)
    if existing := store.find_version(name, facts.digest):
        return existing
    made = store.create_version(name, source, facts, found)
    # MLflow makes two versions of a request that was sent twice; the lowest is the one.
    return store.find_version(name, facts.digest) or made


@contextmanager
def fetched(store: Store, version: Version) -> Iterator[Path]:
    """A version's files in a directory that goes away at the end, not yet verified."""
    with _downloaded(store, version.source, what=str(version.ref)) as directory:
        yield directory


@contextmanager
def _downloaded(store: Store, source: str, *, what: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="loradock-") as scratch:
        store.download(source, Path(scratch), what=what)
        yield Path(scratch)
