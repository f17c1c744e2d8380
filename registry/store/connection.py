"""The connection to MLflow: a client on the store that the settings name, and MLflow's errors as ours."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote_plus

from loradock.registry.errors import BadInput, LoradockError, NotFound, Refused, Unreachable
from loradock.registry.settings import Settings
from loradock.registry.store import home
from loradock.registry.store.client import Client
from loradock.registry.store.wire import Fault, is_plain

_DEFAULTS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a client of a dead server would block for 248 s
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",  # and with 2, still for 9 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",  # else a client has to reach the bucket behind the server, too
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for data
    "GIT_PYTHON_REFRESH": "quiet",
}


_START: Final = "start it, or set MLFLOW_TRACKING_URI to one that runs (unset: the embedded store)"
_ELSEWHERE: Final = (
    "set MLFLOW_TRACKING_URI to an MLflow server, or to a database of MLflow's (unset: the embedded store)"
)
_FAULTS: Final = (
    (
        r"Invalid Host header",
        "it rejects this host name",
        "its operator can allow the name: mlflow server --allowed-hosts HOST:PORT, or MLFLOW_SERVER_ALLOWED_HOSTS",
    ),
    (r"error code 401", "it requires a login", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    (r"error code 403", "it denies you this", "ask its operator"),
    # what a library says; what that means; what to do
    (
        r"disk is full|disk I/O|too large|No space left",
        "its disk is full or faulty",
        "free some space; nothing is left half done",
    ),
    (r"readonly database|Permission denied|Read-only", "it cannot be written", "check its permissions"),
    (
        r"unable to open",
        "its file cannot be opened",
        "check that its directory exists and is yours to read and write",
    ),
    (
        r"database is locked",
        "other processes are writing to it",
        "run it again; with many writers, use an MLflow server",
    ),
    (r"not a database", "its file is no SQLite database", _ELSEWHERE),
    (r"error code (3|4)\d\d|valid JSON", "the server there is not MLflow", _ELSEWHERE),
    (r"too many \d+ error responses", "it answers with errors", "check its log"),
    (r"refused", "refused", _START),
    (r"timed out", "timed out", _START),
    (r"not resolve|NameResolution", "its host has no address", _START),
)


def connect(settings: Settings) -> Client:
    """A client on the store that the settings name, with its tables made when it is a new SQLite file.

    A server is asked by our own client of its REST API, without `import mlflow`, unless MLflow has plugins for it.
    """
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)
    if not settings.tracking_uri:
        settings.root.mkdir(parents=True, exist_ok=True)
    uri = settings.store_uri
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it logs, our error says in a line
    logging.getLogger("mlflow.store.artifact.artifact_repo").setLevel(logging.WARNING)
    if is_plain(uri):
        from loradock.registry.store.rest import RestClient

        return RestClient(uri)
    import mlflow

    with translated(uri):
        if not uri.startswith(("http:", "https:")):
            from mlflow.store.db import utils

            utils.MAX_RETRY_COUNT = 4  # within 2 s; MLflow's 10 take 102
            _refuse_foreign(uri)
        if not settings.tracking_uri and (database := settings.root / "mlflow.db").exists():
            home.settle(settings, database)
        client: Client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        return client


def _refuse_foreign(uri: str) -> None:
    """Raise BadInput for a SQLite file that holds something else, for MLflow would make its 60 tables in it."""
    import sqlalchemy

    database = sqlalchemy.make_url(uri).database if uri.startswith("sqlite:") else None
    if database and Path(database).exists():
        with closing(sqlite3.connect(f"{Path(database).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "experiments" not in tables:
            raise BadInput(f"{database} is a database, but not one of MLflow's", hint=_ELSEWHERE)


def experiment_id(client: Client, settings: Settings, name: str) -> str:
    """The id of the experiment called `name`, made when there is none; raises Refused for one in MLflow's bin."""
    with translated(settings.store_uri):
        for _ in range(2):
            if found := client.get_experiment_by_name(name):
                if command := restoring(found):
                    what = f"experiment {name!r} was deleted in MLflow at {masked(settings.store_uri)}"
                    raise Refused(what, hint=f"bring it back, and nothing is lost: {command}")
                return str(found.experiment_id)
            location = None if settings.tracking_uri else (settings.artifacts / name).as_uri()
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except refusals() as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
    raise LoradockError(f"experiment {name!r} was deleted", hint="restore it in the MLflow UI, or choose another")


def restoring(experiment: Any) -> str:
    """The command that brings an experiment and its runs back out of MLflow's bin; empty where it is not there."""
    binned = experiment.lifecycle_stage == "deleted"
    return f"mlflow experiments restore --experiment-id {experiment.experiment_id}" if binned else ""


def upsert(write: Callable[[], object]) -> None:
    """Call a write of MLflow's that changes a row or adds it; any number of times is as good as one.

    MLflow looks for the row first. Where another adds it in between, the database refuses the second row, and MLflow
    answers BAD_REQUEST (3.17, `store/db/utils.py`): the same call then finds the row.
    """
    try:
        write()
    except refusals() as error:
        if error.error_code != "BAD_REQUEST":
            raise
        write()


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
    try:
        yield
    except refusals() as error:
        raise _from_mlflow(uri, error, what) from error
    except _imported("sqlalchemy.exc", "ArgumentError") as error:
        raise BadInput(f"{masked(uri)!r} is no MLflow store", hint=_ELSEWHERE) from error
    except (
        *_imported("sqlalchemy.exc", "DBAPIError"),
        sqlite3.Error,
        OSError,
    ) as error:
        raise _unreachable(uri, error) from error


def refusals() -> tuple[type[Fault], ...]:
    """The errors by which a client of MLflow's says no: those of ours, and MLflow's own where that is imported.

    For an `except`, which asks when something was raised: what was not imported has raised nothing.
    """
    return (Fault, *_imported("mlflow.exceptions", "MlflowException"))


def _imported(module: str, name: str) -> tuple[Any, ...]:
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def _from_mlflow(uri: str, error: Fault, what: str) -> LoradockError:
    text = masked(str(error).replace(uri, masked(uri)))
    if run := re.search(r"The run (\w+) must be in the 'active' state", text):
        return Refused(
            f"run {run[1]}, which holds the {what or 'data'}, was deleted in MLflow at {masked(uri)}",
            hint=f"bring it back, and nothing is lost: mlflow runs restore --run-id {run[1]}",
        )
    if found := re.search(r"out-of-date database schema \(found version (\w+)", text):
        return Refused(
            f"MLflow at {masked(uri)} has other tables ({found[1]}) than the installed MLflow",
            hint=f"older ones: back up, then `mlflow db upgrade {masked(uri)}`; newer ones: upgrade loradock here",
        )
    if re.search(r"unsupported URI|filesystem tracking backend", text):
        return BadInput(f"{masked(uri)!r} is no MLflow store", hint=_ELSEWHERE)
    if error.error_code == "RESOURCE_DOES_NOT_EXIST" or (what and re.search(r"not found|No such", text)):
        return NotFound(f"there is no {what or 'such thing'} in {masked(uri)}")
    if re.search(r"API request to|OperationalError", text) or error.error_code == "TEMPORARILY_UNAVAILABLE":
        return _unreachable(uri, error)
    return _refused(uri, text, what)


def _refused(uri: str, text: str, what: str) -> LoradockError:
    """What MLflow says, in a line; of a download that failed, why its first file did."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#####")]
    first, *others = lines or ["it gives no reason"]
    if others and first.startswith("The following failures occurred while downloading"):
        return LoradockError(f"a {what or 'file'} cannot be fetched from {masked(uri)}: {others[0]}")
    return LoradockError(f"MLflow at {masked(uri)} refused: {first}")


def masked(uri: str) -> str:
    """A URI, or a text with some, without their users and passwords, in the part before the host and in the query.

    A user ends at the first `:`, as SQLAlchemy's does, and a password at the last `@`: it may hold others, unencoded.
    Whatever else it holds, as SQLAlchemy takes it: of a text that begins with a URI, that may be more than the URI.
    """
    shown = re.sub(r"^([\w+.-]+://)[^:/]*:.*@", r"\1***@", uri, flags=re.DOTALL)
    shown = re.sub(r"(\w://)[^:/\s]*(?::\S*)?@", r"\1***@", shown)
    address, mark, query = shown.partition("?")
    if mark and re.match(r"[\w+.-]+://", shown):
        query = "&".join(map(_parameter, query.split("&")))
    return _SECRET.sub(r"\1***", f"{address}{mark}{query}")


_SECRET: Final = re.compile(r"(?i)((?:password|passwd|pwd|passfile|token|secret)=)[^&\s]+")


def _parameter(text: str) -> str:
    """A parameter of a URI's query, its value covered where its name, decoded, is a secret's."""
    name, mark, value = text.partition("=")
    return f"{name}=***" if mark and value and _SECRET.search(f"{unquote_plus(name).strip()}=x") else text


def _unreachable(uri: str, error: Exception) -> Unreachable:
    for pattern, reason, hint in _FAULTS:
        if re.search(pattern, str(error)):
            return Unreachable(f"MLflow at {masked(uri)} is unreachable: {reason}", hint=hint)
    return Unreachable(f"MLflow at {masked(uri)} is unreachable", hint=_START)


class Connection:
    """An MLflow client, and where it is connected to."""

    client: Client

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.uri = settings.store_uri
        self.client = connect(settings)
