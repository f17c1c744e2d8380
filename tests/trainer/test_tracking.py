"""A run loses no measurement while MLflow is away, and always ends."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from registry.errors import LoradockError, Unreachable
from registry.store import Store
from trainer import tracking


class Flaky:
    """An MLflow client on a line that can be cut."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        if self.cut:
            raise requests.ConnectionError("connection refused")
        return getattr(self.client, name)


def test_what_was_measured_while_mlflow_was_away_arrives_later_once(store: Store) -> None:
    store.client = line = Flaky(store.client)  # type: ignore[assignment]
    run = tracking.Run(store, "tiny")
    run.measured(1, {"loss": 3.0})
    line.cut = True
    run.measured(2, {"loss": 2.0})
    run.measured(3, {"loss": 1.0})
    with pytest.raises(Unreachable):
        run.text("text", "recipe.yaml")
    line.cut = False
    run.measured(4, {"loss": 0.5})
    points = line.get_metric_history(run.id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]


def test_many_parameters_are_logged_whole(store: Store) -> None:
    run = tracking.Run(store, "tiny")
    values = {f"key.{number}": str(number) for number in range(250)}
    run.parameters(values)
    assert store.client.get_run(run.id).data.params == values


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (LoradockError("it diverged"), "FAILED", "it diverged"),
        (ValueError("odd"), "FAILED", "ValueError: odd"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
        (SystemExit(1), "KILLED", "interrupted"),
    ],
)
def test_a_run_that_breaks_off_says_why(store: Store, error: BaseException, status: str, reason: str) -> None:
    with pytest.raises(type(error)), tracking.started(store.settings, "tiny") as run:
        raise error
    found = store.client.get_run(run.id)
    assert (found.info.status, found.data.tags["loradock.reason"]) == (status, reason)


def test_a_run_that_ends_well_is_finished(store: Store) -> None:
    with tracking.started(store.settings, "tiny") as run:
        assert store.client.get_run(run.id).info.status == "RUNNING"
    assert store.client.get_run(run.id).info.status == "FINISHED"
