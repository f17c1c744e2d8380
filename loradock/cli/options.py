"""Options that several verbs share, each written once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from loradock.registry import refs
from loradock.registry.errors import BadInput

if TYPE_CHECKING:
    from pydantic import SecretStr


def base_option(*, required: bool) -> Callable[[Any], Any]:
    """The option that names a base model."""
    text = "The base model: a directory, ORG/NAME on the Hub, or pypi:NAME==VERSION."
    return click.option("--base", required=required, help=text)


alias_option = click.option("--alias", default=refs.PRODUCTION, show_default=True, help="The alias to move.")


def is_typed(name: str) -> bool:
    """Whether an option of the verb that runs was given on its command line, and not by a variable or a default."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


class _Secret(click.ParamType["SecretStr"]):
    """A text that no repr shows."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SecretStr:
        """Cover it."""
        from pydantic import SecretStr

        return value if isinstance(value, SecretStr) else SecretStr(value)


def key_option(text: str) -> Callable[[Any], Any]:
    """`--api-key`; by default what the settings say, who may have it from a file."""

    def from_settings() -> SecretStr:
        from loradock.registry.settings import Settings

        return Settings().api_key

    return click.option(
        "--api-key",
        type=_Secret(),
        envvar="VLLM_API_KEY",
        default=from_settings,
        show_default=False,
        show_envvar=True,
        help=text,
    )


def replicas_option(text: str) -> Callable[[Any], Any]:
    """`--replica`, once for each that is asked."""
    return click.option("--replica", "urls", multiple=True, metavar="URL", help=text)


reason_option = click.option("--reason", default="", help="The reason, kept in the history.")


def force_option(what: str, *, kept: str) -> Callable[[Any], Any]:
    """`--force --reason TEXT`: what a refusal is overridden for, and where the reason is kept.

    The verb gets `forced`, the reason, which is empty where nothing is overridden.
    """

    def decorate(verb: Any) -> Any:
        @functools.wraps(verb)
        def with_reason(*args: Any, force: bool, reason: str, **given: Any) -> Any:
            if force and not reason:
                raise BadInput("--force needs a --reason", hint=f"it is kept in {kept}")
            if reason and not force:
                raise BadInput("--reason does nothing without --force")
            return verb(*args, forced=reason, **given)

        with_reason = click.option("--reason", default="", help=f"The reason for --force, kept in {kept}.")(with_reason)
        return click.option("--force", is_flag=True, help=f"{what} Needs --reason.")(with_reason)

    return decorate


no_samples_option = click.option("--no-samples", is_flag=True, help="Log no prompt and no answer to MLflow.")

trained_on_option = click.option("--base", help="Where the base is, if the version was trained on a local directory.")


data_option = click.option(
    "--data", help="Held-out rows to measure the loss on: a file, a directory, or ORG/NAME on the Hub."
)


limit_option = click.option("--limit", type=click.IntRange(1), metavar="ROWS", help="Use the first ROWS rows only.")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
"""The option of every verb that gives data."""

reference_option = click.option(
    "--no-reference",
    is_flag=True,
    help="Do not load the base to record the PEFT reference; no replica serves the version without one.",
)


def rank_limit_option(verb: Any) -> Any:
    """`--max-lora-rank`, up to what vLLM takes."""
    from loradock.registry.check import MAX_RANK

    text = "The rank limit that the server is started with."
    kind = click.IntRange(1, MAX_RANK)
    return click.option("--max-lora-rank", type=kind, default=MAX_RANK, show_default=True, help=text)(verb)
