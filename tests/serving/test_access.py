"""With an API key, nothing that could change or compute something is open, and readiness stays so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from serving import access


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def ask(method: str, path: str, key: str = "", root_path: str = "") -> int:
    guard = access.Guard(application, allowed=lambda headers: headers.get("authorization") == "Bearer right")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope = {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("path", ["/invocations", "/scale_elastic_ep", "/tokenize", "/generative_scoring", "/new"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_what_could_change_something_needs_the_key(method: str, path: str) -> None:
    assert ask(method, path) == 401
    assert ask(method, path, "wrong") == 401
    assert ask(method, path, "right") == 200


@pytest.mark.parametrize(("path", "root_path"), [("/loradock/status", ""), ("/api/loradock/status", "/api")])
def test_the_status_needs_the_key(path: str, root_path: str) -> None:
    assert ask("GET", path, root_path=root_path) == 401
    assert ask("HEAD", path, root_path=root_path) == 401
    assert ask("GET", path, "right", root_path=root_path) == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/loradock/ready"])
def test_a_probe_needs_no_key(path: str) -> None:
    assert ask("GET", path) == 200


@pytest.mark.parametrize(
    ("api_key", "environ", "expected"),
    [
        (None, {}, ()),
        ([], {}, ()),
        (["a", "", "b"], {"VLLM_API_KEY": "c"}, ("a", "b")),
        (None, {"VLLM_API_KEY": "c"}, ("c",)),
        ([""], {}, ()),
    ],
)
def test_the_keys_are_those_that_vllm_takes(
    api_key: list[str] | None, environ: dict[str, str], expected: tuple[str, ...]
) -> None:
    assert access.keys(api_key, environ) == expected
