"""What the store asks of MLflow: the calls of MLflow's own client that it makes, and what of their answers it reads."""

# ruff: noqa: D102  # MLflow's documents describe its calls

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")


class Page(list[Item]):
    """Some of what a search found, with the token of the next page, if there is one."""

    def __init__(self, found: Sequence[Item] = (), token: str | None = None) -> None:
        super().__init__(found)
        self.token = token


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment."""

    experiment_id: str
    name: str
    lifecycle_stage: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A value of a metric."""

    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970."""
    step: int


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a run is."""

    run_id: str
    run_name: str
    experiment_id: str
    status: str
    start_time: int
    """Milliseconds since 1970."""
    end_time: int | None
    lifecycle_stage: str
    artifact_uri: str


@dataclass(frozen=True, slots=True)
class RunData:
    """What a run logged."""

    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The last value of each."""
    _metric_objs: Sequence[Metric] = ()
    """The same with their steps, under MLflow's own name for them."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run."""

    info: RunInfo
    data: RunData


@dataclass(frozen=True, slots=True)
class LoggedModel:
    """A LoggedModel."""

    model_id: str
    artifact_location: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A registered model."""

    name: str
    tags: Mapping[str, str]
    aliases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a registered model."""

    name: str
    version: str
    source: str
    run_id: str | None
    description: str | None
    creation_timestamp: int
    """Milliseconds since 1970."""
    tags: Mapping[str, str]
    aliases: Sequence[str]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file or a directory among artifacts."""

    path: str
    is_dir: bool
    file_size: int | None


class Client(Protocol):
    """MLflow's client, or ours of its REST API; each call is described in MLflow's documents."""

    def get_experiment(self, experiment_id: str) -> Experiment: ...
    def get_experiment_by_name(self, name: str) -> Experiment | None: ...
    def create_experiment(self, name: str, artifact_location: str | None = None) -> str: ...
    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Run: ...
    def get_run(self, run_id: str) -> Run: ...
    def delete_run(self, run_id: str) -> None: ...
    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None: ...
    def set_tag(self, run_id: str, key: str, value: Any) -> None: ...
    def log_param(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> Any: ...
    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        run_view_type: int = 1,
        max_results: int = 1000,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Page[Run]: ...
    def list_artifacts(self, run_id: str, path: str | None = None) -> Sequence[FileInfo]: ...
    def download_artifacts(self, run_id: str, path: str, dst_path: str | None = None) -> str: ...

    def get_logged_model(self, model_id: str) -> LoggedModel: ...
    def set_logged_model_tags(self, model_id: str, tags: dict[str, Any]) -> None: ...
    def delete_logged_model_tag(self, model_id: str, key: str) -> None: ...
    def delete_logged_model(self, model_id: str) -> None: ...

    def create_registered_model(self, name: str, tags: dict[str, Any] | None = None) -> RegisteredModel: ...
    def search_registered_models(
        self,
        filter_string: str | None = None,
        max_results: int = 100,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Page[RegisteredModel]: ...
    def update_registered_model(self, name: str, description: str | None = None) -> RegisteredModel: ...
    def set_registered_model_tag(self, name: str, key: str, value: Any) -> None: ...
    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None: ...
    def delete_registered_model_alias(self, name: str, alias: str) -> None: ...

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
    ) -> ModelVersion: ...
    def get_model_version(self, name: str, version: str) -> ModelVersion: ...
    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion: ...
    def search_model_versions(
        self,
        filter_string: str | None = None,
        max_results: int = 10_000,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Page[ModelVersion]: ...
    def update_model_version(self, name: str, version: str, description: str | None = None) -> ModelVersion: ...
    def set_model_version_tag(self, name: str, version: str, key: str, value: Any) -> None: ...
    def delete_model_version(self, name: str, version: str) -> None: ...

    def __getattr__(self, name: str) -> Any:
        """Calls that carry files, or that only a training makes."""
