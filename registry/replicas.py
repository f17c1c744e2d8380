"""What serving replicas say of themselves: one GET each, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from registry.errors import BadInput, LoradockError, NotFound, Unreachable
from registry.refs import VersionRef, parse_version

_TIMEOUT: Final = 10.0  # seconds


def fetch_status(url: str, api_key: str) -> dict[str, Any]:
    """A replica's status; raises Unreachable, NotFound for another server, or BadInput for a wrong key or URL."""
    address = f"{url.rstrip('/')}/loradock/status"
    if not address.startswith(("http://", "https://")):
        raise BadInput(f"{url!r} is not a URL", hint="write it as http://HOST:PORT")
    # Only http and https come this far.
    request = urllib.request.Request(  # noqa: S310
        address, headers={"Authorization": f"Bearer {api_key}"} if api_key else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise BadInput(f"{url} asks for a key", hint="give --api-key, or set VLLM_API_KEY") from error
        if error.code == 404:
            raise NotFound(f"{url} answers, but is no loradock replica", hint="start one: loradock serve") from error
        raise LoradockError(f"{url} answers with {error.code} {error.reason}") from error
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(
            f"no replica answers at {url}: {reason}", hint="start one with `loradock serve`, or give its --url"
        ) from error
    except ValueError as error:
        raise NotFound(f"{url} answers, but not as a loradock replica") from error
    if not isinstance(found, dict) or "adapters" not in found:
        raise NotFound(f"{url} answers, but not as a loradock replica")
    return found


def held(urls: Iterable[str], api_key: str) -> Mapping[VersionRef, str]:
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
