"""A file of the cache under the digest of its text, so that a damaged one is told from a whole one."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from loradock.registry import scratch


def read(path: Path) -> str | None:
    """The text; None where the file is missing, damaged or not to be read."""
    with suppress(OSError, ValueError):
        digest, _, text = path.read_text(encoding="utf-8").partition("\n")
        return text if digest == _digest(text) else None
    return None


def write(path: Path, text: str) -> None:
    """Write it in one step; a cache that cannot be written to costs time, and nothing else."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.replace(path, f"{_digest(text)}\n{text}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
