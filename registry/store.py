"""MLflow as the ground the registry stands on; the only file of this package that imports mlflow.

Every method is one or two MLflow calls, and MLflow's errors leave as ours. What MLflow does not promise by
itself (compare-and-set, one version per digest) is built on top, in `promotion` and `versions`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from registry.artifact import MANIFEST
from registry.errors import BadInput, Conflict, LoradockError, NotFound, Unreachable
from registry.records import Facts, Version, canonical_json
from registry.refs import AliasRef, VersionRef
from registry.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_PREFIX: Final = "loradock."
_LEDGER: Final = "loradock.ledger"
_FINDINGS: Final = "loradock.findings"
_MODEL: Final = "loradock.adapter"
_APPLIED: Final = "applied"
_LEDGERS: Final = "loradock-ledgers"
"""The experiment whose runs hold each family's history."""

_DEFAULTS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a client of a dead server would block for 248 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for data
    "GIT_PYTHON_REFRESH": "quiet",
}


def connect(settings: Settings) -> MlflowClient:
    """An MLflow client on the store that the settings name, with its tables made when it is a new SQLite file."""
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)
    if not settings.tracking_uri:
        settings.root.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    import mlflow

    with translated(settings.store_uri):
        return mlflow.MlflowClient(tracking_uri=settings.store_uri, registry_uri=settings.store_uri)


def experiment_id(client: MlflowClient, settings: Settings, name: str) -> str:
    """The id of the experiment called `name`, made when there is none."""
    from mlflow.exceptions import MlflowException

    with translated(settings.store_uri):
        for _ in range(2):
            if found := client.get_experiment_by_name(name):
                return str(found.experiment_id)
            location = None if settings.tracking_uri else (settings.artifacts / name).as_uri()
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
    raise LoradockError(f"experiment {name!r} was deleted", hint="restore it in the MLflow UI, or choose another")


@contextmanager
def default_store(uri: str) -> Iterator[None]:
    """Make `uri` the process's default store for a call of MLflow's that looks there, whatever client it is made on.

    `mlflow.set_tracking_uri` also sets MLFLOW_TRACKING_URI, which our own settings, and commands we start, would read.
    """
    import mlflow

    name = "MLFLOW_TRACKING_URI"
    before = os.environ.get(name)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop(name, None) if before is None else os.environ.update({name: before})


@contextmanager
def translated(uri: str, what: str = "") -> Iterator[None]:
    """Let MLflow's errors leave as ours; `what` names the thing that was asked for."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (requests.RequestException, sqlalchemy.exc.OperationalError, sqlalchemy.exc.DatabaseError) as error:
        raise _unreachable(uri, error) from error
    except MlflowException as error:
        text = str(error)
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or (what and re.search(r"not found|No such", text)):
            raise NotFound(f"there is no {what or 'such thing'} in {masked(uri)}") from error
        if "API request to" in text or "OperationalError" in text or error.error_code == "TEMPORARILY_UNAVAILABLE":
            raise _unreachable(uri, error) from error
        raise LoradockError(f"MLflow at {masked(uri)} refused: {text.splitlines()[0]}") from error


def masked(uri: str) -> str:
    """A URI without its user and password."""
    return re.sub(r"//[^/@]*@", "//***@", uri)


def _unreachable(uri: str, error: Exception) -> Unreachable:
    reason = next(
        (part for part in ("refused", "timed out", "not resolve", "unable to open") if part in str(error)), ""
    )
    return Unreachable(
        f"MLflow at {masked(uri)} is out of reach{': ' + reason if reason else ''}",
        hint="start it, or set MLFLOW_TRACKING_URI to one that runs (unset: the embedded store)",
    )


@dataclass(frozen=True, slots=True)
class Family:
    """One adapter's registered model, as a single call shows it."""

    name: str
    aliases: Mapping[str, int]
    ledger: str
    """The run that holds its history; empty for a registered model that loradock did not make."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """A family's history as it is stored."""

    entries: Mapping[int, str]
    """By number, in order."""
    applied: frozenset[int]
    """The numbers of the entries whose alias was set."""


class Store:
    """The registry's calls to MLflow."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.uri = settings.store_uri
        self.client = connect(settings)

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str]) -> Iterator[str]:
        """A run for work that is no training, by its id; it ends as FINISHED, or as FAILED with the error."""
        with translated(self.uri):
            experiment = experiment_id(self.client, self.settings, self.settings.experiment)
            run_id: str = self.client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id
        status = "FAILED"
        try:
            yield run_id
            status = "FINISHED"
        finally:
            with translated(self.uri):
                self.client.set_terminated(run_id, status)

    # Adapters: the bytes, as MLflow's LoggedModel.

    def put_adapter(self, directory: Path, *, name: str, facts: Facts) -> str:
        """Upload an adapter and its manifest, and return its source URI; nothing is visible as ready before the end.

        `directory` holds the files and their manifest, whose digest is `facts.digest`.
        """
        from mlflow.entities import LoggedModelOutput

        with translated(self.uri, f"run {facts.run_id!r}"):
            run = self.client.get_run(facts.run_id)
            model = self.client.create_logged_model(
                run.info.experiment_id,
                name=name,
                source_run_id=facts.run_id,
                tags=_tags_of(facts),
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
            return f"models:/{model_id}", _facts_from(self.client.get_logged_model(model_id).tags)

    def download(self, source: str, into: Path, *, what: str) -> None:
        """Fetch an adapter's files into an empty directory. The caller verifies them."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with translated(self.uri, f"file of {what}"):
            location = self.client.get_logged_model(source.removeprefix("models:/")).artifact_location
            # Not mlflow.artifacts.download_artifacts: it follows `models:/m-...` into the process's default store.
            get_artifact_repository(location, tracking_uri=self.uri).download_artifacts("", dst_path=str(into))

    # Families and versions.

    def create_family(self, name: str) -> Family:
        """Make a registered model and its ledger; of several who try at once, one makes it and all return the same."""
        from mlflow.exceptions import MlflowException

        if (found := self.find_family(name)) is None:
            with translated(self.uri):
                ledgers = experiment_id(self.client, self.settings, _LEDGERS)
                ledger = self.client.create_run(ledgers, run_name=f"{name} history").info.run_id
                self.client.set_terminated(ledger)
                try:
                    self.client.create_registered_model(name, tags={_LEDGER: ledger})
                except MlflowException as error:
                    self.client.delete_run(ledger)
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
            found = self.family(name)
        if not found.ledger:
            raise Conflict(name, expected="a family of loradock's", found="a registered model that something else made")
        return found

    def find_family(self, name: str) -> Family | None:
        """The family called `name`, or None."""
        try:
            return self.family(name)
        except NotFound:
            return None

    def family(self, name: str) -> Family:
        """The family called `name`, its aliases included; raises NotFound."""
        with translated(self.uri, f"adapter {name!r}"):
            return _family_from(self.client.get_registered_model(name))

    def families(self) -> tuple[Family, ...]:
        """Every family that loradock made, with its aliases: one call for each thousand."""
        found: list[Family] = []
        token: str | None = None
        with translated(self.uri):
            while True:
                page = self.client.search_registered_models(max_results=1000, page_token=token)
                found += (_family_from(model) for model in page)
                if not (token := page.token):
                    return tuple(family for family in found if family.ledger)

    def create_version(self, name: str, source: str, facts: Facts, findings: tuple[str, ...]) -> Version:
        """Make a version. It is not idempotent: `versions.register` sees to one version per digest."""
        with translated(self.uri, f"adapter {name!r}"), default_store(self.uri):
            made = self.client.create_model_version(
                name,
                source,
                run_id=facts.run_id,
                tags={**_tags_of(facts), _FINDINGS: canonical_json(findings)},
                model_id=source.removeprefix("models:/"),
                await_creation_for=0,  # it is there at once; waiting is for other registries, and logs
            )
        return _version_from(made)

    def find_version(self, name: str, digest: str) -> Version | None:
        """The lowest version of `name` that holds these bytes, or None."""
        found = self._search(f"name = '{name}' AND tags.`{_PREFIX}digest` = '{digest}'")
        return min(found, key=lambda version: version.ref.number, default=None)

    def version(self, ref: VersionRef) -> Version:
        """One version; raises NotFound."""
        with translated(self.uri, f"version {str(ref)!r}"):
            return _version_from(self.client.get_model_version(ref.name, str(ref.number)))

    def versions(self, name: str) -> tuple[Version, ...]:
        """Every version of a family, oldest first."""
        return tuple(sorted(self._search(f"name = '{name}'"), key=lambda version: version.ref.number))

    def _search(self, filter_string: str) -> list[Version]:
        found: list[Version] = []
        token: str | None = None
        with translated(self.uri):
            while True:
                page = self.client.search_model_versions(filter_string, max_results=1000, page_token=token)
                found += (_version_from(item) for item in page if f"{_PREFIX}digest" in item.tags)
                if not (token := page.token):
                    return found

    def set_alias(self, ref: AliasRef, number: int | None) -> None:
        """Point an alias at a version, or take it away; last write wins. Only `promotion` calls it."""
        with translated(self.uri, f"version '{ref.name}/{number}'"):
            if number is None:
                self.client.delete_registered_model_alias(ref.name, ref.alias)
            else:
                self.client.set_registered_model_alias(ref.name, ref.alias, str(number))

    # The ledger: a run whose n-th param is the n-th entry. MLflow writes a param once, which makes it a
    # compare-and-set: the same value again is accepted, another value for the same key is not.

    def append(self, family: Family, seq: int, entry: str) -> bool:
        """Write entry number `seq` of a family's history; False when somebody else wrote that number first."""
        from mlflow.exceptions import MlflowException

        with translated(self.uri, f"history of {family.name!r}"):
            try:
                self.client.log_param(family.ledger, f"{seq:08d}", entry, synchronous=True)
            except MlflowException as error:
                if error.error_code == "INVALID_PARAMETER_VALUE" and "already logged" in str(error):
                    return False
                raise
        return True

    def mark_applied(self, family: Family, seq: int) -> None:
        """Note that the alias was set to where entry `seq` says."""
        with translated(self.uri, f"history of {family.name!r}"):
            self.client.log_param(family.ledger, f"{seq:08d}.{_APPLIED}", "yes", synchronous=True)

    def ledger(self, family: Family) -> Ledger:
        """A family's whole history."""
        with translated(self.uri, f"history of {family.name!r}"):
            params = self.client.get_run(family.ledger).data.params
        numbers = [key.partition(".") for key in sorted(params)]
        return Ledger(
            entries={int(number): params[number] for number, _, mark in numbers if not mark},
            applied=frozenset(int(number) for number, _, mark in numbers if mark == _APPLIED),
        )


def _family_from(model: Any) -> Family:
    aliases = {alias: int(number) for alias, number in model.aliases.items()}
    return Family(model.name, aliases, model.tags.get(_LEDGER, ""))


def _version_from(found: ModelVersion) -> Version:
    if f"{_PREFIX}digest" not in found.tags:
        raise NotFound(f"there is no version '{found.name}/{found.version}' that loradock registered")
    return Version(
        ref=VersionRef(found.name, int(found.version)),
        facts=_facts_from(found.tags),
        source=found.source or "",
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        findings=tuple(json.loads(found.tags.get(_FINDINGS, "[]"))),
    )


def _tags_of(facts: Facts) -> dict[str, str]:
    """One tag a fact, so that a person who reads them in MLflow's UI can."""
    values = facts.model_dump(mode="json").items()
    return {f"{_PREFIX}{key}": value if isinstance(value, str) else canonical_json(value) for key, value in values}


def _facts_from(tags: Mapping[str, str]) -> Facts:
    try:
        values = {
            name: tags[_PREFIX + name] if field.annotation is str else json.loads(tags[_PREFIX + name])
            for name, field in Facts.model_fields.items()
        }
        return Facts.model_validate(values)
    except (KeyError, ValueError) as error:
        raise LoradockError(
            f"the tags that loradock wrote were changed in MLflow: {error}", hint="restore them, or register it again"
        ) from error
