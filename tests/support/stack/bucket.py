"""MLflow's artifacts in a bucket: what docs/compose.md says, with moto in S3's place."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Final

from tests.support.stack.commands import run, until
from tests.support.stack.containers import BUCKET, NETWORK, PROJECT, compose, container, healthy, inspect

NAME: Final = f"{PROJECT}_bucket"
ADDRESS: Final = "http://bucket:9000"
KEYS: Final = f"""\
[default]
aws_access_key_id = loradock
aws_secret_access_key = loradock
region = eu-central-1
endpoint_url = {ADDRESS}
"""


def start() -> None:
    """A bucket, empty."""
    run("podman", "run", "--detach", f"--name={NAME}", f"--network={NETWORK}", "--network-alias=bucket", BUCKET)
    until("the bucket answers", lambda: _ask("GET", "/") == 200, seconds=60, alive=NAME)
    if (status := _ask("PUT", "/adapters")) != 200:
        raise SystemExit(f"the bucket cannot be made: {status}")


def use(secrets: Path) -> None:
    """Start MLflow anew with its artifacts there."""
    (secrets / "aws").chmod(0o644)
    (secrets / "aws").write_text(KEYS)
    os.environ["MLFLOW_ARTIFACTS"] = "s3://adapters/mlflow"
    compose("up", "--detach", "--no-deps", "--force-recreate", "mlflow")
    until("MLflow is ready", lambda: healthy(container("mlflow")), seconds=180, alive=container("mlflow"))


def files() -> list[str]:
    """What is in it."""
    connection = _connect()
    connection.request("GET", "/adapters?list-type=2")
    found: list[str] = re.findall(r"<Key>(.*?)</Key>", connection.getresponse().read().decode())
    return found


def down() -> None:
    """Remove it; when it is not there, that is no fault."""
    subprocess.run(["podman", "rm", "--force", NAME], capture_output=True, check=False)


def _connect() -> http.client.HTTPConnection:
    address = json.loads(inspect(NAME, "json .NetworkSettings.Networks"))[NETWORK]["IPAddress"]
    return http.client.HTTPConnection(address, 9000, timeout=10)


def _ask(method: str, path: str) -> int:
    try:
        connection = _connect()
        connection.request(method, path)
        return connection.getresponse().status
    except OSError:
        return 0
