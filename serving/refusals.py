"""The answers to requests that are not served, in the shapes of OpenAI's and Anthropic's APIs, which clients know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from loradock.registry.errors import LoradockError
from loradock.registry.outside import printable
from loradock.serving.access import is_anthropics

if TYPE_CHECKING:
    from starlette.responses import JSONResponse


_ANTHROPICS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Anthropic's words for a status."""


class Denied(LoradockError):
    """An HTTP request that is not served, with the answer that it gets."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        caller: str = "",
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.kind, self.param = status, code, kind, param
        self.headers = dict(headers or {})
        self.caller = caller
        """The name of the key it came with; empty where that is unknown."""

    def body(self) -> dict[str, Any]:
        """What OpenAI's API would answer."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def anthropics(self) -> dict[str, Any]:
        """What Anthropic's API would answer."""
        return {"type": "error", "error": {"type": _ANTHROPICS.get(self.status, "api_error"), "message": str(self)}}

    def response(self, path: str = "") -> JSONResponse:
        """The answer on a route, as an ASGI application; it also refuses a WebSocket before it opens."""
        from starlette.responses import JSONResponse

        body = self.anthropics() if is_anthropics(path) else self.body()
        return JSONResponse(body, status_code=self.status, headers=self.headers)


def unauthorized(message: str, *, caller: str = "") -> Denied:
    """401: no key, an unknown one, or one that has expired; clients raise AuthenticationError."""
    return Denied(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}, caller=caller)


def forbidden(message: str, *, caller: str = "") -> Denied:
    """403: the key is good, and not for this; clients raise PermissionDeniedError."""
    return Denied(403, message, code="permission_denied", caller=caller)


def may_not_call(model: str, *, caller: str) -> Denied:
    """403 for a model that a key is not for."""
    denied = forbidden(f"The key {caller!r} may not call the model `{printable(model)}`.", caller=caller)
    denied.param = "model"
    return denied


def no_such_model(model: str, *, caller: str = "") -> Denied:
    """404: nothing is served under this name; clients raise NotFoundError."""
    message = f"The model `{printable(model)}` does not exist."
    return Denied(404, message, code="model_not_found", param="model", caller=caller)


def bad_request(message: str, *, param: str | None = None, caller: str = "") -> Denied:
    """400: what the request says cannot be meant; clients raise BadRequestError."""
    return Denied(400, message, code="invalid_request", param=param, caller=caller)


def no_such_response(response_id: str, *, caller: str) -> Denied:
    """404: no response of this key's is kept under this id."""
    return Denied(404, f"Response with id '{response_id[:100]}' not found.", code="response_not_found", caller=caller)


def too_large(most: int, *, caller: str = "") -> Denied:
    """413: a body above the limit, in bytes; the rest of it is not read."""
    message = f"The body is larger than {most / 2**20:g} MiB, which is the most here."
    return Denied(413, message, code="request_too_large", headers={"Connection": "close"}, caller=caller)


def unavailable(message: str, *, caller: str = "") -> Denied:
    """503: the name is known and cannot answer now; clients raise InternalServerError, after trying again."""
    headers = {"Retry-After": "2"}
    return Denied(
        503, message, code="model_unavailable", kind="server_error", param="model", headers=headers, caller=caller
    )


def over_quota(what: str, limit: str, wait: float, *, lasting: bool, headers: Mapping[str, str], caller: str) -> Denied:
    """429, `wait` seconds before `what` ("requests" or "tokens") has room again; clients raise RateLimitError.

    Clients repeat a 429 by themselves; `lasting` tells them that this one is not worth it.
    """
    seconds = max(1, math.ceil(wait))
    message = f"The key {caller!r} has used its {limit} {what} on this replica. Try again in {seconds} s."
    extra = {"Retry-After": str(seconds)} | ({"x-should-retry": "false"} if lasting else {})
    code, kind = ("insufficient_quota", "insufficient_quota") if lasting else ("rate_limit_exceeded", what)
    return Denied(429, message, code=code, kind=kind, headers={**headers, **extra}, caller=caller)
