"""Without a key nothing computes or changes; without an admin's nothing changes how the server runs."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from loradock.serving import access, keyfile
from loradock.serving.access import Need
from loradock.serving.guard import CALLER, Guard
from loradock.serving.keys import Keys

CHANGING = ("POST", "PUT", "PATCH", "DELETE")
JSON = {"content-type": "application/json"}

COMPUTING = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/invocations", "/tokenize"]
FOR_ADMINS = [
    *("/scale_elastic_ep", "/abort_requests", "/inference/v1/abort_requests", "/start_profile", "/stop_profile"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/first", "/collective_rpc"),
    *("/pause", "/resume", "/sleep", "/wake_up", "/update_weights", "/start_weight_update", "/weight_checker"),
    *("/reset_prefix_cache", "/reset_mm_cache", "/fault_tolerance/apply", "/metrics", "/health", "/loradock/signals"),
    *("/v1/completions/", "//v1/completions", "/v1/completions/x", "/V1/completions", "/v1/responses/a/b", "/"),
]
READ_BY_ADMINS = ["/server_info", "/kv_event_sources", "/loradock/signals", "/is_paused", "/weight_info", "/new"]


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/load", "/docs", "/openapi.json", access.READY])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_a_probe_or_a_person_reads_is_open(method: str, path: str) -> None:
    assert access.need(method, path, open_metrics=False) is Need.NOTHING


@pytest.mark.parametrize("path", [*COMPUTING, access.STATUS, "/v1/models", "/v1/realtime", "/v1/responses/resp_1"])
@pytest.mark.parametrize("method", ["", "GET", *CHANGING])
def test_what_computes_or_tells_of_the_replica_is_for_any_key(method: str, path: str) -> None:
    assert access.need(method, path, open_metrics=True) is Need.KEY


@pytest.mark.parametrize("path", FOR_ADMINS)
@pytest.mark.parametrize("method", CHANGING)
def test_all_else_that_changes_something_is_for_admins(method: str, path: str) -> None:
    assert access.need(method, path, open_metrics=True) is Need.ADMIN


@pytest.mark.parametrize("path", READ_BY_ADMINS)
def test_what_tells_of_the_machine_is_for_admins(path: str) -> None:
    assert access.need("GET", path, open_metrics=True) is Need.ADMIN


def test_the_metrics_are_open_or_for_any_key() -> None:
    assert access.need("GET", "/metrics", open_metrics=True) is Need.NOTHING
    assert access.need("GET", "/metrics", open_metrics=False) is Need.KEY


@pytest.mark.parametrize("path", [*COMPUTING, *FOR_ADMINS, *READ_BY_ADMINS, "/v1/models/a", "/docs", access.STATUS])
@pytest.mark.parametrize("open_metrics", [False, True])
def test_options_are_read_as_the_page_is(path: str, open_metrics: bool) -> None:
    as_read = access.need("GET", path, open_metrics=open_metrics)
    assert access.need("OPTIONS", path, open_metrics=open_metrics) is as_read


@pytest.mark.parametrize(
    ("api_key", "environ", "expected"),
    [
        (None, {}, ()),
        ([], {}, ()),
        (["a", "", "b"], {"VLLM_API_KEY": "c"}, ("a", "b")),
        (None, {"VLLM_API_KEY": "c"}, ("c",)),
        ([""], {}, ()),
        ([""], {"VLLM_API_KEY": "c"}, ()),
    ],
)
def test_the_keys_that_vllm_was_given_are_those_that_it_would_take(
    api_key: list[str] | None, environ: dict[str, str], expected: tuple[str, ...]
) -> None:
    args = Namespace(api_key=api_key)
    assert access.take_over(args, environ) == expected
    assert [key for key in (args.api_key or [environ.get("VLLM_API_KEY")]) if key] == []


class GuardHarness:
    """A guard with nothing behind it but a note of who came through."""

    def __init__(self, keys: Keys) -> None:
        self.refused: list[tuple[str, int]] = []
        self.guard = Guard(
            self.inside, keys, open_metrics=True, refused=lambda name, status: self.refused.append((name, status))
        )

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(scope[CALLER].name).encode()})

    def ask(self, method: str, path: str, key: str = "", root: str = "", **headers: str) -> tuple[int, Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError

        given = {"authorization": f"Bearer {key}"} if key else {}
        raw = [(name.encode(), value.encode()) for name, value in {**given, **headers}.items()]
        kind = {"type": "http", "method": method} if method else {"type": "websocket", "extensions": {}}
        scope = {**kind, "path": path, "root_path": root, "headers": raw}
        asyncio.run(self.guard(scope, receive, send))
        return int(sent[0]["status"]), json.loads(sent[1]["body"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.mark.parametrize("path", COMPUTING)
def test_a_key_opens_what_computes(path: str, file: Path) -> None:
    secret = keyfile.add(file, "ci", may=["bot"])
    harness = GuardHarness(Keys(file))
    assert harness.ask("POST", path, **JSON)[0] == 401
    assert harness.ask("POST", path, "wrong", **JSON)[0] == 401
    assert harness.ask("POST", path, secret, **JSON) == (200, "ci")
    assert harness.refused == [("", 401), ("", 401)]


@pytest.mark.parametrize("path", FOR_ADMINS)
def test_only_an_admins_key_opens_the_rest(path: str, file: Path) -> None:
    secret, root = keyfile.add(file, "ci", may=["**"]), keyfile.add(file, "root", admin=True)
    harness = GuardHarness(Keys(file, own=["vllms"]))
    assert harness.ask("POST", path)[0] == 401
    status, body = harness.ask("POST", path, secret)
    assert (status, body["error"]["code"]) == (403, "permission_denied")
    assert path in body["error"]["message"]
    assert harness.ask("POST", path, root) == (200, "root")
    assert harness.ask("POST", path, "vllms")[0] == 200
    assert harness.refused == [("", 401), ("ci", 403)]


def test_without_keys_what_an_admin_changes_is_closed_and_the_rest_open() -> None:
    harness = GuardHarness(Keys())
    for path in FOR_ADMINS:
        assert harness.ask("POST", path)[0] == 403
    for path in COMPUTING:
        assert harness.ask("POST", path, **JSON)[0] == 200
    for path in (*READ_BY_ADMINS, access.STATUS, "/v1/models", "/metrics"):
        assert harness.ask("GET", path)[0] == 200


def test_a_prefix_of_the_path_that_a_proxy_adds_does_not_count(file: Path) -> None:
    keyfile.add(file, "ci", may=["**"])
    harness = GuardHarness(Keys(file))
    assert harness.ask("GET", "/api/loradock/status", root="/api")[0] == 401
    assert harness.ask("GET", "/api/health", root="/api")[0] == 200
    assert harness.ask("POST", "/api/pause", root="/api")[0] == 401


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "text/plain", "", "application/x-json"])
def test_a_key_for_some_models_cannot_ask_where_the_model_is_not_seen(kind: str, file: Path) -> None:
    some, every = keyfile.add(file, "some", may=["*", "*@*", "*/*"]), keyfile.add(file, "every", may=["**"])
    harness = GuardHarness(Keys(file))
    for path in ("/v1/audio/transcriptions", "/v1/completions"):
        assert harness.ask("POST", path, some, **{"content-type": kind})[0] == 403
        assert harness.ask("POST", path, every, **{"content-type": kind})[0] == 200
    assert harness.ask("", "/v1/realtime", every)[0] == 200
    assert harness.ask("GET", "/v1/models", some)[0] == 200


def test_a_websocket_is_refused_before_it_opens(file: Path) -> None:
    some = keyfile.add(file, "some", may=["bot"])
    harness = GuardHarness(Keys(file))
    assert harness.ask("", "/v1/realtime")[0] == 401
    assert harness.ask("", "/v1/realtime", some)[0] == 403
    assert harness.ask("", "/v1/realtime", some, **JSON)[0] == 403, "no header shows a WebSocket's model"
    assert harness.ask("", "/new", some)[0] == 403


def test_what_is_refused_counts_as_a_request_of_its_key(file: Path) -> None:
    some = keyfile.add(file, "some", may=["bot"], requests=["4/h"])
    harness = GuardHarness(Keys(file))
    header = {"x-amzn-sagemaker-adapter-identifier": "secret-bot"}
    asked = [
        harness.ask("POST", "/pause", some)[0],
        harness.ask("POST", "/v1/completions", some, **JSON, **header)[0],
        harness.ask("POST", "/v1/audio/transcriptions", some, **{"content-type": "multipart/form-data"})[0],
        harness.ask("", "/v1/realtime", some)[0],
        harness.ask("POST", "/pause", some)[0],
    ]
    assert asked == [403, 400, 403, 403, 429]
    assert harness.refused == [("some", status) for status in asked]


def test_no_header_names_the_model_past_the_body(file: Path) -> None:
    root = keyfile.add(file, "root", admin=True)
    header = {"x-amzn-sagemaker-adapter-identifier": "secret-bot"}
    assert GuardHarness(Keys(file)).ask("POST", "/invocations", root, **JSON, **header)[0] == 400
    assert GuardHarness(Keys()).ask("POST", "/invocations", **JSON, **header)[0] == 400


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_anthropics_header_holds_a_key_on_anthropics_routes_alone(path: str, file: Path) -> None:
    secret, other = keyfile.add(file, "ci", may=["bot"]), keyfile.add(file, "other", may=["bot"])
    harness = GuardHarness(Keys(file))
    given = {"x-api-key": secret}
    assert harness.ask("POST", path, **JSON, **given) == (200, "ci")
    assert harness.ask("POST", path, secret, **JSON, **given) == (200, "ci")
    assert harness.ask("POST", "/v1/completions", **JSON, **given)[0] == 401
    for status, body in (
        harness.ask("POST", path, other, **JSON, **given),
        harness.ask("POST", path, **JSON, **{"x-api-key": "wrong"}),
        harness.ask("POST", path, **JSON),
    ):
        assert (status, body["type"], body["error"]["type"]) == (401, "error", "authentication_error")
    assert harness.ask("POST", path, secret, **{"content-type": "text/plain"})[1]["error"]["type"] == "permission_error"


@pytest.mark.parametrize("path", ["/v1/models/bot", "/v1/models/bot/1"])
def test_one_model_is_read_with_any_key_and_deleted_by_admins(path: str) -> None:
    assert access.need("GET", path, open_metrics=True) is Need.KEY
    assert access.need("DELETE", path, open_metrics=True) is Need.ADMIN
