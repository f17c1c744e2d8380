"""Adapters on this machine: fetched once, verified at every use, read-only, in a directory named by their digest."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from registry import artifact, check
from registry.errors import BadInput, DigestMismatch, LoradockError, NotServable, Refused
from registry.records import Version

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FETCHING: Final = ".fetching-"
"""What a directory that is not whole yet begins with; its digest follows."""

log = logging.getLogger(__name__)


class Cache:
    """The adapters that replicas of this machine share; every method blocks, so call it off the event loop.

    Made, it clears away what killed processes left half-way.

    A directory that bears a digest was complete and verified when it got that name. An engine may read it again at
    any time, so it stays where it is: this class replaces damaged ones and deletes none that is whole.
    """

    def __init__(
        self, root: Path, download: Callable[[Version, Path], None], *, base: check.BaseShapes, max_rank: int
    ) -> None:
        self._root = root
        self._download = download
        self._base = base
        self._max_rank = max_rank
        self._clear_away()

    def directory(self, version: Version) -> Path:
        """The version's files, verified a moment ago and fit for this replica's base and limits.

        Raises DigestMismatch or BadInput for bytes that are not the registered ones, NotServable for an adapter
        that this replica cannot serve, Unreachable or NotFound when it must be fetched and cannot be, and
        LoradockError when there is no room for it.
        """
        digest = version.facts.digest
        if not _DIGEST.fullmatch(digest):
            raise BadInput(f"{version.ref} is registered with {digest!r}, which is no digest")
        target = self._root / digest
        with self._room_told(version), self._alone(digest):
            if os.path.lexists(target):
                try:
                    _verify(target, version)
                except (LoradockError, OSError) as error:
                    log.warning("the cached copy of %s is damaged and will be fetched again: %s", version.ref, error)
                    self._fetch(version, target)
            else:
                self._fetch(version, target)
        if found := check.findings(target, base=self._base, max_rank=self._max_rank):
            raise NotServable(str(version.ref), found)
        return target

    @contextmanager
    def _room_told(self, version: Version) -> Iterator[None]:
        try:
            yield
        except (LoradockError, OSError) as error:
            if _is_full(error):
                raise LoradockError(
                    f"no space left in {self._root} for {version.ref}", hint="make room there; it is then tried again"
                ) from error
            raise

    def _clear_away(self) -> None:
        """What is being fetched now is locked, and stays."""
        for left in self._root.glob(f"{_FETCHING}*"):
            digest = left.name.removeprefix(_FETCHING)
            try:
                with suppress(BlockingIOError), self._alone(digest, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    _remove(left)
            except OSError as error:  # it takes room, and harms nothing
                log.warning("%s cannot be cleared away: %s", left, error)

    @contextmanager
    def _alone(self, digest: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        """Keep other replicas of this machine from this digest meanwhile: both would download it."""
        locks = self._root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / digest[:2]).open("w") as file:
            fcntl.flock(file, how)  # let go of when the file is closed, by a crash too
            yield

    def _fetch(self, version: Version, target: Path) -> None:
        """Download beside the target, verify, close for writing, and only then give it its name."""
        scratch = Path(tempfile.mkdtemp(dir=self._root, prefix=f"{_FETCHING}{target.name}-"))
        aside = scratch.with_name(f"{scratch.name}-damaged")
        try:
            self._download(version, scratch)
            _verify(scratch, version)
            _close(scratch)
            if os.path.lexists(target):
                target.rename(aside)
            scratch.rename(target)
        finally:
            _remove(scratch)
            _remove(aside)


def _verify(directory: Path, version: Version) -> None:
    """Hash the files, and refuse links: what they lead to can change while the name stays."""
    if directory.is_symlink() or not directory.is_dir():
        raise Refused(f"{directory.name} is not a directory of its own")
    if links := sorted(path.name for path in directory.rglob("*") if path.is_symlink()):
        faults = [f"{name} is a link" for name in links]
        raise DigestMismatch(str(version.ref), expected=version.facts.digest, found="", faults=faults)
    artifact.verify(directory, version.facts.digest, what=str(version.ref))


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error; MLflow says so in a text of several lines only."""
    while error is not None:
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__
    return False


def _close(directory: Path) -> None:
    for path in directory.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    directory.chmod(0o555)


def _remove(path: Path) -> None:
    """Delete a directory that may be closed for writing, or whatever stands in a directory's place."""
    if path.is_dir() and not path.is_symlink():
        for directory in (path, *(found for found in path.rglob("*") if found.is_dir() and not found.is_symlink())):
            directory.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
