"""One page of a family's versions: the only listing whose cost does not grow with the family."""

from __future__ import annotations

from loradock.registry.records import Version
from loradock.registry.store.client import ModelVersion
from loradock.registry.store.connection import Connection, translated
from loradock.registry.store.families import version_from
from loradock.registry.store.tags import PREFIX


class Pages(Connection):
    """Reading versions page by page."""

    def page(
        self, name: str, *, limit: int = 50, before: int | None = None, after: int | None = None
    ) -> tuple[Version, ...]:
        """Up to `limit` versions of a family, newest first: the newest, or those next below `before` or above `after`.

        What loradock did not register is left out. Raises Unreachable; an unknown family has no versions.
        """
        upwards = after is not None and before is None
        found: list[Version] = []
        while (wanted := limit - len(found)) > 0:
            items = self._numbered(name, wanted, before, after, upwards=upwards)
            found += [version_from(item) for item in items if f"{PREFIX}digest" in item.tags]
            if len(items) < wanted:
                break
            last = int(items[-1].version)
            before, after = (before, last) if upwards else (last, after)
        return tuple(sorted(found, key=lambda version: version.ref.number, reverse=True))

    def _numbered(
        self, name: str, limit: int, before: int | None, after: int | None, *, upwards: bool
    ) -> list[ModelVersion]:
        bounds = [f"name = '{name}'"]
        bounds += [f"version_number < {before}"] if before is not None else []
        bounds += [f"version_number > {after}"] if after is not None else []
        with translated(self.uri):
            return list(
                self.client.search_model_versions(
                    " AND ".join(bounds),
                    max_results=limit,
                    order_by=[f"version_number {'ASC' if upwards else 'DESC'}"],
                )
            )
