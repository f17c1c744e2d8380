"""What this machine has, or the container that this process runs in where that has less; and when a disk is full."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GIB: Final = 2**30

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS: Final = tuple(words for number in _FULL for words in (os.strerror(number), f"(os error {number})"))
"""As Python and MLflow write them, and as Rust does."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that this process may use."""

    total: int
    available: int
    """Of these, what is free or can be freed: caches of files count as free."""


def memory(root: Path = Path("/")) -> Memory:
    """The machine's memory, or less where a control group of this process, or one above it, has a limit.

    `root` is where /proc and /sys are. Linux's cgroup v1 and v2 are read, from inside a container and from outside.
    """
    total, available = _host(root)
    for limit, used in _limits(root):
        total, available = min(total, limit), min(available, limit - used)
    return Memory(total, max(0, available))


def processors(root: Path = Path("/")) -> int:
    """Processors that this process may use: those that it may run on, or fewer where a control group has a quota."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota / period) for quota, period in _quotas(root) if quota > 0 and period > 0]
    return max(1, min([found, *quotas]))


def has_bfloat16(root: Path = Path("/")) -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without that it is slower than float32, and less exact."""
    lines = _text(root / "proc/cpuinfo").splitlines()
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a quota, is behind an error; libraries say so in a text only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__
    return False


def _host(root: Path) -> tuple[int, int]:
    """The whole machine's memory, and what of it is available, in bytes."""
    rows = _table(root / "proc/meminfo")
    if "MemTotal:" in rows and "MemAvailable:" in rows:
        return rows["MemTotal:"] * 1024, rows["MemAvailable:"] * 1024
    import psutil  # where there is no /proc

    found = psutil.virtual_memory()
    return int(found.total), int(found.available)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Of each control group with a limit on memory: the limit, and what its processes hold, in bytes."""
    for group in _groups(root, ""):
        if (limit := _number(group / "memory.max")) is not None:
            yield limit, _used(group, "memory.current", ("active_file", "inactive_file", "slab_reclaimable"))
    for group in _groups(root, "memory"):
        if (limit := _number(group / "memory.limit_in_bytes")) is not None:
            yield limit, _used(group, "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))


def _used(group: Path, current: str, freeable: tuple[str, ...]) -> int:
    stat = _table(group / "memory.stat")
    return max(0, (_number(group / current) or 0) - sum(stat.get(name, 0) for name in freeable))


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Of each control group: microseconds of processor time in each period of so many."""
    for group in _groups(root, ""):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit():
            yield int(quota), int(period)
    for group in _groups(root, "cpu"):
        yield _number(group / "cpu.cfs_quota_us") or 0, _number(group / "cpu.cfs_period_us") or 0


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of this process's control group and of those above it; the empty controller is cgroup v2.

    A container without a cgroup namespace names its group as the machine does, and sees it at the top.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
            group = top / path.lstrip("/")
            yield from (each for each in (group, *group.parents) if each.is_relative_to(top))


def _table(path: Path) -> Mapping[str, int]:
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    """A file's number; None where there is no such file, or no limit: `max`, or -1."""
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
