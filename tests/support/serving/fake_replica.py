"""A replica that answers nobody: it says over HTTP what it would have measured, by the registry's own shares."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from loradock.registry import traffic
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving.calls import Asked, Call, Role
from loradock.serving.signals import Signals
from tests.support.adapters import NAME
from tests.support.serving.status import NOTHING
from tests.support.web import running

Kind = Mapping[str, float]
"""How often a version fails, is cut off, or gives long answers."""


@dataclass
class FakeReplica:
    """Each look at its signals is preceded by so many requests to the bare name."""

    settings: Settings
    versions: Mapping[int, Kind]
    requests: int = 200
    key: str = ""
    looks: int = 0
    status: int = 200
    before: Callable[[FakeReplica], None] = lambda _: None
    """Called before each look."""
    quarantined: dict[str, Any] = field(default_factory=dict)
    signals: Signals = field(init=False)
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    unserved: int = 0
    """So many prompts are refused at first, as by a replica that does not serve the version yet."""

    def __post_init__(self) -> None:
        self.store = Store(self.settings)
        self.random = random.Random(1)  # noqa: S311 - no secret
        self.restart()

    def restart(self) -> None:
        """Be another process."""
        self.signals = Signals(now=self.now)

    def now(self) -> float:
        self.seconds += 0.01
        return self.seconds

    def serve(self) -> None:
        """Answer as many requests as come between two looks."""
        family = self.store.family(NAME)
        share = traffic.shares(family.traffic).get("canary")
        for _ in range(self.requests):
            role: Role = "canary" if share and self.random.random() < share.weight else "production"
            self.signals.ended(self.call(role, family.aliases[role]))

    def call(self, role: Role, number: int) -> Call:
        kind, chance = self.versions.get(number, {}), self.random.random
        call = Call(Asked(NAME, role), VersionRef(NAME, number), started=0.0, first_token=0.1, finish="stop")
        call.prompt_tokens, call.longest = 5, 20
        if chance() < kind.get("error", 0.0):
            call.outcome, call.finish, call.first_token, call.longest = "error", "", None, 0
        elif chance() < kind.get("unstopped", 0.0):
            call.finish = "length"
        if chance() < kind.get("long", 0.0):
            call.longest = 200
        call.output_tokens, call.ended = call.longest, 0.1 + 0.01 * call.longest
        return call


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        replica: FakeReplica = self.server.replica
        parts = urlsplit(self.path)
        if replica.key and self.headers.get("Authorization") != f"Bearer {replica.key}":
            self.answer(401, {})
        elif parts.path == "/loradock/signals":
            replica.looks += 1
            replica.before(replica)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            if replica.status == 200:
                replica.serve()
            self.answer(replica.status, asdict(replica.signals.page(query["name"], int(query["since"]))))
        elif parts.path == "/loradock/status":
            self.answer(replica.status, NOTHING | {"quarantined": replica.quarantined})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        replica: FakeReplica = self.server.replica
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if self.path != "/v1/completions":
            self.answer(200, {})
            return
        replica.asked.append(body)
        if len(replica.asked) <= replica.unserved:
            self.answer(404, {"error": {"message": "no such model"}})
            return
        alias = body["model"].partition("@")[2]
        number = replica.store.family(NAME).aliases[alias]
        text = {"choices": [{"text": f"{alias} says"}]}
        self.answer(200, text, {"x-loradock-version": f"{NAME}/{number}"})

    def answer(self, code: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def replica(settings: Settings, versions: Mapping[int, Kind], **how: Any) -> Iterator[FakeReplica]:
    """One that listens."""
    found = FakeReplica(settings, versions, **how)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.replica, found.url = found, f"http://127.0.0.1:{server.server_port}"
    with running(server):
        yield found
