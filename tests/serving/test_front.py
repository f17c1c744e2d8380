"""What every request passes, on an ASGI application that says what reached it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from loradock.registry.errors import NotFound, NotServable, Unreachable
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.serving import access, refusals
from loradock.serving.calls import Asked, Generation, current
from loradock.serving.desired import Desired
from loradock.serving.front import Front
from loradock.serving.guard import CALLER
from loradock.serving.keys import ANYBODY, Caller
from loradock.serving.table import Table
from tests.support.serving.versions import ONE, TWO

MOST = 2**20


class FakeReplica:
    """A replica whose versions can be had, or not."""

    def __init__(self) -> None:
        self.held: dict[VersionRef, int] = {ONE.ref: 0, TWO.ref: 0}
        self.error: Exception | None = None

    def table(self) -> Table:
        desired, pointed = Desired({"bot": ONE, "bot@canary": TWO}), {"bot": ONE.ref, "bot@canary": TWO.ref}
        return Table(frozenset({"smol"}), desired, pointed, pinned=True)

    async def acquire(self, ref: VersionRef) -> Version:
        if self.error:
            raise self.error
        self.held[ref] += 1
        return {ONE.ref: ONE, TWO.ref: TWO}[ref]

    def release(self, ref: VersionRef) -> None:
        self.held[ref] -= 1

    def digests(self) -> Mapping[VersionRef, str]:
        return {one.ref: one.facts.digest for one in (ONE, TWO)}


class FakeQuotas:
    full = False
    admitted = 0

    def admit(self, caller: Caller) -> Mapping[str, str]:
        if self.full:
            raise refusals.over_quota("requests", "1/m", 5, lasting=False, headers={}, caller=caller.name)
        self.admitted += 1
        return {"x-ratelimit-remaining-requests": "7"}


class FrontHarness:
    """A front, what stands behind it, and what reached that."""

    def __init__(self) -> None:
        self.house, self.quotas = FakeReplica(), FakeQuotas()
        self.caller = ANYBODY
        self.seen: list[tuple[Any, Asked | None, dict[VersionRef, int]]] = []
        self.refused: list[tuple[str, int]] = []
        self.front = Front(
            self.behind,
            house=lambda: self.house,
            quotas=self.quotas,
            base_digest=lambda: "of-the-base",
            stored=lambda response_id: {"resp_1": "bot/2", "resp_2": "smol"}.get(response_id, ""),
            refused=lambda key, status: self.refused.append((key, status)),
            most=MOST,
        )

    async def behind(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        headers = dict(scope["headers"])
        assert int(headers.get(b"content-length", len(body))) == len(body)
        request = current.get()
        self.seen.append((body, request and request.asked, dict(self.house.held)))
        self.named = headers.get(b"x-amzn-sagemaker-adapter-identifier", b"").decode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async def guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.front({**scope, CALLER: self.caller}, receive, send)

    def ask(self, body: Any, path: str = "/v1/completions", method: str = "POST") -> httpx.Response:
        async def asking() -> httpx.Response:
            transport = httpx.ASGITransport(self.guarded)
            async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
                content = json.dumps(body).encode() if isinstance(body, dict) else body
                return await client.request(method, path, content=content)

        return asyncio.run(asking())


def test_a_name_becomes_its_version_which_is_held_while_it_answers() -> None:
    harness = FrontHarness()
    answer = harness.ask({"model": "bot", "prompt": "Größe", "user": "ann"})
    assert (answer.status_code, answer.text) == (200, "done")
    assert answer.headers["x-loradock-version"] == "bot/1"
    assert answer.headers["x-loradock-digest"] == ONE.facts.digest
    assert answer.headers["x-ratelimit-remaining-requests"] == "7"
    ((body, asked, held),) = harness.seen
    assert json.loads(body) == {"model": "bot/1", "prompt": "Größe", "user": "ann"}
    assert asked == Asked("bot", "production", "")
    assert held[ONE.ref] == 1
    assert not any(harness.house.held.values())
    assert current.get() is None


@pytest.mark.parametrize("filling", [b"x", b"x" * 100_000])
def test_a_clients_bytes_stay_but_for_the_models_name(filling: bytes) -> None:
    harness = FrontHarness()
    body = b'\n{ "x":[1e2,1.0, "\\u00e9\xc3\xa9"],"model" :"%s","y":"%s","n":12345678901234567890 }\n'
    assert harness.ask(body % (b"bot", filling)).status_code == 200
    assert harness.seen[-1][0] == body % (b"bot/1", filling)
    assert harness.ask(body % (b"smol", filling)).status_code == 200
    assert harness.seen[-1][0] == body % (b"smol", filling)


def test_json_in_another_encoding_is_a_bad_request() -> None:
    harness = FrontHarness()
    assert harness.ask('{"model": "bot"}'.encode("utf-16")).status_code == 400
    assert harness.ask(b'\xef\xbb\xbf{"model": "bot"}').headers["x-loradock-version"] == "bot/1"
    assert len(harness.seen) == 1


@pytest.mark.parametrize(
    ("model", "expected"), [("bot@canary", "bot/2"), ("bot/2", "bot/2"), ("bot@production", "bot/1")]
)
def test_other_ways_to_name_a_version(model: str, expected: str) -> None:
    harness = FrontHarness()
    assert harness.ask({"model": model}).headers["x-loradock-version"] == expected
    assert json.loads(harness.seen[0][0])["model"] == expected


@pytest.mark.parametrize("body", [{"model": "smol", "n": 1}, {"prompt": "x"}, {"model": None}, {"model": ""}])
def test_the_base_s_requests_go_on_as_they_are(body: Any) -> None:
    harness = FrontHarness()
    answer = harness.ask(body)
    assert (answer.headers["x-loradock-version"], answer.headers["x-loradock-digest"]) == ("smol", "of-the-base")
    assert json.loads(harness.seen[0][0]) == body
    assert harness.seen[0][1] == Asked("smol", "base", "")


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"--boundary", b'"text"'])
def test_what_is_no_json_object_is_vllm_s_to_answer(body: bytes) -> None:
    harness = FrontHarness()
    assert harness.ask(body).status_code == 200
    assert harness.seen == [(body, Asked("smol", "base", ""), {ONE.ref: 0, TWO.ref: 0})]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/loradock/nudge")])
def test_what_names_no_model_passes(method: str, path: str) -> None:
    harness = FrontHarness()
    assert "x-loradock-version" not in harness.ask({"model": "bot"}, path, method).headers
    assert json.loads(harness.seen[0][0]) == {"model": "bot"}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
@pytest.mark.parametrize("opening", [b'{"model": "bot", "x": ', b""])
@pytest.mark.parametrize(("depth", "status"), [(150, 200), (300, 400), (100_000, 400)])
def test_json_that_is_nested_too_deep_is_a_bad_request(opening: bytes, depth: int, status: int, path: str) -> None:
    harness = FrontHarness()
    answer = harness.ask(opening + b"[" * depth + b"]" * depth + (b"}" if opening else b""), path)
    assert answer.status_code == status
    if status == 400:
        assert "nested too deep" in answer.json()["error"]["message"]
        assert not harness.seen


def test_many_brackets_are_not_deep() -> None:
    harness = FrontHarness()
    body = b'{"model": "bot", "x": [' + b",".join([b"[]"] * 500) + b"]}"
    assert harness.ask(body).headers["x-loradock-version"] == "bot/1"


@pytest.mark.parametrize("model", ["bot", "smol"])
@pytest.mark.parametrize("value", [b'"\\ud800"', b"1e400", b"9" * 400 + b".5", b"NaN", b"-Infinity"])
def test_what_json_does_not_have_is_a_bad_request(model: str, value: bytes) -> None:
    harness = FrontHarness()
    answer = harness.ask(b'{"model": "%s", "x": [%s]}' % (model.encode(), value))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert not harness.seen
    assert harness.refused == [("", 400)]


def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    return pieces()


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/v1/audio/transcriptions"])
def test_a_body_above_the_limit_is_refused_and_counted(told: bool, path: str) -> None:
    harness = FrontHarness()
    body = json.dumps({"model": "bot", "prompt": "x" * MOST}).encode()
    answer = harness.ask(body if told else in_pieces(body), path)
    assert answer.status_code == 413
    assert "larger than 1 MiB" in answer.json()["error"]["message"]
    assert not harness.seen
    assert harness.quotas.admitted == 1
    assert harness.ask(in_pieces(b'{"model": "bot"}')).status_code == 200


def test_a_request_is_counted_before_anything_is_done_for_it() -> None:
    harness = FrontHarness()
    for body, path in (({"model": "nobody"}, "/v1/completions"), (b"{", "/v1/completions"), (b"a form", "/v1/audio")):
        harness.ask(body, path)
    assert harness.quotas.admitted == 3
    harness.quotas.full = True
    assert harness.ask(b"{").status_code == 429


def test_a_websocket_is_counted_and_computes_for_its_key() -> None:
    harness, told = FrontHarness(), list[Any]()

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        request = current.get()
        told.append(request and request.asked)

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    harness.front._app = behind
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], CALLER: Caller("ann")}
    asyncio.run(harness.front(scope, nothing, nothing))
    assert (told, harness.quotas.admitted) == ([Asked("smol", "base", "ann")], 1)


def test_a_key_for_some_models_only_asks_in_json_objects() -> None:
    harness = FrontHarness()
    harness.caller = Caller("site", allowed=re.compile("bot"))
    for body in (b"", b"[1]", b"{", b'"bot"'):
        assert harness.ask(body).status_code == 400
    assert not harness.seen


def test_where_vllm_takes_the_model_from_a_header_it_is_the_version() -> None:
    harness = FrontHarness()
    harness.ask({"model": "bot"}, "/invocations")
    assert harness.named == "bot/1"


@pytest.mark.parametrize(
    ("path", "version", "digest"),
    [
        ("/v1/responses/resp_1", "bot/2", TWO.facts.digest),
        ("/v1/responses/resp_2", "smol", "of-the-base"),
        ("/v1/responses/resp_1/cancel", "bot/2", TWO.facts.digest),
        ("/v1/responses/resp_9", None, None),
    ],
)
def test_a_response_that_is_kept_names_the_version_that_gave_it(
    path: str, version: str | None, digest: str | None
) -> None:
    harness = FrontHarness()
    harness.caller = Caller("operator", admin=True)
    answer = harness.ask({}, path, "POST" if path.endswith("cancel") else "GET")
    assert (answer.headers.get("x-loradock-version"), answer.headers.get("x-loradock-digest")) == (version, digest)


def test_a_response_that_is_kept_belongs_to_the_key_that_made_it() -> None:
    harness = FrontHarness()
    ann, bob, operator = Caller("ann"), Caller("bob"), Caller("operator", admin=True)

    def asked(caller: Caller, path: str = access.RESPONSES, **body: Any) -> int:
        harness.caller = caller
        return harness.ask({"model": "bot", **body}, path, "POST" if path == access.RESPONSES else "GET").status_code

    assert asked(ann, request_id="resp_of_bob") == 200
    made = json.loads(harness.seen[0][0])["request_id"]
    assert made != "resp_of_bob"
    for path in (f"/v1/responses/{made}", f"/v1/responses/{made}/cancel"):
        assert [asked(caller, path) for caller in (ann, bob, operator, ANYBODY)] == [200, 404, 200, 404]
    assert [asked(one, previous_response_id=made) for one in (ann, bob, operator)] == [200, 404, 200]
    assert asked(bob, "/v1/responses/resp_of_nobody") == 404


def test_a_refusal_on_anthropics_routes_looks_like_anthropics() -> None:
    answer = FrontHarness().ask({"model": "nobody"}, "/v1/messages")
    assert answer.status_code == 404
    assert answer.json() == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "The model `nobody` does not exist."},
    }


@pytest.mark.parametrize("model", ["nobody", "nobody@canary", "bot@shadow", "../bot", "x" * 300])
def test_an_unknown_name_is_not_found_as_openai_says_it(model: str) -> None:
    harness = FrontHarness()
    answer = harness.ask({"model": model})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
    assert harness.refused == [("", 404)]
    assert not harness.seen


def test_a_model_that_is_no_text_is_a_bad_request() -> None:
    assert FrontHarness().ask({"model": ["bot"]}).status_code == 400


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotFound("no"), 404), (NotServable("bot/1", ["no effect"]), 503), (Unreachable("not within 60 s"), 503)],
)
def test_a_version_that_cannot_be_had(error: Exception, status: int) -> None:
    harness = FrontHarness()
    harness.house.error = error
    answer = harness.ask({"model": "bot"})
    assert answer.status_code == status
    assert "no effect" not in answer.text, "why is for whoever runs the replica"
    assert not harness.seen


def test_a_key_calls_what_it_may_and_learns_nothing_else() -> None:
    import re

    harness = FrontHarness()
    harness.caller = Caller("ann", allowed=re.compile(r"bot"))
    assert harness.ask({"model": "bot"}).status_code == 200
    assert harness.seen[-1][1] == Asked("bot", "production", "ann")
    for model in ("bot@canary", "bot/1", "nobody", "smol"):
        assert harness.ask({"model": model}).status_code == 403, model
    assert harness.ask({"prompt": "x"}).status_code == 403, "no model is the base to vLLM"
    assert harness.refused[-1] == ("ann", 403)


def test_a_key_that_has_used_its_quota_holds_nothing() -> None:
    harness = FrontHarness()
    harness.quotas.full = True
    answer = harness.ask({"model": "bot"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert not harness.seen


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_call_is_told_before_its_client_knows_that_it_ended(pieces: int) -> None:
    harness, story = FrontHarness(), list[str]()
    version = ONE.ref

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        request = current.get()
        assert request
        for _ in range(2):
            request.begin(version, generation := Generation(0.0), lambda call: story.append(f"told {call.asked.name}"))
            request.end(generation)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for left in reversed(range(pieces)):
            await send({"type": "http.response.body", "body": b"x", "more_body": left > 0})

    async def asking() -> None:
        async def receive() -> Any:
            return {"type": "http.request", "body": b'{"model": "bot"}'}

        async def send(message: Any) -> None:
            story.append(message["type"].removeprefix("http.response."))

        harness.front._app = behind
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], CALLER: ANYBODY}
        await harness.front(scope, receive, send)

    asyncio.run(asking())
    assert story == ["start", *["body"] * (pieces - 1), "told bot", "body"]


def test_a_version_is_let_go_when_the_answer_fails() -> None:
    harness = FrontHarness()

    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    harness.front._app = breaks
    with pytest.raises(RuntimeError):
        harness.ask({"model": "bot"})
    assert not any(harness.house.held.values())
    assert current.get() is None


def test_a_client_that_leaves_while_it_still_speaks_reaches_nothing() -> None:
    harness = FrontHarness()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], CALLER: ANYBODY}
    asyncio.run(harness.front(scope, receive, send))
    assert not harness.seen
