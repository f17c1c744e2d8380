"""What a process reads of its machine and its control groups, as files in a directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:   12582912 kB\n"  # 16 and 12 GiB


def tree(root: Path, groups: str, files: Mapping[str, str] = {}, meminfo: str = MEMINFO) -> Path:
    """A /proc and a /sys/fs/cgroup."""
    written = {"proc/meminfo": meminfo, "proc/self/cgroup": groups}
    for name, text in (written | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
