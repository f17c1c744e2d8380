"""What the replicas measured since the last look: each is asked over HTTP, and may be away, or another process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from pydantic import SecretStr, TypeAdapter, ValidationError

from loradock.registry.errors import NotFound
from loradock.registry.refs import VersionRef
from loradock.registry.replica_client import NoAnswer, NoJson, ReplicaClient
from loradock.serving.signals import Ended, Page

_PAGE: Final = TypeAdapter(Page)


@dataclass(slots=True)
class Replica:
    """One replica, and how far it was read."""

    client: ReplicaClient
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
    quarantined: str = ""
    """Why every replica that answers has the version quarantined; empty where one does not."""


@dataclass(slots=True)
class Replicas:
    """Every replica of the endpoint."""

    ref: VersionRef
    urls: Sequence[str]
    api_key: SecretStr
    _known: list[Replica] = field(init=False)

    def __post_init__(self) -> None:
        self._known = [Replica(ReplicaClient(url, self.api_key, needs="an admin key")) for url in self.urls]

    def look(self) -> Look:
        """Ask all of them at once.

        Raises BadInput for a wrong key and NotFound for another server: waiting would mend neither.
        """
        with ThreadPoolExecutor(len(self._known)) as pool:
            found = list(pool.map(self._ask, self._known))
        reasons = [reason for _, _, reason in found if reason is not None]
        return Look(
            batches=tuple(batch for batch, _, _ in found if batch),
            news=tuple(news for _, news, _ in found if news),
            answering=len(reasons),
            quarantined=reasons[0] if reasons and all(reasons) else "",
        )

    def _ask(self, replica: Replica) -> tuple[Batch | None, str, str | None]:
        """What it measured, what is new of it, and why the version is quarantined: empty where not, None where away."""
        before, url = replica.problem, replica.client.url
        try:
            batch, restarted = self._read(replica)
            found = replica.client.status().quarantined.get(self.ref)
        except (NoAnswer, NoJson) as error:
            replica.problem = error.reason
            return None, "" if before else f"{url} is away: {replica.problem}", None
        replica.problem = ""
        news = f"{url} was restarted" if restarted else f"{url} is back" if before else ""
        if batch.lost:
            news = f"{url} forgot {batch.lost} calls before they were read"
        return batch, news, found.reason if found else ""

    def _read(self, replica: Replica) -> tuple[Batch, bool]:
        rows: list[Ended] = []
        restarted, lost = False, 0
        while True:
            page = self._page(replica)
            if page.process != replica.process:
                restarted, replica.process, rows = bool(replica.process), page.process, []
                if replica.since:  # the place in another process's ring
                    replica.since = 0
                    continue
            if replica.since:
                lost += max(0, page.oldest - replica.since - 1)
            rows += page.rows
            replica.since = page.next
            if not page.more:
                return Batch(replica.process, tuple(rows), lost), restarted

    def _page(self, replica: Replica) -> Page:
        query = urlencode({"name": self.ref.name, "since": replica.since})
        try:
            return _PAGE.validate_python(replica.client.ask("GET", f"/loradock/signals?{query}"))
        except ValidationError as error:
            raise NotFound(f"{replica.client.url} answers, but not as a loradock replica of this version") from error
