"""Where another recipe's paths lead, and how they are written in ours."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """Where paths are looked for, and where the translated recipe will stand."""

    working: Path
    """Both trainers take a relative path from the directory that they are started in."""
    beside: Path
    """The other recipe's directory, looked in next."""
    written: Path | None
    """The directory of our recipe, which its relative paths start from; None writes absolute paths."""

    def find(self, text: str) -> Path | None:
        """The file or directory that `text` leads to; None when there is none."""
        given = Path(text).expanduser()
        for directory in (self.working, self.beside):
            if (found := directory / given).exists():
                return Path(os.path.abspath(found))  # noqa: PTH100 - a link stays a link, as it was written
        return None

    def write(self, found: Path, given: str) -> str:
        """The path as it stands in our recipe; one that was given whole stays as it was."""
        if Path(given).expanduser().is_absolute():
            return given
        if self.written is None:
            return str(found)
        return os.path.relpath(found, os.path.abspath(self.written))  # noqa: PTH100
