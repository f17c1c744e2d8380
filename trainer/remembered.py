"""What was worked out of one base before, by question, in a file of the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Self

from loradock.trainer import sealed

_MOST: Final = 2000
"""Answers that are kept of a base, the newest."""
_LIBRARIES: Final = ("torch", "transformers", "peft")


class Remembered:
    """Answers by question; without a file, for as long as it lives."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._answers = _read(path) if path else {}
        self._new: dict[str, Any] = {}

    @classmethod
    def of(cls, directory: Path, cache: Path) -> Self:
        """What is remembered of the base whose config.json is in `directory`.

        Another configuration, another version of a library that works answers out, or another line of the code that
        does, and nothing is remembered.
        """
        known = hashlib.sha256((directory / "config.json").read_bytes())
        try:
            known.update(repr([metadata.version(library) for library in _LIBRARIES]).encode())
        except metadata.PackageNotFoundError:
            return cls()
        ours = Path(__file__).parent
        for path in (*sorted(ours.glob("*.py")), ours.with_name("registry") / "patterns.py"):
            known.update(hashlib.sha256(path.read_bytes()).digest())
        return cls(cache.expanduser() / "figures" / f"{known.hexdigest()[:32]}.json")

    def ask(self, question: str, work: Callable[[], Any], *, lasting: bool = True) -> Any:
        """The answer, which is worked out when it is not remembered; one that does not last is not saved."""
        if question not in self._answers:
            self._answers[question] = work()
            if lasting:
                self._new[question] = self._answers[question]
        return self._answers[question]

    def save(self) -> None:
        """Write what is new, beside what others have written by now."""
        if self._path is None or not self._new:
            return
        answers = _read(self._path) | self._new
        text = json.dumps(dict([*answers.items()][-_MOST:]), indent=0)
        sealed.write(self._path, text)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sealed.read(path) or "{}")
    return found
