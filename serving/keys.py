"""Who a request comes from, what that key may call, and how much it has left here.

The keys are those of the file that `LORADOCK_SERVE_KEYS` names, read anew whenever it changes, and vLLM's own
(`VLLM_API_KEY`, `--api-key`), each of which may do everything. Quotas count what this process serves.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, get_args

from loradock.registry.errors import BadInput
from loradock.registry.replica_status import KeysView
from loradock.serving import access, keyfile, refusals
from loradock.serving.calls import Call
from loradock.serving.keyfile import OWN, Key, KeyFile
from loradock.serving.quota import Account, Left

_CHECK_SECONDS: Final = 1.0
_LASTING: Final = 86400
"""A quota of this period or more is not worth waiting for in a client."""

_LONGEST: Final = 128
"""No name, alias included, is longer; what a client writes is matched only up to here."""

Kind = Literal["requests", "tokens"]
_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is, and what that key may do."""

    name: str = ""
    admin: bool = False
    allowed: re.Pattern[str] | None = None
    """What the names that it may call look like; None where that is every name."""

    @property
    def restricted(self) -> bool:
        """Whether there are names that it may not call."""
        return self.allowed is not None

    def may(self, model: str) -> bool:
        """Whether it may call `support-bot`, `support-bot@canary`, `support-bot/3`, or the base as `@base`."""
        return self.allowed is None or (len(model) <= _LONGEST and self.allowed.fullmatch(model) is not None)


ANYBODY: Final = Caller()
"""Whoever asks where no keys are configured."""


class Keys:
    """The keys in force; use it on the server's event loop, with `follow` beside the server."""

    def __init__(
        self,
        file: Path | None = None,
        own: Sequence[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Read the file; raises BadInput when it is not there or cannot be meant."""
        self._file, self._clock, self._now = file, clock, now
        self._own = [keyfile.digest(secret) for secret in own]
        self._known: list[tuple[bytes, Caller, Key]] = []
        self._accounts: dict[str, Mapping[Kind, Account]] = {}
        self._stamp: tuple[int, ...] = ()
        self.error = ""
        """Why the file that is there now is not in force; empty where it is."""
        if file:
            self.refresh()
        if self.error:
            raise BadInput(self.error, hint="`loradock keys --add` writes one; or unset LORADOCK_SERVE_KEYS")

    @property
    def configured(self) -> bool:
        """Whether a request needs a key; also with a file that has none, and then nobody gets in."""
        return bool(self._file or self._own)

    def caller(self, headers: Mapping[str, str], path: str = "") -> Caller:
        """Whose key a request on a route holds; ANYBODY where none is configured. Raises Denied, 401.

        Every known hash is compared, each in constant time.
        """
        if not self.configured:
            return ANYBODY
        given = keyfile.digest(_secret(headers, path))
        found = [Caller(OWN, admin=True) for own in self._own if hmac.compare_digest(own, given)]
        matches = [(caller, key) for known, caller, key in self._known if hmac.compare_digest(known, given)]
        if found:
            return found[0]
        if not matches:
            raise refusals.unauthorized("The API key is not known here.")
        caller, key = matches[0]
        if key.expired(self._now()):
            raise refusals.unauthorized(f"The key {caller.name!r} expired at {key.expires}.", caller=caller.name)
        return caller

    def admit(self, caller: Caller) -> dict[str, str]:
        """Count one request, and say in `x-ratelimit-*` headers what is left. Raises Denied, 429, and counts nothing.

        Tokens are counted when a call ends: the calls that run when the last of them is used are still served.
        """
        accounts, now = self._accounts.get(caller.name), self._clock()
        if accounts is None:
            return {}
        left = {kind: account.left(now) for kind, account in accounts.items()}
        kind, full = max(
            ((kind, one) for kind, found in left.items() for one in found),
            key=lambda one: one[1].wait,
            default=("requests", None),
        )
        if full and full.wait > 0:
            raise refusals.over_quota(
                kind,
                str(full.limit),
                full.wait,
                lasting=full.limit.seconds >= _LASTING,
                headers=_headers(left),
                caller=caller.name,
            )
        accounts["requests"].add(now, 1)
        return _headers({**left, "requests": accounts["requests"].left(now)})

    def ended(self, call: Call) -> None:
        """Count the tokens of a call that has ended; nobody asked for a shadow's."""
        if call.asked.role != "shadow":
            self.spend(call.asked.caller, call.prompt_tokens + call.output_tokens)

    def spend(self, name: str, tokens: int) -> None:
        """Count tokens against the key of this name, if it is still there."""
        if accounts := self._accounts.get(name):
            accounts["tokens"].add(self._clock(), tokens)

    async def follow(self) -> None:
        """Read the file again whenever it has changed, until cancelled."""
        while self._file:
            await asyncio.sleep(_CHECK_SECONDS)
            self._follow(await asyncio.to_thread(self._read))

    def refresh(self) -> None:
        """Read the file if it is another than before; one that cannot be read leaves the last good keys in force."""
        self._follow(self._read())

    def _read(self) -> KeyFile | BadInput | OSError | None:
        """What is in the file, or why that cannot be had; None where it is as before."""
        if self._file is None:
            return None
        try:
            with self._file.open("rb") as file:
                found = os.fstat(file.fileno())
                stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
                if stamp == self._stamp:
                    return None
                data = file.read()
            self._stamp = stamp
            return keyfile.parse(data, what=str(self._file))
        except OSError as error:
            self._stamp = ()
            return error
        except BadInput as error:
            return error

    def _follow(self, found: KeyFile | BadInput | OSError | None) -> None:
        if isinstance(found, KeyFile):
            self._take(found)
        elif found is not None:
            self._refuse(found)

    def _take(self, found: KeyFile) -> None:
        now = self._clock()
        for name in found.keys.keys() - self._accounts.keys():
            self._accounts[name] = {kind: Account() for kind in _KINDS}
        for name, accounts in self._accounts.items():
            key = found.keys.get(name)
            for kind, account in accounts.items():
                account.allow(getattr(key, kind, ()), now)
        self._accounts = {
            name: accounts
            for name, accounts in self._accounts.items()
            if name in found.keys or not all(account.is_clear(now) for account in accounts.values())
        }
        self._known = [
            (bytes.fromhex(key.sha256), Caller(name, key.admin, key.allows()), key) for name, key in found.keys.items()
        ]
        self.error = ""
        log.info("%d keys are in force, as %s has them", len(self._known), self._file)

    def _refuse(self, error: BadInput | OSError) -> None:
        reason = (
            error.strerror or str(error) if isinstance(error, OSError) else "; ".join([str(error), *error.problems])
        )
        text = reason if str(self._file) in reason else f"{self._file} cannot be read: {reason}"
        if text != self.error:
            log.error("%s; the keys that were in force stay so", text)
        self.error = text

    def status(self) -> KeysView:
        """What a replica reports of its keys."""
        return KeysView(file=str(self._file) if self._file else None, count=len(self._known), error=self.error)


def _secret(headers: Mapping[str, str], path: str) -> str:
    """The key in `Authorization: Bearer KEY`, or in `x-api-key` on the routes of Anthropic's API; raises Denied."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    bearer = secret if scheme.lower() == "bearer" else ""
    other = headers.get("x-api-key", "") if access.is_anthropics(path) else ""
    if bearer and other and not hmac.compare_digest(bearer.encode(), other.encode()):
        raise refusals.unauthorized("`Authorization` and `x-api-key` hold different keys: send one of them.")
    if not (bearer or other):
        way = " or as `x-api-key: KEY`" if access.is_anthropics(path) else ""
        raise refusals.unauthorized(f"This server asks for an API key: send it as `Authorization: Bearer KEY`{way}.")
    return bearer or other


def _headers(left: Mapping[Kind, Sequence[Left]]) -> dict[str, str]:
    """OpenAI's headers, of the limit of each kind that has the least left."""
    headers: dict[str, str] = {}
    for kind, limits in left.items():
        if limits:
            tightest = min(limits, key=lambda one: one.remaining)
            headers |= {
                f"x-ratelimit-limit-{kind}": str(tightest.limit.most),
                f"x-ratelimit-remaining-{kind}": str(tightest.remaining),
                f"x-ratelimit-reset-{kind}": f"{tightest.reset:.0f}s",
            }
    return headers
