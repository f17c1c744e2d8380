"""The Kubernetes manifests by Kubernetes's own schemas, and by what ties them to each other and to the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))
MANIFESTS: list[dict[str, Any]] = [
    manifest for path in FILES for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
OLDEST, NEWEST = "1.29", "1.37"


def named(kind: str, name: str = "loradock") -> dict[str, Any]:
    (found,) = (item for item in MANIFESTS if item["kind"] == kind and item["metadata"]["name"] == name)
    return found


DEPLOYMENT = named("Deployment")
JOB = named("Job", "loradock-base")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_it_is_what_kubernetes_takes(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_what_selects_the_replicas_finds_them() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert named("Service")["spec"]["selector"] == labels
    assert named("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    target = named("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", DEPLOYMENT["metadata"]["name"])


@pytest.mark.parametrize("pod", [POD, JOB["spec"]["template"]["spec"]], ids=["replica", "base"])
def test_a_pod_has_what_it_refers_to_and_no_more_rights_than_it_needs(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert named("PersistentVolumeClaim", volumes["bases"]["persistentVolumeClaim"]["claimName"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} <= container["resources"].keys()


def test_secrets_come_as_files_that_the_secret_has() -> None:
    (mount,) = (mount for mount in CONTAINER["volumeMounts"] if mount["name"] == "secrets")
    files = {
        variable["value"].removeprefix(f"{mount['mountPath']}/")
        for variable in CONTAINER["env"]
        if variable["name"].endswith("__FILE")
    }
    assert files == named("Secret")["stringData"].keys()
    assert not [name for name in named("ConfigMap")["data"] if "PASSWORD" in name or "KEY" in name]


def test_it_is_the_compose_files_image_base_and_user() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    assert CONTAINER["image"] == compose["serve"]["image"]
    assert JOB["spec"]["template"]["spec"]["containers"][0]["image"] == compose["base"]["image"]
    assert CONTAINER["args"][2] in compose["serve"]["command"]


def test_it_is_told_to_stop_before_it_is_killed() -> None:
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = int(named("ConfigMap")["data"]["LORADOCK_SERVE_STOP_SECONDS"])
    assert pause + drain < POD["terminationGracePeriodSeconds"]


def test_ready_is_what_a_replica_calls_ready_and_alive_is_less() -> None:
    assert CONTAINER["startupProbe"]["httpGet"]["path"] == "/loradock/ready"
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/loradock/ready"
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/health"
