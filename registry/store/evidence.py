"""Evaluations in MLflow: one run each, whose `evidence.json` holds what was found, row by row.

Its digest stands in a param, which MLflow writes once, and the tag that makes it count is written last: an evaluation
that was killed never counts, and neither does one whose file was changed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from registry.errors import DigestMismatch, LoradockError, NotFound
from registry.evidence import PERPLEXITY, Evidence, Subject
from registry.store.connection import Connection, default_store, experiment_id, translated

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run

EXPERIMENT: Final = "loradock-evaluations"
"""The experiment that evaluations go to."""

_FILE: Final = "evidence.json"
_TABLE: Final = "rows.json"
_PREFIX: Final = "loradock.evidence."
_COMPLETE: Final = "complete"
_DIGEST: Final = "evidence.digest"
_SUBJECTS: Final[tuple[Subject, ...]] = ("candidate", "incumbent", "base")
_READ: Final = 8
"""How many evaluations of one version are read, the newest ones."""


class Evidences(Connection):
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
            self.client.log_text(run_id, evidence.canonical(), _FILE)
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
            written = [RunTag(_PREFIX + key, value) for key, value in tags.items()]
            self.client.log_batch(run_id, tags=written, synchronous=True)
            self.client.set_tag(run_id, f"{_PREFIX}state", _COMPLETE)

    def find_evidence(self, name: str, candidate: str) -> tuple[Evidence, ...]:
        """The newest complete evaluations of a family's version, by its digest, newest first; eight at most.

        Raises DigestMismatch for one that is not what was recorded.
        """
        with translated(self.uri):
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                return ()
            wanted = {"name": name, "candidate": candidate, "state": _COMPLETE}
            found = self.client.search_runs(
                [experiment.experiment_id],
                " AND ".join(f"tags.`{_PREFIX}{key}` = '{value}'" for key, value in wanted.items()),
                max_results=_READ,
                order_by=["attributes.start_time DESC"],
            )
        return tuple(self._read(run, name, candidate) for run in found)

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
        self.client.log_inputs(evidence.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "evaluation")])])
        self.client.log_batch(
            evidence.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in values.items()],
            params=[Param(key, value) for key, value in {**details, _DIGEST: evidence.digest}.items()],
            synchronous=True,
        )

    def _read(self, run: Run, name: str, candidate: str) -> Evidence:
        run_id = run.info.run_id
        expected = run.data.params.get(_DIGEST, "")
        try:
            with tempfile.TemporaryDirectory(prefix="loradock-") as scratch, translated(self.uri, f"file of {run_id}"):
                content = Path(self.client.download_artifacts(run_id, _FILE, scratch)).read_bytes()
        except (NotFound, OSError) as error:
            raise _damaged(run_id, name, expected, "", f"{_FILE} is missing") from error
        digest = hashlib.sha256(content).hexdigest()
        try:
            evidence = Evidence.model_validate_json(content)
        except ValidationError as error:
            raise _damaged(run_id, name, expected, digest, f"{_FILE} cannot be read") from error
        if digest != expected:
            raise _damaged(run_id, name, expected, digest, f"{_FILE} changed")
        if (evidence.run_id, evidence.name, evidence.candidate) != (run_id, name, candidate):
            raise _damaged(run_id, name, expected, digest, "its tags name another version")
        return evidence


def _damaged(run_id: str, name: str, expected: str, found: str, fault: str) -> LoradockError:
    error = DigestMismatch(f"evaluation {run_id} of {name}", expected=expected, found=found, faults=[fault])
    error.hint = "delete that run in MLflow, and evaluate again"
    return error
