"""What a rollout does next, from what is known: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loradock.registry.errors import BadInput
from loradock.serving.rollout.blocks import Finding


@dataclass(frozen=True, slots=True)
class Rules:
    """How a rollout goes."""

    steps: tuple[float, ...] = (0.05, 0.25, 0.5)
    """The canary's shares, rising; after the last comes production."""
    answers: int = 100
    """The canary's at each step, at least."""
    seconds: float = 600.0
    """At each step, at least."""
    within: float = 86_400.0
    """Seconds from the first share to the end; what is not shown by then is not promoted."""

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip((0.0, *self.steps), self.steps, strict=False))
        if not self.steps or not rising or self.steps[-1] >= 1:
            raise BadInput(
                f"{', '.join(f'{step:.4g}' for step in self.steps)} are no steps of a rollout",
                hint="give rising shares below 100%, for at 100% nothing is left to compare with: 5%,25%,50%",
            )

    def step_at(self, weight: float) -> int:
        """The step that a share belongs to: the last that is not above it, or the first."""
        return max((place for place, step in enumerate(self.steps) if step <= weight), default=0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known at one moment."""

    step: int
    """The place of the share in force among the steps."""
    in_step: float
    """Seconds since that share was given."""
    in_all: float
    """Seconds since the first was."""
    answers: int
    """The canary's since this share was given."""
    findings: Sequence[Finding]
    replicas: int
    answering: int
    """Of the replicas, those that told what they measured."""
    quarantined: str = ""
    """Why every replica that answers holds the canary back; empty where one does not."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing, and for what."""

    why: str


@dataclass(frozen=True, slots=True)
class Raise:
    """Give the canary the next share."""

    step: int


@dataclass(frozen=True, slots=True)
class Promote:
    """Make it production."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Take its share away."""

    why: str


Action = Wait | Raise | Promote | Abort


def decide(seen: Seen, rules: Rules) -> Action:
    """The next action.

    A share is raised where nothing alarms; production asks for more, that every signal is shown to be within its
    margin. An alarm holds also while replicas are away, for it rests on what was measured.
    """
    if alarmed := [finding for finding in seen.findings if finding.alarmed]:
        return Abort("; ".join(map(str, alarmed)))
    if seen.quarantined:
        return Abort(f"every replica quarantined it: {seen.quarantined}")
    action = _onwards(seen, rules)
    if isinstance(action, Wait) and seen.in_all >= rules.within:
        return Abort(f"undecided after {rules.within:.0f} s: {action.why}")
    return action


def _onwards(seen: Seen, rules: Rules) -> Wait | Raise | Promote:
    if 2 * seen.answering <= seen.replicas:
        return Wait(f"{seen.answering} of {seen.replicas} replicas answer")
    if seen.answers < rules.answers:
        return Wait(f"{seen.answers} of {rules.answers} answers of the canary at this share")
    if seen.in_step < rules.seconds:
        return Wait(f"{seen.in_step:.0f} of {rules.seconds:.0f} s at this share")
    if seen.step + 1 < len(rules.steps):
        return Raise(seen.step + 1)
    if open_ := [finding for finding in seen.findings if not finding.shown]:
        return Wait(f"not shown yet: {'; '.join(map(str, open_))}")
    return Promote()
