"""Writing down where a version was published."""

from __future__ import annotations

from registry.refs import VersionRef
from registry.store.connection import Connection, translated
from registry.store.lineage import Publication, publication_tag


def record(store: Connection, ref: VersionRef, publication: Publication) -> None:
    """Keep a publication with its version, any number of times.

    Its number is its time in milliseconds, so that of two that are written at once neither takes the other's place.
    """
    number = int(publication.at.timestamp() * 1000)
    with translated(store.uri, f"version {str(ref)!r}"):
        store.client.set_model_version_tag(ref.name, str(ref.number), publication_tag(number), publication.canonical())
