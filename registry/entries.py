"""Writing into a family's history: whoever writes the next entry has done what it says.

For a move the alias in MLflow is set afterwards. A writer who dies in between leaves nothing that the next one does not
mend.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from loradock.registry import heads, signing
from loradock.registry.errors import BadInput, Conflict
from loradock.registry.history import History, link, read
from loradock.registry.records import Acceptance, Move, PolicyChange, Removal, Traffic
from loradock.registry.refs import AliasRef
from loradock.registry.store import Store
from loradock.registry.store.families import owned

E = TypeVar("E", Move, PolicyChange, Removal, Traffic, Acceptance)

_MAX_REASON: Final = 1000  # characters
_MAX_ENTRY: Final = 5000  # characters; MLflow silently cuts a param at 6,000


def write(
    store: Store,
    past: History,
    make: Callable[[Mapping[str, Any]], E],
    decide: Callable[[History], None],
    *,
    actor: str,
    reason: str,
    check: Callable[[Store, History], History] = heads.checked,
) -> E:
    """Write the next entry; `decide` raises where what others wrote in between speaks against it.

    Raises Taken where the family is not loradock's, and what `check` does of a history that is not to be gone on with.
    """
    owned(past.family)
    if (again := check(store, past)) is not past:
        decide(past := again)
    if len(reason) > _MAX_REASON:
        raise BadInput(f"a reason has at most {_MAX_REASON} characters; this one has {len(reason)}")
    nonce = secrets.token_hex(8)
    path = store.settings.signing_key_file
    key = signing.load(path) if path else None
    while True:
        entry = make(
            {
                "seq": past.end,
                "actor": actor,
                "reason": reason,
                # never before the entry that it follows, whatever this machine's clock says
                "at": max(datetime.now(UTC), past.entries[-1].at) if past.entries else datetime.now(UTC),
                "nonce": nonce,
                "prev": link(past.last),
            }
        )
        if key:
            entry = signing.sign(entry, past.family.name, key)
        text = entry.canonical()
        signing.require(past.family.name, signing.rules(past.policy), entry, text)
        if len(text) > _MAX_ENTRY:
            raise BadInput(f"an entry of a history has at most {_MAX_ENTRY} characters; this one has {len(text)}")
        if store.append(past.family, past.ledger, entry.seq, text, carry=past.carry):
            now, name = heads.after(past, entry, text), past.family.name
            heads.Memory(store.settings).keep({name: now})
            if not isinstance(entry, Move):  # of a move the alias is set first, by `apply`
                store.tell_head(name, None, now.canonical())
            return entry
        past = check(store, read(store, past.family.name, whole=False, alias=past.alias))
        decide(past)


def settle(store: Store, name: str, alias: str) -> History:
    """Set an alias that a promoter who died, or was overtaken, left where history does not say; returns what is then.

    Two who settle at once may set in either order. Each reads again after it has set, so the last leaves the head. What
    it set stays open until then: were it overtaken while it set, it would read its own work as drift.
    """
    with ExitStack() as open_:
        while True:
            past = read(store, name, whole=False, alias=alias)
            head = past.heads.get(alias)
            if head is None or past.drifts_of(alias) or past.family.aliases.get(alias) == head.to_version:
                return past
            open_.enter_context(store.mending(past.ledger, head.seq))
            store.set_alias(AliasRef(name, alias), head.to_version)


def apply(store: Store, name: str, move: Move) -> None:
    """Set the alias to where a new move says, unless it was overtaken, and mark it as applied."""
    past = read(store, name, whole=False, alias=move.alias)
    if past.heads[move.alias] == move:
        store.set_alias(move.ref_in(name), move.to_version)
        past = settle(store, name, move.alias)
    store.mark_applied(past.ledger, move.seq)
    if now := heads.head(past):
        store.tell_head(name, move.to_version, now.canonical())


def accept(store: Store, name: str, *, actor: str, reason: str) -> Acceptance | None:
    """Go on with a history that lacks what was seen of it, as after a restore; None where it lacks nothing.

    Machines that have seen it otherwise follow, and say who accepted it and why. Raises BadInput without a reason.
    """
    past = read(store, name)
    if not (lacks := heads.lacks(store, past)):
        return None
    if not reason:
        raise BadInput("--accept needs a --reason", hint="history keeps it")
    return write(
        store,
        past,
        lambda head: Acceptance(**head, lacks=lacks),
        lambda _: None,
        actor=actor,
        reason=reason,
        check=lambda _, found: found,
    )


def set_policy(store: Store, name: str, text: str, *, actor: str, reason: str = "") -> PolicyChange:
    """Write a new policy into a family's history; raises Conflict when somebody else changed it in between."""
    past = heads.current(store, name, whole=False)
    before = past.policy

    def decide(now: History) -> None:
        if now.policy != before:
            raise Conflict(
                f"the policy of {name}",
                expected="as it was",
                found="changed",
                winner=now.policy.actor if now.policy else "",
            )

    return write(store, past, lambda head: PolicyChange(**head, policy=text), decide, actor=actor, reason=reason)


def remove(
    store: Store, name: str, numbers: tuple[int, ...], *, actor: str, reason: str, decided_on: History
) -> Removal:
    """Write down that versions are deleted, from when on no alias moves to them; the caller then deletes them.

    Raises Conflict when an alias moved to one of them since `decided_on`.
    """

    def decide(now: History) -> None:
        moved = {move.to_version: move for move in now.moves if move.seq >= decided_on.end}
        for number in numbers:
            if number in moved:
                move = moved[number]
                raise Conflict(str(move.ref_in(name)), expected="elsewhere", found=str(number), winner=move.actor)

    decide(heads.current(store, name))
    return write(store, decided_on, lambda head: Removal(**head, versions=numbers), decide, actor=actor, reason=reason)
