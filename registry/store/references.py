"""References in MLflow: one run each, whose `reference.json` holds what PEFT says with an adapter on a base.

As with evaluations, its digest stands in a param, which MLflow writes once, and the tag that makes it count is written
last.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from registry.errors import DigestMismatch, LoradockError, NotFound
from registry.records import Base
from registry.reference import Reference
from registry.store.connection import Connection, experiment_id, translated

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENT: Final = "loradock-references"
"""The experiment that references go to."""

_FILE: Final = "reference.json"
_PREFIX: Final = "loradock.reference."
_DIGEST: Final = "reference.digest"
_COMPLETE: Final = "complete"


class References(Connection):
    """Recording and finding references."""

    def record_reference(self, reference: Reference) -> None:
        """Keep a reference; killed at any step it counts for nothing, and can be called again."""
        experiment = experiment_id(self.client, self.settings, EXPERIMENT)
        with translated(self.uri):
            tags = {_PREFIX + key: value for key, value in _key(reference).items()}
            title = f"reference {reference.adapter[:12]}"
            run_id = self.client.create_run(experiment, run_name=title, tags=tags).info.run_id
            self.client.log_param(run_id, _DIGEST, reference.digest)
            self.client.log_text(run_id, reference.canonical(), _FILE)
            self.client.set_tag(run_id, f"{_PREFIX}state", _COMPLETE)
            self.client.set_terminated(run_id)

    def find_reference(self, digest: str, base: Base) -> Reference | None:
        """The newest reference of an adapter, by its digest, on a base; None where none was recorded.

        Raises DigestMismatch for one that is not what was recorded.
        """
        wanted = {"adapter": digest, "base": base.weights_digest, "config": base.config_digest, "state": _COMPLETE}
        with translated(self.uri):
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                return None
            found = self.client.search_runs(
                [experiment.experiment_id],
                " AND ".join(f"tags.`{_PREFIX}{key}` = '{value}'" for key, value in wanted.items()),
                max_results=1,
                order_by=["attributes.start_time DESC"],
            )
        return self._reference(found[0], digest, base) if found else None

    def _reference(self, run: Run, adapter: str, base: Base) -> Reference:
        run_id = run.info.run_id
        expected = run.data.params.get(_DIGEST, "")
        try:
            with tempfile.TemporaryDirectory(prefix="loradock-") as scratch, translated(self.uri, f"file of {run_id}"):
                content = Path(self.client.download_artifacts(run_id, _FILE, scratch)).read_bytes()
        except (NotFound, OSError) as error:
            raise _damaged(run_id, expected, "", f"{_FILE} is missing") from error
        found = hashlib.sha256(content).hexdigest()
        try:
            reference = Reference.model_validate_json(content)
        except ValidationError as error:
            raise _damaged(run_id, expected, found, f"{_FILE} cannot be read") from error
        if found != expected:
            raise _damaged(run_id, expected, found, f"{_FILE} changed")
        if not reference.is_of(adapter, base):
            raise _damaged(run_id, expected, found, "its tags name another adapter or base")
        return reference


def _key(reference: Reference) -> dict[str, str]:
    return {"adapter": reference.adapter, "base": reference.base, "config": reference.config}


def _damaged(run_id: str, expected: str, found: str, fault: str) -> LoradockError:
    error = DigestMismatch(f"reference {run_id}", expected=expected, found=found, faults=[fault])
    error.hint = "delete that run in MLflow, and record the reference again: loradock record"
    return error
