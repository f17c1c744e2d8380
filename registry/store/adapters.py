"""Adapters in MLflow: the bytes, as a LoggedModel of the run that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from loradock.registry.artifact import MANIFEST
from loradock.registry.errors import BadInput
from loradock.registry.outside import inside
from loradock.registry.records import Facts
from loradock.registry.store.connection import Connection, translated
from loradock.registry.store.copies import followed
from loradock.registry.store.proxied import files_at
from loradock.registry.store.tags import facts_from, tags_of

_MODEL: Final = "loradock.adapter"
"""The tag of a run with the id of the LoggedModel that it made."""


class Adapters(Connection):
    """Uploading, finding and downloading adapters."""

    def put_adapter(self, directory: Path, *, name: str, facts: Facts) -> str:
        """Upload an adapter and its manifest, and return its source URI; nothing is visible as ready before the end.

        `directory` holds the files and their manifest, whose digest is `facts.digest`.
        """
        from mlflow.entities import LoggedModelOutput

        with translated(self.uri, f"run {facts.run_id!r}"):
            run = self.client.get_run(facts.run_id)
            model = self.client.create_logged_model(
                run.info.experiment_id,
                name=name.replace(".", "-"),  # a label, and MLflow takes no dot in it
                source_run_id=facts.run_id,
                tags=tags_of(facts),
                model_type="peft-adapter",
            )
            files = sorted(path for path in directory.rglob("*") if path.is_file())
            for path in sorted(files, key=lambda path: path.name == MANIFEST):
                parent = path.parent.relative_to(directory).as_posix()
                self.client.log_model_artifact(model.model_id, str(path), None if parent == "." else parent)
            self.client.finalize_logged_model(model.model_id, "READY")
            self.client.log_outputs(facts.run_id, [LoggedModelOutput(model.model_id, step=0)])
            self.client.set_tag(facts.run_id, _MODEL, model.model_id)
        return f"models:/{model.model_id}"

    def adapter_of(self, run_id: str) -> tuple[str, Facts]:
        """The source URI and facts of the adapter that a run made; raises NotFound, or BadInput when it made none."""
        with translated(self.uri, f"run {run_id!r}"):
            run = self.client.get_run(run_id)
        model_id = run.data.tags.get(_MODEL)
        if not model_id:
            raise BadInput(
                f"run {run_id} ({run.info.run_name}, {run.info.status.lower()}) holds no finished adapter",
                hint="register a run that `loradock train` finished",
            )
        with translated(self.uri, f"adapter {model_id!r}"):
            return f"models:/{model_id}", facts_from(self.client.get_logged_model(model_id).tags)

    def download(self, source: str, into: Path, *, what: str) -> None:
        """Fetch an adapter's files into an empty directory. The caller verifies them."""
        model_id = followed(self, source).removeprefix("models:/")
        with translated(self.uri, f"file of {what}"):
            location = self.client.get_logged_model(model_id).artifact_location
            # Not mlflow.artifacts.download_artifacts: it follows `models:/m-...` into the process's default store.
            files = files_at(self.uri, location)
            _refuse_outside(files, into, what=what)
            files.download_artifacts("", dst_path=str(into))


def _refuse_outside(files: Any, into: Path, *, what: str) -> None:
    """Raise BadInput where the listing of an adapter's files has a name that leads out of its directory."""
    directories = [""]
    while directories:
        path = directories.pop()
        for file in files.list_artifacts(path):
            if file.path not in (".", path):  # MLflow passes over these, too
                inside(into, file.path, what=f"the listing of {what}")
                directories += [file.path] if file.is_dir else []
