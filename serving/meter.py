"""What runs on vLLM's client: every generation is counted while it runs, measured, and told to whoever listens.

`generate` and `encode` are looked up on the client at each call, so wrapping them sees all that the server does,
whatever the route. They look up `abort` there themselves when nobody waits for them any more.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Final

from loradock.registry.refs import VersionRef, parse_version
from loradock.serving.calls import Call, Generation, Outcome, Request, current

_MODES: Final = ("generate", "encode")
_ENDED: Final = "stop"
_OUTCOMES: Final[Mapping[str, Outcome]] = {"abort": "aborted", "error": "error"}
_STEP: Final = re.compile(r"-[0-9a-f]{16}-beam-\d+\Z")
"""How vLLM's `beam_search` names the generations of its steps."""

_running: ContextVar[Generation | None] = ContextVar("loradock_generation", default=None)
"""The generation that this task waits for."""

Computed = Callable[[str], tuple[Sequence[int], Mapping[int, int]] | None]
"""Of a request that runs, by the engine's id of it: its prompt, and how many tokens each of its answers has by now."""

log = logging.getLogger(__name__)


class Meter:
    """Wraps a client; use it on the event loop only."""

    def __init__(
        self, client: Any, *, computed: Computed = lambda _: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`computed` is asked of what is about to be aborted, since an answer that comes whole has said nothing yet."""
        self._computed, self._clock = computed, clock
        self._running: Counter[str] = Counter()
        self.admitted: Callable[[str], Awaitable[None]] = _at_once
        """Asked, with the engine name of a version, before its call begins; what it raises ends the call."""
        self.left: list[Callable[[str], None]] = []
        """Told the engine name of a version whose generation ended, however."""
        self.ended: list[Callable[[Call], None]] = []
        """Told of each request that ended, with what was measured on all its generations."""
        self.generate = client.generate
        """The client's own, which counts and measures nothing."""
        for mode in _MODES:
            setattr(client, mode, self._wrapped(getattr(client, mode)))
        client.abort = self._noted(client.abort)

    def running(self, name: str) -> int:
        """How many generations run on a version now, by its engine name."""
        return self._running[name]

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def start(*args: Any, lora_request: Any = None, **options: Any) -> Any:
            name = lora_request.lora_name if lora_request else ""
            answers = original(*args, lora_request=lora_request, **options) if name else original(*args, **options)
            request = current.get()
            if request is None and not name:
                return answers
            params = args[1] if len(args) > 1 else options.get("sampling_params")
            request_id = args[2] if len(args) > 2 else options.get("request_id", "")
            return self.measured(answers, name, request, adds=_adds(params), is_step=is_step(request_id))

        return start

    async def measured(
        self, answers: Any, name: str, request: Request | None, *, adds: bool, is_step: bool
    ) -> AsyncIterator[Any]:
        """The same answers, counted for a version (by its engine name, empty for the base) and measured.

        Where an output `adds` to those before, its tokens are new; else it holds all so far.
        """
        generation = Generation(self._clock(), is_step)
        if request:
            request.begin(_ref(name), generation, self._end)
        if name:
            self._running[name] += 1
        try:
            if name:
                await self.admitted(name)
            async with aclosing(answers) as outputs:
                _running.set(generation)
                async for output in outputs:
                    if request:
                        _note(generation, output, adds=adds, now=self._clock())
                    try:
                        yield output
                    finally:
                        _running.set(generation)  # whoever reads on, or gives up, may be another task
        except Exception:
            generation.outcome = "error"
            raise
        finally:
            _running.set(None)
            if name:
                self._running[name] -= 1
                _tell(self.left, name)
            if request:
                generation.ended = self._clock()
                if generation.outcome == "ok" and not generation.finished:
                    generation.outcome = "aborted"
                request.end(generation)

    def _noted(self, original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def abort(request_id: Any, *args: Any, **options: Any) -> None:
            generation = _running.get()
            if generation and isinstance(request_id, str) and (found := self._computed(request_id)):
                generation.prompt = found[0]
                for index, count in found[1].items():
                    generation.tokens[index] = max(count, generation.tokens.get(index, 0))
            await original(request_id, *args, **options)

        return abort

    def _end(self, call: Call) -> None:
        _tell(self.ended, call)


def is_step(request_id: str) -> bool:
    """Whether a generation is one step of a beam search, by the id that vLLM gives it."""
    return _STEP.search(request_id) is not None


async def _at_once(name: str) -> None:
    """Let every call begin."""


def _adds(params: Any) -> bool:
    kind = getattr(params, "output_kind", None)
    return kind is not None and kind.name == "DELTA"


def _note(one: Generation, output: Any, *, adds: bool, now: float) -> None:
    """Take from one of vLLM's outputs what it says of its generation."""
    one.prompt = output.prompt_token_ids or one.prompt
    pieces = output.outputs if isinstance(output.outputs, list) else []
    for piece in pieces:
        one.tokens[piece.index] = len(piece.token_ids) + (one.tokens.get(piece.index, 0) if adds else 0)
        if reason := piece.finish_reason:
            one.outcome = _OUTCOMES.get(reason, one.outcome)
            one.stop(_ENDED if one.is_step else reason)
    if one.first_token is None and (any(one.tokens.values()) or not pieces):
        # An answer that comes whole says itself how long its first token took.
        latency = getattr(getattr(output, "metrics", None), "first_token_latency", 0.0)
        one.first_token = min(now, one.started + latency) if latency else now
    one.finished = bool(output.finished)
    if one.finished and not one.finish:
        one.stop(_ENDED)


def _tell(listeners: list[Callable[[Any], None]], what: Any) -> None:
    for listener in listeners:
        try:
            listener(what)
        except Exception:  # no listener may harm an answer
            log.exception("a listener failed")


def _ref(name: str) -> VersionRef | None:
    return parse_version(name) if name else None
