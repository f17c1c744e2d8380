"""What a replica reports of itself, as JSON has it, and a server that answers with it."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.adapters import SMOL

NOTHING: dict[str, Any] = {
    "format": 1,
    "base": {
        "names": ["smol"],
        "revision": "",
        "quantization": "none",
        "config_digest": SMOL.config_digest,
        "weights_digest": SMOL.weights_digest,
        "text": {"tokenizer": "", "template": "", "generation": ""},
    },
    "ready": True,
    "converged": True,
    "waiting": {},
    "unlike": {},
    "histories": {},
    "stopping": False,
    "capacity": 8,
    "slots": 4,
    "max_rank": 16,
    "aliases": ["canary", "production", "shadow"],
    "registry": {"uri": "http://mlflow:5000", "reachable": True, "staleness_seconds": 0.0, "error": ""},
    "adapters": {},
    "cold": {},
    "shares": {},
    "loading": [],
    "quarantined": {},
    "refused": {},
    "resident": {},
    "proofs": {},
    "keys": {"file": None, "count": 0, "error": ""},
}
"""Of a replica that has nothing to serve."""


def answering(ref: str, *, promoted: str | None = None, digest: str = "") -> dict[str, Any]:
    """A row of `adapters`."""
    return {"version": ref, "digest": digest, "since": "2026-01-01T00:00:00.000+00:00", "promoted": promoted}


def quarantined(reason: str) -> dict[str, Any]:
    """A row of `quarantined`."""
    return {"reason": reason, "attempts": 1, "retry_in_seconds": 9.0}


STATUS: dict[str, Any] = NOTHING | {
    "converged": False,
    "registry": {"uri": "sqlite:///x", "reachable": False, "staleness_seconds": 12.0, "error": "unreachable"},
    "adapters": {"bot": answering("bot/1", promoted="bot/2", digest="a" * 64)},
    "loading": ["cat/1"],
    "quarantined": {"bot/2": quarantined("no effect")},
    "refused": {"dog": {"version": "dog/1", "reason": "another base"}},
    "resident": {"bot/1": 3},
}


class FakeReplicaHandler(BaseHTTPRequestHandler):
    """Answers as a test tells its server to."""

    server: Any

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        code, body = self.server.answer
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...
