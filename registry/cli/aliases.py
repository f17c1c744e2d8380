"""The verbs that move aliases, and tell of their moves: parse, call, print."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from registry import history as histories
from registry import promotion, refs
from registry.cli.output import emit, json_option, say
from registry.cli.shared import alias_option, moment, reason_option
from registry.errors import BadInput, Drifted
from registry.records import Move
from registry.settings import Settings
from registry.store import Store

_TIMES = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f")


@click.command()
@click.argument("name")
@click.option(
    "--at", type=click.DateTime(_TIMES), metavar="TIME", help="Show instead where each alias stood then, UTC."
)
@click.option("--adopt", is_flag=True, help="First write down the moves that were made past loradock.")
@click.option("--restore", is_flag=True, help="First take back the moves that were made past loradock.")
@reason_option
@json_option
def history(name: str, at: datetime | None, adopt: bool, restore: bool, reason: str, as_json: bool) -> None:
    """Show who moved an adapter's aliases, when and why, oldest first.

    A move that was made past loradock, in MLflow itself, is told on stderr until --adopt or --restore settles it.
    """
    settings = Settings()
    store, name = Store(settings), refs.parse_name(name)
    if adopt and restore:
        raise BadInput("--adopt and --restore exclude each other")
    if adopt:
        promotion.adopt(store, name, actor=settings.actor, reason=reason)
    if restore:
        promotion.restore(store, name, actor=settings.actor, reason=reason)
    past = histories.read(store, name)
    for drift in past.drifts:
        say(f"warning: {Drifted(name, drift.alias, recorded=drift.recorded, found=drift.found)}; --adopt or --restore?")
    if at:
        emit({alias: f"{name}/{number}" for alias, number in past.at(at.replace(tzinfo=UTC)).items()}, as_json)
        return
    rows = [move.model_dump(mode="json") | {"at": moment(move.at)} for move in past.moves]
    emit(rows, as_json, columns=("seq", "at", "op", "alias", "from_version", "to_version", "actor", "reason"))


@click.command()
@click.argument("ref")
@alias_option
@click.option("--expect", type=int, metavar="NUMBER", help="Move only when the alias is at this version now.")
@reason_option
@click.option("--force", is_flag=True, help="Promote what a check refuses; needs --reason.")
@json_option
def promote(ref: str, alias: str, expect: int | None, reason: str, force: bool, as_json: bool) -> None:
    """Move an alias to a version.

    REF is NAME/NUMBER. The move is a compare-and-set: when somebody else moves the alias meanwhile, it exits
    with 4 and says who.
    """
    settings = Settings()
    version = refs.parse_version(ref)
    move = promotion.promote(
        Store(settings),
        version,
        refs.parse_alias(alias),
        actor=settings.actor,
        reason=reason,
        expect=expect,
        force=force,
    )
    if move is None:
        say(f"{version.name}@{alias} is at version {version.number} already")
    _report(move, version.name, as_json)


@click.command()
@click.argument("name")
@click.option("--alias", default=refs.PRODUCTION, show_default=True, help="The alias to move back.")
@click.option("--to", type=int, metavar="NUMBER", help="An earlier version of this alias.  [default: the one before]")
@reason_option
@json_option
def rollback(name: str, alias: str, to: int | None, reason: str, as_json: bool) -> None:
    """Move an alias back to where it stood before."""
    settings = Settings()
    move = promotion.rollback(
        Store(settings), refs.parse_name(name), refs.parse_alias(alias), actor=settings.actor, reason=reason, to=to
    )
    _report(move, name, as_json)


def _report(move: Move | None, name: str, as_json: bool) -> None:
    if move is None:
        if as_json:
            emit({}, as_json)
        return
    before = f"{name}/{move.from_version}" if move.from_version else None
    row = {"alias": str(move.ref_in(name)), "from": before, "to": f"{name}/{move.to_version}", "digest": move.digest}
    emit(row | {"at": moment(move.at), "actor": move.actor}, as_json)
