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
    help="The file of keys, which replicas read again when it changes.",
)
@click.option("--add", metavar="NAME", help="Make a key, and print its secret this once.")
@click.option("--remove", metavar="NAME", help="Take a key away, within a second on every replica.")
@click.option(
    "--may",
    multiple=True,
    metavar="MODELS",
    help="What it may call: support-*, support-*@canary, support-bot/3, @base for the base, ** for all.  [repeatable]",
)
@click.option(
    "--requests", multiple=True, metavar="LIMIT", help="At most so many requests: 60/m, 1000/d.  [repeatable]"
)
@click.option("--tokens", multiple=True, metavar="LIMIT", help="At most so many tokens: 100000/d.  [repeatable]")
@click.option(
    "--admin", is_flag=True, help="Let it call everything, and ask the routes that change how the server runs."
)
@click.option("--expires", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"]), metavar="TIME", help="Until then, UTC.")
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

    A key's secret goes to stdout once, when it is made; the file has its hash. Limits count what each replica serves.
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
