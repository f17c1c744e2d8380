"""docker-compose.yml brought up and used, on a machine without Docker: `python tests/stack/run.py`.

As root on Debian: podman runs the very file. Images that it names and that cannot be pulled are stood in for by
Debian's packages (images/Containerfile); the two that the Dockerfile makes are built by it. Then the loop, with two
replicas: train, register, promote, ask through the load balancer. Under load: flip and roll back, stop a replica, kill
one, restart MLflow and PostgreSQL. Then a version that no replica lets answer, and the dashboard's questions to
Prometheus. At last the Kubernetes manifests, by `podman kube play`. Grafana is in no package here, so it stays out.
Each step is timed; the first error ends it with the log of what failed.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.ports import free_port
from tests.support.stack import bucket, cluster, containers
from tests.support.stack.commands import HERE, HOME, ROOT, run, say, step, steps, until
from tests.support.stack.containers import compose, container, healthy, inspect, loradock, once, start
from tests.support.stack.endpoint import Endpoint, load
from tests.support.stack.prometheus import Prometheus, marks

FOLLOWED = 180
"""Seconds within which every replica follows a promotion, on two cores under load."""
PARTS = ("loop", "faults", "dashboard", "kubernetes", "bucket")
STARTED = 1200
"""Seconds within which a replica is ready, beside others on two cores."""


class Stack:
    """What is brought up, and how it is asked."""

    def __init__(self, endpoint: Endpoint, prometheus: Prometheus, replicas: int) -> None:
        self.endpoint, self.prometheus, self.replicas = endpoint, prometheus, replicas

    def answers(self, version: str) -> None:
        """Wait until every replica answers by this version."""
        until(f"{version} answers", lambda: self.endpoint.all_answer(version, self.replicas), seconds=FOLLOWED)

    def serving(self, count: int, *, seconds: float) -> None:
        """Wait until the load balancer sends requests to so many replicas."""
        backends = 'haproxy_backend_active_servers{proxy="replicas"}'
        until(f"{count} replicas serve", lambda: self.prometheus.value(backends) == count, seconds=seconds)


def bring_up_registry() -> None:
    """PostgreSQL, MLflow, its users, and the base model, in the order of their `depends_on`."""
    with step("PostgreSQL, MLflow and its users"):
        start("postgres", seconds=60)
        start("mlflow", seconds=180)
        once("roles")
    with step("the base model"):
        once("base")


def bring_up_replicas(replicas: int) -> None:
    """The rest of the services."""
    with step(f"{replicas} replicas, the load balancer, Prometheus"):
        start("prometheus", seconds=60)
        start("serve", seconds=STARTED, count=replicas)
        start("lb", seconds=60)


def made(recipe: str, name: str) -> None:
    """A version, from a recipe to the registry."""
    run_id = loradock("trainer", "train", f"examples/{recipe}.yaml")["run_id"]
    loradock("promoter", "register", run_id, "--name", name)


def the_loop(stack: Stack) -> None:
    """From a recipe to an answer, and back."""
    with step("three trainings and registrations in containers"):
        for recipe in ("tiny", "tiny-too", "idle"):
            made(recipe, "tiny")
    with step("promoted, and answered by every replica through the load balancer"):
        loradock("promoter", "promote", "tiny/1", "--reason", "the first")
        stack.answers("tiny/1")
    with step("a flip and a rollback under load"), load(stack.endpoint, "tiny/1", "tiny/2"):
        loradock("promoter", "promote", "tiny/2", "--reason", "another seed")
        stack.answers("tiny/2")
        loradock("promoter", "rollback", "tiny", "--reason", "it was no better")
        stack.answers("tiny/1")
    with step("Prometheus sees every replica and the load balancer, without a key"):
        up = {"loradock": stack.replicas, "haproxy": 1, "prometheus": 1}
        until("all targets are up", lambda: stack.prometheus.targets() == up, seconds=60)
    with step("nobody outside sees metrics"):
        seen = {
            path: stack.endpoint.get(path) for path in ("/metrics", "/metrics/", "/%6Detrics", "//metrics", "/metricsx")
        }
        if set(seen.values()) != {404}:
            sys.exit(f"through the load balancer: {seen}")


def the_faults(stack: Stack) -> None:
    """What ends or is killed while clients ask."""
    last = container("serve", stack.replicas)
    if stack.replicas > 1:
        with step("a replica stopped under load, and started again"):
            with load(stack.endpoint, "tiny/1"):
                run("podman", "stop", "--time", "90", last)
            say(f"   it ended with {inspect(last, '.State.ExitCode')}")
            with load(stack.endpoint, "tiny/1", clients=1):  # the processors are busy with the start
                run("podman", "start", last)
                stack.serving(stack.replicas, seconds=STARTED)
        with step("a replica killed under load, which comes back by itself"):
            with load(stack.endpoint, "tiny/1", broken=("502",)):
                os.kill(int(inspect(last, ".State.Pid")), signal.SIGKILL)
                stack.serving(stack.replicas - 1, seconds=60)
            with load(stack.endpoint, "tiny/1", clients=1):
                stack.serving(stack.replicas, seconds=STARTED)
    for service in ("mlflow", "postgres"):
        with step(f"{service} restarted under load, then a promotion and a rollback"):
            restart(stack, service)


def restart(stack: Stack, service: str) -> None:
    """Restart what the registry stands on, and see replicas follow it again."""
    with load(stack.endpoint, "tiny/1"):
        run("podman", "restart", "--time", "60", container(service))
        for name in dict.fromkeys((service, "mlflow")):
            until(f"{name} is ready", partial(healthy, container(name)), seconds=180)
    with load(stack.endpoint, "tiny/1", "tiny/2"):
        loradock("promoter", "promote", "tiny/2", "--reason", f"{service} is back")
        stack.answers("tiny/2")
        loradock("promoter", "rollback", "tiny", "--reason", f"{service} is back")
        stack.answers("tiny/1")


def the_dashboard(stack: Stack) -> None:
    """Something to see in every panel, and every panel's question to Prometheus."""
    prometheus = stack.prometheus
    with step("a version without effect is quarantined by every replica; every panel has something to show"):
        with load(stack.endpoint, "tiny/1", "tiny/2"):
            loradock("promoter", "promote", "tiny/3", "--force", "--reason", "to see it quarantined")
            held = 'count(loradock_quarantined{adapter="tiny"})'
            until("it is quarantined", lambda: prometheus.value(held) == stack.replicas, seconds=FOLLOWED)
            until("its alert waits", lambda: prometheus.alerts()["LoradockQuarantined"] != "inactive", seconds=60)
            loradock("promoter", "promote", "tiny/2", "--reason", "a move to see")
            stack.answers("tiny/2")
            until("the dashboard marks the move", lambda: all(map(prometheus.series, marks())), seconds=60)
            loradock("promoter", "promote", "tiny/3", "--force", "--reason", "to see it quarantined again")
            stack.endpoint.hang_up()
            if (status := stack.endpoint.ask(key="a wrong key")) != "401":
                sys.exit(f"a wrong key got {status}")
            until(lambda: f"data for {prometheus.silent()}", lambda: not prometheus.silent(), seconds=60)
        say(f"   alerts: {prometheus.alerts()}")
        loradock("promoter", "promote", "tiny/1", "--reason", "the one that was good")
        stack.answers("tiny/1")
    if set(prometheus.choices("loradock_requests_total", "adapter")) < {"tiny"}:
        sys.exit("Grafana would offer no adapter to choose")
    if broken := {name: state for name, state in prometheus.alerts().items() if state in ("err", "unknown")}:
        sys.exit(f"alerts that Prometheus cannot evaluate: {broken}")


def the_bucket(secrets_: Path) -> None:
    """MLflow with its artifacts in a bucket: a training's files are there, and come back as they were."""
    try:
        with step("MLflow with its artifacts in a bucket: train, register, verify"):
            bucket.start()
            bucket.use(secrets_)
            made("tiny", "in-a-bucket")
            loradock("promoter", "verify", "in-a-bucket/1")
            if not any(name.endswith("/adapter_model.safetensors") for name in bucket.files()):
                sys.exit(f"in the bucket is only {bucket.files()}")
    finally:
        bucket.down()


def the_cluster(secrets_: Path) -> None:
    """The manifests' job, and one replica of their deployment."""
    cluster.down()
    try:
        with step("Kubernetes manifests: the job that fetches the base"):
            cluster.play(cluster.secret(secrets_))
            cluster.fetch_base()
        with step("Kubernetes manifests: a version for the pod to serve"):
            made("tiny", "in-a-pod")
            loradock("promoter", "promote", "in-a-pod/1", "--reason", "to see a pod answer")
        with step("Kubernetes manifests: a replica, its probes, an answer, SIGTERM"):
            port = free_port()
            replica = cluster.deploy(port, secrets_ / "keys")
            pod = Endpoint(f"127.0.0.1:{port}", (secrets_ / "client_key").read_text(), model="in-a-pod")
            until("the startup probe passes", lambda: cluster.probe("startup")(pod), seconds=900, alive=replica)
            failed = [name for name in ("readiness", "liveness") if not cluster.probe(name)(pod)]
            version, code = pod.ask(), cluster.stop(replica)
            say(f"   answered by {version}; probes that failed: {failed}; SIGTERM: it ended with {code}")
            if failed or version != "in-a-pod/1" or code != "0":
                sys.exit(run("podman", "logs", replica))
    finally:
        cluster.down()


def the_replicas(addresses: dict[str, str], secrets_: Path, replicas: int, parts: Sequence[str]) -> None:
    """The compose file's replicas, and what is asked of them."""
    endpoint = Endpoint(addresses["ENDPOINT_ADDRESS"], (secrets_ / "client_key").read_text(), model="tiny")
    stack = Stack(endpoint, Prometheus(addresses["PROMETHEUS_ADDRESS"]), replicas)
    bring_up_replicas(replicas)
    the_loop(stack)
    if "faults" in parts:
        the_faults(stack)
    if "dashboard" in parts:
        the_dashboard(stack)
    compose("stop", "--timeout", "90", "serve")


def main() -> None:
    """Do it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--keep", action="store_true", help="leave it running at the end")
    options.add_argument("--no-build", action="store_true", help="take the images that are there")
    options.add_argument("--fresh", action="store_true", help="build the images from nothing")
    options.add_argument("--replicas", type=int, default=2, help="how many serve (default: 2)")
    options.add_argument("--only", action="append", choices=PARTS, help="leave other parts out; replicas need the loop")
    chosen = options.parse_args()
    parts = chosen.only or PARTS
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes an image with debootstrap")
    addresses = {f"{name}_ADDRESS": f"127.0.0.1:{free_port()}" for name in ("MLFLOW", "ENDPOINT", "PROMETHEUS")}
    directory = HOME / f"secrets-{secrets.token_hex(4)}"
    with step("podman"):
        containers.prepare()
    os.environ |= addresses | {
        "LORADOCK_SECRETS": str(directory),
        "LORADOCK_RECIPES": str(HERE / "recipes"),
        "SERVE_REPLICAS": str(chosen.replicas),
    }
    if not chosen.no_build:
        containers.images(fresh=chosen.fresh)
    run(ROOT / "stack/secrets.sh", directory)
    containers.down()
    try:
        bring_up_registry()
        if {"loop", "faults", "dashboard"} & set(parts):
            the_replicas(addresses, directory, chosen.replicas, parts)
        if "kubernetes" in parts:
            the_cluster(directory)
        if "bucket" in parts:
            the_bucket(directory)
    finally:
        if not chosen.keep:
            with step("down"):
                containers.down()
                shutil.rmtree(directory)
        say("\n".join(f"{seconds:7.1f} s  {name}" for name, seconds in steps))


if __name__ == "__main__":
    main()
