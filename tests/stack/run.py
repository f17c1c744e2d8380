"""docker-compose.yml brought up and used, on a machine without Docker: `python tests/stack/run.py`.

As root on Debian: podman runs the very file. Images that it names and that cannot be pulled are stood in for by
Debian's packages (images/Containerfile); the two that the Dockerfile makes are built by it. Then the loop: train,
register, promote, ask through the load balancer, flip under load, roll back, stop a replica under load, read
Prometheus; down. Grafana is in no package here, so it stays out. Each step is timed; the first error ends it with the
log of what failed.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent
HOME: Final = Path.home() / ".cache" / "loradock" / "stack"
PROJECT: Final = "loradock-try"
DEBIAN: Final = "localhost/debian:12"
MIRROR: Final = "http://deb.debian.org/debian"
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
STAND_INS: Final = {
    "python": "docker.io/library/python:3.11.13-slim-bookworm",
    "postgres": "docker.io/library/postgres:15.14-bookworm",
    "haproxy": "docker.io/library/haproxy:3.0.11-bookworm",
    "prometheus": "docker.io/prom/prometheus:v3.5.0",
}
OURS: Final = {"mlflow": "loradock/mlflow:0.1.0", "loradock": "loradock/loradock:0.1.0-cpu"}
CONTAINERS_CONF: Final = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=1024:1024"]
[engine]
runtime = "runc"
"""
COMPOSE: Final = (HOME / "venv/bin/podman-compose", "--project-name", PROJECT, "--profile", "cpu", "--profile", "tools")
steps: list[tuple[str, float]] = []


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextmanager
def step(name: str) -> Iterator[None]:
    """Time what is done in it."""
    say(f"== {name}")
    started = time.monotonic()
    try:
        yield
    finally:
        steps.append((name, time.monotonic() - started))


def run(*words: str | Path, timeout: float = 1800, quiet: bool = False, data: bytes | None = None) -> str:
    """Run a command to its end and return what it printed; where it fails, show that and end."""
    log = HOME / "command.log"
    with log.open("wb") as err:  # a file and no pipe: what a container's monitor inherits is never closed
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=err, input=data, check=False, timeout=timeout, cwd=ROOT
        )
    out = done.stdout.decode()
    if done.returncode and not quiet:
        sys.exit(f"{' '.join(map(str, words))} ended with {done.returncode}\n{out[-3000:]}\n{log.read_text()[-6000:]}")
    return out


def until(what: str, found: Callable[[], Any], *, seconds: float, alive: str = "") -> Any:
    """Poll until `found` gives something true; `alive` is the container whose end would make waiting vain."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        if alive and run("podman", "inspect", "--format", "{{.State.Running}}", alive, quiet=True).strip() != "true":
            break
        time.sleep(0.5)
    logs = (
        subprocess.run(["podman", "logs", "--tail", "40", alive], capture_output=True, check=False) if alive else None
    )
    sys.exit(f"not seen within {seconds:.0f} s: {what}\n" + ((logs.stdout + logs.stderr).decode() if logs else ""))


def prepare() -> None:
    """podman, runc and debootstrap from Debian, podman-compose in an environment of its own."""
    HOME.mkdir(parents=True, exist_ok=True)
    absent = [name for name in ("podman", "runc", "debootstrap") if not shutil.which(name)]
    if absent:
        run("apt-get", "update")
        run("apt-get", "install", "--yes", "--no-install-recommends", *absent, "netavark", "aardvark-dns", "iptables")
    if not COMPOSE[0].exists():
        run(sys.executable, "-m", "venv", HOME / "venv")
        run(HOME / "venv/bin/pip", "install", "--quiet", "podman-compose==1.6.0")
    (HOME / "containers.conf").write_text(CONTAINERS_CONF)
    os.environ["CONTAINERS_CONF"] = str(HOME / "containers.conf")


def has_image(name: str) -> bool:
    """Whether podman has it."""
    return subprocess.run(["podman", "image", "exists", name], check=False).returncode == 0


def debian() -> None:
    """An image of Debian, made on the spot."""
    if has_image(DEBIAN):
        return
    root = HOME / "debian"
    shutil.rmtree(root, ignore_errors=True)
    run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", root, MIRROR)
    archive = HOME / "debian.tar"
    run("tar", "-C", root, "-cf", archive, ".")
    run("podman", "import", archive, DEBIAN)
    archive.unlink()
    shutil.rmtree(root)


def build(context: Path, target: str, tag: str, *options: str) -> None:
    """One stage of a Dockerfile, as an image."""
    run(
        "podman",
        "build",
        "--network=host",
        "--isolation=chroot",
        *options,
        f"--target={target}",
        f"--tag={tag}",
        context,
    )


def images() -> None:
    """Those that stand in for others, and ours."""
    with step("a Debian image"):
        debian()
    with step("images that stand in for others"):
        context = HOME / "images"
        shutil.copytree(HERE / "images", context, dirs_exist_ok=True)
        shutil.copy(CERTIFICATES, context / "ca-certificates.crt")
        for target, tag in STAND_INS.items():
            build(context, target, tag)
    with step("our images"):
        # As `make install` finds the CPU build of torch: a directory that pip was told of, where there is one.
        links = os.environ.get("PIP_FIND_LINKS") or run("pip", "config", "get", "global.find-links", quiet=True).strip()
        options = (
            [f"--volume={links}:{links}:ro", f"--build-arg=FIND_LINKS={links}"]
            if links and Path(links).is_dir()
            else []
        )
        for target, tag in OURS.items():
            build(ROOT, target, tag, *options)


def compose(*words: str, timeout: float = 600) -> str:
    """The very compose file."""
    return run(*COMPOSE, *words, timeout=timeout)


def down() -> None:
    """End it with all that it kept; what is not there is no fault."""
    run(*COMPOSE, "down", "--timeout", "10", "--volumes", quiet=True)


def start(service: str, *, seconds: float, count: int = 1) -> None:
    """Start a service and wait until its healthcheck says ready; without systemd, podman does not run them itself."""
    compose("up", "--detach", "--no-deps", service)
    for number in range(1, count + 1):
        name = f"{PROJECT}_{service}_{number}"
        until(f"{name} is ready", lambda name=name: healthy(name), seconds=seconds, alive=name)  # type: ignore[misc]


def healthy(name: str) -> bool:
    """What the compose file's healthcheck says now."""
    return subprocess.run(["podman", "healthcheck", "run", name], capture_output=True, check=False).returncode == 0


def once(service: str, *words: str) -> str:
    """`docker compose run --rm SERVICE WORDS`."""
    return compose("run", "--rm", "-T", "--no-deps", service, *words, timeout=900)


def loradock(service: str, *words: str) -> Any:
    """A command in a container, and the data that it printed."""
    return json.loads(once(service, *words, "--json"))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Endpoint:
    """The load balancer before `replicas` replicas, as a client sees it."""

    def __init__(self, address: str, key: str, replicas: int) -> None:
        self.url, self.key, self.replicas = f"http://{address}", key, replicas

    def ask(self, tokens: int = 8) -> str:
        """Which version answers; the error's code where none does."""
        body = {"model": "tiny", "prompt": "Where is my parcel?", "max_tokens": tokens, "ignore_eos": True}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(), headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                return str(json.load(answer)["model"])
        except urllib.error.HTTPError as error:
            return str(error.code)
        except OSError as error:
            return type(error).__name__

    def all_answer(self, version: str) -> bool:
        """Whether the last answers, of all replicas in turn, came by this version."""
        return all(self.ask() == version for _ in range(2 * self.replicas))


@contextmanager
def load(endpoint: Endpoint, answers: Counter[str], *, clients: int = 3) -> Iterator[None]:
    """Ask without pause meanwhile."""
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answers[endpoint.ask(24)] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def expect(answers: Counter[str], *allowed: str) -> None:
    """End where an answer failed, or came by another version."""
    say(f"   answers: {dict(answers)}")
    if not answers or answers.keys() - set(allowed):
        sys.exit(f"only {allowed} may have answered")


def the_loop(endpoint: Endpoint, prometheus: str) -> None:
    """From a recipe to an answer, and back."""
    with step("two trainings in a container"):
        runs = [loradock("trainer", "train", f"examples/{name}.yaml")["run_id"] for name in ("tiny", "tiny-too")]
    with step("register, promote, answered by every replica through the load balancer"):
        for made in runs:
            loradock("promoter", "register", made, "--name", "tiny")
        loradock("promoter", "promote", "tiny/1", "--reason", "the first")
        until("tiny/1 answers", lambda: endpoint.all_answer("tiny/1"), seconds=180)
    answers: Counter[str] = Counter()
    with step("a flip and a rollback under load"), load(endpoint, answers):
        loradock("promoter", "promote", "tiny/2", "--reason", "another seed")
        until("tiny/2 answers", lambda: endpoint.all_answer("tiny/2"), seconds=180)
        loradock("promoter", "rollback", "tiny", "--reason", "it was no better")
        until("tiny/1 answers again", lambda: endpoint.all_answer("tiny/1"), seconds=180)
    expect(answers, "tiny/1", "tiny/2")
    with step("Prometheus sees every replica and the load balancer"):
        until(
            "all targets are up",
            lambda: targets(prometheus) == {"loradock": endpoint.replicas, "haproxy": 1, "prometheus": 1},
            seconds=60,
        )
    if endpoint.replicas == 1:
        return
    answers = Counter()
    with step("a replica stopped under load"), load(endpoint, answers):
        run("podman", "stop", "--time", "90", f"{PROJECT}_serve_{endpoint.replicas}")
    expect(answers, "tiny/1")


def targets(prometheus: str) -> Counter[str]:
    """How many targets of each job are up."""
    with urllib.request.urlopen(f"http://{prometheus}/api/v1/targets", timeout=30) as answer:
        found = json.load(answer)["data"]["activeTargets"]
    return Counter(target["labels"]["job"] for target in found if target["health"] == "up")


def bring_up(replicas: int) -> None:
    """All services, in the order of their `depends_on`."""
    with step("PostgreSQL, MLflow and its users"):
        start("postgres", seconds=60)
        start("mlflow", seconds=180)
        once("roles")
    with step("the base model"):
        once("base")
    with step(f"{replicas} replicas, the load balancer, Prometheus"):
        start("prometheus", seconds=60)
        start("serve", seconds=1200, count=replicas)
        start("lb", seconds=60)


def main() -> None:
    """Do it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--keep", action="store_true", help="leave it running at the end")
    options.add_argument("--no-build", action="store_true", help="take the images that are there")
    options.add_argument("--replicas", type=int, default=2, help="how many serve (default: 2)")
    chosen = options.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes an image with debootstrap")
    addresses = {f"{name}_ADDRESS": f"127.0.0.1:{free_port()}" for name in ("MLFLOW", "ENDPOINT", "PROMETHEUS")}
    directory = HOME / f"secrets-{secrets.token_hex(4)}"
    with step("podman"):
        prepare()
    os.environ |= addresses | {
        "LORADOCK_SECRETS": str(directory),
        "LORADOCK_RECIPES": str(HERE / "recipes"),
        "SERVE_REPLICAS": str(chosen.replicas),
    }
    if not chosen.no_build:
        images()
    run(ROOT / "stack/secrets.sh", directory)
    down()
    try:
        bring_up(chosen.replicas)
        endpoint = Endpoint(addresses["ENDPOINT_ADDRESS"], (directory / "serve_key").read_text(), chosen.replicas)
        the_loop(endpoint, addresses["PROMETHEUS_ADDRESS"])
    finally:
        if not chosen.keep:
            with step("down"):
                down()
                shutil.rmtree(directory)
        say("\n".join(f"{seconds:7.1f} s  {name}" for name, seconds in steps))


if __name__ == "__main__":
    main()
