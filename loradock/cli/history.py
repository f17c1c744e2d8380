"""The `history` verb: parse, call, print."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from loradock.cli.command import Command
from loradock.cli.completion import complete_name
from loradock.cli.options import json_option, reason_option
from loradock.cli.output import emit
from loradock.cli.rows import moment
from loradock.registry import card, entries, heads, promotion, refs, signing
from loradock.registry import history as histories
from loradock.registry.errors import BadInput, Drifted, HistoryCut
from loradock.registry.output import say
from loradock.registry.records import Acceptance, Entry, Move, PolicyChange, Removal, Traffic
from loradock.registry.settings import Settings
from loradock.registry.store import Store

_TIMES = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f")


@click.command(cls=Command)
@click.argument("name", shell_complete=complete_name)
@click.option(
    "--at",
    type=click.DateTime(_TIMES),
    metavar="TIME",
    help="Show the version of each alias at this time instead, in UTC.",
)
@click.option("--accept", is_flag=True, help="First accept a history that lacks entries seen before. Needs --reason.")
@click.option("--adopt", is_flag=True, help="First record the moves that were made out of band.")
@click.option("--restore", is_flag=True, help="First undo the moves that were made out of band.")
@reason_option
@json_option
def history(
    name: str, at: datetime | None, accept: bool, adopt: bool, restore: bool, reason: str, as_json: bool
) -> None:
    """Show who moved an adapter's aliases, when and why, oldest first.

    Example:
      loradock history support-bot --at 2026-01-31

    A move that was made out of band, in MLflow itself, is reported on stderr until --adopt or --restore settles it.
    A history that was cut or replaced is reported until --accept records why it is right.
    """
    settings = Settings()
    store, name = Store(settings), refs.parse_name(name)
    if adopt and restore:
        raise BadInput("--adopt and --restore exclude each other")
    if reason and not (accept or adopt or restore):
        raise BadInput("--reason does nothing without --accept, --adopt or --restore")
    if accept and entries.accept(store, name, actor=settings.actor, reason=reason) is None:
        say(f"the history of {name} has all that was seen of it")
    if adopt or restore:
        settle = promotion.adopt if adopt else promotion.restore
        settle(store, name, actor=settings.actor, reason=reason)
        card.refresh(store, name)
    past = histories.read(store, name)
    try:
        past = heads.checked(store, past)
    except HistoryCut as error:
        say(f"warning: {error.text}")
    for drift in past.drifts:
        cure = "--adopt or --restore?" if drift.found else f"`loradock rollback {name}` or --adopt?"
        say(f"warning: {Drifted(name, drift.alias, recorded=drift.recorded, found=drift.found)}; {cure}")
    if at:
        emit({alias: f"{name}/{number}" for alias, number in past.at(at.replace(tzinfo=UTC)).items()}, as_json)
        return
    if as_json:
        emit([entry.model_dump(mode="json") | {"at": moment(entry.at)} for entry in past.entries], as_json)
        return
    signers = signing.signers(past.entries)
    rows = [{**_told(entry, signers), "at": moment(entry.at)} for entry in past.entries]
    emit(rows, as_json, columns=("seq", "at", "what", "from", "to", "actor", "reason", "notes"))


def _told(entry: Entry, signers: Mapping[str, str]) -> dict[str, Any]:
    """An entry as a row that a person reads."""
    row: dict[str, Any] = {"seq": entry.seq, "actor": entry.actor, "reason": entry.reason}
    match entry:
        case Move():
            forced = f"forced past {', '.join(entry.failed) or 'the check'}" if entry.forced else ""
            evidence = f"by {', '.join(entry.evidence)}" if entry.evidence else ""
            what = f"{entry.op} {entry.alias}"
            row |= {"what": what, "from": entry.from_version, "to": entry.to_version, "notes": forced or evidence}
        case PolicyChange():
            row |= {"what": "set the policy"}
        case Traffic():
            row |= {"what": f"weight {entry.alias}", "to": entry.version, "notes": f"{entry.weight:.0%} of requests"}
        case Acceptance():
            row |= {"what": "accept", "notes": "; ".join(entry.lacks)}
        case Removal():
            row |= {"what": "delete", "from": ", ".join(map(str, entry.versions))}
    if entry.key:
        who = f"signed by {signing.signer(entry, signers) or 'a key that no policy names'}"
        row["notes"] = "; ".join(filter(None, (row.get("notes"), who)))
    return row
