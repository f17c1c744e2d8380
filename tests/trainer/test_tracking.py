"""A run loses no measurement while MLflow is away, and always ends."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from loradock.registry.errors import LoradockError, Unreachable
from loradock.registry.store import Store
from loradock.trainer import tracking


class FlakyClient:
    """An MLflow client on a line that can be cut."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        if self.cut:
            raise requests.ConnectionError("connection refused")
        return getattr(self.client, name)


def test_what_was_measured_while_mlflow_was_away_arrives_later_once(store: Store) -> None:
    store.client = line = FlakyClient(store.client)  # type: ignore[assignment]
    run = tracking.Run(store, tracking.create(store, "tiny"))
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
    run = tracking.Run(store, tracking.create(store, "tiny"))
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
    run_id = tracking.create(store, "tiny")
    with pytest.raises(type(error)), tracking.opened(store, run_id):
        raise error
    found = store.client.get_run(run_id)
    assert (found.info.status, found.data.tags["loradock.reason"]) == (status, reason)


def test_a_run_that_ends_well_is_finished(store: Store) -> None:
    with tracking.opened(store, tracking.create(store, "tiny")) as run:
        assert store.client.get_run(run.id).info.status == "RUNNING"
    assert store.client.get_run(run.id).info.status == "FINISHED"


def test_a_run_that_is_taken_up_again_logs_no_step_twice_and_remembers(store: Store) -> None:
    run_id = tracking.create(store, "tiny")
    run = tracking.Run(store, run_id)
    run.measured(0, {"eval_loss": 4.0})
    run.measured(1, {"loss": 3.0})
    run.measured(2, {"loss": 2.0})
    tracking.bury(store, run_id)
    assert tracking.status(store, run_id) == "KILLED"
    with tracking.opened(store, run_id, again=True) as run:
        assert tracking.status(store, run_id) == "RUNNING"
        assert run.history(until=1) == {"eval_loss": [(0, 4.0)], "loss": [(1, 3.0)]}
        run.measured(2, {"loss": 2.0})
        run.measured(3, {"loss": 1.0})
    assert [point.step for point in store.client.get_metric_history(run_id, "loss")] == [1, 2, 3]
    assert tracking.status(store, run_id) == "FINISHED"


def test_a_run_that_the_store_does_not_have_has_no_status(store: Store) -> None:
    assert tracking.status(store, "0" * 32) == ""


def test_the_machine_is_watched_while_a_run_is_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with tracking.opened(store, run_id := tracking.create(store, "tiny")):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if found := [name for name in store.client.get_run(run_id).data.metrics if name.startswith("system/")]:
                break
    assert "system/cpu_utilization_percentage" in found
