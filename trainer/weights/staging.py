"""Where what is made lies until it is whole: beside its place, with the room for it seen to first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from loradock.registry.errors import BadInput, LoradockError
from loradock.registry.machine import GIB, is_full
from loradock.registry.scratch import beside, room, scratch

_HINT: Final = "make room, take a narrower --dtype, or put --out, LORADOCK_HOME or TMPDIR on another disk"


def check_room(needs: Mapping[Path, int]) -> None:
    """Raise LoradockError where a disk has less room than directories on it need, in bytes."""
    disks: dict[int, tuple[Path, int]] = {}
    for path, size in needs.items():
        there = next(above for above in (path, *path.parents) if above.exists())
        disk = there.stat().st_dev
        first, before = disks.get(disk, (there, 0))
        disks[disk] = (first, before + size)
    for there, size in disks.values():
        if (free := shutil.disk_usage(there).free) < size:
            text = f"this takes {size / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free"
            raise LoradockError(f"there is no room left in {there}: {text}", hint=_HINT)


@contextmanager
def staged(out: Path | None) -> Iterator[Path]:
    """A directory that becomes `out` by one rename at the end, or goes away: when anything fails, and for None.

    Raises BadInput when `out` is there already or cannot be written, and LoradockError for a full disk.
    """
    if out is None:
        with scratch() as directory, _full_told(directory):
            yield directory
        return
    if os.path.lexists(out):
        raise BadInput(f"{out} is there already", hint="give a new directory; nothing is written over")
    with beside(out) as directory, room(out.parent, hint=_HINT), _full_told(out.parent):
        yield directory


@contextmanager
def _full_told(directory: Path) -> Iterator[None]:
    """Let a full disk leave as LoradockError where safetensors tells it, whose error is no OSError."""
    try:
        yield
    except SafetensorError as error:
        if not is_full(error):
            raise
        raise LoradockError(f"there is no room left in {directory}", hint=_HINT) from error
