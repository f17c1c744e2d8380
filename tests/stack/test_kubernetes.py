"""The Kubernetes manifests by Kubernetes's own schemas, and by what ties them to each other and to the images."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from loradock.serving import keyfile

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


def mounted(name: str) -> str:
    """Where a volume is, which can only be read."""
    (mount,) = (mount for mount in CONTAINER["volumeMounts"] if mount["name"] == name)
    assert mount["readOnly"] is True
    return str(mount["mountPath"])


def test_replicas_know_callers_by_the_hashes_of_their_keys_alone() -> None:
    (volume,) = (volume for volume in POD["volumes"] if volume["name"] == "keys")
    secret = named("Secret", volume["secret"]["secretName"])["stringData"]
    keys = keyfile.parse(secret["keys.json"].encode(), what="the secret").keys
    assert [name for name, key in keys.items() if key.admin or not key.may] == []
    environment = {variable["name"]: variable.get("value") for variable in CONTAINER["env"]}
    assert environment["LORADOCK_SERVE_KEYS"] == f"{mounted('keys')}/keys.json"
    assert not [name for name in environment if name.startswith("VLLM_API_KEY")]


def test_only_clients_the_ingress_and_prometheus_reach_a_replica_and_it_only_mlflow() -> None:
    spec = named("NetworkPolicy")["spec"]
    assert spec["podSelector"] == DEPLOYMENT["spec"]["selector"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    (entering,) = spec["ingress"]
    assert entering["ports"] == [{"protocol": "TCP", "port": CONTAINER["ports"][0]["name"]}]
    assert all(peer and all(peer.values()) for peer in entering["from"]), "an empty selector is everybody"
    mlflow = urlsplit(named("ConfigMap")["data"]["MLFLOW_TRACKING_URI"])
    names, registry = spec["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert registry == {
        "to": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": mlflow.hostname}}}],
        "ports": [{"protocol": "TCP", "port": mlflow.port}],
    }


@pytest.mark.parametrize("address", ["169.254.169.254", "10.96.0.1", "172.17.0.1", "192.168.1.1"])
def test_the_job_that_fetches_the_base_is_reached_by_nobody_and_reaches_nothing_inside(address: str) -> None:
    spec = named("NetworkPolicy", "loradock-base")["spec"]
    assert spec["podSelector"]["matchLabels"] == JOB["spec"]["template"]["metadata"]["labels"]
    assert (spec["policyTypes"], spec.get("ingress")) == (["Ingress", "Egress"], None)
    _names, outside = spec["egress"]
    (block,) = (peer["ipBlock"] for peer in outside["to"])
    assert any(ip_address(address) in ip_network(network) for network in block["except"])
    assert outside["ports"] == [{"protocol": "TCP", "port": 443}]


def test_the_ingress_speaks_tls_and_passes_on_what_clients_call_alone() -> None:
    spec, service = named("Ingress")["spec"], named("Service")
    (rule,) = spec["rules"]
    (tls,) = spec["tls"]
    assert (tls["hosts"], bool(tls["secretName"])) == ([rule["host"]], True)
    assert [(path["path"], path["pathType"]) for path in rule["http"]["paths"]] == [("/v1", "Prefix")]
    (backend,) = (path["backend"]["service"] for path in rule["http"]["paths"])
    assert backend == {"name": service["metadata"]["name"], "port": {"name": service["spec"]["ports"][0]["name"]}}


def test_every_volume_has_a_size_and_the_adapters_stay_within_theirs() -> None:
    homes = [pod["volumes"] for pod in (POD, JOB["spec"]["template"]["spec"])]
    empty = {volume["name"]: volume["emptyDir"] for volumes in homes for volume in volumes if "emptyDir" in volume}
    assert all("sizeLimit" in each for each in empty.values())
    most = float(named("ConfigMap")["data"]["LORADOCK_SERVE_CACHE_GIB"])
    assert most + 2 <= float(empty["home"]["sizeLimit"].removesuffix("Gi"))
    assert named("PersistentVolumeClaim", "loradock-bases")["spec"]["resources"]["requests"]["storage"]


def test_secrets_come_as_files_that_the_secret_has() -> None:
    files = {
        variable["value"].removeprefix(f"{mounted('secrets')}/")
        for variable in CONTAINER["env"]
        if variable["name"].endswith("__FILE")
    }
    assert files == named("Secret")["stringData"].keys()
    assert not [name for name in named("ConfigMap")["data"] if "PASSWORD" in name or "KEY" in name]


@pytest.mark.parametrize(
    "container", [CONTAINER, *JOB["spec"]["template"]["spec"]["containers"]], ids=["replica", "base"]
)
def test_no_stranger_can_hand_out_an_image_under_its_name(container: dict[str, Any]) -> None:
    assert container["image"].startswith("localhost/loradock/")
    assert container["imagePullPolicy"] == "IfNotPresent"


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
