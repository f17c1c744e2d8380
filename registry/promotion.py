"""Moving an alias, as a compare-and-set on an append-only history.

A family's history is a list of entries in its ledger (`Store.append`). Whoever writes the next number has made the
move; the alias in MLflow is then set from the head of the history, so that a promoter who dies in between leaves
nothing that the next one, or `settle`, does not mend.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from registry.errors import BadInput, Conflict, NotFound, NotServable, WrongBase
from registry.records import Move, Version
from registry.refs import AliasRef, VersionRef
from registry.store import Family, Store

_MAX_REASON = 1000  # characters; MLflow silently cuts a param at 6,000


@dataclass(frozen=True, slots=True)
class History:
    """A family's moves in order, and the entries as they were written."""

    family: Family
    moves: tuple[Move, ...]
    last: str = ""

    def head(self, alias: str) -> int | None:
        """The version that an alias stands at."""
        return next((move.to_version for move in reversed(self.moves) if move.alias == alias), None)

    def before(self, alias: str) -> int | None:
        """The version to roll back to: where the alias stood before the promotion that is in force."""
        stack: list[int] = []
        for move in self.moves:
            if move.alias == alias:
                stack = (
                    stack[: stack.index(move.to_version)]
                    if move.op == "rollback" and move.to_version in stack
                    else stack
                )
                stack.append(move.to_version)
        return stack[-2] if len(stack) > 1 else None


def history(store: Store, name: str) -> History:
    """A family's history; raises NotFound."""
    return _read(store, store.family(name))


def _read(store: Store, family: Family) -> History:
    if not family.ledger:
        return History(family, ())
    entries = store.entries(family)
    return History(family, tuple(Move.model_validate_json(entry) for entry in entries), entries[-1] if entries else "")


def resolve(store: Store, ref: VersionRef | AliasRef) -> Version:
    """The version that a ref names now, an alias by its history; raises NotFound."""
    if isinstance(ref, VersionRef):
        return store.version(ref)
    number = history(store, ref.name).head(ref.alias)
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

    Raises NotServable or WrongBase unless forced with a reason, and Conflict when the alias is not at `expect`,
    or when somebody else moved it in between.
    """
    version = store.version(ref)
    past = history(store, ref.name)
    at = past.head(alias)
    if expect is not None and at != expect:
        raise _conflict(past, alias, expect)
    if at == ref.number:
        settle(store, past.family)
        return None
    if force and not reason:
        raise BadInput("--force needs a --reason", hint="history keeps it")
    if not force:
        _admit(store, version, at)
    return _move(store, past, "promote", alias, version, actor=actor, reason=reason, forced=force)


def rollback(store: Store, name: str, alias: str, *, actor: str, reason: str = "", to: int | None = None) -> Move:
    """Move an alias back to where it stood before the promotion in force, or to `to`, one of its earlier versions."""
    past = history(store, name)
    target = to if to is not None else past.before(alias)
    if target is None:
        raise NotFound(f"{name}@{alias} has no earlier version to go back to", hint=f"see: loradock history {name}")
    if target not in {move.to_version for move in past.moves if move.alias == alias}:
        raise BadInput(
            f"{name}@{alias} was never at version {target}", hint=f"promote it: loradock promote {name}/{target}"
        )
    version = store.version(VersionRef(name, target))
    return _move(store, past, "rollback", alias, version, actor=actor, reason=reason)


def _admit(store: Store, version: Version, incumbent: int | None) -> None:
    if version.findings:
        raise NotServable(str(version.ref), version.findings)
    if incumbent is None:
        return
    served = store.version(VersionRef(version.ref.name, incumbent))
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
    op: Literal["promote", "rollback"],
    alias: str,
    version: Version,
    *,
    actor: str,
    reason: str,
    forced: bool = False,
) -> Move:
    if len(reason) > _MAX_REASON:
        raise BadInput(f"a reason has at most {_MAX_REASON} characters; this one has {len(reason)}")
    decided_on = past.head(alias)
    nonce = secrets.token_hex(8)
    while True:
        move = Move(
            seq=len(past.moves),
            op=op,
            alias=alias,
            from_version=decided_on,
            to_version=version.ref.number,
            actor=actor,
            reason=reason,
            forced=forced,
            at=datetime.now(UTC),
            digest=version.facts.digest,
            nonce=nonce,
            prev=hashlib.sha256(past.last.encode()).hexdigest() if past.last else "",
        )
        if store.append(past.family, move.seq, move.canonical()):
            settle(store, past.family)
            return move
        past = _read(store, past.family)
        if past.head(alias) != decided_on or _moved_since(past.moves[move.seq :], alias):
            raise _conflict(past, alias, decided_on)


def _moved_since(moves: Iterable[Move], alias: str) -> bool:
    return any(move.alias == alias for move in moves)


def _conflict(past: History, alias: str, expected: int | None) -> Conflict:
    last = next((move for move in reversed(past.moves) if move.alias == alias), None)
    name = past.family.name
    return Conflict(
        f"{name}@{alias}",
        expected=f"version {expected}" if expected else "no version",
        found=f"version {last.to_version}" if last else "no version",
        winner=last.actor if last else "",
    )


def settle(store: Store, family: Family) -> None:
    """Set every alias of a family to the head of its history, until a reading finds nothing left to set.

    Two who settle at once may set in either order; both read again, so the last of them leaves the head.
    """
    while True:
        past = _read(store, store.family(family.name))
        heads = {move.alias: move.to_version for move in past.moves}
        wrong = {alias: number for alias, number in heads.items() if past.family.aliases.get(alias) != number}
        if not wrong:
            return
        for alias, number in wrong.items():
            store.set_alias(AliasRef(family.name, alias), number)
