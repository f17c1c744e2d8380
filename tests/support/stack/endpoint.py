"""The load balancer before the replicas, as a client sees it, and clients that ask without pause."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.clients import at_work
from tests.support.stack.commands import say


class Endpoint:
    """Something that answers as OpenAI's API does."""

    def __init__(self, address: str, key: str, *, model: str) -> None:
        self.address, self.key, self.model = address, key, model

    def ask(self, tokens: int = 8, *, key: str | None = None) -> str:
        """Which version answers; the error's code where none does."""
        request = urllib.request.Request(
            f"http://{self.address}/v1/completions", self._body(tokens), _headers(self.key if key is None else key)
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                return str(json.load(answer)["model"])
        except urllib.error.HTTPError as error:
            return str(error.code)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__

    def get(self, path: str) -> int:
        """The status of a page; 0 where nobody answers."""
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request("GET", path)  # as it is: no client here makes the path another
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def hang_up(self) -> None:
        """Ask for a long answer as a stream, and go when it begins."""
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request("POST", "/v1/completions", self._body(500, stream=True), _headers(self.key))
        connection.getresponse().readline()
        connection.close()

    def all_answer(self, version: str, replicas: int) -> bool:
        """Whether the last answers, of all replicas in turn, came by this version."""
        return all(self.ask() == version for _ in range(2 * replicas))

    def _body(self, tokens: int, **more: Any) -> bytes:
        body = {"model": self.model, "prompt": "Where is my parcel?", "max_tokens": tokens, "ignore_eos": True}
        return json.dumps(body | more).encode()


def _headers(key: str) -> dict[str, str]:
    return {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}


@contextmanager
def load(endpoint: Endpoint, *allowed: str, broken: Collection[str] = (), clients: int = 3) -> Iterator[Counter[str]]:
    """Ask without pause meanwhile; end where an answer failed, or came by a version that is not `allowed`.

    `broken` is what the requests may get that ran where something was killed: as many as there are clients.
    """
    answers: Counter[str] = Counter()
    stop = threading.Event()

    def client(_number: int) -> None:
        while not stop.is_set():
            answers[endpoint.ask(24)] += 1

    try:
        with at_work(client, clients, stop):
            yield answers
    finally:
        say(f"   answers: {dict(answers)}")
    lost = sum(answers[kind] for kind in broken)
    if answers.keys() - {*allowed, *broken} or lost > clients or answers.total() == lost:
        sys.exit(f"only {allowed} may have answered, and at most {clients} requests broken off by {list(broken)}")
