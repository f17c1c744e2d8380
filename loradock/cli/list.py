"""The `list` verb: parse, call, print."""

from __future__ import annotations

from typing import Any

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_name
from loradock.cli.options import json_option
from loradock.cli.output import emit
from loradock.cli.rows import row
from loradock.registry import refs
from loradock.registry.errors import BadInput
from loradock.registry.output import say
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Family, Store
from loradock.registry.store.families import owned

_COLUMNS = ("version", "aliases", "method", "rank", "base", "created", "servable")


@click.command("list", cls=Command)
@click.argument("name", required=False, shell_complete=complete_name)
@click.option("--page-size", type=click.IntRange(1, 1000), metavar="NUMBER", help="Versions on a page.  [default: 50]")
@click.option("--before", type=click.IntRange(1), metavar="NUMBER", help="Versions below this number.")
@click.option("--after", type=click.IntRange(0), metavar="NUMBER", help="Versions above this number.")
@json_option
def list_(name: str | None, page_size: int | None, before: int | None, after: int | None, as_json: bool) -> None:
    """List adapters with their aliases, or one adapter's versions, newest first.

    Example:
      loradock list support-bot --page-size 10
    """
    store = Store(Settings())
    if name is None:
        if page_size or before or after is not None:
            raise BadInput(
                "--page-size, --before and --after need a NAME", hint="they are pages of one adapter's versions"
            )
        rows = [{"name": family.name, "aliases": dict(family.aliases)} for family in store.families()]
        emit(rows, as_json, columns=("name", "aliases"))
        return
    if before is not None and after is not None:
        raise BadInput("--before and --after exclude each other")
    size = page_size or 50
    family = owned(store.family(refs.parse_name(name)))
    page = store.page(family.name, limit=size, before=before, after=after)
    emit([_row(family, version) for version in page], as_json, columns=_COLUMNS)
    if len(page) == size and page[-1].ref.number > 1 and after is None:
        say(f"older ones: loradock list {family.name} --before {page[-1].ref.number}")


def _row(family: Family, version: Version) -> dict[str, Any]:
    aliases = sorted(alias for alias, number in family.aliases.items() if number == version.ref.number)
    checked = {"servable": version.servable, "findings": list(version.findings), "doubts": list(version.doubts)}
    return row(version) | {"aliases": aliases} | checked
