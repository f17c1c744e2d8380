"""One request as it is answered: who asked for what, which version answers it, and what is measured on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Literal

from loradock.registry.refs import VersionRef

Role = Literal["base", "production", "alias", "canary", "shadow", "pinned"]
"""Why a version answers: it is what the plain name means, what `name@alias` means, the canary's share of a plain name,
the copy of a request that nobody reads, or what `name/3` says."""

Outcome = Literal["ok", "aborted", "error"]
"""A client that hangs up aborts; an error is the engine's own."""

_RISING: Final[tuple[Outcome, ...]] = ("ok", "aborted", "error")
_CUT_OFF: Final = "length"


@dataclass(frozen=True, slots=True)
class Asked:
    """What one HTTP request asked for, once its key and its model are known."""

    name: str
    """The family's name, without alias or number; the base's own name for the base."""
    role: Role
    caller: str = ""
    """The name of the key it came with; empty where none is needed."""


@dataclass(slots=True)
class Call:
    """What one HTTP request took of the engine, however vLLM splits it. Times are seconds of a monotonic clock."""

    asked: Asked
    version: VersionRef | None
    """None for the base."""
    started: float
    first_token: float | None = None
    ended: float | None = None
    prompt_tokens: int = 0
    """Of all its prompts; a beam search reads its prompt once."""
    output_tokens: int = 0
    """All that were computed for it."""
    longest: int = 0
    """Tokens of its longest answer."""
    outcome: Outcome = "ok"
    """The worst of its generations'."""
    finish: str = ""
    """Why the model stopped: `length` where any of its answers was cut off, else `stop`, ...; empty when it did not."""


@dataclass(slots=True)
class Generation:
    """One generation of the engine, as it runs.

    vLLM makes several of a request with a list of prompts, with turns of tools, and one of each beam of each step of a
    beam search.
    """

    started: float
    is_step: bool = False
    """Whether it is of a beam search, and so one token long."""
    first_token: float | None = None
    ended: float = 0.0
    prompt: Sequence[int] = ()
    tokens: dict[int, int] = field(default_factory=dict)
    """How many each of its answers has, by their index."""
    finished: bool = False
    finish: str = ""
    outcome: Outcome = "ok"

    def stop(self, reason: str) -> None:
        """Note why one of its answers ended."""
        if self.finish != _CUT_OFF:
            self.finish = reason


class Request:
    """One HTTP request while it is answered, to whose call every generation of it adds.

    The call is told once, when the answer has ended and nothing of it runs. What begins later still, as a response that
    is made in the background, is a call of its own.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.copy: Request | None = None
        """What a shadow's copies of it add to."""
        self._call: Call | None = None
        self._told: Callable[[Call], None] | None = None
        self._running, self._answered = 0, False
        self._beams: dict[int, int] = {}

    def begin(self, version: VersionRef | None, generation: Generation, told: Callable[[Call], None]) -> None:
        """A generation of it runs; `told` gets the call in the end."""
        self._running += 1
        self._told = told
        if self._call is None:
            self._call = Call(self.asked, version, generation.started)

    def end(self, one: Generation) -> None:
        """A generation that began has ended."""
        self._running -= 1
        if (call := self._call) is None:
            return
        before, prompt = self._before(one) if one.is_step else (0, len(one.prompt))
        call.ended = one.ended
        call.prompt_tokens += prompt
        call.output_tokens += sum(one.tokens.values())
        call.longest = max(call.longest, before + max(one.tokens.values(), default=0))
        times = [time for time in (call.first_token, one.first_token) if time is not None]
        call.first_token = min(times, default=None)
        call.outcome = max(call.outcome, one.outcome, key=_RISING.index)
        if call.finish != _CUT_OFF:
            call.finish = one.finish or call.finish
        self._tell()

    def answered(self) -> None:
        """The answer has ended, or nobody waits for it."""
        self._answered = True
        self._tell()
        if self.copy:
            self.copy.answered()

    def _tell(self) -> None:
        if self._answered and not self._running and self._call and self._told:
            call, self._call = self._call, None
            self._told(call)

    def _before(self, step: Generation) -> tuple[int, int]:
        """Of a step of a beam search, the tokens before it, and those of its prompt that no step before it read."""
        prompt = tuple(step.prompt)
        parent = self._beams.get(hash(prompt[:-1]))
        before = 0 if parent is None else parent + 1
        self._beams[hash(prompt)] = before
        return before, len(prompt) if parent is None else 0


current: ContextVar[Request | None] = ContextVar("loradock_request", default=None)
"""The request that this task answers; None outside of requests."""
