"""docker-compose.yml by its schema, and by what it promises: pinned, limited, not root, no secret shown."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.support.stack.containers import OURS, STAND_INS
from tests.support.stack.prometheus import chosen, expressions

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
FILE: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", TEXT))
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
GPU = "localhost/loradock/loradock:0.1.0-gpu"
OTHERS = ("docker.io/library/", "docker.io/prom/", "docker.io/grafana/")
"""Where images of others come from: the library that Docker looks after, and two projects' own names."""
HASHES = "LORADOCK_SERVE_KEYS"
"""The file of keys, which has no secret in it."""
ONCE = {"roles", "base", "trainer", "trainer-gpu", "promoter"}
"""What does its work and ends."""


def each(names: set[str] | None = None) -> Any:
    return pytest.mark.parametrize("name", sorted(SERVICES if names is None else names))


def tagged(image: str) -> str:
    """An image without its digest."""
    return image.partition("@")[0]


def sources(name: str) -> Iterator[str]:
    """The left side of each volume."""
    return (volume.partition(":")[0] for volume in SERVICES[name].get("volumes", ()))


def test_it_is_what_the_compose_specification_says() -> None:
    PyCompose.from_yaml(yaml.safe_dump(FILE))


def test_every_variable_has_a_default() -> None:
    assert re.findall(r"\$\{\w+\}|\$\w+", TEXT) == []


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory as the script makes it."""
    directory = tmp_path_factory.mktemp("stack") / "secrets"
    subprocess.run([ROOT / "stack/secrets.sh", directory], check=True, capture_output=True)
    return directory


@each()
def test_what_it_refers_to_is_there(name: str, secrets: Path) -> None:
    service = SERVICES[name]
    assert set(service.get("depends_on", {})) <= set(SERVICES)
    assert set(service.get("secrets", ())) <= set(FILE["secrets"])
    assert set(service.get("networks", ())) <= set(FILE["networks"])
    made = {f"./{path.relative_to(secrets.parent)}" for path in secrets.iterdir()}
    for source in sources(name):
        there = source in made if source.startswith("./secrets/") else (ROOT / source).exists()
        assert there if source.startswith(".") else source in FILE["volumes"]


@each()
def test_its_image_is_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?(@sha256:[0-9a-f]{64})?", image), image


@each()
def test_no_stranger_can_hand_out_an_image_under_its_name(name: str) -> None:
    """Compose looks for an image before it builds it: for `loradock/...` on Docker Hub, where names are for all."""
    service = SERVICES[name]
    assert service["image"].startswith(("localhost/loradock/", *OTHERS))
    assert service["image"].startswith("localhost/") or "build" not in service


@each()
def test_it_has_limits_and_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc"}
    if service["image"].startswith("localhost/loradock/"):  # it has the Dockerfile's USER
        assert "user" not in service
    else:
        assert str(service["user"]).partition(":")[0] not in ("root", "0")


@each(set(SERVICES) - ONCE)
def test_what_runs_on_says_when_it_is_ready_and_has_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert {"test", "interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys()
    assert "stop_grace_period" in service
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("serve", ["serve", "serve-gpu"])
def test_up_with_wait_takes_no_service_that_ends_for_a_failure(serve: str) -> None:
    """`docker compose up --wait` does, but for those that another waits for to complete."""
    completed = {
        name
        for name, when in SERVICES[serve]["depends_on"].items()
        if when == {"condition": "service_completed_successfully"}
    }
    assert {name for name in ONCE if not SERVICES[name].get("profiles")} == completed


def test_ready_is_what_a_replica_calls_ready() -> None:
    for name in ("serve", "serve-gpu"):
        assert "/loradock/ready" in SERVICES[name]["healthcheck"]["test"][-1]
    assert "uri /loradock/ready" in (ROOT / "stack/haproxy/haproxy.cfg").read_text(encoding="utf-8")


@each()
def test_no_secret_stands_in_an_environment(name: str) -> None:
    service = SERVICES[name]
    for variable, value in service.get("environment", {}).items():
        if re.search(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIALS", variable) and variable != HASHES:
            assert variable.endswith("_FILE")
            assert value.removeprefix("/run/secrets/") in service["secrets"]
    assert not re.search(r"//[^/@\s]*:[^/@\s]*@", str(service)), "a password in an address"


def test_secrets_are_files_that_the_script_makes() -> None:
    script = (ROOT / "stack/secrets.sh").read_text(encoding="utf-8")
    made = re.search(r"^for name in (postgres .*); do$", script, re.MULTILINE)
    assert made
    assert {*made[1].split(), "aws"} == set(FILE["secrets"])
    assert all(secret == {"file": f"./secrets/{name}"} for name, secret in FILE["secrets"].items())


def test_a_secret_is_mounted_where_it_is_needed_and_nowhere_else() -> None:
    mounted = {
        secret: {name for name, service in SERVICES.items() if secret in service.get("secrets", ())}
        for secret in FILE["secrets"]
    }
    assert mounted == {
        "postgres": {"postgres", "mlflow"},
        "mlflow_admin": {"mlflow", "roles"},
        "mlflow_sessions": {"mlflow"},
        "aws": {"mlflow"},
        "trainer": {"trainer", "trainer-gpu", "roles"},
        "promoter": {"promoter", "roles"},
        "replica": {"serve", "serve-gpu", "roles"},
        "reader": {"roles"},
        "grafana_admin": {"grafana"},
    }


def test_replicas_know_callers_by_the_hashes_of_their_keys_alone(secrets: Path) -> None:
    mounts = {
        name: volume.split(":")
        for name, service in SERVICES.items()
        for volume in service.get("volumes", ())
        if volume.startswith("./secrets/keys:")
    }
    assert mounts.keys() == {"serve", "serve-gpu"}
    for name, (_, target, mode) in mounts.items():
        assert SERVICES[name]["environment"][HASHES] == f"{target}/keys.json"
        assert mode == "ro"
    (file,) = (secrets / "keys").iterdir()
    assert not [key for key in ("client_key", "operator_key") if (secrets / key).read_text() in file.read_text()]
    assert not [key for key in ("client_key", "operator_key") if key in TEXT]
    assert "VLLM_API_KEY" not in TEXT


def test_what_stands_in_for_an_image_bears_its_name() -> None:
    others = {tagged(service["image"]) for service in SERVICES.values()} - set(OURS.values()) - {GPU}
    python = re.search(r"^ARG PYTHON_IMAGE=(.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert python
    without_stand_in = {image for image in others if "/grafana:" in image}
    assert set(STAND_INS.values()) == (others | {tagged(python[1])}) - without_stand_in
    assert set(OURS.values()) <= {service["image"] for service in SERVICES.values()}


def test_the_dashboards_questions_are_asked_as_grafana_asks_them() -> None:
    assert [expression for expression in map(chosen, expressions()) if "$" in expression] == []


@each()
def test_it_listens_to_this_machine_alone_unless_told_otherwise(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


def test_the_database_is_on_a_network_of_its_own() -> None:
    assert FILE["networks"]["database"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert {name for name, service in SERVICES.items() if "database" in service.get("networks", ())} == {
        "postgres",
        "mlflow",
    }


def test_only_one_writes_the_base_models() -> None:
    mounts = {
        name: volume
        for name, service in SERVICES.items()
        for volume in service.get("volumes", ())
        if volume.startswith("bases:")
    }
    assert {name for name, volume in mounts.items() if not volume.endswith(":ro")} == {"base"}
    assert {"serve", "serve-gpu", "trainer"} <= mounts.keys()


def test_gpus_are_a_profile_and_a_build_argument_away() -> None:
    cpu, gpu = SERVICES["serve"], SERVICES["serve-gpu"]
    assert (cpu["profiles"], gpu["profiles"]) == (["cpu"], ["gpu"])
    differing = {key for key in cpu | gpu if cpu.get(key) != gpu.get(key)}
    assert differing == {"profiles", "image", "build", "deploy", "environment"}
    assert cpu["environment"].items() - gpu["environment"].items() == {
        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        ("OMP_NUM_THREADS", cpu["deploy"]["resources"]["limits"]["cpus"]),
    }
    assert gpu["environment"].items() <= cpu["environment"].items()
    assert cpu["build"] | {"args": gpu["build"]["args"]} == gpu["build"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", ["serve", "trainer", "promoter"])
def test_on_cpus_there_are_as_many_threads_as_processors(name: str) -> None:
    service = SERVICES[name]
    assert service["environment"]["OMP_NUM_THREADS"] == service["deploy"]["resources"]["limits"]["cpus"]
