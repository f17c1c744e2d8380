"""The connection to MLflow: a client on the store that the settings name, and MLflow's errors as ours."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from registry.errors import LoradockError, NotFound, Unreachable
from registry.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient


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


class Connection:
    """An MLflow client, and where it is connected to."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.uri = settings.store_uri
        self.client = connect(settings)
