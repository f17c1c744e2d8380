"""A registry whose searches find families without their aliases, as where MLflow's second query fails."""

from __future__ import annotations

from typing import Any

from loradock.registry.settings import Settings
from loradock.registry.store import Store


class Forgetful(Store):
    """Every other question is answered as ever."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        search = self.client.search_registered_models

        def without(*given: Any, **how: Any) -> Any:
            found = search(*given, **how)
            for model in found:
                model._aliases = {}  # as one that MLflow makes without them
            return found

        self.client.search_registered_models = without
