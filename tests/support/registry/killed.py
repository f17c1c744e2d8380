"""A store, or a client of MLflow's, that dies at one of its calls, as its process would."""

from __future__ import annotations

from typing import Any


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


class KilledAtCall:
    """Counts its calls, and dies just before, or just after, the n-th, counted from 0."""

    def __init__(self, wrapped: Any, dies_at: int | None = None, *, after: bool = False) -> None:
        self._wrapped, self._dies_at, self._after, self.calls = wrapped, dies_at, after, list[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._wrapped, name)
        return self._counted(name, found) if callable(found) else found

    def _counted(self, name: str, call: Any) -> Any:
        def counted(*given: Any, **how: Any) -> Any:
            dies = self._dies_at is not None and len(self.calls) >= self._dies_at
            self.calls.append(name)
            if dies and not self._after:
                raise Killed
            answer = call(*given, **how)
            if dies:
                raise Killed
            return answer

        return counted
