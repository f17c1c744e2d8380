"""podman in Docker's place: images that stand in for others, ours, and the compose file's services."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.support.stack.commands import HERE, HOME, ROOT, run, step, until

PROJECT: Final = "loradock-try"
NETWORK: Final = f"{PROJECT}_default"
DEBIAN: Final = "localhost/debian:12"
MIRROR: Final = "http://deb.debian.org/debian"
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
STAND_INS: Final = {
    "python": "docker.io/library/python:3.11.16-slim-bookworm",
    "postgres": "docker.io/library/postgres:15.19-bookworm",
    "haproxy": "docker.io/library/haproxy:3.0.26-trixie",
    "prometheus": "docker.io/prom/prometheus:v3.13.4",
}
BUCKET: Final = "localhost/bucket:moto"
OURS: Final = {"mlflow": "localhost/loradock/mlflow:0.1.0", "loradock": "localhost/loradock/loradock:0.1.0-cpu"}
CONTAINERS_CONF: Final = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=1024:1024"]
[engine]
runtime = "runc"
"""
COMPOSE: Final = (HOME / "venv/bin/podman-compose", "--project-name", PROJECT, "--profile", "cpu", "--profile", "tools")


def prepare() -> None:
    """podman, runc and debootstrap from Debian, podman-compose in an environment of its own."""
    HOME.mkdir(parents=True, exist_ok=True)
    absent = [name for name in ("podman", "runc", "debootstrap", "catatonit") if not shutil.which(name)]
    if absent:
        run("apt-get", "update")
        run("apt-get", "install", "--yes", "--no-install-recommends", *absent, "netavark", "aardvark-dns", "iptables")
    if not COMPOSE[0].exists():
        run(sys.executable, "-m", "venv", HOME / "venv")
        run(HOME / "venv/bin/pip", "install", "--quiet", "podman-compose==1.6.0")
    (HOME / "containers.conf").write_text(CONTAINERS_CONF)
    os.environ["CONTAINERS_CONF"] = str(HOME / "containers.conf")


def images(*, fresh: bool) -> None:
    """Those that stand in for others, and ours; `fresh` takes nothing of earlier builds."""
    options = ["--no-cache"] if fresh else []
    with step("a Debian image"):
        _debian(fresh=fresh)
    with step("images that stand in for others"):
        context = HOME / "images"
        shutil.copytree(HERE / "images", context, dirs_exist_ok=True)
        shutil.copy(CERTIFICATES, context / "ca-certificates.crt")
        for target, tag in (STAND_INS | {"bucket": BUCKET}).items():
            _build(context, target, tag, *options)
    # As `make install` finds the CPU build of torch: a directory that pip was told of, where there is one.
    links = os.environ.get("PIP_FIND_LINKS") or run("pip", "config", "get", "global.find-links", quiet=True).strip()
    if links and Path(links).is_dir():
        options += [f"--volume={links}:{links}:ro", f"--build-arg=FIND_LINKS={links}"]
    options += [f"--build-arg=PYTHON_IMAGE={STAND_INS['python']}"]  # without a digest, which no stand-in has
    for target, tag in OURS.items():
        with step(f"our image {tag}"):
            _build(ROOT, target, tag, *options)


def _debian(*, fresh: bool) -> None:
    if not fresh and subprocess.run(["podman", "image", "exists", DEBIAN], check=False).returncode == 0:
        return
    root = HOME / "debian"
    shutil.rmtree(root, ignore_errors=True)
    run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", root, MIRROR)
    archive = HOME / "debian.tar"
    run("tar", "-C", root, "-cf", archive, ".")
    run("podman", "import", archive, DEBIAN)
    archive.unlink()
    shutil.rmtree(root)


def _build(context: Path, target: str, tag: str, *options: str) -> None:
    words = ("--network=host", "--isolation=chroot", *options, f"--target={target}", f"--tag={tag}")
    run("podman", "build", *words, context)


def compose(*words: str, timeout: float = 600) -> str:
    """The very compose file."""
    return run(*COMPOSE, *words, timeout=timeout)


def down() -> None:
    """End it with all that it kept; what is not there is no fault."""
    run(*COMPOSE, "down", "--timeout", "10", "--volumes", quiet=True)


def container(service: str, number: int = 1) -> str:
    """What podman calls a service's container."""
    return f"{PROJECT}_{service}_{number}"


def start(service: str, *, seconds: float, count: int = 1) -> None:
    """Start a service and wait until its healthcheck says ready; without systemd, podman does not run them itself."""
    compose("up", "--detach", "--no-deps", service)
    for number in range(1, count + 1):
        name = container(service, number)
        until(f"{name} is ready", partial(healthy, name), seconds=seconds, alive=name)


def healthy(name: str) -> bool:
    """What the compose file's healthcheck says now."""
    return subprocess.run(["podman", "healthcheck", "run", name], capture_output=True, check=False).returncode == 0


def inspect(name: str, what: str) -> str:
    """One field of a container, by podman's template."""
    return run("podman", "inspect", "--format", f"{{{{{what}}}}}", name).strip()


def once(service: str, *words: str) -> str:
    """`docker compose run --rm SERVICE WORDS`."""
    return compose("run", "--rm", "-T", "--no-deps", service, *words, timeout=900)


def loradock(service: str, *words: str) -> Any:
    """A command in a container, and the data that it printed."""
    return json.loads(once(service, *words, "--json"))
