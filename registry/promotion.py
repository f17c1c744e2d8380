"""Moving an alias, as a compare-and-set on the family's history.

Whoever writes the history's next entry has made the move; the alias in MLflow is then set to where history says that it
is. A promoter who dies in between leaves nothing that the next one does not mend.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Literal

from registry.errors import BadInput, Conflict, Drifted, NotFound, NotServable, WrongBase
from registry.history import History, link, read
from registry.records import Move, Version
from registry.refs import AliasRef, VersionRef
from registry.store import Store

_MAX_REASON = 1000  # characters; MLflow silently cuts a param at 6,000


def resolve(store: Store, ref: VersionRef | AliasRef) -> Version:
    """The version that a ref names now, an alias by its history; raises NotFound."""
    if isinstance(ref, VersionRef):
        return store.version(ref)
    number = read(store, ref.name).head(ref.alias)
    if number is None:
        raise NotFound(
            f"{ref.name!r} has no alias {ref.alias!r}",
            hint=f"promote a version first: loradock promote {ref.name}/1 --to {ref.alias}",
        )
    return store.version(VersionRef(ref.name, number))


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
        settle(store, ref.name)
        return None
    if force and not reason:
        raise BadInput("--force needs a --reason", hint="history keeps it")
    if not force:
        _admit(store, version, at)
    return _move(store, past, "promote", alias, version, actor=actor, reason=reason, forced=force)


def rollback(store: Store, name: str, alias: str, *, actor: str, reason: str = "", to: int | None = None) -> Move:
    """Move an alias back to where it stood before the promotion in force, or to `to`, one of its earlier versions.

    Versions that were deleted meanwhile are passed over. Raises NotFound, BadInput, Conflict or Drifted.
    """
    past = _undrifted(store, name, alias)
    if to is not None and to not in {move.to_version for move in past.moves if move.alias == alias}:
        raise BadInput(f"{name}@{alias} was never at version {to}", hint=f"promote it: loradock promote {name}/{to}")
    for target in past.earlier(alias) if to is None else (to,):
        try:
            version = store.version(VersionRef(name, target))
        except NotFound:
            continue
        return _move(store, past, "rollback", alias, version, actor=actor, reason=reason)
    raise NotFound(f"{name}@{alias} has no earlier version to go back to", hint=f"see: loradock history {name}")


def adopt(store: Store, name: str, *, actor: str, reason: str = "") -> tuple[Move, ...]:
    """Write into the history where MLflow's aliases were moved past loradock; returns what was written."""
    past = read(store, name)
    return tuple(
        _move(store, past, "adopt", drift.alias, _found(store, name, drift.found), actor=actor, reason=reason)
        for drift in past.drifts
    )


def restore(store: Store, name: str, *, actor: str, reason: str = "") -> tuple[Move, ...]:
    """Move aliases that were moved past loradock back to where history says; returns what was written."""
    past = read(store, name)
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


def _undrifted(store: Store, name: str, alias: str) -> History:
    """The history, unless the alias was moved past loradock. One that is gone bars no move: it serves nobody."""
    past = read(store, name)
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
    forced: bool = False,
    came_from: int | None = None,
) -> Move:
    if len(reason) > _MAX_REASON:
        raise BadInput(f"a reason has at most {_MAX_REASON} characters; this one has {len(reason)}")
    decided_on = past.heads.get(alias)
    nonce = secrets.token_hex(8)
    while True:
        move = Move(
            seq=len(past.moves),
            op=op,
            alias=alias,
            from_version=came_from if op == "restore" else past.head(alias),
            to_version=version.ref.number if version else None,
            actor=actor,
            reason=reason,
            forced=forced,
            at=datetime.now(UTC),
            digest=version.facts.digest if version else "",
            nonce=nonce,
            prev=link(past.last),
        )
        if store.append(past.family, move.seq, move.canonical()):
            settle(store, past.family.name)
            return move
        past = read(store, past.family.name)
        if past.heads.get(alias) != decided_on:
            raise _conflict(past, alias, decided_on.to_version if decided_on else None)


def _conflict(past: History, alias: str, expected: int | None) -> Conflict:
    last = past.heads.get(alias)
    return Conflict(
        f"{past.family.name}@{alias}",
        expected=f"version {expected}" if expected else "no version",
        found=f"version {last.to_version}" if last and last.to_version else "no version",
        winner=last.actor if last else "",
    )


def settle(store: Store, name: str) -> None:
    """Set every alias whose last move was not applied, until a reading finds none, and mark those moves as applied.

    Two who settle at once may set in either order. Each reads again after it has set, and goes on for as long as an
    alias that it has set itself is not where history says, so the last of them leaves the head.
    """
    ours: set[str] = set()
    while True:
        past = read(store, name)
        pending = {a: move for a, move in past.heads.items() if move.seq not in past.applied or a in ours}
        wrong = {a: move.to_version for a, move in pending.items() if past.family.aliases.get(a) != move.to_version}
        ours |= wrong.keys()
        for alias, number in wrong.items():
            store.set_alias(AliasRef(name, alias), number)
        if not wrong:
            break
    for move in pending.values():
        if move.seq not in past.applied:
            store.mark_applied(past.family, move.seq)
