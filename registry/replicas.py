"""What serving replicas say of themselves: one GET each, over HTTP."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pydantic import SecretStr

from loradock.registry.errors import BadInput, LoradockError, NotFound, Unreachable
from loradock.registry.refs import VersionRef, parse_version
from loradock.registry.room import Room
from loradock.registry.secret import bearer
from loradock.registry.settings import Settings

_TIMEOUT: Final = 10.0  # seconds
_SHORT_TIMEOUT: Final = 2.0
"""Seconds, for what a promotion waits for."""


def fetch_status(url: str, api_key: SecretStr, *, seconds: float = _TIMEOUT) -> dict[str, Any]:
    """A replica's status; raises Unreachable, NotFound for another server, or BadInput for a wrong key or URL."""
    address = f"{url.rstrip('/')}/loradock/status"
    if not address.startswith(("http://", "https://")):
        raise BadInput(f"{url!r} is not a URL", hint="write it as http://HOST:PORT")
    request = urllib.request.Request(address, headers=bearer(api_key))  # noqa: S310 - http and https alone
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:  # noqa: S310
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise BadInput(f"{url} asks for a key", hint="give --api-key, or set VLLM_API_KEY") from error
        if error.code == 404:
            raise NotFound(f"{url} answers, but is no loradock replica", hint="start one: loradock serve") from error
        raise LoradockError(f"{url} answers with {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(
            f"no replica answers at {url}: {reason}", hint="start one with `loradock serve`, or give its --replica"
        ) from error
    except ValueError as error:
        raise NotFound(f"{url} answers, but not as a loradock replica") from error
    if not isinstance(found, dict) or "adapters" not in found:
        raise NotFound(f"{url} answers, but not as a loradock replica")
    return found


def nudge(settings: Settings) -> list[str]:
    """Tell each replica in LORADOCK_REPLICAS to ask the registry now; returns what went wrong, which harms nothing.

    A replica that was not told finds out by itself, at its next poll.
    """
    problems = []
    for url in settings.replica_urls:
        address = f"{url.rstrip('/')}/loradock/nudge"
        try:
            request = urllib.request.Request(address, method="POST", headers=bearer(settings.api_key))  # noqa: S310 - ours to say
            urllib.request.urlopen(request, timeout=_SHORT_TIMEOUT).close()  # noqa: S310
        except (OSError, ValueError, http.client.HTTPException) as error:
            problems.append(f"{url} was not told of the move, and finds out at its next poll: {error}")
    return problems


def rooms(settings: Settings) -> tuple[list[Room], list[str]]:
    """What each replica in LORADOCK_REPLICAS has room for, all asked at once; and why others did not say."""
    found, problems = [], []
    for url, status in statuses(settings).items():
        room = status if isinstance(status, str) else _room(url, status)
        if isinstance(room, Room):
            found.append(room)
        else:
            problems.append(f"{url} does not say what it has room for: {room}")
    return found, problems


def _room(url: str, status: Mapping[str, Any]) -> Room | str:
    try:
        return Room.of(url, status)
    except NotFound as error:
        return str(error)


def held(urls: Iterable[str], api_key: SecretStr) -> Mapping[VersionRef, str]:
    """Every version that a replica holds, answers with, loads, wants or holds back, and the replica's URL.

    Raises what `fetch_status` does: a replica that does not answer is not one that needs nothing.
    """
    found: dict[VersionRef, str] = {}
    for url in urls:
        status = fetch_status(url, api_key)
        try:
            found |= dict.fromkeys(map(parse_version, _refs(status)), url)
        except (KeyError, TypeError, AttributeError, BadInput) as error:
            raise NotFound(f"{url} answers, but not as a loradock replica of this version") from error
    return found


def _refs(status: Mapping[str, Any]) -> Iterator[str]:
    for row in status["adapters"].values():
        yield row["version"]
        if row["promoted"]:
            yield row["promoted"]
    for row in status["refused"].values():
        yield row["version"]
    for key in ("loading", "quarantined", "resident"):
        yield from status[key]


def statuses(settings: Settings) -> dict[str, dict[str, Any] | str]:
    """By URL in LORADOCK_REPLICAS, a replica's status, or why there is none; all asked at once, and briefly."""

    def ask(url: str) -> dict[str, Any] | str:
        try:
            return fetch_status(url, settings.api_key, seconds=_SHORT_TIMEOUT)
        except LoradockError as error:
            return str(error)

    urls = settings.replica_urls
    with ThreadPoolExecutor(max_workers=max(1, len(urls))) as pool:
        return dict(zip(urls, pool.map(ask, urls), strict=True))
