"""What a rollout writes into the registry, each step with its reason, and how it sees what others wrote there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loradock.registry import card, promotion, replicas, traffic
from loradock.registry.errors import Conflict, GateFailed, NotFound
from loradock.registry.history import History, read
from loradock.registry.refs import CANARY, PRODUCTION, AliasRef, VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store

_STOOD: Final = f"min_hours.{CANARY}"
"""The rule of a policy that a rollout comes to meet by itself."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a version's rollout begins."""

    production: int
    """The version that it is compared with, and is to replace."""
    weight: float
    """The canary's share now: not 0 where an earlier rollout of the same version was cut off."""


class Moves:
    """The registry, as one version's rollout writes it."""

    def __init__(self, store: Store, settings: Settings, ref: VersionRef) -> None:
        self._store, self._settings, self._ref = store, settings, ref
        self._production = 0
        self._weight = 0.0
        self._promoting = False

    def begin(self) -> Standing | None:
        """Make the version the canary, without a share if it has none yet; None where it is in production already.

        Raises GateFailed or Refused where it could not be promoted in the end, NotFound where production has no
        version, and Conflict where another version is the canary and has a share.
        """
        ref, past = self._ref, self._past()
        production = past.head(PRODUCTION)
        if production == ref.number:
            self.withdraw(f"rollout: {ref} is in production")
            return None
        if production is None:
            raise NotFound(
                f"{ref.name} has no version in production to compare with",
                hint=f"the first needs no rollout: loradock promote {ref}",
            )
        canary, share = past.head(CANARY), past.traffic.get(CANARY)
        if canary != ref.number and share:
            raise Conflict(
                str(AliasRef(ref.name, CANARY)),
                expected=f"version {ref.number}, or without a share",
                found=f"version {canary} with {share.weight:.0%} of requests",
                winner=share.actor,
            )
        verdicts = promotion.verdicts(self._store, ref, PRODUCTION)
        if [verdict for verdict in verdicts if not verdict.passed and verdict.rule != _STOOD]:
            raise GateFailed(str(ref), PRODUCTION, [str(verdict) for verdict in verdicts])
        if canary != ref.number:
            promotion.promote(
                self._store, ref, CANARY, actor=self._settings.actor, reason="rollout: begun", expect=canary
            )
            self._told()
        self._production = production
        self._weight = share.weight if share and canary == ref.number else 0.0
        return Standing(production, self._weight)

    def check(self) -> None:
        """Raises Conflict where somebody else moved production, or the canary, or gave it another share."""
        past = self._past()
        if not self._promoted(past):
            self._at(past, PRODUCTION, self._production)
        self._at(past, CANARY, self._ref.number)
        share = past.traffic.get(CANARY)
        if (weight := share.weight if share else 0.0) != self._weight:
            raise Conflict(
                str(AliasRef(self._ref.name, CANARY)),
                expected=f"a share of {self._weight:.0%}",
                found=f"a share of {weight:.0%}",
            )

    def weigh(self, weight: float, reason: str) -> None:
        """Give the canary a share; raises Conflict where somebody else moved something."""
        self.check()
        traffic.set_share(self._store, self._ref, CANARY, weight, actor=self._settings.actor, reason=reason)
        self._weight = weight
        self._told()

    def withdraw(self, reason: str) -> bool:
        """Take the canary's share away, if it is still this version's; whether it was."""
        try:
            traffic.set_share(self._store, self._ref, CANARY, 0.0, actor=self._settings.actor, reason=reason)
        except Conflict:
            return False
        self._weight = 0.0
        self._told()
        return True

    def patience(self) -> str:
        """For what the policy asks the canary to stand longer; empty where it does not."""
        verdicts = promotion.verdicts(self._store, self._ref, PRODUCTION)
        return "; ".join(str(verdict) for verdict in verdicts if not verdict.passed and verdict.rule == _STOOD)

    def promote(self, reason: str) -> None:
        """Make it production, by the policy and only from where production stood; then the canary's share ends.

        Where the registry went out of reach half way, it may be called again.
        """
        self.check()
        expect = self._ref.number if self._promoted(self._past()) else self._production
        self._promoting = True
        promotion.promote(self._store, self._ref, PRODUCTION, actor=self._settings.actor, reason=reason, expect=expect)
        self.withdraw(f"rollout: {self._ref} is in production")

    def _promoted(self, past: History) -> bool:
        """Whether production is at this version, by this rollout."""
        return self._promoting and past.head(PRODUCTION) == self._ref.number

    def _past(self) -> History:
        return read(self._store, self._ref.name, whole=False)

    def _at(self, past: History, alias: str, expected: int) -> None:
        if past.head(alias) != expected:
            head = past.heads.get(alias)
            raise Conflict(
                str(AliasRef(self._ref.name, alias)),
                expected=f"version {expected}",
                found=f"version {head.to_version}" if head and head.to_version else "no version",
                winner=head.actor if head else "",
            )

    def _told(self) -> None:
        """Have it seen at once; where it is not, replicas see it at their next poll."""
        card.refresh(self._store, self._ref.name)
        replicas.nudge(self._settings)
