"""MLflow's public REST API, as far as the registry asks it, under the names that MLflow's client has for the calls.

`import mlflow` takes longer than any of these calls. It comes with those that carry files up, or that only trainings
make, and with artifacts that are not behind the server's own proxy: MLflow's client makes these.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote

from loradock.registry.store.client import (
    Experiment,
    FileInfo,
    LoggedModel,
    Metric,
    ModelVersion,
    Page,
    RegisteredModel,
    Run,
    RunData,
    RunInfo,
)
from loradock.registry.store.proxied import files_at
from loradock.registry.store.wire import Fault, Wire

_VIEWS: Final = {1: "ACTIVE_ONLY", 2: "DELETED_ONLY", 3: "ALL"}
"""What MLflow's ViewType says, in the words of its REST API."""
_IS_PROMPT: Final = "mlflow.prompt.is_prompt"
_RUN_ID: Final = re.compile(r"[a-zA-Z0-9][\w\-]{0,255}")


class RestClient:
    """A client of an MLflow server; what it does not have, it has from MLflow's, imported then."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._wire = Wire(uri)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._mlflow, name)

    @cached_property
    def _mlflow(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def get_experiment(self, experiment_id: str) -> Experiment:
        """By its id, in MLflow's bin or not."""
        return _experiment(self._wire.call("GET", "experiments/get", experiment_id=experiment_id)["experiment"])

    def get_experiment_by_name(self, name: str) -> Experiment | None:
        """None where there is none."""
        try:
            found = self._wire.call("GET", "experiments/get-by-name", experiment_name=name)["experiment"]
        except Fault as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return _experiment(found)

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        """Its id."""
        made = self._wire.call("POST", "experiments/create", name=name, artifact_location=artifact_location)
        return str(made["experiment_id"])

    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Run:
        """A run that is running."""
        tags = tags or {}
        made = self._wire.call(
            "POST",
            "runs/create",
            experiment_id=str(experiment_id),
            user_id=tags.get("mlflow.user", "unknown"),
            start_time=start_time or _now(),
            tags=_pairs(tags),
            run_name=run_name,
        )
        return _run(made["run"])

    def get_run(self, run_id: str) -> Run:
        """One that was deleted is there, too."""
        if not _RUN_ID.fullmatch(run_id):
            text = f"Invalid value {json.dumps(run_id)} for parameter 'run_id' supplied."
            raise Fault(text, "INVALID_PARAMETER_VALUE")
        return _run(self._wire.call("GET", "runs/get", run_uuid=run_id, run_id=run_id)["run"])

    def delete_run(self, run_id: str) -> None:
        """Into MLflow's trash."""
        self._wire.call("POST", "runs/delete", run_id=run_id)

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """By default as FINISHED, now."""
        how = {"status": status or "FINISHED", "end_time": end_time or _now()}
        self._wire.call("POST", "runs/update", run_uuid=run_id, run_id=run_id, **how)

    def set_tag(self, run_id: str, key: str, value: Any) -> None:
        """Last write wins."""
        self._wire.call("POST", "runs/set-tag", run_uuid=run_id, run_id=run_id, key=key, value=str(value))

    def log_param(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> Any:
        """Once: another value for the same key is refused."""
        self._wire.call("POST", "runs/log-parameter", run_uuid=run_id, run_id=run_id, key=key, value=str(value))
        return value

    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        run_view_type: int = 1,
        max_results: int = 1000,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Page[Run]:
        """A page of those that fit."""
        found = self._wire.call(
            "POST",
            "runs/search",
            experiment_ids=[str(each) for each in experiment_ids],
            filter=filter_string,
            run_view_type=_VIEWS[run_view_type],
            max_results=max_results,
            order_by=order_by,
            page_token=page_token,
        )
        return Page([_run(each) for each in found.get("runs", ())], found.get("next_page_token") or None)

    def list_artifacts(self, run_id: str, path: str | None = None) -> Sequence[FileInfo]:
        """The files of a run, directly under a path."""
        found: Sequence[FileInfo] = self._files(run_id).list_artifacts(path or "")
        return found

    def download_artifacts(self, run_id: str, path: str, dst_path: str | None = None) -> str:
        """A file, or a directory of files, into a directory that is there."""
        if dst_path is None:
            return str(self._mlflow.download_artifacts(run_id, path))
        return str(self._files(run_id).download_artifacts(path, dst_path))

    def get_logged_model(self, model_id: str) -> LoggedModel:
        """One that was deleted is not there."""
        found = self._wire.call("GET", _logged(model_id))["model"]["info"]
        return LoggedModel(found["model_id"], found.get("artifact_uri", ""), _tags(found))

    def set_logged_model_tags(self, model_id: str, tags: dict[str, Any]) -> None:
        """Last write wins."""
        self._wire.call("PATCH", f"{_logged(model_id)}/tags", tags=_pairs(tags))

    def delete_logged_model_tag(self, model_id: str, key: str) -> None:
        """Refused where there is no such tag."""
        self._wire.call("DELETE", f"{_logged(model_id)}/tags/{quote(key, safe='')}")

    def delete_logged_model(self, model_id: str) -> None:
        """Its files stay."""
        self._wire.call("DELETE", _logged(model_id), model_id=model_id)

    def create_registered_model(self, name: str, tags: dict[str, Any] | None = None) -> RegisteredModel:
        """Of several who try at once, one makes it."""
        made = self._wire.call("POST", "registered-models/create", name=name, tags=_pairs(tags or {}))
        return _model(made["registered_model"])

    def search_registered_models(
        self,
        filter_string: str | None = None,
        max_results: int = 100,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Page[RegisteredModel]:
        """A page of those that fit, without prompts where the filter does not ask for them."""
        if _IS_PROMPT not in (filter_string or ""):
            filter_string = " AND ".join(filter(None, (filter_string, f"tag.`{_IS_PROMPT}` != 'true'")))
        found = self._searched("registered-models/search", filter_string, max_results, order_by, page_token)
        return Page([_model(each) for each in found.get("registered_models", ())], found.get("next_page_token"))

    def update_registered_model(self, name: str, description: str | None = None) -> RegisteredModel:
        """With another description."""
        made = self._wire.call("PATCH", "registered-models/update", name=name, description=description)
        return _model(made["registered_model"])

    def set_registered_model_tag(self, name: str, key: str, value: Any) -> None:
        """Last write wins."""
        self._wire.call("POST", "registered-models/set-tag", name=name, key=key, value=str(value))

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        """Last write wins."""
        self._wire.call("POST", "registered-models/alias", name=name, alias=alias, version=str(version))

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        """One that stands nowhere is no error."""
        self._wire.call("DELETE", "registered-models/alias", name=name, alias=alias)

    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: dict[str, Any] | None = None,
        run_link: str | None = None,
        description: str | None = None,
        await_creation_for: int = 0,
        model_id: str | None = None,
    ) -> ModelVersion:
        """It is there at once. A request that is sent again makes a second one."""
        made = self._wire.call(
            "POST",
            "model-versions/create",
            name=name,
            source=source,
            run_id=run_id,
            run_link=run_link,
            tags=_pairs(tags or {}),
            description=description,
            model_id=model_id,
        )
        return _version(made["model_version"])

    def get_model_version(self, name: str, version: str) -> ModelVersion:
        """One of a prompt is not there."""
        return _no_prompt(self._wire.call("GET", "model-versions/get", name=name, version=str(version)))

    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        """One of a prompt is not there."""
        return _no_prompt(self._wire.call("GET", "registered-models/alias", name=name, alias=alias))

    def search_model_versions(
        self,
        filter_string: str | None = None,
        max_results: int = 10_000,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Page[ModelVersion]:
        """A page of those that fit."""
        found = self._searched("model-versions/search", filter_string, max_results, order_by, page_token)
        return Page([_version(each) for each in found.get("model_versions", ())], found.get("next_page_token"))

    def update_model_version(self, name: str, version: str, description: str | None = None) -> ModelVersion:
        """With another description."""
        how = {"version": str(version), "description": description}
        return _version(self._wire.call("PATCH", "model-versions/update", name=name, **how)["model_version"])

    def set_model_version_tag(self, name: str, version: str, key: str, value: Any) -> None:
        """Last write wins."""
        how = {"version": str(version), "key": key, "value": str(value)}
        self._wire.call("POST", "model-versions/set-tag", name=name, **how)

    def delete_model_version(self, name: str, version: str) -> None:
        """And its aliases."""
        self._wire.call("DELETE", "model-versions/delete", name=name, version=str(version))

    def _files(self, run_id: str) -> Any:
        return files_at(self._uri, self.get_run(run_id).info.artifact_uri)

    def _searched(self, path: str, wanted: str | None, most: int, order: list[str] | None, token: str | None) -> Any:
        how = {"filter": wanted, "max_results": most, "order_by": order, "page_token": token}
        return self._wire.call("GET", path, **how)


def _now() -> int:
    return int(time.time() * 1000)


def _logged(model_id: str) -> str:
    return f"logged-models/{quote(model_id, safe='')}"


def _pairs(tags: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"key": key, "value": str(value)} for key, value in tags.items()]


def _tags(found: Mapping[str, Any], name: str = "tags") -> dict[str, str]:
    rows: Iterable[Mapping[str, str]] = found.get(name, ())
    return {row["key"]: row.get("value", "") for row in rows}


def _run(found: Mapping[str, Any]) -> Run:
    info, data = found["info"], found.get("data", {})
    metrics = tuple(
        Metric(row["key"], float(row.get("value", 0)), int(row.get("timestamp", 0)), int(row.get("step", 0)))
        for row in data.get("metrics", ())
    )
    return Run(
        RunInfo(
            run_id=info["run_id"],
            run_name=info.get("run_name", ""),
            experiment_id=info["experiment_id"],
            status=info["status"],
            start_time=int(info.get("start_time", 0)),
            end_time=int(info.get("end_time", 0)) or None,
            lifecycle_stage=info.get("lifecycle_stage", ""),
            artifact_uri=info.get("artifact_uri", ""),
        ),
        RunData(_tags(data, "params"), _tags(data), {metric.key: metric.value for metric in metrics}, metrics),
    )


def _model(found: Mapping[str, Any]) -> RegisteredModel:
    aliases = {row["alias"]: row["version"] for row in found.get("aliases", ())}
    tags = {key: value for key, value in _tags(found).items() if key != _IS_PROMPT}  # MLflow keeps that to itself
    return RegisteredModel(found["name"], tags, aliases)


def _version(found: Mapping[str, Any]) -> ModelVersion:
    return ModelVersion(
        name=found["name"],
        version=found["version"],
        source=found.get("source", ""),
        run_id=found.get("run_id"),
        description=found.get("description"),
        creation_timestamp=int(found["creation_timestamp"]),
        tags=_tags(found),
        aliases=found.get("aliases", ()),
    )


def _no_prompt(answer: Mapping[str, Any]) -> ModelVersion:
    found = _version(answer["model_version"])
    if _IS_PROMPT in found.tags:
        raise Fault(f"Registered Model with name={found.name!r} not found.", "RESOURCE_DOES_NOT_EXIST")
    return found


def _experiment(found: Mapping[str, Any]) -> Experiment:
    return Experiment(found["experiment_id"], found["name"], found.get("lifecycle_stage", ""))
