"""What the verbs that make a version print."""

from __future__ import annotations

from loradock.cli.output import emit
from loradock.cli.rows import row
from loradock.registry import card
from loradock.registry.output import say
from loradock.registry.records import Version
from loradock.registry.store import Store


def report(store: Store, version: Version, as_json: bool) -> None:
    """Print a version that was made, after warnings of what keeps it from being served."""
    card.refresh(store, version.ref.name, made=version)
    for finding in version.findings:
        say(f"warning: {version.ref} cannot be served: {finding}")
    emit(row(version), as_json)
