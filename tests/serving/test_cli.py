"""The serving verbs: light to import, helped throughout, and clear about whom they reached."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from loradock.cli.serve import serve
from loradock.cli.status import status
from loradock.registry import replicas
from loradock.registry.errors import BadInput, LoradockError, NotFound, Unreachable
from tests.support import warm
from tests.support.serving.status import STATUS, FakeReplicaHandler
from tests.support.web import running


@pytest.fixture
def replica() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), FakeReplicaHandler)
    server.asked, server.answer = [], (200, json.dumps(STATUS).encode())
    server.url = f"http://127.0.0.1:{server.server_port}"
    with running(server):
        yield server


def test_importing_the_verbs_loads_nothing_heavy() -> None:
    heavy = {"torch", "mlflow", "vllm", "fastapi", "httpx"}
    code = f"import sys, loradock.cli.serve, loradock.cli.status; print([*{heavy} & {{*sys.modules}}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [serve, status])
def test_every_option_has_help(command: click.Command) -> None:
    assert command.help
    assert not [param.name for param in command.params if isinstance(param, click.Option) and not param.help]


def test_status_prints_what_the_replica_says(replica: Any) -> None:
    done = CliRunner().invoke(status, ["--replica", replica.url, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == STATUS
    assert replica.asked == [("/loradock/status", None)]


def test_status_is_readable(replica: Any) -> None:
    text = CliRunner().invoke(status, ["--replica", replica.url + "/"], catch_exceptions=False).stdout
    for part in ("smol", "bot/1", "cat/1", "no effect", "another base", "unreachable", "3 in flight"):
        assert part in text


def test_status_gives_the_key(replica: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    CliRunner().invoke(status, ["--replica", replica.url], catch_exceptions=False)
    assert replica.asked == [("/loradock/status", "Bearer secret")]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((401, b""), BadInput),
        ((404, b""), NotFound),
        ((500, b""), LoradockError),
        ((200, b"<html>"), NotFound),
        ((200, b"[]"), NotFound),
        ((200, b"{}"), NotFound),
    ],
)
def test_another_answer_is_told_apart(answer: tuple[int, bytes], error: type[Exception], replica: Any) -> None:
    replica.answer = answer
    with pytest.raises(error):
        replicas.fetch_status(replica.url, SecretStr(""))


def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="no replica answers"):
        replicas.fetch_status("http://127.0.0.1:9", SecretStr(""))


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:8000", ""])
def test_only_http_is_asked(url: str) -> None:
    with pytest.raises(BadInput):
        replicas.fetch_status(url, SecretStr(""))


def test_the_exit_code_of_nobody_there_is_6() -> None:
    done = warm.run([warm.LORADOCK, "status", "--replica", "http://127.0.0.1:9"], kind="registry")
    assert done.returncode == 6
    assert "no replica answers" in done.stderr
