"""A proxy before a registry, which is slow, gone, or lies as a test tells it to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from tests.support.web import running

SEARCH = "/registered-models/search"
VERSION = "/model-versions/get"


class FaultyProxy(ThreadingHTTPServer):
    """Hands every request on to `target`, and every answer back, as long as it is told nothing else."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.client = httpx.Client(base_url=target, timeout=60)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.honest()

    def honest(self) -> None:
        """From now on, it does nothing of its own."""
        self.delay = 0.0  # seconds
        self.gone = False
        self.change: Callable[[str, bytes], bytes] = lambda path, body: body
        """From a request's path and the answer's body to the body that is given instead."""

    def changed(self, part: str, change: Callable[[Any], Any]) -> None:
        """Change the JSON of every answer whose path has this part."""

        def changed(path: str, body: bytes) -> bytes:
            return json.dumps(change(json.loads(body))).encode() if part in path else body

        self.change = changed

    def handle_error(self, *_: Any) -> None:
        """A client that does not wait is nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        if self.server.gone:
            self.close_connection = True
            return
        time.sleep(self.server.delay)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        found = self.server.client.request(self.command, self.path, content=sent, headers=headers)
        body = self.server.change(self.path, found.content)
        self.send_response(found.status_code)
        self.send_header("Content-Type", found.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - http.server's names

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def proxy(target: str) -> Iterator[FaultyProxy]:
    server = FaultyProxy(target)
    with server.client, running(server):
        yield server
