"""The verbs that list and show: parse, call, print."""

from __future__ import annotations

import click

from registry import promotion, refs
from registry.cli.output import emit, json_option
from registry.cli.shared import row
from registry.records import Version
from registry.settings import Settings
from registry.store import Family, Store


@click.command("list")
@click.argument("name", required=False)
@json_option
def list_(name: str | None, as_json: bool) -> None:
    """List adapters with their aliases, or one adapter's versions."""
    store = Store(Settings())
    if name is None:
        rows = [{"name": family.name, "aliases": dict(family.aliases)} for family in store.families()]
        emit(rows, as_json, columns=("name", "aliases"))
        return
    family = store.family(refs.parse_name(name))
    rows = [row(version) | {"aliases": _aliases(family, version)} for version in store.versions(name)]
    emit(rows, as_json, columns=("version", "aliases", "method", "rank", "base", "run_id", "created"))


@click.command()
@click.argument("ref")
@json_option
def show(ref: str, as_json: bool) -> None:
    """Show all that is known of one version.

    REF is NAME/NUMBER, NAME@ALIAS, or NAME, which means NAME@production.
    """
    store = Store(Settings())
    version = promotion.resolve(store, refs.parse_ref(ref))
    aliases = _aliases(store.family(version.ref.name), version)
    emit({"version": str(version.ref), "aliases": aliases, **version.model_dump(mode="json", exclude={"ref"})}, as_json)


def _aliases(family: Family, version: Version) -> list[str]:
    return sorted(alias for alias, number in family.aliases.items() if number == version.ref.number)
