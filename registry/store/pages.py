"""One page of a family's versions: the only listing whose cost does not grow with the family."""

from __future__ import annotations

from typing import Final

from registry.records import Version
from registry.store.connection import Connection, translated
from registry.store.families import _version_from
from registry.store.tags import PREFIX

_BEYOND: Final = 1_000_000_000
"""Above every version's number. Without a bound MLflow's query at 10,000 versions takes twice as long."""


class Pages(Connection):
    """Reading versions page by page."""

    def page(
        self, name: str, *, limit: int = 50, before: int | None = None, after: int | None = None
    ) -> tuple[Version, ...]:
        """Up to `limit` versions of a family, newest first: the newest, or those next below `before` or above `after`.

        What loradock did not register is left out. Raises Unreachable; an unknown family has no versions.
        """
        bound = f"version_number < {_BEYOND if before is None else before}"
        upwards = after is not None and before is None
        if after is not None:
            bound += f" AND version_number > {after}"
        with translated(self.uri):
            found = self.client.search_model_versions(
                f"name = '{name}' AND {bound}",
                max_results=limit,
                order_by=[f"version_number {'ASC' if upwards else 'DESC'}"],
            )
        versions = [_version_from(item) for item in found if f"{PREFIX}digest" in item.tags]
        return tuple(sorted(versions, key=lambda version: version.ref.number, reverse=True))
