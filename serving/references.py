"""References on this machine, for a restart without the registry: one JSON file each, beside the adapters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from loradock.registry import scratch
from loradock.registry.errors import NotServable
from loradock.registry.records import Base, Version
from loradock.registry.reference import Reference

log = logging.getLogger(__name__)


def missing(version: Version) -> NotServable:
    """That nobody recorded what PEFT says with a version, and how to."""
    return NotServable(
        str(version.ref), [f"no reference to hold it against; record one: loradock reference {version.ref}"]
    )


class References:
    """What PEFT says with adapters on one base; every method blocks, so call it off the event loop.

    A file holds a reference by which a version was proven once, on this machine.
    """

    def __init__(self, root: Path, base: Base, find: Callable[[str], Reference | None]) -> None:
        self._root, self._base, self._find = root, base, find

    def of(self, version: Version) -> Reference | None:
        """A version's, from the file, else from the registry; None where nobody recorded one.

        Raises Unreachable where it must be asked for and cannot be, and DigestMismatch for one that changed.
        """
        digest = version.facts.digest
        return self._kept(digest) or self._find(digest)

    def keep(self, reference: Reference) -> None:
        """Hold it in a file, written in one step."""
        path = self._path(reference.adapter)
        if path.exists():
            return
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            scratch.replace(path, reference.canonical())
        except OSError as error:  # a full disk must not stop a replica that can serve
            log.warning("the reference cannot be kept in %s for a restart: %s", path, error)

    def _kept(self, digest: str) -> Reference | None:
        path = self._path(digest)
        try:
            found = Reference.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be read, and the registry is asked: %s", path, error)
            path.unlink(missing_ok=True)
            return None
        return found if found.is_of(digest, self._base) else None

    def _path(self, digest: str) -> Path:
        return self._root / f"{digest}-{self._base.weights_digest[:12]}.json"
