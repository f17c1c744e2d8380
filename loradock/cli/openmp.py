"""OpenMP's threads, before torch loads it."""

from __future__ import annotations

import os


def quieten() -> None:
    """Let its threads sleep while they wait for each other.

    By default they spin, and beside another busy process, a serving engine for one, that takes five times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
