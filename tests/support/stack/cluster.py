"""examples/kubernetes in podman: what `podman kube play` takes of it, run beside the compose file's MLflow.

It knows no jobs, and without systemd it asks no probes. So the job's pod is given to it as a pod, and the probes are
asked here as a kubelet asks them. It publishes a pod's port on the machine, where there is one of each: so there is one
replica, at a port of its own. A volume in memory it makes on a disk, for root alone: the machine's own stands for that
(before 4.4, as Debian 12 has it). Services, budgets, autoscalers and what is to be done before a stop it passes over.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.stack.commands import ROOT, run, until
from tests.support.stack.containers import NETWORK, PROJECT, inspect
from tests.support.stack.endpoint import Endpoint

MANIFESTS: Final = ROOT / "examples" / "kubernetes"
DEPLOYMENT: Final = "loradock"
JOB: Final = "loradock-base"
VOLUMES: Final = f"{PROJECT}-pod-"
"""How the names of volumes begin that podman makes for a pod: it has one room of names for all."""


def play(manifests: str) -> None:
    """Have podman make what a file says, on the network where MLflow is."""
    run("podman", "kube", "play", f"--network={NETWORK}", "-", data=manifests.encode())


def secret(secrets: Path) -> str:
    """The replica's secret, with what stack/secrets.sh made in it.

    podman before 4.4 mounts nothing of `stringData`, and what is in `data` as it stands there, in base64; digits and
    letters in fours, as ours are, pass for that.
    """
    manifest, _keys = yaml.safe_load_all((MANIFESTS / "secret.yaml").read_text(encoding="utf-8"))
    values = {name: (secrets / name).read_text() for name in manifest.pop("stringData")}
    manifest["data" if version() < (4, 4) else "stringData"] = values
    return yaml.safe_dump(manifest)


def version() -> tuple[int, ...]:
    """podman's."""
    return tuple(int(part) for part in re.findall(r"\d+", run("podman", "--version"))[:2])


def base() -> str:
    """The volume of base models, and the job's pod as a pod that is not started again."""
    *others, job = yaml.safe_load_all((MANIFESTS / "base.yaml").read_text(encoding="utf-8"))
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": job["metadata"], "spec": job["spec"]["template"]["spec"]}
    pod["spec"] |= {"restartPolicy": "Never"}
    return yaml.safe_dump_all([*others, pod])


def serving(port: int, keys: Path) -> str:
    """The deployment and what it needs: one replica at a port of this machine's, with the file in `keys`."""
    manifests = list(yaml.safe_load_all((MANIFESTS / "serving.yaml").read_text(encoding="utf-8")))
    deployment = named(manifests, "Deployment")
    deployment["spec"]["replicas"] = 1
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["ports"][0]["hostPort"] = port
    for volume in pod["volumes"]:
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            del volume["emptyDir"]
            volume["hostPath"] = {"path": "/dev/shm", "type": "Directory"}  # noqa: S108
        if volume["name"] == "keys":  # no text passes through podman's secrets before 4.4: see `secret`
            del volume["secret"]
            volume["hostPath"] = {"path": str(keys), "type": "Directory"}
    for there in (*pod["volumes"], *container["volumeMounts"]):
        there["name"] = VOLUMES + there["name"]
    return yaml.safe_dump_all(manifests)


def named(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only one of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def fetch_base() -> None:
    """Run the job to its end."""
    play(base())
    name = f"{JOB}-base"
    until("the job ended", lambda: inspect(name, ".State.Status") == "exited", seconds=600)
    if inspect(name, ".State.ExitCode") != "0":
        raise SystemExit(f"the job failed\n{run('podman', 'logs', name)}")


def deploy(port: int, keys: Path) -> str:
    """Start the replica; its container."""
    play(serving(port, keys))
    (pod,) = pods()
    return f"{pod}-loradock"


def pods() -> list[str]:
    """Those of the deployment."""
    names = run("podman", "pod", "ls", "--format", "{{.Name}}").split()
    return [name for name in names if name.startswith(f"{DEPLOYMENT}-pod")]


def probe(name: str) -> Callable[[Endpoint], bool]:
    """One of the replica's probes, as a kubelet asks it."""
    deployment = named(list(yaml.safe_load_all(serving(0, Path("keys")))), "Deployment")
    path: str = deployment["spec"]["template"]["spec"]["containers"][0][f"{name}Probe"]["httpGet"]["path"]
    return lambda endpoint: 200 <= endpoint.get(path) < 400


def stop(container: str) -> str:
    """End the replica as a kubelet does; its exit code."""
    run("podman", "stop", "--time", "90", container)
    return inspect(container, ".State.ExitCode")


def down() -> None:
    """Remove all of it; what is not there is no fault."""
    for pod in (*pods(), JOB):
        subprocess.run(["podman", "pod", "rm", "--force", pod], capture_output=True, check=False)
    subprocess.run(["podman", "secret", "rm", "loradock"], capture_output=True, check=False)
    volumes = run("podman", "volume", "ls", "--format", "{{.Name}}").split()
    ours = [name for name in volumes if name in ("loradock", "loradock-bases") or name.startswith(VOLUMES)]
    if ours:
        run("podman", "volume", "rm", "--force", *ours)
