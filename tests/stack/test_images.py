"""The Dockerfile and what it installs by: the same locks, versions and omissions as `make install`."""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from loradock.serving import keyfile
from tests.support.leftovers import MARK
from tests.support.locks import locked

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MLFLOW = ROOT / "stack" / "mlflow" / "requirements.txt"
ENTRYPOINT = ROOT / "stack" / "entrypoint.sh"


def test_neither_image_runs_as_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    final = {
        match[1]: stage for stage in stages if (match := re.search(r" AS (mlflow|loradock)$", stage, re.MULTILINE))
    }
    assert final.keys() == {"mlflow", "loradock"}
    for stage in final.values():
        assert re.findall(r"^USER (.*)$", stage, re.MULTILINE) == ["10001:10001"]


def test_the_base_image_is_pinned() -> None:
    assert re.findall(r"^ARG PYTHON_IMAGE=([^@\n]*)(?:@sha256:[0-9a-f]{64})?$", DOCKERFILE, re.MULTILINE) == [
        "docker.io/library/python:3.11.16-slim-bookworm"
    ]
    assert set(re.findall(r"^FROM (\S+) AS", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}", "python", "installer"}


def test_all_that_is_installed_in_them_is_locked_by_hash_but_loradock_which_is_built_there() -> None:
    commands = re.findall(r"\bpip install (.*?)(?:;|&&|$)", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)
    ours = [command for command in commands if "/build/dist/" in command]
    assert len(ours) == 1
    assert "--no-index" in ours[0]
    others = [command.split() for command in commands if command not in ours]
    assert len(others) == 4
    assert [words for words in others if not {"--no-deps", "--require-hashes", "--requirement"} <= {*words}] == []
    assert re.findall(r"[\w-]+==\d", DOCKERFILE) == []
    copied = re.findall(r"^COPY (\S*\.txt) ", DOCKERFILE, re.MULTILINE)
    assert copied == ["requirements/build.txt", "stack/mlflow/requirements.txt", "requirements/${BUILD}.txt"]


def test_the_images_bear_the_projects_version() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"].values()
    tags = {
        service["image"].partition(":")[2] for service in services if service["image"].startswith("localhost/loradock/")
    }
    assert tags == {PROJECT["version"], f"{PROJECT['version']}-cpu", f"{PROJECT['version']}-gpu"}


def test_the_server_and_its_clients_have_the_same_versions() -> None:
    server, client = locked(MLFLOW), locked(ROOT / "requirements/cpu.txt") | locked(ROOT / "requirements/dev.txt")
    assert {name: server[name] for name in server.keys() & client.keys()} == {
        name: client[name] for name in server.keys() & client.keys()
    }
    assert {"mlflow", "psycopg", "psycopg-binary", "uvloop", "flask-wtf", "boto3"} <= server.keys()


def test_nothing_that_the_server_needs_is_missing_in_its_lock() -> None:
    server = locked(MLFLOW)
    for name in server:
        try:
            if version(name) != server[name]:
                continue  # another version's needs say nothing
        except PackageNotFoundError:
            continue
        needed = [Requirement(line) for line in requires(name) or []]
        missing = {
            canonicalize_name(need.name)
            for need in needed
            if need.marker is None or need.marker.evaluate({"extra": ""})
        } - server.keys()
        assert missing == set(), name


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text('it\'s $HOME; "q" \\n\n')
    return path


def entrypoint(**environment: str) -> subprocess.CompletedProcess[str]:
    words, bare = [ENTRYPOINT, "/usr/bin/env"], {"PATH": "/usr/bin:/bin", MARK: os.environ[MARK]}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=bare | environment)


def test_a_variable_comes_out_of_its_file_as_it_is(secret: Path) -> None:
    done = entrypoint(MLFLOW_TRACKING_PASSWORD__FILE=str(secret), AWS_SHARED_CREDENTIALS_FILE="/as/it/is")
    assert done.stdout.splitlines()[-3:] != []
    assert 'MLFLOW_TRACKING_PASSWORD=it\'s $HOME; "q" \\n' in done.stdout.splitlines()
    assert "AWS_SHARED_CREDENTIALS_FILE=/as/it/is" in done.stdout.splitlines()
    assert "__FILE" not in done.stdout


@pytest.mark.parametrize("content", [None, ""])
def test_a_secret_that_is_not_there_or_empty_stops_it(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
    done = entrypoint(VLLM_API_KEY__FILE=str(path))
    assert done.returncode == 78
    assert "VLLM_API_KEY is to be read from" in done.stderr
    assert done.stdout == ""


def test_the_secrets_are_made_once_and_for_their_owner(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    subprocess.run([ROOT / "stack/secrets.sh", directory], check=True, capture_output=True)
    first = {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}
    keys = first.pop("aws")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(re.fullmatch(r"[0-9a-f]{48}([0-9a-f]{16})?", text) for text in first.values())
    assert len(set(first.values())) == len(first)
    assert configparser.RawConfigParser().read(directory / "aws"), "it is AWS's own file"
    assert keys.startswith("#"), "with nothing in it: nobody can make up the keys to a bucket"
    (directory / "reader").unlink()
    (directory / "aws").chmod(0o644)
    (directory / "aws").write_text("[default]\naws_access_key_id = a\n")
    subprocess.run([ROOT / "stack/secrets.sh", directory], check=True, capture_output=True)
    second = {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}
    assert second.pop("aws").startswith("[default]")
    assert {name for name in first if first[name] != second[name]} == {"reader"}


def test_clients_and_operators_have_keys_of_their_own_of_which_replicas_have_the_hashes(tmp_path: Path) -> None:
    make = [ROOT / "stack/secrets.sh", tmp_path]
    subprocess.run(make, check=True, capture_output=True)
    file = tmp_path / "keys/keys.json"
    keys = keyfile.read(file).keys
    secrets = {name: (tmp_path / f"{name}_key").read_text() for name in keys}
    assert secrets.keys() == {"client", "operator"}
    assert {name: key.sha256 for name, key in keys.items()} == {
        name: hashlib.sha256(secret.encode()).hexdigest() for name, secret in secrets.items()
    }
    assert all(len(bytes.fromhex(secret)) == 32 for secret in secrets.values())
    client, operator = keys["client"], keys["operator"]
    assert (client.admin, operator.admin) == (False, True)
    allowed = client.allows()
    assert allowed
    assert [name for name in ("bot", "@base", "bot@canary", "bot/1") if allowed.fullmatch(name)] == ["bot", "@base"]
    assert file.stat().st_mode & 0o777 == 0o444, "replicas read it as another user"
    for path in (tmp_path / "client_key", tmp_path / "operator_key"):
        assert path.stat().st_mode & 0o777 == 0o400, "no container has it"
        path.unlink()
    keyfile.add(file, "more", may=["bot"])
    subprocess.run(make, check=True, capture_output=True)
    assert keyfile.read(file).keys.keys() == {*keys, "more"}, "what was handed out and deleted here stays in force"
    assert not (tmp_path / "operator_key").exists()
