"""One generation as it runs: who asked for what, which version answers it, and what is measured on it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from registry.refs import VersionRef

Role = Literal["base", "production", "alias", "canary", "shadow", "pinned"]
"""Why a version answers: it is what the plain name means, what `name@alias` means, the canary's share of a plain name,
the copy of a request that nobody reads, or what `name/3` says."""

Outcome = Literal["ok", "aborted", "error"]
"""A client that hangs up aborts; an error is the engine's own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one HTTP request asked for, once its key and its model are known."""

    name: str
    """The family's name, without alias or number; the base's own name for the base."""
    role: Role
    caller: str = ""
    """The name of the key it came with; empty where none is needed."""


current: ContextVar[Asked | None] = ContextVar("loradock_asked", default=None)
"""What the request that runs in this task asked for; None outside of requests."""


@dataclass(slots=True)
class Call:
    """One call of the engine; a request with several prompts makes several. Times are seconds of a monotonic clock."""

    asked: Asked
    version: VersionRef | None
    """None for the base."""
    started: float
    first_token: float | None = None
    ended: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    outcome: Outcome = "ok"
    finish: str = ""
    """Why the model stopped: `stop`, `length`, ...; empty when it did not."""
