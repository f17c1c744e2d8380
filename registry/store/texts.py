"""The tables of rows' texts that runs keep for people: prompts, references and answers."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from loradock.registry.store.client import Run
from loradock.registry.store.connection import Connection, translated
from loradock.registry.store.evidence import EXPERIMENT

FILES: Final = ("rows.json", "samples.json")
"""The table of an evaluation, and that of a training."""
_TABLES: Final = "mlflow.loggedArtifacts"
"""The tag by which MLflow's UI shows a run's tables."""


@dataclass(frozen=True, slots=True)
class Text:
    """One table that a run keeps."""

    run_id: str
    title: str
    """The run's name."""
    file: str
    at: datetime
    size: int
    """Bytes."""
    uri: str
    """Where the run's artifacts are."""


class Texts(Connection):
    """Finding and deleting texts; the evidence of an evaluation is a file beside them, which has none."""

    def texts(self, before: datetime, *, runs: Collection[str] | None = None) -> Iterator[Text]:
        """The tables of runs that began before a moment, oldest first; those of `runs` alone where these are given.

        Runs that were deleted in MLflow count, since their files are there.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        for run in self._runs(before):
            if runs is not None and run.info.run_id not in runs:
                continue
            with translated(self.uri, f"file of run {run.info.run_id}"):
                files = get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri).list_artifacts()
            for file in files:
                if file.path in FILES:
                    at = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
                    title, size = run.info.run_name or "", file.file_size or 0
                    yield Text(run.info.run_id, title, file.path, at, size, run.info.artifact_uri)

    def evaluations_of(self, name: str) -> frozenset[str]:
        """The runs of all evaluations of an adapter, finished or not."""
        tagged = self._found((EXPERIMENT,), f"tags.`loradock.evidence.name` = '{name}'")
        titled = self._found((EXPERIMENT,), f"attributes.run_name LIKE '{name}/%'")  # where `_` is any character
        named = (run for run in titled if run.info.run_name.startswith(f"{name}/"))
        return frozenset(run.info.run_id for found in (tagged, named) for run in found)

    def delete_text(self, text: Text) -> None:
        """Delete a table for good, and what MLflow's UI knows of it."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with translated(self.uri, f"file of run {text.run_id}"):
            get_artifact_repository(text.uri, tracking_uri=self.uri).delete_artifacts(text.file)
            run = self.client.get_run(text.run_id)
            if run.info.lifecycle_stage == "active" and _TABLES in run.data.tags:
                left = [table for table in json.loads(run.data.tags[_TABLES]) if table.get("path") != text.file]
                self.client.set_tag(text.run_id, _TABLES, json.dumps(left))

    def _runs(self, before: datetime) -> Iterator[Run]:
        since = f"attributes.start_time < {int(before.timestamp() * 1000)}"
        return self._found((EXPERIMENT, self.settings.experiment), since)

    def _found(self, experiments: Collection[str], filter_string: str) -> Iterator[Run]:
        from mlflow.entities import ViewType

        with translated(self.uri):
            made = [self.client.get_experiment_by_name(name) for name in experiments]
            ids = [found.experiment_id for found in made if found]
            token: str | None = None
            while ids:
                page = self.client.search_runs(
                    ids,
                    filter_string,
                    ViewType.ALL,
                    max_results=1000,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                yield from page
                if not (token := page.token):
                    return
