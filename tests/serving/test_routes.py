"""vLLM's real application with our plugin in it, and no engine behind: every route that it has, asked without a key.

What a route does with a request that gets through does not matter here (without an engine, most fail): only whether one
gets through.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from loradock.serving import access, keyfile
from loradock.serving.nudge import Nudges
from loradock.serving.plugin import NAME

pytestmark = pytest.mark.slow

OPEN = {
    *("/docs", "/docs/oauth2-redirect", "/health", "/load", "/loradock/ready", "/metrics", "/openapi.json", "/ping"),
    *("/redoc", "/version"),
}
"""What is read without a key."""
ADMIN = {
    *(("POST", "/scale_elastic_ep"), ("POST", "/inference/v1/abort_requests"), ("GET", "/kv_event_sources")),
    *(("POST", "/start_profile"), ("POST", "/stop_profile"), ("POST", "/fault_tolerance/apply")),
    *(("GET", "/fault_tolerance/status"), ("GET", "/loradock/signals")),
}
"""What runs the server. A route that a new vLLM brings is an admin's until it is looked at and, if it may, named in
`serving/access.py`."""
UNWANTED = re.compile(r"lora_adapter|/adapters|/pause|/sleep|/wake_up|weight|/reset_|/collective_rpc|/server_info")
"""What loads adapters, or is there in vLLM's development mode only."""


class RoutesHarness:
    """The application, its keys and its routes."""

    def __init__(self, app: Any, *, plain: str, admin: str) -> None:
        self.plain, self.admin = plain, admin
        self.client = TestClient(app, raise_server_exceptions=False)
        pairs = [(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ()]
        self.routes = sorted({pair for pair in pairs if pair[0] not in ("HEAD", "OPTIONS")})
        self.paths = sorted({route.path for route in app.routes})
        """Those of mounted applications, too."""

    def ask(self, method: str, path: str, key: str = "") -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = None if method == "GET" else {}
        return self.client.request(method, re.sub(r"{\w+}", "x", path), headers=headers, json=body).status_code


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoutesHarness]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    plain = keyfile.add(file, "plain", may=["**"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", NAME)
        patch.setenv("VLLM_TARGET_DEVICE", os.environ.get("VLLM_TARGET_DEVICE", "cpu"))
        patch.setenv("LORADOCK_SERVE_KEYS", str(file))
        app = build(["--api-key", "vllms-own"])
        app.state.loradock_nudges = Nudges(app.state.loradock_keys, SecretStr("of-the-webhook"), wake=lambda: None)
        yield RoutesHarness(app, plain=plain, admin="vllms-own")


def build(arguments: list[str]) -> Any:
    """The application as vLLM builds it for a model that generates, with every router that its arguments can add."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's and torch's own, while they are imported
        from vllm.config import ProfilerConfig
        from vllm.entrypoints.launchers.app import build_app
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(
        ["--model", "none", "--enable-lora", "--enable-scale-out", *arguments]
    )
    args.profiler_config = ProfilerConfig(profiler="torch", torch_profiler_dir="/nowhere")
    args.enable_fault_tolerance = True
    return build_app(args, ("generate",))


def test_without_a_key_nothing_is_open_but_what_a_probe_or_a_person_reads(replica: RoutesHarness) -> None:
    asked = {pair: replica.ask(*pair) for pair in replica.routes}
    assert {path for (method, path), status in asked.items() if status != 401} == OPEN
    assert {method for (method, _), status in asked.items() if status != 401} == {"GET"}
    assert {pair: replica.ask(*pair, key="wrong") for pair in replica.routes} == asked


def test_options_open_no_more_than_reading_does_and_a_browsers_question_needs_no_key(replica: RoutesHarness) -> None:
    open_ = {path for path in replica.paths if replica.ask("OPTIONS", path) != 401}
    assert open_ == OPEN & set(replica.paths) | {access.NUDGE}
    assert replica.ask("OPTIONS", access.NUDGE) == 405, "its route looks at the signature of a POST, and has no other"
    browser = {"origin": "https://site.example", "access-control-request-method": "POST"}
    told = {replica.client.options(path, headers=browser).text for path in replica.paths}
    assert told == {"Disallowed CORS origin"}, "vLLM's CORS middleware is outside of the guard, and allows none here"


def test_only_an_admins_key_opens_what_runs_the_server(replica: RoutesHarness) -> None:
    asked = {pair: replica.ask(*pair, key=replica.plain) for pair in replica.routes}
    assert {pair for pair, status in asked.items() if status == 403} == ADMIN & set(replica.routes)
    assert 401 not in asked.values()
    as_admin = {pair: replica.ask(*pair, key=replica.admin) for pair in replica.routes}
    assert not {401, 403} & set(as_admin.values())


def test_there_is_no_route_that_loads_adapters_or_changes_weights(replica: RoutesHarness) -> None:
    assert [path for _, path in replica.routes if UNWANTED.search(path)] == []
    assert {("POST", "/v1/completions"), ("GET", "/loradock/status"), ("POST", "/loradock/nudge")} <= set(
        replica.routes
    )


def test_a_refusal_looks_like_openais_on_every_route(replica: RoutesHarness) -> None:
    for path in ("/v1/completions", "/tokenize", "/scale_elastic_ep"):
        answer = replica.client.post(path, json={})
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_vllms_page_of_metrics_shows_ours(replica: RoutesHarness) -> None:
    replica.client.post("/v1/completions", json={})
    page = replica.client.get("/metrics").text
    assert "# TYPE loradock_requests_total counter" in page
    refused = next(
        line for line in page.splitlines() if line.startswith('loradock_refusals_total{key="",status="401"}')
    )
    assert float(refused.rsplit(" ", 1)[1]) > 0
