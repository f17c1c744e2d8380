"""A process of a test that dies in the midst of its work, always at the same place."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def command(code: str, owner: str, call: str, times: int = 1) -> Sequence[str]:
    """Runs Python code that ends by SIGKILL just after so many calls of what `owner` has, MODULE or MODULE:CLASS."""
    lines = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})",
        f"from tests.support.dying import dies_after; dies_after({owner!r}, {call!r}, {times})",
        code,
    )
    return [sys.executable, "-c", "\n".join(lines)]


def dies_after(owner: str, call: str, times: int) -> None:
    """Have this process end by SIGKILL just after so many calls."""
    import importlib

    module, _, name = owner.partition(":")
    found: Any = importlib.import_module(module)
    found = getattr(found, name) if name else found
    original, calls = getattr(found, call), count(1)

    def counted(*given: Any, **how: Any) -> Any:
        result = original(*given, **how)
        if next(calls) == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(found, call, counted)
