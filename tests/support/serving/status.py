"""What a replica says of itself, and a server that says it."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

STATUS: dict[str, Any] = {
    "base": {"names": ["smol"]},
    "ready": True,
    "converged": False,
    "registry": {"uri": "sqlite:///x", "reachable": False, "staleness_seconds": 12.0, "error": "out of reach"},
    "adapters": {"bot": {"version": "bot/1", "digest": "a" * 64, "since": "2026-01-01", "promoted": "bot/2"}},
    "loading": ["cat/1"],
    "quarantined": {"bot/2": {"reason": "no effect", "attempts": 1, "retry_in_seconds": 9.0}},
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
