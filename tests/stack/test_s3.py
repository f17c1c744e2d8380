"""Adapters in a bucket behind MLflow's artifact proxy: only the server has keys to it, and nobody notices.

The S3 server is moto's, over HTTP. MLflow has it in a credentials file, as docs/compose.md says.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from loradock.registry import promotion
from loradock.registry.artifact import MANIFEST, WEIGHTS, verify
from loradock.registry.records import Version
from loradock.registry.store import Store
from loradock.registry.versions import fetched, register
from tests.support.adapters import log_adapter, write_adapter
from tests.support.mlflow_server import TeamServer
from tests.support.ports import free_port
from tests.support.shell import loradock

pytestmark = pytest.mark.slow

BUCKET = "adapters"
REGION = "eu-central-1"
KEYS = {"aws_access_key_id": "of-mlflow", "aws_secret_access_key": "of-mlflow"}
MIB = 2**20
LARGE = {
    "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": str(6 * MIB),
    "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": str(5 * MIB),
    "MLFLOW_MULTIPART_DOWNLOAD_MINIMUM_FILE_SIZE": str(6 * MIB),
    "MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE": str(5 * MIB),
}
"""To MLflow's client, a file of 9 MB is then what one of 500 MB is otherwise."""
DIRECT = {"MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true", "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "true"}


class FakeS3:
    """An S3 server with one bucket."""

    def __init__(self, directory: Path) -> None:
        port, self._log = free_port(), directory / "s3.log"
        self.url = f"http://localhost:{port}"
        with self._log.open("wb") as out:
            words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            self.process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
        self.s3: Any = boto3.client("s3", endpoint_url=self.url, region_name=REGION, **KEYS)

    def make(self) -> None:
        """Wait until the server answers, and make the bucket."""
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            try:
                httpx.get(self.url)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})

    @property
    def log(self) -> str:
        """Its requests, one a line."""
        return self._log.read_text()

    def signed(self, since: int) -> set[str]:
        """How others than MLflow asked, by addresses that it signed, from there on in the log: GET, PUT."""
        requests = [line.split('"')[1] for line in self.log[since:].splitlines() if "X-Amz-Signature" in line]
        return {request.split()[0] for request in requests}

    def objects(self, version: Version) -> dict[str, dict[str, Any]]:
        """What lies there of a version, by the file's name."""
        model = version.source.removeprefix("models:/")
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix="of-the-team/").get("Contents", [])
        return {Path(one["Key"]).name: one for one in found if f"/{model}/" in one["Key"]}

    def read(self, one: Mapping[str, Any]) -> bytes:
        return bytes(self.s3.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read())


@dataclass(frozen=True)
class Team:
    bucket: FakeS3
    mlflow: TeamServer


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    directory = tmp_path_factory.mktemp("s3")
    bucket = FakeS3(directory)
    profile = KEYS | {"region": REGION, "endpoint_url": bucket.url}
    (directory / "aws").write_text("\n".join(["[default]", *(f"{key} = {value}" for key, value in profile.items())]))
    mlflow = TeamServer(
        f"sqlite:///{directory}/mlflow.db",
        directory,
        workers=1,
        artifacts=f"s3://{BUCKET}/of-the-team",
        environ={"AWS_SHARED_CREDENTIALS_FILE": str(directory / "aws")},
    )
    try:
        bucket.make()
        mlflow.start()
        yield Team(bucket, mlflow)
    finally:
        mlflow.kill()
        bucket.process.kill()
        bucket.process.wait()


@pytest.fixture
def as_user(team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Store]:
    """The registry as a user has it, who has neither a key to the bucket nor its address."""
    monkeypatch.setenv("LORADOCK_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    return lambda user: team.mlflow.store(user, monkeypatch)


def registered(as_user: Callable[[str], Store], directory: Path, name: str, **kind: Any) -> Version:
    """A version of what the trainer logged, by the promoter."""
    run = log_adapter(as_user("trainer"), write_adapter(directory, **kind), rank=kind.get("rank", 4))
    return register(as_user("promoter"), run, name)


def assert_fetched_whole(as_user: Callable[[str], Store], version: Version) -> None:
    """By a replica's user; and by a command in another process, of who only reads."""
    with fetched(as_user("replica"), version) as directory:
        verify(directory, version.facts.digest, what="what the replica fetched")
    as_user("reader")
    done = loradock("verify", str(version.ref), "--json")
    assert (done.exit_code, version.facts.digest in done.out) == (0, True), done.err


def test_the_bytes_of_a_version_are_in_the_bucket_and_come_back_through_the_proxy(
    team: Team, as_user: Callable[[str], Store], tmp_path: Path
) -> None:
    before = len(team.bucket.log)
    version = registered(as_user, tmp_path / "adapter", "small")
    stored = team.bucket.objects(version)
    assert hashlib.sha256(team.bucket.read(stored[MANIFEST])).hexdigest() == version.facts.digest
    assert team.bucket.read(stored[WEIGHTS]) == (tmp_path / "adapter" / WEIGHTS).read_bytes()
    assert_fetched_whole(as_user, version)
    assert team.bucket.signed(before) == set()
    assert not list(team.mlflow.directory.rglob(WEIGHTS)), "the server keeps none itself"


@pytest.mark.parametrize(
    ("environ", "direct"),
    [({}, False), (LARGE, False), (LARGE | DIRECT, True)],
    ids=["through MLflow", "larger and through MLflow", "by signed addresses where they are asked for"],
)
def test_a_large_file(
    environ: Mapping[str, str],
    direct: bool,
    team: Team,
    as_user: Callable[[str], Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    before = len(team.bucket.log)
    version = registered(as_user, tmp_path / "adapter", f"large-{len(environ)}", rank=512)
    stored = team.bucket.objects(version)[WEIGHTS]
    assert stored["Size"] > 9 * MIB
    assert "-" in stored["ETag"], "it was stored in parts"
    assert_fetched_whole(as_user, version)
    assert team.bucket.signed(before) == ({"PUT", "GET"} if direct else set())


def test_a_clean_up_frees_the_bucket(team: Team, as_user: Callable[[str], Store], tmp_path: Path) -> None:
    kept, left = (registered(as_user, tmp_path / str(seed), "swept", seed=seed) for seed in (1, 2))
    promotion.promote(as_user("promoter"), kept.ref, "production", actor="promoter")
    as_user("admin")
    done = loradock("gc", "swept", "--keep", "0", "--since", "0", "--min-age", "0", "--yes")
    assert done.exit_code == 0, done.err
    assert team.bucket.objects(left) == {}
    assert_fetched_whole(as_user, kept)


def test_a_bucket_that_is_gone_is_a_server_with_errors(
    team: Team, as_user: Callable[[str], Store], tmp_path: Path
) -> None:
    version = registered(as_user, tmp_path / "adapter", "lost")
    team.bucket.process.kill()
    team.bucket.process.wait()
    as_user("reader")
    done = loradock("verify", str(version.ref))
    assert (done.exit_code, "it answers with errors" in done.err) == (6, True), done.err
