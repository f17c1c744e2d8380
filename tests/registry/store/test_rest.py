"""Our client of MLflow's REST API beside MLflow's own, on a real server; and the verbs that do without MLflow's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from loradock.registry import promotion
from loradock.registry.store import Store
from loradock.registry.store.connection import connect
from loradock.registry.store.proxied import ProxiedFiles, files_at
from loradock.registry.store.rest import RestClient
from loradock.registry.store.wire import Fault, Wire
from tests.support.adapters import NAME, log_adapter, make_version, ref, write_adapter
from tests.support.mlflow_server import MLflowServer

pytestmark = pytest.mark.slow

Call = Callable[[Any], Any]


@pytest.fixture
def theirs(remote: Store) -> Any:
    return mlflow.MlflowClient(tracking_uri=remote.uri, registry_uri=remote.uri)


def shown(ours: Any, theirs: Any) -> Any:
    """What an answer of MLflow's client has of what ours has."""
    if is_dataclass(ours):
        return {field.name: shown(getattr(ours, field.name), getattr(theirs, field.name)) for field in fields(ours)}
    if isinstance(ours, Mapping):
        return dict(theirs)
    if isinstance(ours, Sequence) and not isinstance(ours, str):
        assert len(ours) == len(theirs)
        return [shown(*pair) for pair in zip(ours, theirs, strict=True)]
    return theirs


def answers(ours: Any, theirs: Any, call: Call) -> tuple[Any, Any]:
    """What both say to a call, or how they refuse it."""
    try:
        said = call(ours)
    except Fault as error:
        with pytest.raises(MlflowException) as refused:
            call(theirs)
        return (error.error_code, first(error)), (refused.value.error_code, first(refused.value))
    return shown(said, said), shown(said, call(theirs))


def first(error: Exception) -> str:
    return str(error).splitlines()[0]


def test_every_call_that_reads_answers_as_mlflows_client_does(remote: Store, theirs: Any, tmp_path: Path) -> None:
    ours = remote.client
    assert isinstance(ours, RestClient)
    version = make_version(remote, tmp_path / "a")
    make_version(remote, tmp_path / "b", seed=1)
    promotion.promote(remote, version.ref, "production", actor="ann")
    run_id, model_id = version.facts.run_id, version.source.removeprefix("models:/")
    experiment = theirs.get_run(run_id).info.experiment_id
    for value, step in product((0.25, float("inf")), (1, 2)):
        theirs.log_metric(run_id, "loss", value, step=step)
    theirs.log_param(run_id, "a param", "of a run")
    theirs.log_text(run_id, "a text", "below/file.txt")
    theirs.delete_run(theirs.create_run(experiment, run_name="gone").info.run_id)
    theirs.register_prompt("greeting", "Hello {{name}}")
    everything, nobody, odd = "", "f" * 32, "a b"
    calls: list[Call] = [
        lambda client: client.get_experiment_by_name("loradock"),
        lambda client: client.get_experiment_by_name("nobody"),
        lambda client: client.get_experiment(client.get_experiment_by_name("loradock").experiment_id),
        lambda client: client.get_experiment("999"),
        *(lambda client, run=run: client.get_run(run) for run in (run_id, nobody, odd)),
        *(
            lambda client, view=view: client.search_runs([experiment], run_view_type=view, max_results=5)
            for view in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY, ViewType.ALL)
        ),
        lambda client: client.search_runs([experiment], everything, order_by=["attributes.start_time ASC"]),
        lambda client: client.search_runs([experiment], "params.`a param` = 'of a run'"),
        lambda client: client.search_runs([experiment], "no filter"),
        *(lambda client, path=path: client.list_artifacts(run_id, path) for path in (None, "below", "below/file.txt")),
        lambda client: client.list_artifacts(nobody),
        *(lambda client, model=model: client.get_logged_model(model) for model in (model_id, f"m-{nobody}")),
        *(
            lambda client, wanted=wanted: client.search_registered_models(wanted, max_results=1000)
            for wanted in (None, f"name = '{NAME}'", "name = 'nobody'", "tags.`mlflow.prompt.is_prompt` = 'true'")
        ),
        lambda client: client.search_registered_models("no filter"),
        *(lambda client, name=name: client.get_model_version(name, "1") for name in (NAME, "nobody", "greeting")),
        *(
            lambda client, alias=alias: client.get_model_version_by_alias(NAME, alias)
            for alias in ("production", "nothing")
        ),
        *(
            lambda client, order=order: client.search_model_versions(f"name = '{NAME}'", order_by=[order])
            for order in ("version_number ASC", "creation_timestamp DESC")
        ),
        lambda client: client.search_model_versions(everything, max_results=1000),
        lambda client: client.search_model_versions(f"name = '{NAME}'", max_results=1),
        lambda client: client.search_model_versions("no filter"),
    ]
    for number, call in enumerate(calls):
        mine, other = answers(ours, theirs, call)
        assert mine == other, number


def test_the_next_page_is_what_mlflows_client_has_for_it(remote: Store, theirs: Any, tmp_path: Path) -> None:
    for seed in range(3):
        make_version(remote, tmp_path / str(seed), seed=seed)
    experiment = theirs.get_experiment_by_name("loradock").experiment_id
    searches: list[Call] = [
        lambda client, token=None: client.search_runs([experiment], max_results=2, page_token=token),
        lambda client, token=None: client.search_model_versions(max_results=2, page_token=token),
    ]
    for search in searches:
        pages = [(page, search(client, page.token)) for client in (remote.client, theirs) for page in [search(client)]]  # type: ignore[call-arg]
        (mine, then), (others, then_others) = pages
        assert (mine.token, bool(then)) == (others.token, bool(then_others)) != (None, False)
        assert not {str(item) for item in mine} & {str(item) for item in then}


def test_every_call_that_writes_leaves_what_mlflows_client_leaves(remote: Store, theirs: Any) -> None:
    """Each client writes to things of its own, which only MLflow's client reads."""
    mine, others = (written(client, theirs, number) for number, client in enumerate((remote.client, theirs)))
    assert mine == others


def written(client: Any, theirs: Any, number: int) -> Any:
    """What the calls of a client left and answered, without the names and ids that differ."""
    name, title = f"family-{number}", f"experiment-{number}"
    experiment = client.create_experiment(title)
    run = client.create_run(experiment, tags={"a": "tag", "n": "1"}, run_name="a run")
    run_id = run.info.run_id
    client.set_tag(run_id, "set", 2)
    client.log_param(run_id, "key", "value", synchronous=True)
    client.log_param(run_id, "key", "value", synchronous=True)
    client.set_terminated(run_id)
    killed = client.create_run(experiment, run_name="killed").info.run_id
    client.set_terminated(killed, "KILLED")
    client.delete_run(killed)
    made = client.create_registered_model(name, tags={"of": "a family"})
    client.update_registered_model(name, description="what it is")
    client.set_registered_model_tag(name, "later", "on")
    model_id = theirs.create_logged_model(experiment, name="model", source_run_id=run_id).model_id
    theirs.finalize_logged_model(model_id, "READY")
    source = f"models:/{model_id}"
    how = {"run_id": run_id, "tags": {"t": "1"}, "await_creation_for": 0, "model_id": model_id}
    one = client.create_model_version(name, source, **how)
    client.create_model_version(name, "s3://bucket/it", await_creation_for=0)
    client.create_model_version(name, "s3://bucket/that", await_creation_for=0)
    client.delete_model_version(name, "3")
    client.set_model_version_tag(name, "1", "seen", "yes")
    client.update_model_version(name, "1", description="a version")
    client.set_registered_model_alias(name, "production", "1")
    client.set_registered_model_alias(name, "gone", "2")
    client.delete_registered_model_alias(name, "gone")
    client.set_logged_model_tags(model_id, {"condemned": "yes", "b": "c"})
    client.delete_logged_model_tag(model_id, "condemned")
    refused = (
        lambda: client.create_experiment(title),
        lambda: client.create_registered_model(name),
        lambda: client.log_param(run_id, "key", "another"),
        lambda: client.set_tag("f" * 32, "a", "b"),
        lambda: client.set_registered_model_alias(name, "production", "9"),
        lambda: client.set_model_version_tag(name, "9", "a", "b"),
        lambda: client.delete_model_version(name, "9"),
        lambda: client.delete_logged_model_tag(model_id, "nothing"),
        lambda: client.set_registered_model_tag("nobody", "a", "b"),
    )
    said = []
    for call in refused:
        with pytest.raises((Fault, MlflowException)) as caught:
            call()
        said.append((caught.value.error_code, first(caught.value)))
    read, gone, registered = theirs.get_run(run_id), theirs.get_run(killed).info, theirs.get_registered_model(name)
    assert read.info.end_time >= read.info.start_time
    version, tags = theirs.get_model_version(name, "1"), theirs.get_logged_model(model_id).tags
    client.delete_logged_model(model_id)
    with pytest.raises(MlflowException, match="not found"):
        theirs.get_logged_model(model_id)
    left = {
        "answers": [run.info.status, run.data.tags, made.name, made.tags, one.version, one.run_id == run_id],
        "run": [read.info.run_name, read.info.status, read.info.user_id, read.data.tags, read.data.params],
        "killed": [gone.status, gone.lifecycle_stage],
        "model": [registered.description, registered.tags, registered.aliases],
        "version": [version.source == source, version.tags, version.description, list(version.aliases)],
        "versions": [found.version for found in theirs.search_model_versions(f"name = '{name}'")],
        "tags": tags,
        "refused": said,
    }
    text = json.dumps(left)
    for same in (name, title, run_id, model_id):
        text = text.replace(same, "THE SAME")
    return json.loads(text)


def test_files_behind_the_servers_proxy_are_those_that_mlflow_fetches(
    remote: Store, theirs: Any, tmp_path: Path
) -> None:
    version = make_version(remote, tmp_path / "adapter")
    location = theirs.get_logged_model(version.source.removeprefix("models:/")).artifact_location
    files = files_at(remote.uri, location)
    assert isinstance(files, ProxiedFiles)
    (tmp_path / "all").mkdir()
    files.download_artifacts("", str(tmp_path / "all"))
    fetched = {path.name: path.read_bytes() for path in (tmp_path / "all").iterdir()}
    assert fetched == {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    theirs.log_text(version.facts.run_id, "a text", "below/deep er/file.txt")
    for path in ("below", "below/deep er/file.txt"):
        into = tmp_path / path.replace("/", "-")
        into.mkdir()
        found = Path(remote.client.download_artifacts(version.facts.run_id, path, str(into)))
        assert (into / "below/deep er/file.txt").read_text() == "a text"
        assert found == into / path
    with pytest.raises(Fault, match="File nothing") as missing:
        remote.client.download_artifacts(version.facts.run_id, "nothing", str(tmp_path))
    assert missing.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_the_registrys_verbs_on_a_server_do_not_import_mlflow(remote: Store, tmp_path: Path) -> None:
    make_version(remote, tmp_path / "a")
    make_version(remote, tmp_path / "b", seed=1)
    promotion.promote(remote, ref(1), "production", actor="ann")
    run_id = log_adapter(remote, write_adapter(tmp_path / "c", seed=2))
    verbs = (
        ["list"],
        ["list", NAME],
        ["show", f"{NAME}@production"],
        ["promote", f"{NAME}/2", "--alias", "production"],
        ["history", NAME],
        ["rollback", NAME, "--alias", "production"],
        ["register", run_id, "--name", NAME, "--no-reference"],
    )
    for words in verbs:
        code = (
            "import atexit, os, runpy, sys\n"
            "atexit.register(lambda: 'mlflow' in sys.modules and os._exit(99))\n"
            f"sys.argv = ['loradock', *{words!r}]\n"
            "runpy.run_module('loradock', run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.returncode, done.stderr)


def test_a_server_that_mlflow_has_a_plugin_for_is_asked_by_mlflows_client(
    remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(connect(remote.settings), RestClient)
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "of-a-plugin")
    assert isinstance(connect(remote.settings), mlflow.MlflowClient)


def test_a_workspace_on_a_server_without_them_is_refused_as_mlflow_refuses_it(
    remote: Store, theirs: Any, server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team")
    mine, other = answers(RestClient(server.uri), theirs, lambda client: client.get_experiment_by_name("loradock"))
    assert mine == other
    assert "does not support workspaces" in mine[1]


@pytest.mark.parametrize(
    ("environment", "kept", "sent"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "it"}, "", "Basic YW5uOml0"),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "", "Bearer t"),
        ({"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_TOKEN": "t"}, "", "Bearer t"),
        ({}, "mlflow_tracking_username = ann\nmlflow_tracking_password = it", "Basic YW5uOml0"),
        ({"MLFLOW_TRACKING_USERNAME": "bob"}, "mlflow_tracking_password = it", "Basic Ym9iOml0"),
        ({}, "", None),
    ],
)
def test_who_asks_is_told_as_mlflows_client_tells_it(
    environment: Mapping[str, str],
    kept: str,
    sent: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{variable}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if kept:
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow/credentials").write_text(f"[mlflow]\n{kept}\n")
    heard: list[Any] = []
    monkeypatch.setattr("requests.Session.request", lambda _self, _method, _url, **how: heard.append(how))
    Wire("https://host").request("GET", "/x")
    http_request(get_default_host_creds("https://host"), "/x", "GET")
    assert [how["headers"].get("Authorization") for how in heard] == [sent, sent]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"INSECURE_TLS": "true"},
        {"SERVER_CERT_PATH": "/ca.pem", "CLIENT_CERT_PATH": "/me.pem"},
        {"INSECURE_TLS": "false", "SERVER_CERT_PATH": "/ca.pem"},
    ],
)
def test_certificates_are_those_of_mlflows_client(
    environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    for name, value in environment.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    heard: list[Any] = []
    monkeypatch.setattr("requests.Session.request", lambda _self, _method, _url, **how: heard.append(how))
    Wire("https://host").request("GET", "/x")
    http_request(get_default_host_creds("https://host"), "/x", "GET")
    mine, other = ({key: how.get(key) for key in ("verify", "cert", "allow_redirects")} for how in heard)
    assert mine == other
