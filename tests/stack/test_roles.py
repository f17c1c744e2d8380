"""stack/roles.py on a real MLflow server with basic-auth: what each user may, and what it may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest

from loradock.registry import history, promotion
from loradock.registry.errors import LoradockError
from loradock.registry.records import Version
from loradock.registry.refs import AliasRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.versions import register
from tests.support.adapters import NAME, log_adapter, ref, write_adapter
from tests.support.mlflow_server import USERS, TeamServer, password

pytestmark = pytest.mark.slow

PROMOTED = AliasRef(NAME, "production")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeamServer]:
    """The compose file's server, but for its database: one worker on SQLite."""
    directory = tmp_path_factory.mktemp("mlflow")
    found = TeamServer(f"sqlite:///{directory}/mlflow.db", directory, workers=1)
    try:
        found.start()
        yield found
    finally:
        found.kill()


@pytest.fixture
def as_user(server: TeamServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """The registry as a user has it."""
    monkeypatch.setenv("LORADOCK_HOME", str(tmp_path / "home"))
    return lambda user: server.store(user, monkeypatch)


@pytest.fixture(scope="module")
def promoted(server: TeamServer, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """A version that the trainer trained and the promoter registered and promoted."""
    directory = tmp_path_factory.mktemp("adapter") / "adapter"
    with pytest.MonkeyPatch.context() as environment:
        run = log_adapter(server.store("trainer", environment), write_adapter(directory))
        store = server.store("promoter", environment)
        version = register(store, run, NAME)
        promotion.promote(store, version.ref, "production", actor="promoter", reason="the first")
    return version


def refused(action: Callable[[], object]) -> bool:
    """Whether the server says 403, and nothing else is wrong."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - MLflow's, requests' and ours
        causes = [error, error.__cause__]
        return any("403" in str(cause) for cause in causes)
    return False


@pytest.mark.parametrize("user", USERS)
def test_everybody_reads(user: str, promoted: Version, as_user: Callable[[str], Store], tmp_path: Path) -> None:
    store = as_user(user)
    assert store.version_at(PROMOTED).facts.digest == promoted.facts.digest
    assert NAME in {family.name for family in store.families()}
    store.download(promoted.source, tmp_path, what="it")
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("user", ["trainer", "replica", "reader"])
def test_only_the_promoter_moves_registers_or_writes_history(
    user: str, promoted: Version, as_user: Callable[[str], Store]
) -> None:
    store = as_user(user)
    client, ledger = store.client, store.family(NAME).ledger
    with pytest.raises(LoradockError):
        promotion.promote(store, promoted.ref, "canary", actor=user)
    assert refused(lambda: client.set_registered_model_alias(NAME, "production", "1"))
    assert refused(lambda: client.set_registered_model_tag(NAME, "a", "b"))
    assert refused(lambda: client.set_model_version_tag(NAME, "1", "a", "b"))
    assert refused(lambda: client.create_model_version(NAME, promoted.source))
    assert refused(lambda: client.delete_model_version(NAME, "1"))
    assert refused(lambda: client.log_param(ledger, "00000099", "{}"))
    assert refused(lambda: client.delete_run(ledger))
    assert store.family(NAME).aliases == {"production": 1}


@pytest.mark.parametrize("user", ["trainer", "replica", "reader"])
def test_nobody_but_the_promoter_makes_a_family_of_his_own_which_replicas_would_follow(
    user: str, promoted: Version, as_user: Callable[[str], Store]
) -> None:
    client = as_user(user).client
    assert refused(lambda: client.create_registered_model(f"of-{user}"))
    assert refused(lambda: client.create_experiment(f"of-{user}"))


@pytest.mark.parametrize("user", ["replica", "reader"])
def test_who_reads_writes_no_run_and_no_file(
    user: str, promoted: Version, as_user: Callable[[str], Store], tmp_path: Path
) -> None:
    store = as_user(user)
    run = store.client.get_run(promoted.facts.run_id)
    (tmp_path / "adapter_config.json").write_text("{}")
    model = promoted.source.removeprefix("models:/")
    assert refused(lambda: store.client.create_run(run.info.experiment_id))
    assert refused(lambda: store.client.log_metric(run.info.run_id, "loss", 0.0))
    assert refused(lambda: store.client.log_model_artifact(model, str(tmp_path / "adapter_config.json")))


def test_a_replica_reads_histories_and_no_text_of_an_evaluation(
    promoted: Version, as_user: Callable[[str], Store], tmp_path: Path
) -> None:
    writer = as_user("promoter")
    run = writer.begin_evaluation(f"{NAME}/1 on rows")
    writer.client.log_text(run, "what a customer wrote", "rows.json")
    store = as_user("replica")
    assert history.read(store, NAME).head("production") == 1
    assert store.find_reference(promoted.facts.digest, promoted.facts.base) is None
    assert refused(lambda: store.client.get_run(run))
    assert refused(lambda: store.client.download_artifacts(run, "rows.json", str(tmp_path)))
    assert as_user("reader").client.get_run(run).info.run_id == run


def test_the_admin_alone_forgets_texts(promoted: Version, as_user: Callable[[str], Store]) -> None:
    store = as_user("promoter")
    run = store.begin_evaluation(f"{NAME}/1 on rows")
    store.client.log_text(run, "what a customer wrote", "rows.json")
    now = datetime.now(UTC) + timedelta(minutes=1)
    (text,) = store.texts(now, runs={run})
    for user in ("replica", "reader", "trainer", "promoter"):
        assert refused(partial(as_user(user).delete_text, text))
    as_user("admin").delete_text(text)
    assert list(store.texts(now, runs={run})) == []


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")  # MLflow's, where its auth is imported
def test_a_user_has_no_role_of_another_one_and_loses_it_if_he_had(
    server: TeamServer, promoted: Version, as_user: Callable[[str], Store]
) -> None:
    from mlflow.server.auth.client import AuthServiceClient

    as_user("admin")
    admin = AuthServiceClient(server.uri)
    reader = next(role for role in admin.list_roles("default") if role.name == "loradock-reader")
    admin.assign_role("replica", reader.id)
    assert server.roles().returncode == 0
    assert [role.name for role in admin.list_user_roles("replica")] == ["loradock-replica"]


def test_without_a_password_nobody_reads(server: TeamServer, promoted: Version) -> None:
    url = f"{server.uri}/api/2.0/mlflow/registered-models/search"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, auth=("reader", "a wrong password")).status_code == 401


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")  # MLflow's, where its auth is imported
def test_said_again_it_takes_new_passwords_and_puts_grants_right(
    server: TeamServer, promoted: Version, as_user: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.server.auth.client import AuthServiceClient

    as_user("admin")
    admin = AuthServiceClient(server.uri)
    role = next(role for role in admin.list_roles("default") if role.name == "loradock-reader")
    admin.add_role_permission(role.id, "registered_model", NAME, "MANAGE")
    (server.passwords / "reader").write_text("another password")
    try:
        assert server.roles().returncode == 0
    finally:
        (server.passwords / "reader").write_text(password("reader"))
    grants = {
        (grant.resource_type, grant.resource_pattern, grant.permission)
        for grant in admin.list_role_permissions(role.id)
    }
    assert grants == {("experiment", "*", "READ"), ("registered_model", "*", "READ")}
    as_user("reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another password")
    assert Store(Settings()).version_at(PROMOTED).ref == ref(1)
    as_user("admin")
    assert server.roles().returncode == 0
