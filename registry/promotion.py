"""Moving an alias, as a compare-and-set on the family's history.

A move is decided here, on what the history says, and made by whoever writes its next entry (`entries`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from loradock.registry import entries, gates, heads
from loradock.registry.errors import (
    BadInput,
    Conflict,
    DigestMismatch,
    Drifted,
    GateFailed,
    NotFound,
    NotServable,
    Refused,
    WrongBase,
)
from loradock.registry.history import History, read
from loradock.registry.records import Move, Version
from loradock.registry.refs import PRODUCTION, AliasRef, VersionRef
from loradock.registry.store import Store

log = logging.getLogger(__name__)


def resolve(store: Store, ref: VersionRef | AliasRef) -> Version:
    """The version that a ref names now, as replicas see it; raises NotFound, which says where a lost alias stood."""
    if isinstance(ref, VersionRef):
        return store.version(ref)
    try:
        return store.version_at(ref)
    except NotFound:
        stood = read(store, ref.name).head(ref.alias)
    if stood is None:
        raise NotFound(
            f"{ref.name!r} has no alias {ref.alias!r}",
            hint=f"promote a version first: loradock promote {ref.name}/1 --alias {ref.alias}",
        )
    raise NotFound(
        f"{ref} stood at version {stood}, and was taken from it in MLflow, or the version was deleted there",
        hint=f"`loradock rollback {ref.name}{_option(ref.alias)}` moves it to the version before",
    )


def promote(
    store: Store,
    ref: VersionRef,
    alias: str,
    *,
    actor: str,
    reason: str = "",
    expect: int | None = None,
    force: bool = False,
) -> Move | None:
    """Move an alias to a version; None when it stands there already.

    Raises NotServable or WrongBase unless forced with a reason, Conflict when the alias is not at `expect` or somebody
    else moved it in between, and Drifted when it was moved past loradock.
    """
    version = store.version(ref)
    past = _undrifted(store, ref.name, alias)
    at = past.head(alias)
    if expect is not None and at != expect:
        raise _conflict(past, alias, expect)
    if at == ref.number and not past.drifts_of(alias):
        entries.settle(store, ref.name, alias)
        return None
    if force and not reason:
        raise BadInput("--force needs a --reason", hint="history keeps it")
    verdicts = gates.judge(store, past, version, alias)
    failed = tuple(verdict.rule for verdict in verdicts if not verdict.passed)
    if failed and not force:
        raise GateFailed(str(ref), alias, [str(verdict) for verdict in verdicts])
    if not force:
        _admit(store, version, at)
    evidence = tuple(sorted({verdict.evidence for verdict in verdicts if verdict.evidence}))
    return _move(
        store,
        past,
        "promote",
        alias,
        version,
        actor=actor,
        reason=reason,
        forced=force,
        evidence=evidence,
        failed=failed,
    )


def verdicts(store: Store, ref: VersionRef, alias: str) -> tuple[gates.Verdict, ...]:
    """What the policy would say of a promotion now, check included."""
    version, past = store.version(ref), _undrifted(store, ref.name, alias)
    try:
        _admit(store, version, past.head(alias))
    except Refused as error:
        return (gates.Verdict(rule="check", passed=False, figure=str(error)), *gates.judge(store, past, version, alias))
    return (
        gates.Verdict(rule="check", passed=True, figure="vLLM can serve it"),
        *gates.judge(store, past, version, alias),
    )


def rollback(store: Store, name: str, alias: str, *, actor: str, reason: str = "", to: int | None = None) -> Move:
    """Move an alias back to where it stood before the promotion in force, or to `to`, one of its earlier versions.

    Versions that were deleted meanwhile are passed over. Raises NotFound, BadInput, Conflict or Drifted.
    """
    from loradock.registry import versions  # which brings all that looks into files; `promote` looks into none

    past = _undrifted(store, name, alias, whole=True)
    if to is not None and to not in {move.to_version for move in past.moves if move.alias == alias}:
        raise BadInput(f"{name}@{alias} was never at version {to}", hint=f"promote it: loradock promote {name}/{to}")
    here = None if past.drifts_of(alias) else past.head(alias)
    if to is not None and to == here:
        raise BadInput(f"{name}@{alias} is at version {to} already")
    targets = past.earlier(alias) if to is None else (to,)
    for target in (number for number in targets if number != here and number not in past.removed):
        try:
            version = store.version(VersionRef(name, target))
            versions.verify(store, version)
        except (NotFound, DigestMismatch) as error:
            log.warning("passed over: %s", error)
            continue
        return _move(store, past, "rollback", alias, version, actor=actor, reason=reason)
    raise NotFound(
        f"{name}@{alias} has no {'earlier version' if to is None else f'version {to}'} to go back to",
        hint=f"see: loradock history {name}",
    )


def adopt(store: Store, name: str, *, actor: str, reason: str = "") -> tuple[Move, ...]:
    """Write into the history where MLflow's aliases were moved past loradock; returns what was written."""
    past = heads.current(store, name)
    return tuple(
        _move(store, past, "adopt", drift.alias, _found(store, name, drift.found), actor=actor, reason=reason)
        for drift in past.drifts
    )


def restore(store: Store, name: str, *, actor: str, reason: str = "") -> tuple[Move, ...]:
    """Move aliases that were moved past loradock back to where history says; returns what was written.

    What promoters who died left behind is set to where history says, without a move.
    """
    past = heads.current(store, name)
    for alias in past.heads:
        entries.settle(store, name, alias)
    return tuple(
        _move(
            store,
            past,
            "restore",
            drift.alias,
            _found(store, name, drift.recorded),
            actor=actor,
            reason=reason,
            came_from=drift.found,
        )
        for drift in past.drifts
    )


def _found(store: Store, name: str, number: int | None) -> Version | None:
    return None if number is None else store.version(VersionRef(name, number))


def _undrifted(store: Store, name: str, alias: str, *, whole: bool = False) -> History:
    """The history, unless it was cut or the alias was moved past loradock. One that is gone bars no move."""
    past = heads.current(store, name, whole=whole, alias=alias)
    for drift in past.drifts_of(alias):
        if drift.found is not None:
            raise Drifted(name, alias, recorded=drift.recorded, found=drift.found)
    return past


def _admit(store: Store, version: Version, incumbent: int | None) -> None:
    if version.findings:
        raise NotServable(str(version.ref), version.findings)
    if incumbent is None:
        return
    try:
        served = store.version(VersionRef(version.ref.name, incumbent))
    except NotFound:  # it was deleted, and what is to replace it is the cure
        return
    if not version.facts.base.same_weights(served.facts.base):
        raise WrongBase(
            str(version.ref),
            trained_on=version.facts.base.id,
            given=f"{served.facts.base.id} like {served.ref}, which is served now",
            hint="register it under another name, or insist with --force --reason",
        )


def _move(
    store: Store,
    past: History,
    op: Literal["promote", "rollback", "adopt", "restore"],
    alias: str,
    version: Version | None,
    *,
    actor: str,
    reason: str,
    came_from: int | None = None,
    **more: Any,
) -> Move:
    decided_on, policy = past.heads.get(alias), past.policy
    number = version.ref.number if version else None

    def decide(now: History) -> None:
        if now.heads.get(alias) != decided_on:
            raise _conflict(now, alias, decided_on.to_version if decided_on else None)
        if op == "promote" and now.policy != policy:
            raise Conflict(f"the policy of {now.family.name}", expected="as it was", found="changed")
        if version and now is not past:
            store.version(version.ref)  # whoever is late may find its deletion no longer in the end of the history
        if number in now.removed:
            raise NotFound(f"version '{now.family.name}/{number}' is deleted", hint="choose another version")

    def make(head: Mapping[str, Any]) -> Move:
        return Move(
            **head,
            op=op,
            alias=alias,
            from_version=came_from if op == "restore" else past.head(alias),
            to_version=number,
            digest=version.facts.digest if version else "",
            **more,
        )

    decide(past)
    move = entries.write(store, past, make, decide, actor=actor, reason=reason)
    entries.apply(store, past.family.name, move)
    return move


def _option(alias: str) -> str:
    return "" if alias == PRODUCTION else f" --alias {alias}"


def _conflict(past: History, alias: str, expected: int | None) -> Conflict:
    last = past.heads.get(alias)
    return Conflict(
        f"{past.family.name}@{alias}",
        expected=f"version {expected}" if expected else "no version",
        found=f"version {last.to_version}" if last and last.to_version else "no version",
        winner=last.actor if last else "",
    )
