"""Ports for servers of tests."""

from __future__ import annotations

import itertools
import socket
from contextlib import ExitStack

_HELD = ExitStack()
"""Sockets that keep ports for this process's servers, until it ends."""


def free_port(*addresses: str, count: int = 1) -> int:
    """The first of so many ports in a row, at these addresses of this machine; at 127.0.0.1 where none is said.

    Sockets that do not listen stay bound to them, so that nobody else gets them by chance, also while the server is
    away. A server that sets SO_REUSEADDR or SO_REUSEPORT can listen there nevertheless.
    """
    first, *others = itertools.product(range(count), addresses or ("127.0.0.1",))
    while True:
        with ExitStack() as found:
            port = int(found.enter_context(_bound(first[1], 0)).getsockname()[1])
            try:
                for number, address in others:
                    found.enter_context(_bound(address, port + number))
            except (OSError, OverflowError):  # another's, or none
                continue
            _HELD.enter_context(found.pop_all())
            return port


def _bound(address: str, port: int) -> socket.socket:
    bound = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
    bound.bind((address, port))
    return bound
