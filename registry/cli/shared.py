"""Options and rows that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from registry import refs
from registry.records import Version


def base_option(*, required: bool) -> Callable[[Any], Any]:
    """The option that names a base model."""
    text = "The base model: a directory, ORG/NAME on the Hub, or pypi:NAME==VERSION."
    return click.option("--base", required=required, help=text)


alias_option = click.option(
    "--to", "alias", default=refs.PRODUCTION, show_default=True, metavar="ALIAS", help="The alias to move."
)
reason_option = click.option("--reason", default="", help="Why; kept in the history.")


def moment(at: datetime) -> str:
    """A time as verbs print it."""
    return at.isoformat(timespec="milliseconds")


def row(version: Version) -> dict[str, Any]:
    """What lists tell of a version."""
    facts = version.facts
    return {
        "version": str(version.ref),
        "digest": facts.digest,
        "method": facts.method,
        "rank": facts.rank,
        "base": facts.base.id,
        "run_id": facts.run_id,
        "created": moment(version.created_at),
    }
