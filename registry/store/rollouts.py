"""Rollouts in MLflow: one run each, with its shares and signals over time, how it ended, and a picture of both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from loradock.registry.store.connection import Connection, experiment_id, translated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENT: Final = "loradock-rollouts"
"""The experiment that rollouts go to."""


class Rollouts(Connection):
    """Recording rollouts."""

    def begin(self, title: str, tags: Mapping[str, str], params: Mapping[str, str]) -> str:
        """A run for a rollout, by its id."""
        from mlflow.entities import Param

        experiment = experiment_id(self.client, self.settings, EXPERIMENT)
        with translated(self.uri):
            run_id: str = self.client.create_run(experiment, run_name=title, tags=dict(tags)).info.run_id
            written = [Param(key, value) for key, value in params.items()]
            self.client.log_batch(run_id, params=written, synchronous=True)
        return run_id

    def log(self, run_id: str, step: int, values: Mapping[str, float]) -> None:
        """What was measured at one moment; `step` is in whole seconds since the beginning."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with translated(self.uri, f"run {run_id!r}"):
            metrics = [Metric(key, value, now, step) for key, value in values.items()]
            self.client.log_batch(run_id, metrics=metrics, synchronous=True)

    def end(self, run_id: str, result: str, outcome: str, figure: Figure) -> None:
        """How it ended, in a word and as JSON; the run is FINISHED only where the version was promoted."""
        with translated(self.uri, f"run {run_id!r}"):
            self.client.log_text(run_id, outcome, "rollout.json")
            self.client.log_figure(run_id, figure, "rollout.png")
            self.client.set_tag(run_id, "loradock.rollout.result", result)
            self.client.set_terminated(run_id, "FINISHED" if result == "promoted" else "KILLED")
