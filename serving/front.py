"""The one place where a request meets its version: model in, engine name out, and the answer says which it was.

A version is chosen once, before vLLM sees the request, and held until the answer has ended: no move of a name and no
unloading in between can reach it. It is named to vLLM as `support-bot/3`, which is what the answer then bears.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loradock.registry.errors import NotFound, NotServable, Unreachable
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.serving import access, refusals
from loradock.serving.body import Body, NotRead, read
from loradock.serving.calls import Asked, Request, current
from loradock.serving.guard import ADAPTER_HEADER, CALLER
from loradock.serving.keyfile import BASE
from loradock.serving.keys import Caller
from loradock.serving.refusals import Denied
from loradock.serving.table import Found, Table

VERSION_HEADER: Final = "x-loradock-version"
DIGEST_HEADER: Final = "x-loradock-digest"

_OURS: Final = "/loradock/"
_KEPT: Final = 100_000
"""Responses whose owners are remembered; older ones are an admin's."""
_USERS: Final = ("safety_identifier", "user")
"""Where OpenAI's API has the user of a client, newest name first."""


class House(Protocol):
    """What the front asks of the replica behind it."""

    def table(self) -> Table:
        """Which names answer now."""

    async def acquire(self, ref: VersionRef) -> Version:
        """Hold a version."""

    def release(self, ref: VersionRef) -> None:
        """Let it go."""

    def digests(self) -> Mapping[VersionRef, str]:
        """Of each version that is loaded or wanted, its digest."""


class Quotas(Protocol):
    """What the front asks of the keys."""

    def admit(self, caller: Caller) -> Mapping[str, str]:
        """Count a request, and say what is left in headers; raises Denied."""


class Owners:
    """Which key each response that vLLM may keep belongs to, in this process, as vLLM keeps them."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()

    def new(self, caller: Caller) -> str:
        """An id for a response of this caller's."""
        response_id = f"resp_{uuid.uuid4().hex}"
        self._names[response_id] = caller.name
        if len(self._names) > _KEPT:
            self._names.popitem(last=False)
        return response_id

    def may(self, caller: Caller, response_id: str) -> bool:
        """Whether a caller may read a response, go on from it, and cancel it."""
        return caller.admin or self._names.get(response_id) == caller.name


class Front:
    """ASGI middleware, inside of the guard, over every request that names a model in a JSON body."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        house: Callable[[], House | None],
        quotas: Quotas,
        base_digest: Callable[[], str],
        stored: Callable[[str], str],
        refused: Callable[[str, int], None],
        most: int,
    ) -> None:
        """`stored` gives the engine's name of whoever gave a response that is kept, by its id, or nothing.

        `most` is how long a body may be, in bytes.
        """
        self._app, self._house, self._quotas = app, house, quotas
        self._base_digest, self._stored, self._refused = base_digest, stored, refused
        self._most, self._owners = most, Owners()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Choose, hold, hand on; or answer with why not, in OpenAI's shape."""
        house = self._house()
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] not in ("http", "websocket") or house is None or path.startswith(_OURS):
            await self._app(scope, receive, send)
            return
        try:
            if scope["type"] == "websocket":
                self._quotas.admit(scope[CALLER])
                await self._hand_on(_unnamed(house, scope[CALLER]), scope, receive, send)
            elif response_id := access.stored_response(path):
                await self._kept(house, response_id, scope, receive, send)
            elif scope["method"] != "POST":
                await self._app(scope, receive, send)
            else:
                await self._compute(house, path, scope, receive, send)
        except (Denied, NotRead) as error:
            name = scope[CALLER].name
            denied = error if isinstance(error, Denied) else refusals.bad_request(str(error), caller=name)
            self._refused(denied.caller, denied.status)
            await denied.response(path)(scope, receive, send)

    async def _kept(self, house: House, response_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller = scope[CALLER]
        if not self._owners.may(caller, response_id):
            raise refusals.no_such_response(response_id, caller=caller.name)
        await self._app(scope, receive, _with(self._stored_headers(house, response_id), send))

    async def _compute(self, house: House, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a request before anything is done for it, read it, and hand it on."""
        caller: Caller = scope[CALLER]
        limits = self._quotas.admit(caller)
        raw = await _received(scope, receive, self._most)
        if raw is None:  # the client left
            return
        body = await read(raw)
        if body is None:  # no JSON object: not a request for a model, or vLLM says what is wrong with it
            if caller.restricted:
                raise refusals.bad_request("The body is no JSON object.", caller=caller.name)
            await self._hand_on(_unnamed(house, caller), scope, _replay(raw, receive), _with(limits, send))
            return
        changes = self._owned(body, caller) if path == access.RESPONSES else {}
        await self._answer(house, body, changes, limits, scope, receive, send)

    def _owned(self, body: Body, caller: Caller) -> dict[str, str]:
        """What makes a request of the Responses API this key's, which goes on from this key's own alone: its id."""
        before = body.get("previous_response_id")
        if isinstance(before, str) and not self._owners.may(caller, before):
            raise refusals.no_such_response(before, caller=caller.name)
        return {"request_id": self._owners.new(caller)}

    async def _answer(
        self,
        house: House,
        body: Body,
        changes: Mapping[str, str],
        limits: Mapping[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        caller: Caller = scope[CALLER]
        found = _find(house.table(), body, caller)
        asked = Asked(found.name, found.role, caller.name)
        if found.ref is None:
            headers = {**limits, VERSION_HEADER: found.name, DIGEST_HEADER: self._base_digest()}
            raw = body.written(changes)
            await self._hand_on(asked, _sized(scope, len(raw)), _replay(raw, receive), _with(headers, send))
            return
        named = body.written({**changes, "model": str(found.ref)})
        version = await _acquired(house, found.ref, caller)
        try:
            headers = {**limits, VERSION_HEADER: str(found.ref), DIGEST_HEADER: version.facts.digest}
            inner = _sized(scope, len(named), (ADAPTER_HEADER, str(found.ref)))
            await self._hand_on(asked, inner, _replay(named, receive), _with(headers, send))
        finally:
            house.release(found.ref)

    def _stored_headers(self, house: House, response_id: str) -> dict[str, str]:
        """Who gave a response that is kept here."""
        name = self._stored(response_id)
        if name in house.table().bases:
            return {VERSION_HEADER: name, DIGEST_HEADER: self._base_digest()}
        digests = {str(ref): digest for ref, digest in house.digests().items()}
        return {key: value for key, value in ((VERSION_HEADER, name), (DIGEST_HEADER, digests.get(name, ""))) if value}

    async def _hand_on(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(asked)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                request.answered()  # counted before the client can ask again
            await send(message)

        token = current.set(request)
        try:
            await self._app(scope, receive, sending)
        finally:
            current.reset(token)
            request.answered()


def _unnamed(house: House, caller: Caller) -> Asked:
    """What an upload or a WebSocket asks for: its model is not seen here, and what it computes is its key's."""
    return Asked(min(house.table().bases), "base", caller.name)


def _find(table: Table, body: Body, caller: Caller) -> Found:
    """What answers a request; raises Denied, and says nothing of names that a key may not call."""
    model = body.get("model") or min(table.bases)
    if not isinstance(model, str):
        raise refusals.bad_request("`model` is not a string.", param="model", caller=caller.name)
    if not caller.may(BASE if model in table.bases else model):
        raise refusals.may_not_call(model, caller=caller.name)
    user = next((str(user) for key in _USERS if (user := body.get(key))), caller.name)
    if (found := table.find(model, user)) is None:
        raise refusals.no_such_model(model, caller=caller.name)
    return found


async def _acquired(house: House, ref: VersionRef, caller: Caller) -> Version:
    try:
        return await house.acquire(ref)
    except NotFound as error:
        raise refusals.no_such_model(str(ref), caller=caller.name) from error
    except NotServable as error:
        raise refusals.unavailable(f"{ref} is quarantined on this replica.", caller=caller.name) from error
    except Unreachable as error:
        raise refusals.unavailable(f"{ref} is not loaded yet.", caller=caller.name) from error


async def _received(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """A request's whole body; None where the client left before its end. Raises Denied for more bytes than `most`."""
    caller: Caller = scope[CALLER]
    told = dict(scope["headers"]).get(b"content-length", b"0")
    if told.isdigit() and int(told) > most:
        raise refusals.too_large(most, caller=caller.name)
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if (size := size + len(pieces[-1])) > most:
            raise refusals.too_large(most, caller=caller.name)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """The body once, and after it whatever the client still does."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _sized(scope: Scope, size: int, *more: tuple[str, str]) -> Scope:
    headers = [(key, value) for key, value in scope["headers"] if key not in (b"content-length", b"transfer-encoding")]
    set_ = [("content-length", str(size)), *more]
    return {**scope, "headers": [*headers, *((key.encode(), value.encode()) for key, value in set_)]}


def _with(headers: Mapping[str, str], send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return sending
