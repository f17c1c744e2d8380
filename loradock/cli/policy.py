"""The `policy` verb: parse, call, print."""

from __future__ import annotations

from pathlib import Path

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_name
from loradock.cli.options import json_option, reason_option
from loradock.cli.output import emit
from loradock.cli.rows import moment
from loradock.registry import entries, refs
from loradock.registry import history as histories
from loradock.registry import policy as policies
from loradock.registry.errors import BadInput, NotFound
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command(cls=Command)
@click.argument("name", shell_complete=complete_name)
@click.option(
    "--set",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Set the policy to this YAML file.",
)
@reason_option
@json_option
def policy(name: str, file: Path | None, reason: str, as_json: bool) -> None:
    """Show or set what versions must show to be promoted.

    Example:
      loradock policy support-bot --set policy.yaml --reason 'measure first'

    A policy is written in YAML, by alias. It is part of the adapter's history: `loradock history` shows who set it,
    when and why.
    """
    if reason and not file:
        raise BadInput("--reason does nothing without --set")
    settings = Settings()
    store, name = Store(settings), refs.parse_name(name)
    if file:
        text = file.read_text(encoding="utf-8")
        policies.parse(text, what=str(file))
        entries.set_policy(store, name, text, actor=settings.actor, reason=reason)
    if (set_ := histories.read(store, name, whole=False).policy) is None:
        raise NotFound(f"{name!r} has no policy", hint=f"write one, and: loradock policy {name} --set FILE")
    if as_json:
        emit(set_.model_dump(mode="json") | {"rules": policies.parse(set_.policy).model_dump()}, as_json)
        return
    say(f"set by {set_.actor} at {moment(set_.at)}{': ' if set_.reason else ''}{set_.reason}")
    click.echo(set_.policy.rstrip())
