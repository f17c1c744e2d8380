"""The load balancer of the compose file beside name servers that are slow or gone, and connections that are closed.

The replicas are small web servers.
"""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.clients import one_connection
from tests.support.mlflow_server import STACK
from tests.support.ports import free_port
from tests.support.stack.haproxy import HAProxy
from tests.support.waiting import until
from tests.support.web import running

pytestmark = pytest.mark.chance

ADDRESSES = ("127.0.0.2", "127.0.0.3")
FORGOTTEN = 40
"""Seconds after which HAProxy, by its own defaults, takes an address out that no name server tells anymore."""


class _FakeReplicaHandler(BaseHTTPRequestHandler):
    """Answers one request of a connection, and closes it when another comes, as one does whose patience just ended."""

    protocol_version = "HTTP/1.1"
    answered = False

    def do_GET(self) -> None:
        if self.answered:
            self.close_connection = True
            return
        self.answered = True
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of two replicas."""
    found = free_port(*ADDRESSES)
    with ExitStack() as stack:
        for address in ADDRESSES:
            stack.enter_context(running(ThreadingHTTPServer((address, found), _FakeReplicaHandler)))
        yield found


@contextmanager
def started(directory: Path, port: int, *, certificate: Path | None = None) -> Iterator[HAProxy]:
    directory.mkdir()
    front = HAProxy(directory, ADDRESSES, port, certificate=certificate)
    try:
        front.start()
        yield front
    finally:
        front.close()


def test_a_request_that_comes_before_the_name_server_answered_waits_for_it(tmp_path: Path, port: int) -> None:
    with started(tmp_path / "late", port) as front, ThreadPoolExecutor() as pool, ExitStack() as stack:
        before = set(front.names.askers)
        front.names.answers.clear()
        reloaded = pool.submit(front.reload)
        until(lambda: front.names.askers - before, 60)
        asked = [stack.enter_context(closing(HTTPConnection(front.url.removeprefix("http://")))) for _ in range(8)]
        for connection in asked:
            connection.request("GET", "/")
        front.names.answers.set()
        assert {connection.getresponse().status for connection in asked} == {200}
        reloaded.result()


def test_a_request_meets_no_connection_that_a_replica_is_about_to_close(tmp_path: Path, port: int) -> None:
    with started(tmp_path / "kept", port) as front, httpx.Client() as client:
        assert [client.get(front.url).status_code for _ in range(20)] == [200] * 20


def test_a_connection_that_idles_while_the_configuration_is_read_takes_one_more_request(
    tmp_path: Path, port: int
) -> None:
    with started(tmp_path / "idle", port) as front, one_connection(front.url) as ask:
        assert ask() == 200
        front.reload()
        assert ask() == 200


def test_with_a_certificate_it_speaks_tls_to_who_trusts_it_and_nothing_else(tmp_path: Path, port: int) -> None:
    subprocess.run([STACK / "certificate.sh", "127.0.0.1", tmp_path / "tls"], check=True, capture_output=True)
    certificate = tmp_path / "tls" / "tls.crt"
    trusting = ssl.create_default_context(cafile=certificate)
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    with started(tmp_path / "tls-on", port, certificate=certificate) as front:
        assert httpx.get(front.url, verify=trusting).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(front.url)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(front.url.replace("https:", "http:"))


@pytest.mark.slow
def test_replicas_stay_while_no_name_server_answers(tmp_path: Path, port: int) -> None:
    with started(tmp_path / "silent", port) as silent, started(tmp_path / "gone", port) as gone:
        silent.names.answers.clear()
        gone.names.close()
        time.sleep(FORGOTTEN)
        statuses = [httpx.get(front.url, timeout=30).status_code for front in (silent, gone)]
    assert statuses == [200, 200]
