"""What this machine has, told without torch where that can be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_DEVICES: Final = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "dxg", "kfd")
"""What Linux has under /dev where torch could find a GPU: NVIDIA's, Tegra's, WSL's and AMD's."""


def may_have_gpu() -> bool:
    """Whether torch could find a GPU; only torch says whether it can use one."""
    return sys.platform != "linux" or any(True for name in _DEVICES for _ in Path("/dev").glob(name))


def bytes_per_weight() -> int:
    """Those of the precision that `base.best_dtype` chooses."""
    flags = _flags()
    if flags is None or may_have_gpu():
        from loradock.trainer.base import best_dtype

        return int(best_dtype().itemsize)
    return 2 if flags & {"avx512_bf16", "amx_bf16"} else 4


def _flags() -> set[str] | None:
    """What the first processor can do, by Linux's names; None where it is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith(("flags", "Features"))), None)
