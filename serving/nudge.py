"""`POST /loradock/nudge`: have the registry read now, in place of within a second or whatever the poll is set to.

MLflow's webhooks send it, signed; so may any caller with a key. It says nothing that is believed: the replica looks for
itself, and not oftener than ten times a second. A key's nudge is a request of that key, and a minute takes no more than
120 of them; a delivery of MLflow's is taken once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse

from loradock.serving import refusals
from loradock.serving.keys import ANYBODY, Caller, Keys
from loradock.serving.quota import Account, Limit
from loradock.serving.refusals import Denied

SIGNATURE: Final = "x-mlflow-signature"
TIMESTAMP: Final = "x-mlflow-timestamp"
DELIVERY: Final = "x-mlflow-delivery-id"

REPLAY_SECONDS: Final = 300.0
"""How old a delivery may be, or how far ahead the sender's clock."""

MOST: Final = Limit(120, 60)
"""How many nudges are taken from a key, and from this machine where there are none."""

_MOST_BYTES: Final = 64 * 1024
_MOST_DELIVERIES: Final = 10_000
"""Deliveries that are remembered; older ones are as good as new, which costs one reading each."""


def signed(secret: str, headers: Mapping[str, str], body: bytes, *, now: float) -> bool:
    """Whether MLflow sent this within the last five minutes: HMAC-SHA256 over delivery id, Unix time and body.

    The form is that of MLflow's `webhooks/delivery.py`, which follows standardwebhooks.com: `v1,BASE64`.
    """
    delivery, sent = headers.get(DELIVERY, ""), headers.get(TIMESTAMP, "")
    version, _, given = headers.get(SIGNATURE, "").partition(",")
    if not secret or not delivery or version != "v1" or not (sent.isascii() and sent.isdigit()):
        return False
    expected = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    try:
        right = hmac.compare_digest(base64.b64decode(given, validate=True), expected)
    except (binascii.Error, ValueError):
        return False
    return right and abs(now - int(sent)) <= REPLAY_SECONDS


class Nudges:
    """The route's work: who may nudge."""

    def __init__(
        self,
        keys: Keys,
        secret: SecretStr,
        wake: Callable[[], None],
        *,
        refused: Callable[[str, int], None] = lambda _name, _status: None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys, self._secret, self._wake, self._refused = keys, secret, wake, refused
        self._now, self._clock = now, clock
        self._accounts: dict[str, Account] = {}
        self._deliveries: OrderedDict[str, None] = OrderedDict()

    async def answer(self, request: Request) -> JSONResponse:
        """202, and the registry is read; else why not."""
        try:
            is_new = await self._check(request)
        except Denied as denied:
            self._refused(denied.caller, denied.status)
            return denied.response()
        if is_new:
            self._wake()
        return JSONResponse({"polling": True}, status_code=202)

    async def _check(self, request: Request) -> bool:
        """Whether it is none that came before.

        Raises Denied unless it is signed, or has a key, or comes from this machine where there are neither; and for too
        many of a key.
        """
        if SIGNATURE in request.headers and self._secret:
            body = await _body(request)
            if not signed(self._secret.get_secret_value(), request.headers, body, now=self._now()):
                raise refusals.unauthorized("The signature is not MLflow's with this secret, or is over 5 minutes old.")
            return self._is_first(request.headers[DELIVERY])
        self._count(self._sender(request))
        return True

    def _sender(self, request: Request) -> Caller:
        if self._keys.configured:
            return self._keys.caller(request.headers)
        if self._secret:
            raise refusals.unauthorized("A nudge must be signed with this replica's webhook secret.")
        if not _is_local(request):
            raise refusals.forbidden("Without keys and a webhook secret, a nudge is taken from this machine only.")
        return ANYBODY

    def _count(self, caller: Caller) -> None:
        """Count a nudge as a request of its key, and among its nudges; raises Denied for one too many of either."""
        self._keys.admit(caller)
        account, now = self._accounts.setdefault(caller.name, Account()), self._clock()
        account.allow([MOST], now)
        (left,) = account.left(now)
        if left.wait > 0:
            raise refusals.over_quota("nudges", str(MOST), left.wait, lasting=False, headers={}, caller=caller.name)
        account.add(now, 1)

    def _is_first(self, delivery: str) -> bool:
        is_first = delivery not in self._deliveries
        self._deliveries[delivery] = None
        if len(self._deliveries) > _MOST_DELIVERIES:
            self._deliveries.popitem(last=False)
        return is_first


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise refusals.bad_request("A delivery is not as long as this.")
    return body


def _is_local(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
