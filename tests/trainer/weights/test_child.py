from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loradock.registry.errors import Taken
from loradock.registry.store import Store
from loradock.trainer.weights import combination, convert, fold
from tests.support.adapters import make_version


@pytest.mark.parametrize(
    "make",
    [
        lambda ref, *how: fold.merge(fold.Task(ref, name="greeting"), *how),
        lambda ref, *how: convert.convert(convert.Task(ref, name="greeting"), *how),
        lambda ref, *how: combination.combine_versions(combination.Task((ref, ref), "greeting"), *how),
    ],
    ids=["merge", "convert", "combine"],
)
def test_a_name_that_something_else_has_is_refused_before_anything_is_made(
    make: Callable[..., Any], store: Store, tmp_path: Path
) -> None:
    version = make_version(store, tmp_path / "a")
    store.client.register_prompt("greeting", "Hello {{name}}")
    everywhere = [experiment.experiment_id for experiment in store.client.search_experiments()]
    before = len(store.client.search_runs(everywhere))
    with pytest.raises(Taken, match="a prompt"):
        make(version.ref, store.settings, print)
    assert len(store.client.search_runs(everywhere)) == before
