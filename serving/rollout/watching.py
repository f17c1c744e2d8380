"""What the replicas measured since the last look: each is asked over HTTP, and may be away, or another process."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from json import JSONDecodeError
from typing import Any, Final
from urllib.parse import urlencode

from pydantic import SecretStr, TypeAdapter, ValidationError

from loradock.registry.errors import BadInput, NotFound
from loradock.registry.refs import VersionRef
from loradock.registry.secret import bearer
from loradock.serving.signals import Ended

_TIMEOUT: Final = 10.0  # seconds
_ROWS: Final = TypeAdapter(tuple[Ended, ...])


@dataclass(slots=True)
class Replica:
    """One replica, and how far it was read."""

    url: str
    process: str = ""
    since: int = 0
    problem: str = ""
    """Why it did not answer the last time; empty where it did."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one replica's process measured since the last look."""

    process: str
    rows: tuple[Ended, ...]
    lost: int = 0
    """Calls, of whatever adapter, that ended and were forgotten before they were read."""


@dataclass(frozen=True, slots=True)
class Look:
    """What came of asking all replicas once."""

    batches: tuple[Batch, ...]
    news: tuple[str, ...]
    """What a person is told, once: who went away, came back or was restarted."""
    answering: int
    held_back: str = ""
    """Why every replica that answers holds the version back; empty where one does not."""


@dataclass(slots=True)
class Replicas:
    """Every replica of the endpoint."""

    ref: VersionRef
    urls: Sequence[str]
    api_key: SecretStr
    _known: list[Replica] = field(init=False)

    def __post_init__(self) -> None:
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise BadInput(f"{url!r} is not a URL", hint="write it as http://HOST:PORT")
        self._known = [Replica(url.rstrip("/")) for url in self.urls]

    def look(self) -> Look:
        """Ask all of them at once.

        Raises BadInput for a wrong key and NotFound for another server: waiting would mend neither.
        """
        with ThreadPoolExecutor(len(self._known)) as pool:
            found = list(pool.map(self._ask, self._known))
        held = [reason for _, _, reason in found if reason is not None]
        return Look(
            batches=tuple(batch for batch, _, _ in found if batch),
            news=tuple(news for _, news, _ in found if news),
            answering=len(held),
            held_back=held[0] if held and all(held) else "",
        )

    def _ask(self, replica: Replica) -> tuple[Batch | None, str, str | None]:
        """What it measured, what is new of it, and why it holds the version back: empty where not, None where away."""
        before = replica.problem
        try:
            batch, restarted = self._read(replica)
            held = self._get(replica.url, "/loradock/status")["quarantined"].get(str(self.ref), {})
            held_back = str(held.get("reason", ""))
        except (OSError, HTTPException, JSONDecodeError) as error:
            replica.problem = str(getattr(error, "reason", error)) or type(error).__name__
            return None, "" if before else f"{replica.url} is away: {replica.problem}", None
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise NotFound(f"{replica.url} answers, but not as a loradock replica of this version") from error
        replica.problem = ""
        news = f"{replica.url} was restarted" if restarted else f"{replica.url} is back" if before else ""
        if batch.lost:
            news = f"{replica.url} forgot {batch.lost} calls before they were read"
        return batch, news, held_back

    def _read(self, replica: Replica) -> tuple[Batch, bool]:
        rows: list[Ended] = []
        restarted, lost = False, 0
        while True:
            query = urlencode({"name": self.ref.name, "since": replica.since})
            page = self._get(replica.url, f"/loradock/signals?{query}")
            if page["process"] != replica.process:
                restarted, replica.process, rows = bool(replica.process), page["process"], []
                if replica.since:  # the place in another process's ring
                    replica.since = 0
                    continue
            if replica.since:
                lost += max(0, page["oldest"] - replica.since - 1)
            rows += _ROWS.validate_python(page["rows"])
            replica.since = page["next"]
            if not page["more"]:
                return Batch(replica.process, tuple(rows), lost), restarted

    def _get(self, url: str, path: str) -> Any:
        headers = bearer(self.api_key)
        request = urllib.request.Request(url + path, headers=headers)  # noqa: S310 - http and https only come this far
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (401, 403):
                    raise BadInput(
                        f"{url} asks for an admin key", hint="give --api-key, or set VLLM_API_KEY"
                    ) from error
                if error.code == 404:
                    raise NotFound(
                        f"{url} answers, but is no loradock replica that tells what it measures",
                        hint="start one: loradock serve",
                    ) from error
                raise OSError(f"it answers with {error.code} {error.reason}") from error
