"""Clients that ask an endpoint without pause while a test does something to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
