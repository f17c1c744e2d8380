"""What a lock file has."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.utils import canonicalize_name


def locked(path: Path) -> dict[str, str]:
    """Each package's version, by its name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}
