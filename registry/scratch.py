"""A directory for files on their way, and a full disk as one clear line."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loradock.registry.errors import BadInput, LoradockError
from loradock.registry.machine import is_full


def replace(target: Path, text: str, *, mode: int = 0o600) -> None:
    """Write a file in one step, for its owner alone: no reader and no crash ever meets half of it. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        os.fchmod(handle, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that goes away at the end; raises LoradockError when there is no room for it, or in it."""
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise LoradockError(
            "there is no directory for temporary files that can be written to", hint="make room, or set TMPDIR"
        ) from error
    hint = "make room, or set TMPDIR to a directory that has some"
    with room(parent, hint=hint), tempfile.TemporaryDirectory(prefix="loradock-", dir=parent) as name:
        yield Path(name)


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A directory that becomes `out` by one rename at the end, or goes away when anything fails.

    Raises BadInput when it cannot be made; what `out` is already, unless it is an empty directory, fails the rename.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror}") from error
    try:
        yield directory
        directory.chmod(0o755)
        directory.rename(out)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def room(directory: Path, *, hint: str = "make room there") -> Iterator[None]:
    """Let a full disk leave as LoradockError; it is that of `directory`, unless the error names another file."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        written = error.filename2 or error.filename  # of a copy, the second is the one that is written
        within = not written or Path(os.fsdecode(written)).is_relative_to(directory)
        raise _full(directory if within else Path(os.fsdecode(written)).parent, hint) from error
    except LoradockError as error:
        if not is_full(error):
            raise
        raise _full(directory, hint) from error


def _full(directory: Path, hint: str) -> LoradockError:
    return LoradockError(f"there is no room left in {directory}", hint=hint)
