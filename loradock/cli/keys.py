"""The verb for API keys: parse, call, print."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from loradock.cli.command import Command
from loradock.cli.options import json_option
from loradock.cli.output import emit
from loradock.registry.errors import BadInput
from loradock.registry.output import say


@click.command(cls=Command)
@click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="LORADOCK_SERVE_KEYS",
    show_envvar=True,
    help="The file of keys; replicas reload it when it changes.",
)
@click.option("--add", metavar="NAME", help="Add a key, and print its secret once.")
@click.option("--remove", metavar="NAME", help="Remove a key; every replica follows within a second.")
@click.option(
    "--may",
    multiple=True,
    metavar="MODELS",
    help="Models to call: support-*, support-*@canary, support-bot/3, @base for the base, ** for any.  [repeatable]",
)
@click.option("--requests", multiple=True, metavar="LIMIT", help="The limit of requests: 60/m, 1000/d.  [repeatable]")
@click.option("--tokens", multiple=True, metavar="LIMIT", help="The limit of tokens: 100000/d.  [repeatable]")
@click.option("--admin", is_flag=True, help="Let it call every model and the routes that change the server.")
@click.option(
    "--expires",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"]),
    metavar="TIME",
    help="When the key expires, in UTC.",
)
@json_option
def keys(
    file: Path | None,
    add: str | None,
    remove: str | None,
    may: tuple[str, ...],
    requests: tuple[str, ...],
    tokens: tuple[str, ...],
    admin: bool,
    expires: datetime | None,
    as_json: bool,
) -> None:
    """List, add or remove the API keys of serving replicas.

    Example:
      loradock keys --file keys.json --add web --may 'support-*' --requests 60/m

    The secret of a new key is printed to stdout once; the file holds its hash. Each replica counts the limits for
    itself.
    """
    from loradock.serving import keyfile

    if file is None:
        raise BadInput("there is no file of keys", hint="name it with --file or LORADOCK_SERVE_KEYS")
    facts = {"may": may, "requests": requests, "tokens": tokens, "admin": admin}
    if add is not None and remove is not None:
        raise BadInput("--add and --remove exclude each other")
    if add is None and (any(facts.values()) or expires):
        raise BadInput("--may, --requests, --tokens, --admin and --expires say what a new key may do: use --add NAME")
    if add is not None:
        if not may and not admin:
            raise BadInput(f"{add!r} could call nothing", hint="say what with --may MODELS, or --admin for everything")
        secret = keyfile.add(file, add, **facts, expires=expires.replace(tzinfo=UTC) if expires else None)
        say(f"{add} is in {file}; this is its secret, which is kept nowhere:")
        if as_json:
            emit({"name": add, "secret": secret}, as_json)
        else:
            click.echo(secret)
    elif remove is not None:
        keyfile.remove(file, remove)
        say(f"{remove} is no longer in {file}")
    else:
        rows = [_row(name, key) for name, key in sorted(keyfile.read(file).keys.items())]
        emit(rows, as_json, columns=("name", "may", "requests", "tokens", "admin", "expires"))


def _row(name: str, key: Any) -> dict[str, Any]:
    return {"name": name, **key.model_dump(mode="json", exclude={"sha256"})}
