"""A SIGTERM: say that this replica goes, let requests in flight end, then stop.

vLLM stops its engine at once when it is told to, and fails what runs. It listens to SIGTERM and SIGINT alike; so
SIGTERM is taken over here, and its own way is started with a SIGINT when nothing runs any more and nothing comes, or
the time is over. Whoever balances the load learns a little later that this replica goes, and sends requests until then;
a client that keeps its connection does not learn it at all, so each is closed with its next answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

QUIET: Final = 5.0
"""Seconds after the last POST until no other is awaited: two of HAProxy's checks take 2.5, Kubernetes about as long."""


class Stopping:
    """ASGI middleware outside of all others, which counts what runs."""

    def __init__(self, app: ASGIApp, *, seconds: float, began: Callable[[], None]) -> None:
        self._app, self._seconds, self._began = app, seconds, began
        self._running = 0
        self._came = -QUIET
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the request while it runs; the server's start is when its signal handlers are there to be replaced."""
        if scope["type"] == "lifespan":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.begin)
            await self._app(scope, receive, send)
            return
        if scope.get("method") == "POST":
            self._came = asyncio.get_running_loop().time()

        async def answer(message: Message) -> None:
            if self._task and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        self._running += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, answer)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def begin(self) -> None:
        """Stop when nothing runs and nothing comes; called again, stop now."""
        if self._task is None:
            log.info("stopping: %d requests may end within %g s", self._running, self._seconds)
            self._began()
            self._task = asyncio.create_task(self._drain())
        else:
            os.kill(os.getpid(), signal.SIGINT)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                while (quiet := self._came + QUIET - asyncio.get_running_loop().time()) > 0 or self._running:
                    await (self._idle.wait() if self._running else asyncio.sleep(quiet))
        except TimeoutError:
            log.warning("stopping with %d requests unfinished", self._running)
        os.kill(os.getpid(), signal.SIGINT)
