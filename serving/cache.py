"""Adapters on this machine: fetched once, verified at every use, read-only, in a directory named by their digest."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loradock.registry import artifact, check
from loradock.registry.errors import BadInput, DigestMismatch, LoradockError, NotServable, Refused
from loradock.registry.machine import is_full
from loradock.registry.records import Version

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FETCHING: Final = ".fetching-"
"""What a directory that is not whole yet begins with; its digest follows."""

_USED: Final = ".used"
"""The directory of empty files, one a digest, whose time of change is when the adapter was last asked for."""
_REST_SECONDS: Final = 600.0
"""How long an adapter that was asked for stays, whoever asked: another replica may be about to load it."""

Seal = tuple[tuple[str, ...], ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verified:
    """An adapter's files, as they were when they were hashed."""

    path: Path
    seal: Seal = ()
    """What the file system says of each file, taken before it was hashed."""

    def check(self, what: str) -> None:
        """Raise DigestMismatch where a file was written to, replaced, added or removed since.

        Called when an engine has read them, it says that these were the bytes that were hashed: the kernel sets the
        time of a file's last change, and nobody but root can set it back.
        """
        if _seal(self.path) != self.seal:
            fault = "they changed while the engine read them"
            raise DigestMismatch(what, expected=self.path.name, found="", faults=[fault])


class Cache:
    """The adapters that replicas of this machine share; every method blocks, so call it off the event loop.

    Made, it clears away what killed processes left half-way.

    A directory that bears a digest was complete and verified when it got that name. Damaged ones are replaced. Whole
    ones go only to make room, `most` bytes or the disk's: those that were not asked for the longest, and of these none
    that was asked for just now or that the caller wants to keep.
    """

    def __init__(
        self,
        root: Path,
        download: Callable[[Version, Path], None],
        *,
        base: check.BaseShapes,
        max_rank: int,
        most: int | None = None,
    ) -> None:
        self._root = root
        self._download = download
        self._base = base
        self._max_rank = max_rank
        self._most = most
        self._clear_away()

    def directory(self, version: Version, keep: Collection[str] = ()) -> Verified:
        """The version's files, verified a moment ago and fit for this replica's base and limits.

        `keep` has the digests of what makes no room for them.
        Raises DigestMismatch or BadInput for bytes that are not the registered ones, NotServable for an adapter
        that this replica cannot serve, Unreachable or NotFound when it must be fetched and cannot be, and
        LoradockError when there is no room for it.
        """
        digest = version.facts.digest
        if not _DIGEST.fullmatch(digest):
            raise BadInput(f"{version.ref} is registered with {digest!r}, which is no digest")
        target = self._root / digest
        with self._room_told(version), self._alone(digest):
            self._touch(digest)
            seal = self._cached(version, target)
            if seal is None:
                seal = self._fetched(version, target, keep)
            self._trim(keep)
        if found := check.findings(target, base=self._base, max_rank=self._max_rank):
            raise NotServable(str(version.ref), found)
        return Verified(target, seal)

    def _cached(self, version: Version, target: Path) -> Seal | None:
        """The seal of a copy that is whole; None without one."""
        if not os.path.lexists(target):
            return None
        try:
            return _verify(target, version)
        except (LoradockError, OSError) as error:
            log.warning("the cached copy of %s is damaged and will be fetched again: %s", version.ref, error)
            return None

    def _fetched(self, version: Version, target: Path, keep: Collection[str]) -> Seal:
        """The seal of a new copy; a disk that is full gets room as long as there is any."""
        while True:
            try:
                return self._fetch(version, target)
            except (LoradockError, OSError) as error:
                if not is_full(error) or not any(map(self._drop, self._unused(keep))):
                    raise

    def _trim(self, keep: Collection[str]) -> None:
        """Drop what was not asked for the longest until the rest is no more than it may be."""
        if self._most is None:
            return
        sizes = {path.name: _size(path) for path in self._root.iterdir() if _DIGEST.fullmatch(path.name)}
        over = sum(sizes.values()) - self._most
        for path in self._unused(keep) if over > 0 else ():
            over -= sizes.get(path.name, 0) if self._drop(path) else 0
            if over <= 0:
                return
        if over > 0:
            log.warning(
                "the adapters in %s take %d MiB more than LORADOCK_SERVE_CACHE_GIB, and none of them can go",
                self._root,
                -(-over // 2**20),
            )

    def _unused(self, keep: Collection[str]) -> list[Path]:
        """What may go, least recently asked for first."""
        times = {
            path: self._asked_for(path)
            for path in self._root.iterdir()
            if _DIGEST.fullmatch(path.name) and path.name not in keep
        }
        latest = time.time() - _REST_SECONDS
        return sorted((path for path, at in times.items() if at < latest), key=lambda path: (times[path], path))

    def _asked_for(self, path: Path) -> float:
        for told in (self._root / _USED / path.name, path):  # a loradock of before noted nothing
            with suppress(FileNotFoundError):
                return told.lstat().st_mtime
        return time.time()  # another replica dropped it just now

    def _touch(self, digest: str) -> None:
        with suppress(OSError):  # of a full disk; then the old time counts
            (self._root / _USED).mkdir(exist_ok=True)
            (self._root / _USED / digest).touch()

    def _drop(self, path: Path) -> bool:
        """Take an adapter out of the cache, in one step, unless somebody is at it."""
        try:
            with self._alone(path.name, fcntl.LOCK_EX | fcntl.LOCK_NB):
                aside = path.with_name(f"{_FETCHING}{path.name}-dropped")
                path.rename(aside)
                _remove(aside)
                (self._root / _USED / path.name).unlink(missing_ok=True)
        except OSError:  # BlockingIOError of the lock, too
            return False
        log.info("%s makes room in the cache", path.name[:12])
        return True

    @contextmanager
    def _room_told(self, version: Version) -> Iterator[None]:
        try:
            yield
        except (LoradockError, OSError) as error:
            if is_full(error):
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

    def _fetch(self, version: Version, target: Path) -> Seal:
        """Download beside the target, close for writing, verify, and only then give it its name."""
        scratch = Path(tempfile.mkdtemp(dir=self._root, prefix=f"{_FETCHING}{target.name}-"))
        aside = scratch.with_name(f"{scratch.name}-damaged")
        try:
            self._download(version, scratch)
            _close(scratch)
            seal = _verify(scratch, version)
            if os.path.lexists(target):
                target.rename(aside)
            scratch.rename(target)
            return seal
        finally:
            _remove(scratch)
            _remove(aside)


def _verify(directory: Path, version: Version) -> Seal:
    """Hash the files, and refuse links: what they lead to can change while the name stays. Their seal from before."""
    seal = _seal(directory)
    if directory.is_symlink() or not directory.is_dir():
        raise Refused(f"{directory.name} is not a directory of its own")
    if links := sorted(path.name for path in directory.rglob("*") if path.is_symlink()):
        faults = [f"{name} is a link" for name in links]
        raise DigestMismatch(str(version.ref), expected=version.facts.digest, found="", faults=faults)
    artifact.verify(directory, version.facts.digest, what=str(version.ref))
    return seal


def _seal(directory: Path) -> Seal:
    """What changes whenever anything below a directory does; the directory's own name may change."""
    found = {path.relative_to(directory).as_posix(): path.lstat() for path in sorted(directory.rglob("*"))}
    return tuple(
        (name, *map(str, (at.st_dev, at.st_ino, at.st_mode, at.st_size, at.st_mtime_ns, at.st_ctime_ns)))
        for name, at in found.items()
    )


def _size(directory: Path) -> int:
    size = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # another replica drops it
            size += path.lstat().st_size
    return size


def _close(directory: Path) -> None:
    for path in directory.rglob("*"):
        if not path.is_symlink():  # which is refused, and leads elsewhere
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
