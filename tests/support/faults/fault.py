"""A planted fault: a patch to the product, and the tests that must fail with it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

ROOT: Final = Path(__file__).resolve().parents[3]
_FIELD: Final = re.compile(r"^(Caught-by|Says): (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Fault:
    """One patch and the lines above its `diff`."""

    path: Path
    about: str
    """What the fault is, and what a user would see."""
    caught_by: tuple[str, ...]
    """The tests that must fail with it, by pytest's ids."""
    says: str
    """A part of what pytest says of the failure, which another failure would not have."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The fault of a patch file."""
        head = path.read_text(encoding="utf-8").partition("\ndiff --git ")[0]
        fields = _FIELD.findall(head)
        caught_by = tuple(value for field, value in fields if field == "Caught-by")
        (says,) = (value for field, value in fields if field == "Says")
        return cls(path, " ".join(_FIELD.sub("", head).split()), caught_by, says)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        return self.name.partition("-")[0]

    @property
    def lost(self) -> list[str]:
        """Those of its tests that are not there."""
        return [test for test in self.caught_by if not _is_there(self.root, test)]

    @property
    def root(self) -> Path:
        """The tree that it lies in, and is for."""
        return self.path.parents[2]

    @property
    def misfit(self) -> str:
        """Why the patch does not fit to the tree; empty where it does."""
        done = self._apply("--check")
        return done.stderr.strip() if done.returncode else ""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The tree, which it fits to, with the fault in it."""
        self._apply().check_returncode()
        yield
        self._apply("--reverse").check_returncode()

    def _apply(self, *how: str) -> subprocess.CompletedProcess[str]:
        # A tree that is no checkout, but lies somewhere below one, is not taken for a part of that.
        environ = os.environ | {"GIT_CEILING_DIRECTORIES": str(self.root.parent)}
        words = ["git", "apply", *how, str(self.path)]
        return subprocess.run(words, cwd=self.root, env=environ, capture_output=True, text=True, check=False)


def faults(root: Path = ROOT) -> list[Fault]:
    """Those of a tree, by number."""
    return [Fault.read(path) for path in sorted((root / "tests" / "faults").glob("*.patch"))]


def _is_there(root: Path, test: str) -> bool:
    file, *names = test.partition("[")[0].split("::")
    path = root / file
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    for name in names:
        found = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
        if not found:
            return False
        body = found[0].body
    return bool(body)
