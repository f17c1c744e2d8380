"""The `gc` verb: parse, call, print."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from pydantic import SecretStr

from loradock.cli.command import Command
from loradock.cli.completion import complete_name
from loradock.cli.options import is_typed, json_option, key_option, reason_option, replicas_option
from loradock.cli.output import emit
from loradock.registry import gc as cleanup
from loradock.registry import refs, replicas
from loradock.registry.errors import BadInput
from loradock.registry.gc import Go, Rules, Stay
from loradock.registry.output import say
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store

_DAYS = click.FloatRange(min=0)


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=complete_name)
@click.option(
    "--keep",
    type=click.IntRange(0),
    metavar="NUMBER",
    help="Keep the newest NUMBER versions, and as many for each alias to roll back to.  "
    "[default: LORADOCK_KEEP, or 10]",
)
@click.option(
    "--since",
    type=_DAYS,
    default=30,
    show_default=True,
    metavar="DAYS",
    help="Keep versions that an alias was at within DAYS.",
)
@click.option(
    "--min-age",
    type=_DAYS,
    default=1,
    show_default=True,
    metavar="DAYS",
    help="Keep versions created, or last aliased, within DAYS.",
)
@replicas_option("A serving replica; the versions that it holds stay. Give each.  [default: LORADOCK_REPLICAS]")
@key_option("The replicas' key, if they have one.")
@reason_option
@click.option("--yes", is_flag=True, help="Delete. The default is a dry run.")
@json_option
def gc(
    name: str | None,
    keep: int | None,
    since: float,
    min_age: float,
    urls: tuple[str, ...],
    api_key: SecretStr,
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete the versions that nothing needs, and their bytes.

    Example:
      loradock gc support-bot --keep 5

    NAME is one adapter; without it, all are cleaned up. The default is a dry run, which prints the verdict and its
    reason for each version. A replica that does not answer stops it before anything is deleted.
    """
    settings = Settings()
    store = Store(settings)
    rules = Rules(
        keep=settings.keep if keep is None else keep,
        window=timedelta(days=since),
        min_age=timedelta(days=min_age),
    )
    if is_typed("api_key") and not (urls or settings.replica_urls):
        raise BadInput("--api-key does nothing without --replica or LORADOCK_REPLICAS")
    reported = replicas.held(urls or settings.replica_urls, api_key)
    names = [refs.parse_name(name)] if name else sorted(family.name for family in store.families())
    rows = [row for one in names for row in _planned(store, one, rules, reported)]
    if yes:
        freed = {
            str(gone.ref): gone.freed
            for one in names
            for gone in cleanup.collect(store, one, rules, reported, actor=settings.actor, reason=reason)
        }
        rows = [row | _outcome(row, freed) for row in rows]
        say(f"{len(freed)} versions deleted, {sum(freed.values()):,} bytes freed")
    else:
        goes = sum(row["verdict"] == "goes" for row in rows)
        say(f"nothing was deleted; with --yes {goes} of {len(rows)} versions would be")
    emit(rows, as_json, columns=("version", "verdict", "why"))


def _planned(store: Store, name: str, rules: Rules, reported: Mapping[VersionRef, str]) -> list[dict[str, Any]]:
    decided = cleanup.plan(cleanup.look(store, name, reported), rules, now=datetime.now(UTC))
    return [_row(one) for one in decided]


def _row(decided: Stay | Go) -> dict[str, Any]:
    if isinstance(decided, Stay):
        return {"version": str(decided.ref), "verdict": "stays", "why": list(decided.why)}
    return {"version": str(decided.ref), "verdict": "goes", "why": [decided.why]}


def _outcome(row: Mapping[str, Any], freed: Mapping[str, int]) -> dict[str, Any]:
    if row["version"] in freed:
        return {"verdict": "deleted", "freed": freed[row["version"]]}
    return {"verdict": "stays", "why": ["it was needed meanwhile"]} if row["verdict"] == "goes" else {}
