"""What runs on vLLM's client: every generation is counted while it runs, measured, and told to whoever listens.

`generate` and `encode` are looked up on the client at each call, so wrapping them sees all that the server does,
whatever the route.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from registry.refs import VersionRef, parse_version
from serving.calls import Asked, Call, current

_MODES: Final = ("generate", "encode")
_ENDED: Final = "stop"

log = logging.getLogger(__name__)


class Meter:
    """Wraps a client; use it on the event loop only."""

    def __init__(self, client: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: Counter[str] = Counter()
        self.admitted: Callable[[str], Awaitable[None]] = _at_once
        """Asked, with the engine name of a version, before its call begins; what it raises ends the call."""
        self.left: list[Callable[[str], None]] = []
        """Told the engine name of a version whose call ended, however."""
        self.ended: list[Callable[[Call], None]] = []
        """Told of each call of a request that ended, with what was measured."""
        self.generate = client.generate
        """The client's own, which counts and measures nothing."""
        for mode in _MODES:
            setattr(client, mode, self._wrapped(getattr(client, mode)))

    def running(self, name: str) -> int:
        """How many calls run on a version now, by its engine name."""
        return self._running[name]

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def start(*args: Any, lora_request: Any = None, **options: Any) -> Any:
            name = lora_request.lora_name if lora_request else ""
            answers = original(*args, lora_request=lora_request, **options) if name else original(*args, **options)
            asked = current.get()
            if asked is None and not name:
                return answers
            params = args[1] if len(args) > 1 else options.get("sampling_params")
            return self.measured(answers, name, asked, adds=_adds(params))

        return start

    async def measured(self, answers: Any, name: str, asked: Asked | None, *, adds: bool) -> AsyncIterator[Any]:
        """The same answers, counted for a version (by its engine name, empty for the base) and measured.

        Where an output `adds` to those before, its tokens are new; else it holds all so far.
        """
        call = Call(asked, _ref(name), self._clock()) if asked else None
        if name:
            self._running[name] += 1
        tokens: dict[int, int] = {}
        try:
            if name:
                await self.admitted(name)
            async with aclosing(answers) as outputs:
                async for output in outputs:
                    if call:
                        _note(call, output, tokens, adds=adds, now=self._clock())
                    yield output
        except Exception:
            if call:
                call.outcome = "error"
            raise
        finally:
            if name:
                self._running[name] -= 1
                _tell(self.left, name)
            if call:
                call.ended, call.output_tokens = self._clock(), sum(tokens.values())
                if call.outcome == "ok" and not call.finish:
                    call.outcome = "aborted"
                _tell(self.ended, call)


async def _at_once(name: str) -> None:
    """Let every call begin."""


def _adds(params: Any) -> bool:
    kind = getattr(params, "output_kind", None)
    return kind is not None and kind.name == "DELTA"


def _note(call: Call, output: Any, tokens: dict[int, int], *, adds: bool, now: float) -> None:
    """Take from one of vLLM's outputs what it says of its call."""
    if output.prompt_token_ids:
        call.prompt_tokens = len(output.prompt_token_ids)
    pieces = output.outputs if isinstance(output.outputs, list) else []
    for piece in pieces:
        tokens[piece.index] = len(piece.token_ids) + (tokens.get(piece.index, 0) if adds else 0)
        call.finish = piece.finish_reason or call.finish
    if call.first_token is None and (any(tokens.values()) or not pieces):
        # An answer that comes whole says itself how long its first token took.
        latency = getattr(getattr(output, "metrics", None), "first_token_latency", 0.0)
        call.first_token = min(now, call.started + latency) if latency else now
    if output.finished and not call.finish:
        call.finish = _ENDED


def _tell(listeners: list[Callable[[Any], None]], what: Any) -> None:
    for listener in listeners:
        try:
            listener(what)
        except Exception:  # no listener may harm an answer
            log.exception("a listener failed")


def _ref(name: str) -> VersionRef | None:
    return parse_version(name) if name else None
