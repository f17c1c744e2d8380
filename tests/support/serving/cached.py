"""What lies in a cache of adapters, held against the digests that it is named by."""

from __future__ import annotations

import re
from pathlib import Path

from loradock.registry.artifact import verify


def assert_whole(root: Path) -> list[str]:
    """Whatever bears a digest has these bytes, and is closed; returns what else lies there."""
    others = []
    for path in root.iterdir():
        if re.fullmatch(r"[0-9a-f]{64}", path.name):
            verify(path, path.name, what=path.name)
            assert not any(found.stat().st_mode & 0o222 for found in (path, *path.rglob("*")))
        elif path.name not in (".locks", ".used"):
            others.append(path.name)
    return others
