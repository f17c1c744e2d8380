"""A real replica that keeps no more adapters than it must: all its names move at once, and cold ones are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loradock.registry.base import LocalBase
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.serving.server import serving

pytestmark = pytest.mark.slow


def test_all_names_move_at_once_beside_traffic_where_one_of_them_must_be_cold(base: LocalBase, tmp_path: Path) -> None:
    store = Store(Settings(home=tmp_path / "home"))
    names = ("bot", "cat", "dog")
    with serving(tmp_path / "home", base, store, tmp_path, "--max-cpu-loras", "3") as server:
        first, second = ([server.make(name) for name in names] for _ in range(2))

        def promote_all(versions: list[Version]) -> None:
            for version in versions:
                server.promote(version)
            promoted = {str(version.ref) for version in versions}
            server.until(lambda found: {*found["cold"].values()} | served(found) >= promoted)
            for version in versions:
                assert server.complete(version.ref.name)[0] == str(version.ref)

        promote_all(first)
        with server.under_load(*names[:2]) as asked:
            for versions in (second, first, second):
                promote_all(versions)
                server.until_more(asked, 4)
        assert asked.failures == []
        answered = {(name, model) for name, model, _ in asked.answers}
        assert answered == {(name, f"{name}/{number}") for name in names[:2] for number in (1, 2)}
        assert len(server.status()["resident"]) <= 3


def served(status: Any) -> set[str]:
    return {found["version"] for found in status["adapters"].values()}
