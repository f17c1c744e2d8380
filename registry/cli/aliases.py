"""The verbs that move aliases, and tell of their moves: parse, call, print."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from loradock.registry import card, entries, gates, heads, promotion, refs, replicas, traffic
from loradock.registry import history as histories
from loradock.registry import policy as policies
from loradock.registry import room as rooms
from loradock.registry.cli.completion import complete_name, complete_ref
from loradock.registry.cli.output import emit, json_option, say
from loradock.registry.cli.shared import alias_option, moment, reason_option
from loradock.registry.errors import BadInput, Drifted, GateFailed, HistoryCut, NotFound, Refused
from loradock.registry.records import Acceptance, Entry, Move, PolicyChange, Removal, Traffic
from loradock.registry.settings import Settings
from loradock.registry.store import Store

_TIMES = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f")


@click.command()
@click.argument("name", shell_complete=complete_name)
@click.option(
    "--at", type=click.DateTime(_TIMES), metavar="TIME", help="Show instead where each alias stood then, UTC."
)
@click.option(
    "--accept", is_flag=True, help="First go on with a history that lacks what was seen of it; needs --reason."
)
@click.option("--adopt", is_flag=True, help="First write down the moves that were made past loradock.")
@click.option("--restore", is_flag=True, help="First take back the moves that were made past loradock.")
@reason_option
@json_option
def history(
    name: str, at: datetime | None, accept: bool, adopt: bool, restore: bool, reason: str, as_json: bool
) -> None:
    """Show who moved an adapter's aliases, when and why, oldest first.

    A move that was made past loradock, in MLflow itself, is told on stderr until --adopt or --restore settles it. So is
    a history that was cut, or is another one than before, until --accept says why it is right.
    """
    settings = Settings()
    store, name = Store(settings), refs.parse_name(name)
    if adopt and restore:
        raise BadInput("--adopt and --restore exclude each other")
    if accept and entries.accept(store, name, actor=settings.actor, reason=reason) is None:
        say(f"the history of {name} has all that was seen of it")
    if adopt:
        promotion.adopt(store, name, actor=settings.actor, reason=reason)
    if restore:
        promotion.restore(store, name, actor=settings.actor, reason=reason)
    if adopt or restore:
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
    rows = [{**_told(entry), "at": moment(entry.at)} for entry in past.entries]
    emit(rows, as_json, columns=("seq", "at", "what", "from", "to", "actor", "reason", "notes"))


@click.command()
@click.argument("ref", shell_complete=complete_ref)
@alias_option
@click.option("--expect", type=int, metavar="NUMBER", help="Move only when the alias is at this version now.")
@click.option(
    "--weight",
    metavar="SHARE",
    help="Of the bare name's requests: those that a canary answers, or that a shadow gets a copy of, as 10% or 0.1.",
)
@reason_option
@click.option("--force", is_flag=True, help="Promote what a check or the policy refuses; needs --reason.")
@click.option("--dry-run", is_flag=True, help="Move nothing; print what the policy says of it, rule by rule.")
@json_option
def promote(
    ref: str,
    alias: str,
    expect: int | None,
    weight: str | None,
    reason: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move an alias to a version.

    REF is NAME/NUMBER. The move is a compare-and-set: when somebody else moves the alias meanwhile, it exits with 4 and
    says who. Where the adapter has a policy for the alias, a version that does not pass it exits with 3. So does one
    whose rank is above the limit of every replica in LORADOCK_REPLICAS; one that some of them cannot hold, or that
    crowds them, is warned of.

    `--to canary --weight 10%` lets the version answer a tenth of the bare name's requests, the same users each time;
    `--to shadow --weight 10%` gives it a copy of them, and answers nobody. The share ends when the alias moves on.
    """
    settings = Settings()
    share = None if weight is None else traffic.parse_weight(weight)
    if share is not None and alias not in traffic.ALIASES:
        raise BadInput("--weight goes with --to canary or --to shadow")
    store, version = Store(settings), refs.parse_version(ref)
    unfit = _unfit(settings, store, version, refs.parse_alias(alias))
    if dry_run:
        verdicts = promotion.verdicts(store, version, refs.parse_alias(alias))
        if unfit:
            verdicts += (gates.Verdict(rule="room", passed=False, figure=unfit),)
        emit([verdict.model_dump() for verdict in verdicts], as_json, columns=("rule", "passed", "figure", "evidence"))
        if not all(verdict.passed for verdict in verdicts):
            raise GateFailed(str(version), alias, ())
        return
    if unfit and not force:
        raise Refused(
            unfit,
            hint="promote it with --force --reason, then restart them: they go by what is promoted at their start",
        )
    move = promotion.promote(
        store,
        version,
        refs.parse_alias(alias),
        actor=settings.actor,
        reason=reason,
        expect=expect,
        force=force,
    )
    if move is None:
        say(f"{version.name}@{alias} is at version {version.number} already")
    given = share is not None and traffic.set_share(store, version, alias, share, actor=settings.actor, reason=reason)
    card.refresh(store, version.name)
    for problem in replicas.nudge(settings):
        say(f"warning: {problem}")
    _report(move, version.name, as_json, given or None)


@click.command()
@click.argument("name", shell_complete=complete_name)
@click.option(
    "--set",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Make this YAML file the policy from now on.",
)
@reason_option
@json_option
def policy(name: str, file: Path | None, reason: str, as_json: bool) -> None:
    """Show or set what versions must show to be promoted.

    A policy is written in YAML, by alias. It is part of the adapter's history, and `loradock history` tells who set it,
    when and why.
    """
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


@click.command()
@click.argument("name", shell_complete=complete_name)
@click.option("--alias", default=refs.PRODUCTION, show_default=True, help="The alias to move back.")
@click.option("--to", type=int, metavar="NUMBER", help="An earlier version of this alias.  [default: the one before]")
@reason_option
@json_option
def rollback(name: str, alias: str, to: int | None, reason: str, as_json: bool) -> None:
    """Move an alias back to where it stood before."""
    settings = Settings()
    store, name = Store(settings), refs.parse_name(name)
    move = promotion.rollback(store, name, refs.parse_alias(alias), actor=settings.actor, reason=reason, to=to)
    card.refresh(store, name)
    for problem in replicas.nudge(settings):
        say(f"warning: {problem}")
    _report(move, name, as_json)


def _unfit(settings: Settings, store: Store, ref: refs.VersionRef, alias: str) -> str:
    """Why no replica could serve a version, after warnings of what it would lead to on some; empty where one could."""
    if not settings.replica_urls:
        return ""
    found, problems = replicas.rooms(settings)
    fit = rooms.fit(store.version(ref), alias, found)
    for warning in (*problems, *fit.warnings):
        say(f"warning: {warning}")
    return fit.refusal


def _told(entry: Entry) -> dict[str, Any]:
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
    return row


def _report(move: Move | None, name: str, as_json: bool, given: Traffic | None = None) -> None:
    if move is None and given is None:
        if as_json:
            emit({}, as_json)
        return
    row: dict[str, Any] = {}
    if move:
        before = f"{name}/{move.from_version}" if move.from_version else None
        row = {"alias": str(move.ref_in(name)), "from": before, "to": f"{name}/{move.to_version}"}
        row |= {"digest": move.digest, "at": moment(move.at), "actor": move.actor}
    if given:
        weight = {"alias": f"{name}@{given.alias}", "to": f"{name}/{given.version}", "weight": given.weight}
        row = weight | {"at": moment(given.at), "actor": given.actor} | row
    emit(row, as_json)
