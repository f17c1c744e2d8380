"""Moving aliases, and who moved them."""

from __future__ import annotations

from loradock.api import Report, logged, open_store
from loradock.registry import card, heads, promotion, refs, replicas
from loradock.registry.errors import Refused
from loradock.registry.history import History
from loradock.registry.records import Move
from loradock.registry.refs import PRODUCTION, VersionRef
from loradock.registry.store import Store


def promote(
    ref: str | VersionRef,
    alias: str = PRODUCTION,
    *,
    reason: str = "",
    actor: str = "",
    expect: int | None = None,
    force: bool = False,
    store: Store | None = None,
    report: Report = logged,
) -> Move | None:
    """Move an alias to a version, as a compare-and-set.

    Args:
        ref: The version: `support-bot/3`.
        alias: The alias to move.
        reason: Why; kept in the history.
        actor: Who moves it; by default LORADOCK_ACTOR or the login name.
        expect: Move only when the alias is at this version now.
        force: Promote what the check, the policy or the replicas refuse; needs a reason.
        store: The registry; by default the one that the environment names.
        report: Called with each line of progress.

    Returns:
        The move as the history keeps it; None when the alias is at the version already.

    Raises:
        Conflict: The alias is not at `expect`, or somebody else moved it meanwhile; `winner` says who.
        Drifted: Somebody moved the alias in MLflow itself.
        GateFailed: The version does not pass the adapter's policy.
        NotFound: There is no such version.
        NotServable: The check found that vLLM cannot serve it.
        Refused: Its rank is above the limit of every replica in LORADOCK_REPLICAS.
        Unreachable: The registry does not answer.
        WrongBase: It was trained on another base than the version that is served now.
    """
    store = store or open_store()
    version, alias = refs.parse_version(ref) if isinstance(ref, str) else ref, refs.parse_alias(alias)
    if (refusal := replicas.unfit(store, version, alias, report)) and not force:
        raise Refused(refusal, hint="force it with a reason, then restart the replicas, which go by what is promoted")
    move = promotion.promote(
        store, version, alias, actor=actor or store.settings.actor, reason=reason, expect=expect, force=force
    )
    make_known(store, version.name, report)
    return move


def rollback(
    name: str,
    alias: str = PRODUCTION,
    *,
    to: int | None = None,
    reason: str = "",
    actor: str = "",
    store: Store | None = None,
    report: Report = logged,
) -> Move:
    """Move an alias back to where it stood before.

    Args:
        name: The adapter.
        alias: The alias to move back.
        to: One of its earlier versions; by default the one before.
        reason: Why; kept in the history.
        actor: Who moves it; by default LORADOCK_ACTOR or the login name.
        store: The registry; by default the one that the environment names.
        report: Called with each line of progress.

    Returns:
        The move as the history keeps it.

    Raises:
        BadInput: The alias was never at `to`, or is there now.
        Conflict: Somebody else moved the alias meanwhile.
        Drifted: Somebody moved the alias in MLflow itself.
        NotFound: There is no earlier version.
        Unreachable: The registry does not answer.
    """
    store, name, alias = store or open_store(), refs.parse_name(name), refs.parse_alias(alias)
    move = promotion.rollback(store, name, alias, actor=actor or store.settings.actor, reason=reason, to=to)
    make_known(store, name, report)
    return move


def read_history(name: str, *, store: Store | None = None) -> History:
    """Read who moved an adapter's aliases, when and why.

    Args:
        name: The adapter.
        store: The registry; by default the one that the environment names.

    Returns:
        Its entries, oldest first, and as `drifts` the aliases that somebody moved in MLflow itself.

    Raises:
        HistoryCut: The history lacks an entry that was seen of it.
        HistoryDamaged: An entry was edited, or is missing.
        NotFound: There is no such adapter.
        Unreachable: The registry does not answer.
    """
    return heads.current(store or open_store(), refs.parse_name(name))


def make_known(store: Store, name: str, report: Report) -> None:
    """Show a move in MLflow's card of the adapter, and nudge the replicas; `report` gets a warning of what failed."""
    card.refresh(store, name)
    for problem in replicas.nudge(store.settings):
        report(f"warning: {problem}")
