"""Ports for servers of tests."""

from __future__ import annotations

import socket


def free_port(*addresses: str) -> int:
    """A port that nothing listens on, at any of these addresses of this machine; at 127.0.0.1 where none is said."""
    first, *others = addresses or ("127.0.0.1",)
    with socket.create_server((first, 0)) as found:
        port = int(found.getsockname()[1])
        for address in others:
            socket.create_server((address, port)).close()
        return port
