"""What a rollout is asked for, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from pydantic import SecretStr

from loradock.registry.refs import VersionRef
from loradock.serving.rollout.blocks import Finding
from loradock.serving.rollout.judge import Case
from loradock.serving.rollout.measures import Limits, Signal
from loradock.serving.rollout.plan import Rules

Result = Literal["promoted", "rolled back", "interrupted", "in production already"]


@dataclass(frozen=True, slots=True)
class Task:
    """What was asked for."""

    ref: VersionRef
    rules: Rules
    margins: Mapping[Signal, float]
    alpha: float
    """The chance of a false alarm, over all signals and the whole time; and that of promoting what is not within."""
    baseline: int
    """Production's answers that say what is slow and long."""
    limits: Mapping[str, float]
    """What of `Limits` is given, and not measured."""
    urls: tuple[str, ...]
    api_key: SecretStr
    every: float
    """Seconds between two looks."""
    judge: Case | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended."""

    version: str
    production: str
    """What it was compared with; empty where nothing was."""
    result: Result
    reason: str = ""
    weight: float = 0.0
    """The largest share that it had."""
    answers: int = 0
    seconds: float = 0.0
    limits: Limits | None = None
    findings: tuple[Finding, ...] = ()
    run_id: str = ""
    """In MLflow; empty where it could not be recorded."""

    def as_json(self) -> dict[str, Any]:
        """As data; nothing is slow or long beyond a limit that is null."""
        data = asdict(self)
        limits = data["limits"] or {}
        return data | {"limits": {key: None if value == float("inf") else value for key, value in limits.items()}}


class Shown(Protocol):
    """Whoever watches."""

    def tell(self, text: str) -> None:
        """Something happened."""

    def show(self, weight: float, why: str, findings: Sequence[Finding]) -> None:
        """How it stands."""
