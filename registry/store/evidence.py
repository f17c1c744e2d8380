"""Evaluations in MLflow: one run each, whose `evidence.json` holds what was found, row by row."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from loradock.registry.errors import NotFound
from loradock.registry.evidence import PERPLEXITY, Evidence, Subject
from loradock.registry.store.client import Run
from loradock.registry.store.connection import default_store, experiment_id, translated, upsert
from loradock.registry.store.shelves import COMPLETE, Shelf, Shelves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENT: Final = "loradock-evaluations"
"""The experiment that evaluations go to."""

_SHELF: Final = Shelf(Evidence, "evidence", EXPERIMENT, "delete that run in MLflow, and evaluate again")
_TABLE: Final = "rows.json"
_SUBJECTS: Final[tuple[Subject, ...]] = ("candidate", "incumbent", "base")
_READ: Final = 8
"""How many evaluations of one version are read, the newest ones."""


class Evidences(Shelves):
    """Recording and finding evaluations."""

    def begin_evaluation(self, title: str) -> str:
        """A run for an evaluation, by its id; it counts for nothing before `record_evidence`."""
        experiment = experiment_id(self.client, self.settings, EXPERIMENT)
        with translated(self.uri):
            run_id: str = self.client.create_run(experiment, run_name=title).info.run_id
        return run_id

    def record_evidence(
        self,
        evidence: Evidence,
        *,
        incumbent_version: str = "",
        data_name: str = "rows",
        details: Mapping[str, str] | None = None,
        table: Mapping[str, Sequence[Any]] | None = None,
        figure: Figure | None = None,
    ) -> None:
        """Log what was found to the evaluation's run, `evidence.run_id`: for people, for gates, and last, as complete.

        `details` become params; `table` has a column a key, and a line for each row that a person reads.
        """
        from mlflow.entities import RunTag

        run_id = evidence.run_id
        with translated(self.uri, f"run {run_id!r}"):
            self._log_values(evidence, data_name, details or {})
            if table:
                with default_store(self.uri):
                    self.client.log_table(run_id, {key: list(column) for key, column in table.items()}, _TABLE)
            if figure:
                self.client.log_figure(run_id, figure, "evaluation.png")
            self.client.log_text(run_id, evidence.canonical(), _SHELF.file)
            tags = {
                "name": evidence.name,
                "candidate": evidence.candidate,
                "incumbent": evidence.incumbent,
                "incumbent_version": incumbent_version,
                "base": evidence.base,
                "data": evidence.data_digest,
                "rows": str(len(evidence.weights)),
                "through": evidence.through,
            }
            written = [RunTag(_SHELF.tag(key), value) for key, value in tags.items()]
            self.client.log_batch(run_id, tags=written, synchronous=True)
            self.client.set_tag(run_id, _SHELF.state, COMPLETE)

    def find_evidence(self, name: str, candidate: str) -> tuple[Evidence, ...]:
        """The newest complete evaluations of a family's version, by its digest, newest first; eight at most.

        Raises DigestMismatch for one that is not what was recorded.
        """
        runs = self._newest(_SHELF, {"name": name, "candidate": candidate}, most=_READ)
        return tuple(self._evidence(run, name, candidate) for run in runs)

    def _evidence(self, run: Run, name: str, candidate: str) -> Evidence:
        run_id = run.info.run_id
        wanted = (run_id, name, candidate)
        return self._read(
            _SHELF,
            run,
            f"evaluation {run_id} of {name}",
            meant=lambda found: (found.run_id, found.name, found.candidate) == wanted,
            tagged="version",
        )

    def parameters_of(self, run_id: str) -> Mapping[str, str]:
        """What a training run logged before its first step; nothing where the run is gone."""
        try:
            with translated(self.uri, f"run {run_id!r}"):
                found: Mapping[str, str] = self.client.get_run(run_id).data.params
        except NotFound:
            return {}
        return found

    def _log_values(self, evidence: Evidence, data_name: str, details: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        now = int(time.time() * 1000)
        names = [*evidence.metrics, *([PERPLEXITY] if "loss" in evidence.metrics else [])]
        values = {
            f"{subject}/{name}": value
            for name in names
            for subject in _SUBJECTS
            if (value := evidence.value(name, subject)) is not None
        }
        rows = len(evidence.weights)
        source = json.dumps({"uri": data_name})
        profile = json.dumps({"num_rows": rows})
        data = Dataset(data_name, evidence.data_digest[:36], "local", source, profile=profile)
        read = DatasetInput(data, [InputTag("mlflow.data.context", "evaluation")])
        upsert(lambda: self.client.log_inputs(evidence.run_id, [read]))
        self.client.log_batch(
            evidence.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in values.items()],
            params=[Param(key, value) for key, value in {**details, _SHELF.digest: evidence.digest}.items()],
            synchronous=True,
        )
