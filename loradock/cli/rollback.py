"""The `rollback` verb: parse, call, print."""

from __future__ import annotations

import click

from loradock.api.aliases import make_known
from loradock.cli.command import Command
from loradock.cli.completion import complete_name
from loradock.cli.moves import report
from loradock.cli.options import alias_option, json_option, reason_option
from loradock.registry import promotion, refs
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command(cls=Command)
@click.argument("name", shell_complete=complete_name)
@alias_option
@click.option("--to", type=int, metavar="NUMBER", help="An earlier version of this alias.  [default: the one before]")
@reason_option
@json_option
def rollback(name: str, alias: str, to: int | None, reason: str, as_json: bool) -> None:
    """Move an alias back to where it stood before.

    Example:
      loradock rollback support-bot --reason 'slow answers'

    Without --to, it moves to the version that it was at before. Replicas follow at once.
    """
    settings = Settings()
    store, name = Store(settings), refs.parse_name(name)
    move = promotion.rollback(store, name, refs.parse_alias(alias), actor=settings.actor, reason=reason, to=to)
    make_known(store, name, say)
    report(move, name, as_json)
