"""The door of a replica: it finds out who asks, and refuses what that key is not for."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from loradock.serving import access, refusals
from loradock.serving.access import Need
from loradock.serving.keys import ANYBODY, Caller, Keys
from loradock.serving.refusals import Denied

CALLER: Final = "loradock_caller"
"""The entry of an ASGI scope that holds the Caller, for whatever runs inside the guard."""

ADAPTER_HEADER: Final = "x-amzn-sagemaker-adapter-identifier"
"""What vLLM's /invocations puts in place of the body's model, also where it is missing; no client may send it."""


class Guard:
    """ASGI middleware over all routes."""

    def __init__(self, app: ASGIApp, keys: Keys, *, open_metrics: bool, refused: Callable[[str, int], None]) -> None:
        self._app, self._keys, self._open_metrics, self._refused = app, keys, open_metrics, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on with its caller in the scope, or answer with what it lacks."""
        if scope["type"] in ("http", "websocket"):
            try:
                scope[CALLER] = self._caller(scope)
            except Denied as error:
                denied = self._counted(error)
                self._refused(denied.caller, denied.status)
                await denied.response(_path(scope))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _counted(self, denied: Denied) -> Denied:
        """A refusal, counted as a request of the key that is known; another one, where that key has none left."""
        if not denied.caller or denied.status == HTTPStatus.UNAUTHORIZED:
            return denied
        try:
            self._keys.admit(Caller(denied.caller))
        except Denied as over:
            return over
        return denied

    def _caller(self, scope: Scope) -> Caller:
        method, path = scope.get("method", ""), _path(scope)
        headers, needed = Headers(scope=scope), access.need(method, path, open_metrics=self._open_metrics)
        if needed is Need.NOTHING:
            return ANYBODY
        caller = self._keys.caller(headers, path)
        if needed is Need.ADMIN and not caller.admin and (self._keys.configured or method not in access.READING):
            whose = (
                f"the key {caller.name!r} is none" if caller.name else "this server has none: see LORADOCK_SERVE_KEYS"
            )
            raise refusals.forbidden(f"{method} {path} is for admin keys, and {whose}.", caller=caller.name)
        if ADAPTER_HEADER in headers:
            message = f"Name the model in the body; {ADAPTER_HEADER} is not followed here."
            raise refusals.bad_request(message, caller=caller.name)
        if caller.restricted and needed is Need.KEY and not _shows_model(method, headers):
            message = f"The key {caller.name!r} is for some models only, and this request does not show which it asks."
            raise refusals.forbidden(message, caller=caller.name)
        return caller


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _shows_model(method: str, headers: Headers) -> bool:
    """Whether a request's model can be seen: it reads and computes nothing, or its body is JSON, which the front reads.

    A WebSocket has no method, whatever its headers say.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return method in access.LOOKING or (method == "POST" and media_type == "application/json")
