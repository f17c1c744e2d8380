"""Copies of requests for a version that answers nobody: only what is measured on them is kept."""

from __future__ import annotations

import asyncio
import copy
import logging
import uuid
from collections.abc import Callable
from typing import Any, Final

from loradock.registry.refs import VersionRef
from loradock.serving.calls import Asked, Request, current
from loradock.serving.meter import is_step

_AT_ONCE: Final = 4
"""Copies that run at once; a request that comes while so many run is not copied."""

log = logging.getLogger(__name__)


class Shadow:
    """Wraps a client's `generate` once more; a copy begins when a request for a bare name does.

    Copies of one request are one call, as it is itself. A beam search is not copied: its steps go on from what the
    other version found.
    """

    def __init__(
        self, client: Any, choose: Callable[[str], VersionRef | None], request: Callable[[VersionRef], Any]
    ) -> None:
        self._choose, self._request = choose, request
        self._running: set[asyncio.Task[None]] = set()
        self.skipped = 0
        """Requests that were not copied because too many copies ran."""
        self._generate = client.generate
        client.generate = self._mirrored

    def _mirrored(self, prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> Any:
        request = current.get()
        is_bare = request and request.asked.role in ("production", "canary") and not is_step(request_id)
        if request and is_bare and (ref := self._choose(request.asked.name)):
            self._copy(request, ref, prompt, sampling_params, options)
        return self._generate(prompt, sampling_params, request_id, **options)

    def _copy(self, request: Request, ref: VersionRef, prompt: Any, params: Any, options: dict[str, Any]) -> None:
        if hasattr(prompt, "__anext__"):  # a prompt that is still being spoken can be heard by one only
            return
        if len(self._running) >= _AT_ONCE:
            self.skipped += 1
            return
        if request.copy is None:
            request.copy = Request(Asked(request.asked.name, "shadow", request.asked.caller))
        task = asyncio.create_task(self._run(request.copy, ref, copy.deepcopy(prompt), params.clone(), options))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, request: Request, ref: VersionRef, prompt: Any, params: Any, options: dict[str, Any]) -> None:
        current.set(request)
        options = {**options, "lora_request": self._request(ref)}
        try:
            async for _ in self._generate(prompt, params, f"loradock-shadow-{uuid.uuid4().hex}", **options):
                pass
        except Exception:  # it is counted as an error of the version, and concerns no request
            log.warning("a copy of a request failed on %s", ref, exc_info=True)
