"""A SIGTERM lets what runs end, a second one does not wait; on uvicorn alone, and on a whole server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loradock.registry import promotion
from loradock.registry.base import resolve
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.adapters import make_version
from tests.support.clients import one_connection
from tests.support.ports import free_port
from tests.support.serving.shallow import Shallow, shallow, whole

pytestmark = pytest.mark.chance

SCRIPT = """
import asyncio, signal, sys
import uvicorn
from loradock.serving.stopping import Stopping

said, over = False, asyncio.Event()

def began():
    global said
    said = True

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/over":
        over.set()
    elif scope["path"] == "/stream":
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await over.wait()
    elif scope["path"] == "/endless":
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.sleep(3600)
    await send({"type": "http.response.body", "body": b"stops" if said else b"runs"})

class Server(uvicorn.Server):
    def install(self):
        ours = asyncio.get_running_loop().add_signal_handler
        ours(signal.SIGINT, self.stop)
        ours(signal.SIGTERM, self.stop)

    def stop(self):
        self.force_exit = self.should_exit = True

    from contextlib import contextmanager
    @contextmanager
    def capture_signals(self):
        yield

async def main():
    app_ = Stopping(app, seconds=float(sys.argv[2]), began=began)
    server = Server(uvicorn.Config(app_, port=int(sys.argv[1]), log_level="warning"))
    task = asyncio.create_task(server.serve())
    server.install()  # as vLLM does, once the task is made and before the application starts
    await task

asyncio.run(main())
"""


class SmallServer:
    """An application behind the middleware that `SCRIPT` has, as vLLM runs its own."""

    def __init__(self, seconds: float) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(port), str(seconds)])
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            try:
                httpx.get(self.url)
                return
            except httpx.HTTPError:
                time.sleep(0.05)


@pytest.fixture(params=[30.0])
def small(request: pytest.FixtureRequest) -> Iterator[SmallServer]:
    started = SmallServer(request.param)
    yield started
    started.process.kill()
    started.process.wait()


def until_it_stops(url: str) -> None:
    deadline = time.monotonic() + 30
    while httpx.get(url).text != "stops":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_runs_ends_whole_what_comes_is_answered_and_then_it_stops(small: SmallServer) -> None:
    with httpx.stream("GET", f"{small.url}/stream") as answer:
        pieces = answer.iter_bytes(1)
        assert next(pieces) == b"x"
        small.process.send_signal(signal.SIGTERM)
        until_it_stops(small.url)
        assert small.process.poll() is None
        httpx.get(f"{small.url}/over")
        assert b"".join(pieces) == b"stops"
    assert small.process.wait(timeout=30) == 0


def test_a_client_that_keeps_its_connection_is_told_to_leave_it(small: SmallServer) -> None:
    with httpx.Client() as client, client.stream("GET", f"{small.url}/endless") as endless:
        assert "connection" not in endless.headers
        assert "connection" not in client.get(small.url).headers
        small.process.send_signal(signal.SIGTERM)
        until_it_stops(small.url)
        assert client.get(small.url).headers["connection"] == "close"


def test_a_second_sigterm_waits_for_nothing(small: SmallServer) -> None:
    with httpx.stream("GET", f"{small.url}/endless") as answer:
        next(answer.iter_bytes(1))
        small.process.send_signal(signal.SIGTERM)
        until_it_stops(small.url)
        small.process.send_signal(signal.SIGTERM)
        assert small.process.wait(timeout=20) == 0


@pytest.mark.parametrize("small", [0.2], indirect=True)
def test_what_does_not_end_within_the_time_is_not_waited_for(small: SmallServer) -> None:
    with httpx.stream("GET", f"{small.url}/endless") as answer:
        next(answer.iter_bytes(1))
        small.process.send_signal(signal.SIGTERM)
        assert small.process.wait(timeout=20) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, shallow_dir: Path) -> Iterator[Shallow]:
    scratch = tmp_path_factory.mktemp("stopping")
    home = scratch / "home"
    store, base = Store(Settings(home=home)), resolve(str(shallow_dir), Settings(home=home))
    version = make_version(store, scratch / "bot", "bot", base=base.base, scale=8.0)
    promotion.promote(store, version.ref, "production", actor="tester")
    with shallow(home, base, store, scratch, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}) as running:  # as users do
        yield running


@pytest.mark.slow
def test_a_connection_may_idle_for_longer_than_clients_keep_theirs(server: Shallow) -> None:
    with one_connection(server.url) as ask:
        assert ask() == 200
        time.sleep(6)  # OpenAI's client keeps one for 5 s, as vLLM does by itself
        assert ask() == 200


@pytest.mark.slow
def test_a_server_lets_a_stream_end_answers_others_and_is_not_ready_meanwhile(server: Shallow) -> None:
    with server.stream("bot", 240) as events:
        first = json.loads(next(events))
        assert first["model"] == "bot/1"
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda found: found["stopping"])
        code, body = server.get("/loradock/ready", key="")
        assert (code, body["ready"]) == (503, False)
        assert server.complete("bot", 2)[0] == "bot/1"
        assert whole([*events]) == 240
    assert server.ended() == 0
    assert "Traceback" not in server.text
