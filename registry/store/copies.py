"""MLflow's copies: versions whose source is another version, `models:/support-bot/3`, and not an adapter's bytes."""

from __future__ import annotations

from typing import Final

from loradock.registry.errors import NotFound
from loradock.registry.store.connection import Connection, translated

_SCHEME: Final = "models:/"


def is_copy(source: str) -> bool:
    """Whether a version with this source was copied from another one; bytes are `models:/m-...`, no name begins so."""
    return source.startswith(_SCHEME) and not source.startswith(f"{_SCHEME}m-")


def followed(store: Connection, source: str) -> str:
    """Where the bytes are that a source leads to, over as many copies as there are; raises NotFound."""
    seen = {source}
    while is_copy(source):
        name, _, number = source.removeprefix(_SCHEME).rpartition("/")
        with translated(store.uri, f"version '{name}/{number}'"):
            source = store.client.get_model_version(name, number).source or ""
        if source in seen:
            raise NotFound(f"{source} is a copy of itself, and leads to no bytes")
        seen.add(source)
    return source
