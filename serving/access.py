"""Who may call what, where vLLM was given API keys.

vLLM's own check covers paths under /v1, /v2, /inference and /cohere. That leaves open routes that compute or change
something (/invocations, /tokenize, /generative_scoring, /scale_elastic_ep, ...), and it knows nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

STATUS: Final = "/loradock/status"
READY: Final = "/loradock/ready"
_READING: Final = ("GET", "HEAD", "OPTIONS")


def keys(api_key: Sequence[str] | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The API keys in force, by vLLM's own rule: `--api-key` before `VLLM_API_KEY`, empty ones left out."""
    return tuple(key for key in (api_key or [environ.get("VLLM_API_KEY", "")]) if key)


class Guard:
    """ASGI middleware that asks for a key wherever a request could change something, and for the status."""

    def __init__(self, app: ASGIApp, allowed: Callable[[Headers], bool]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 as vLLM does, or hand the request on."""
        if scope["type"] == "http" and _needs_key(scope) and not self._allowed(Headers(scope=scope)):
            await JSONResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _needs_key(scope: Mapping[str, Any]) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["method"] not in _READING or bool(path.startswith(STATUS) and scope["method"] != "OPTIONS")
