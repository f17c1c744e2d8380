"""The `promote` verb: parse, call, print."""

from __future__ import annotations

import click

from loradock.api.aliases import make_known
from loradock.cli.command import Command
from loradock.cli.completion import complete_ref
from loradock.cli.moves import report
from loradock.cli.options import alias_option, json_option, reason_option
from loradock.cli.output import emit
from loradock.registry import gates, promotion, refs, replicas, traffic
from loradock.registry.errors import BadInput, GateFailed, Refused
from loradock.registry.output import say
from loradock.registry.settings import Settings
from loradock.registry.store import Store


@click.command(cls=Command)
@click.argument("ref", shell_complete=complete_ref)
@alias_option
@click.option("--expect", type=int, metavar="NUMBER", help="Move only if the alias is at this version now.")
@click.option(
    "--weight",
    metavar="SHARE",
    help="The share of the bare name's requests that a canary answers or a shadow gets a copy of: 10% or 0.1.",
)
@reason_option
@click.option("--force", is_flag=True, help="Promote what a check or the policy refuses. Needs --reason.")
@click.option("--dry-run", is_flag=True, help="Move nothing; print the policy's verdict, rule by rule.")
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

    Example:
      loradock promote support-bot/3 --reason 'fewer refusals'
      loradock promote support-bot/4 --alias canary --weight 10%

    REF is NAME/NUMBER. The move is a compare-and-set: if somebody else moves the alias meanwhile, the exit code is
    4 and the error names the winner. A version that does not pass the adapter's policy for the alias is refused
    (exit code 3). So is one whose rank is above the limit of every replica in LORADOCK_REPLICAS; a warning names
    replicas that have no room for it.

    `--alias canary --weight 10%` lets the version answer a tenth of the requests for the bare name, always for the
    same users. `--alias shadow --weight 10%` sends it a copy of them and discards its answers. The weight ends when
    the alias moves on.
    """
    settings = Settings()
    share = None if weight is None else traffic.parse_weight(weight)
    if share is not None and alias not in traffic.ALIASES:
        raise BadInput("--weight goes with --alias canary or --alias shadow")
    store, version = Store(settings), refs.parse_version(ref)
    unfit = replicas.unfit(store, version, refs.parse_alias(alias), say)
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
    make_known(store, version.name, say)
    report(move, version.name, as_json, given or None)
