"""Clients that ask an endpoint without pause while a test does something to it, and one that keeps its connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection


@contextmanager
def at_work(work: Callable[[int], object], clients: int, stop: threading.Event) -> Iterator[None]:
    """So many threads, each of which does the work, told its number, for as long as this lasts; `stop` then ends it."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def one_connection(url: str) -> Iterator[Callable[[], int]]:
    """Asks `url`/health on one and the same connection, and gives each answer's status."""
    with closing(HTTPConnection(url.removeprefix("http://"))) as connection:
        connection.connect()
        connection.auto_open = False

        def ask() -> int:
            connection.request("GET", "/health")
            with connection.getresponse() as answer:
                answer.read()
                return answer.status

        yield ask
