"""Flips by `loradock.registry.promotion.promote`, followed by a replica of `loradock serve`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.flip import adapters
from benchmarks.flip.adapters import Cast, Made
from benchmarks.flip.flips import Flip, Flipped
from benchmarks.flip.servers import Server
from loradock.registry import promotion, recording
from loradock.registry.base import LocalBase
from loradock.registry.refs import PRODUCTION, VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store

SERVING: Final = {
    "LORADOCK_SERVE_POLL_SECONDS": "1",
    "LORADOCK_SERVE_DRAIN_SECONDS": "20",
    "LORADOCK_SERVE_RETRY_SECONDS": "300",
}
"""Half of the flips come back within the drain, and find their version resident; the others have to load it."""

_LOOK_SECONDS = 0.05
_FLIP_SECONDS = 60.0


def registry(home: Path, local: LocalBase, cast: Cast, proof: str) -> Store:
    """A registry of its own with every version, the damaged ones damaged after that, and each name's first promoted.

    For the proof `parity` each also gets a recorded reference of what PEFT says with it.
    """
    store = Store(Settings(home=home, tracking_uri=""))
    made = adapters.register(store, local, cast)
    if proof == "parity":
        recording.record(store, made, lambda _: None, str(local.path))
    adapters.damage(store, cast)
    for several in cast.values():
        promote(store, several[0])
    return store


def promote(store: Store, made: Made) -> float:
    """Promote a version in this process, as a warm promoter does; when that was written."""
    ref, bad = VersionRef(made.name, made.number), made.kind != "good"
    reason = "to see it quarantined" if bad else ""
    move = promotion.promote(store, ref, PRODUCTION, actor="benchmark", reason=reason, force=bad)
    assert move is not None
    return move.at.timestamp()


class Replica:
    """A running replica, and the promoter that it follows."""

    def __init__(self, server: Server, store: Store) -> None:
        self._server, self._store, self._http = server, store, server.http()
        self._seen = set(self.status()["resident"])
        self.nudges = self._nudge()
        """Whether this replica can be told of a promotion."""

    def status(self) -> Any:
        """What the replica says of itself; raises servers.Died."""
        self._server.check()
        return self._http.get("/loradock/status").raise_for_status().json()

    def since(self) -> dict[str, tuple[str, float]]:
        """Where each name points, and since when."""
        return {name: (row["version"], _epoch(row["since"])) for name, row in self.status()["adapters"].items()}

    def make(self, flips: Sequence[Flip], go_on: Callable[[], None]) -> list[Flipped]:
        """Make each flip, wait until the replica has followed it, and let the traffic go on."""
        made = []
        for flip in flips:
            made.append(self._flip(flip))
            go_on()
        return made

    def _flip(self, flip: Flip) -> Flipped:
        ref = str(flip.to)
        state = "resident" if ref in self.status()["resident"] else "cached" if ref in self._seen else "fresh"
        at = promote(self._store, flip.to)
        told = time.time()
        if flip.nudge:
            self._nudge()
        deadline = time.monotonic() + _FLIP_SECONDS
        while time.monotonic() < deadline:
            status = self.status()
            if (row := status["adapters"].get(flip.to.name)) and row["version"] == ref:
                self._seen.add(ref)
                return Flipped(flip, state, at, told, _epoch(row["since"]))
            if found := status["quarantined"].get(ref):
                return Flipped(flip, state, at, told, None, quarantined=found["reason"])
            time.sleep(_LOOK_SECONDS)
        return Flipped(flip, state, at, told, None, error=f"not followed within {_FLIP_SECONDS:.0f} s")

    def _nudge(self) -> bool:
        reply = self._http.post("/loradock/nudge")
        if reply.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            return False
        reply.raise_for_status()
        return True


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
