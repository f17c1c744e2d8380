"""From the name that a request gives to the version that answers it: pure.

A bare name is its family's production, or for some of the users its canary. A canary takes whole users: who is in its
share is a hash of the user and the canary's version, so that the same user gets the same version for as long as the
share does not shrink, and another canary tries other users first.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from loradock.registry.errors import BadInput
from loradock.registry.refs import CANARY, PRODUCTION, SHADOW, AliasRef, VersionRef, parse_ref
from loradock.serving.calls import Role
from loradock.serving.desired import Desired, public_name


@dataclass(frozen=True, slots=True)
class Table:
    """Which names answer now, and with what."""

    bases: frozenset[str] = frozenset()
    """The names under which the base itself answers."""
    desired: Desired = field(default_factory=Desired)
    pointed: Mapping[str, VersionRef] = field(default_factory=dict)
    quarantined: Collection[VersionRef] = ()
    """Versions that take no traffic; a name that points at nothing else does not answer."""
    public: frozenset[str] = frozenset({PRODUCTION, CANARY})
    """The aliases that clients may ask for."""
    pinned: bool = False
    """Whether clients may ask for versions by number."""

    def names(self) -> dict[str, VersionRef]:
        """Every public name but the base's and those of single versions, with the version that answers it."""
        named: dict[str, VersionRef] = {}
        for name in self.desired.targets.keys() | self.pointed.keys():
            if ref := self._answer(name):
                named |= dict.fromkeys(self._spellings(name), ref)
        return named

    def find(self, model: str, user: str) -> Found | None:
        """What answers a request for `model` by `user`, who may be nobody; None for a name that is not served."""
        if model in self.bases:
            return Found(model, "base", None)
        try:
            ref = parse_ref(model)
        except BadInput:
            return None
        if isinstance(ref, VersionRef):
            return Found(ref.name, "pinned", ref) if self.pinned else None
        answering = self._answer(public_name(ref))
        if "@" in model:
            return Found(ref.name, "alias", answering) if answering and ref.alias in self.public else None
        canary = self._share(ref.name, CANARY, user) if answering else None
        return Found(ref.name, "canary" if canary else "production", canary or answering) if answering else None

    def shadow(self, family: str) -> VersionRef | None:
        """The version that gets a copy of this request for a bare name, if one does."""
        return self._share(family, SHADOW, "")

    def _share(self, family: str, alias: str, user: str) -> VersionRef | None:
        share = self.desired.shares.get(family, {}).get(alias)
        ref = self.pointed.get(str(AliasRef(family, alias)))
        if share is None or ref is None or ref.number != share.version:
            return None
        return ref if _place(f"{ref}:{user}" if user else "") < share.weight else None

    def _answer(self, name: str) -> VersionRef | None:
        """What a name points at; one that points at nothing yet is answered by its target, once that is loaded."""
        if (ref := self.pointed.get(name)) is not None:
            return ref
        target = self.desired.targets.get(name)
        return None if target is None or target.ref in self.quarantined else target.ref

    def _spellings(self, name: str) -> Iterator[str]:
        family, _, alias = name.partition("@")
        if not alias:
            yield family
        if (alias or PRODUCTION) in self.public:
            yield f"{family}@{alias or PRODUCTION}"


@dataclass(frozen=True, slots=True)
class Found:
    """What answers a request."""

    name: str
    """The family, or the base's own name."""
    role: Role
    ref: VersionRef | None
    """None for the base."""


def _place(user: str) -> float:
    """Where a user stands between 0 and 1; nobody stands anywhere."""
    if not user:
        return random.random()  # noqa: S311 - no secret
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8], "big") / 2**64
