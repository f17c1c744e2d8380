"""One real replica: `loradock serve` on a real registry and a real model, asked over HTTP with OpenAI's own client.

The server is started once; each test promotes adapters of its own, so that none depends on another.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from loradock.registry import promotion, traffic
from loradock.registry.base import LocalBase
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving import keyfile
from tests.support import warm
from tests.support.adapters import make_version
from tests.support.serving.server import KEY, PROMPT, QUICK, Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.story]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base: LocalBase) -> Iterator[Server]:
    """A replica that was started with one adapter promoted, `first`."""
    scratch = tmp_path_factory.mktemp("replica")
    home = scratch / "home"
    store = Store(Settings(home=home))
    version = make_version(store, scratch / "first", "first", base=base.base, scale=8.0, seed=1000)
    promotion.promote(store, version.ref, "production", actor="tester")
    (home / "keys.json").write_text("{}")
    settings = QUICK | {"LORADOCK_SERVE_KEYS": str(home / "keys.json")}
    with serving(home, base, store, scratch, settings=settings) as running:
        yield running


def test_what_was_promoted_before_the_start_answers_at_once(server: Server) -> None:
    assert server.complete("first")[0] == "first/1"
    assert server.get("/loradock/ready", key="") == (200, {"ready": True, "waiting": []})


def test_an_answer_names_its_version_and_the_base_answers_as_the_base(server: Server) -> None:
    before = server.complete("SmolLM2-135M-Instruct")
    bot = server.promote(server.make("bot"))
    server.until_answered_by(bot)
    model, text = server.complete("bot")
    assert model == "bot/1"
    assert text != before[1]
    assert server.complete("SmolLM2-135M-Instruct") == before
    chat = server.client.chat.completions.create(
        model="bot", messages=[{"role": "user", "content": "Hello"}], max_tokens=4, temperature=0
    )
    assert chat.model == "bot/1"


def test_the_list_of_models_tells_the_truth(server: Server) -> None:
    version = server.promote(server.make("listed"))
    server.until_answered_by(version)
    cards = {card.id: card for card in server.client.models.list()}
    assert {"SmolLM2-135M-Instruct", "listed"} <= cards.keys()
    assert not [name for name in cards if "/" in name]
    for name in ("listed", "listed@production"):
        card: Any = cards[name]
        assert (card.root, card.parent, card.digest) == ("listed/1", "SmolLM2-135M-Instruct", version.facts.digest)
        assert card.loaded
    assert set(cards) == set(server.names()), "each name that is listed answers, and no other"


@pytest.mark.chance
def test_aliases_move_under_load_without_a_failed_or_a_foreign_answer(server: Server) -> None:
    one, two = server.make("busy"), server.make("busy")
    server.until_answered_by(server.promote(one))
    texts = {str(one.ref): server.complete("busy")[1]}
    with server.under_load(*["busy"] * 4) as asked:
        for version in (two, one, two):
            server.promote(version)
            server.until_answered_by(version)
            server.until_more(asked, 8)
    texts[str(two.ref)] = server.complete("busy")[1]
    assert asked.failures == []
    assert len(set(texts.values())) == 2
    answers = Counter((model, text) for _, model, text in asked.answers)
    assert answers.keys() == set(texts.items()), answers


def test_a_version_goes_from_the_engine_when_nothing_uses_it(server: Server) -> None:
    one, two = server.make("leaving"), server.make("leaving")
    server.until_answered_by(server.promote(one))
    server.until_answered_by(server.promote(two))
    status = server.until(lambda found: "leaving/1" not in found["resident"])
    assert status["resident"]["leaving/2"] == 0
    server.until_answered_by(server.promote(one))
    assert server.complete("leaving")[0] == "leaving/1"


def test_another_base_is_refused_and_seen_and_blocks_nothing(server: Server) -> None:
    server.promote(server.make("foreign", other_base=True))
    status = server.until(lambda found: "foreign" in found["refused"])
    assert "not the base served here" in status["refused"]["foreign"]["reason"]
    assert "foreign" not in status["adapters"]
    with pytest.raises(openai.NotFoundError):
        server.complete("foreign")


def test_a_name_that_moves_to_another_base_stays_where_it_was(server: Server) -> None:
    one = server.promote(server.make("stays"))
    server.until_answered_by(one)
    server.promote(server.make("stays", other_base=True), force=True, reason="a test")
    server.until(lambda found: found["refused"].get("stays", {}).get("version") == "stays/2")
    assert server.complete("stays")[0] == "stays/1"


def test_a_version_without_effect_takes_no_traffic_and_the_one_before_stays(server: Server) -> None:
    good, flat = server.make("proven"), server.make("proven", scale=1e-12)
    server.until_answered_by(server.promote(good))
    server.promote(flat)
    status = server.until(lambda found: str(flat.ref) in found["quarantined"])
    assert "no effect" in status["quarantined"]["proven/2"]["reason"]
    assert server.complete("proven")[0] == "proven/1"
    code, body = server.get("/loradock/ready", key="")
    assert (code, body) == (200, {"ready": True, "waiting": ["proven"]})  # the version before answers
    server.promote(good)
    server.until(lambda found: found["converged"])


def test_a_version_above_the_rank_limit_is_quarantined_with_the_reason(server: Server) -> None:
    wide = server.promote(server.make("wide", rank=32))
    status = server.until(lambda found: str(wide.ref) in found["quarantined"])
    assert "rank is 32" in status["quarantined"]["wide/1"]["reason"]
    server.store.client.delete_registered_model_alias("wide", "production")
    server.until(lambda found: str(wide.ref) not in found["quarantined"])


def test_a_name_whose_alias_goes_is_taken_off(server: Server) -> None:
    version = server.promote(server.make("brief"))
    server.until_answered_by(version)
    server.store.client.delete_registered_model_alias("brief", "production")
    server.until(lambda found: "brief" not in found["adapters"])
    with pytest.raises(openai.NotFoundError):
        server.complete("brief")


@pytest.mark.parametrize("name", ["nobody", "first/9", "first@staging", "first@shadow", "../first"])
def test_a_name_that_is_not_served_is_not_found_as_openai_says_it(name: str, server: Server) -> None:
    code, body = server.ask("POST", "/v1/completions", {"model": name, "prompt": "x", "max_tokens": 1})
    assert code == 404
    assert (body["error"]["param"], body["error"]["code"]) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        server.complete(name)


def test_the_headers_say_which_bytes_answered(server: Server) -> None:
    version = server.promote(server.make("traced"))
    server.until_answered_by(version)
    for stream in (False, True):
        with server.client.chat.completions.with_streaming_response.create(
            model="traced",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=4,
            stream=stream,
        ) as answer:
            assert answer.headers["x-loradock-version"] == "traced/1"
            assert answer.headers["x-loradock-digest"] == version.facts.digest
            assert '"model":"traced/1"' in answer.read().decode()
    raw = server.client.completions.with_raw_response.create(model="SmolLM2-135M-Instruct", prompt="x", max_tokens=1)
    assert raw.headers["x-loradock-digest"] == server.base.base.weights_digest


def test_invocations_are_answered_by_the_version_that_their_header_names(server: Server) -> None:
    server.until_answered_by(server.promote(server.make("invoked")))
    body = {"model": "invoked", "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    answers = [server.ask("POST", path, body)[1] for path in ("/invocations", "/v1/completions")]
    assert [answer["model"] for answer in answers] == ["invoked/1", "invoked/1"]
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]
    base = server.ask("POST", "/invocations", body | {"model": "SmolLM2-135M-Instruct"})[1]
    assert base["choices"][0]["text"] != answers[0]["choices"][0]["text"]
    assert server.client.models.retrieve("invoked").id == "invoked"
    message = {"model": "invoked", "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]}
    code, answer = server.ask("POST", "/v1/messages", message, key="", api_key=KEY)
    assert (code, answer["type"]) == (200, "message")
    code, answer = server.ask("GET", "/v1/models/nobody", None)
    assert (code, answer["error"]["code"]) == (404, "model_not_found")


def test_a_version_by_its_number_is_loaded_when_asked_for_and_unloaded_again(server: Server) -> None:
    one, two = server.make("numbered"), server.make("numbered")
    server.until_answered_by(server.promote(two))
    assert server.complete("numbered/1")[0] == str(one.ref)
    assert server.complete("numbered")[0] == str(two.ref)
    server.until(lambda found: "numbered/1" not in found["resident"])
    assert server.complete("numbered/1")[0] == str(one.ref)


def test_a_canary_answers_its_share_of_the_users_and_a_shadow_nobody(server: Server) -> None:
    one, two = server.make("shared"), server.make("shared")
    server.until_answered_by(server.promote(one))
    promotion.promote(server.store, two.ref, "canary", actor="tester")
    traffic.set_share(server.store, two.ref, "canary", 0.5, actor="tester")
    server.until(lambda found: found["shares"].get("shared") and "shared@canary" in found["adapters"])

    def answers(user: str) -> str:
        return server.client.completions.create(model="shared", prompt="x", max_tokens=1, user=user).model

    first = {user: answers(user) for user in "abcdefghijkl"}
    assert set(first.values()) == {"shared/1", "shared/2"}
    assert {user: answers(user) for user in first} == first
    assert server.complete("shared@production", 1)[0] == "shared/1"
    assert server.complete("shared@canary", 1)[0] == "shared/2"

    traffic.set_share(server.store, two.ref, "canary", 0.0, actor="tester")
    promotion.promote(server.store, two.ref, "shadow", actor="tester")
    traffic.set_share(server.store, two.ref, "shadow", 1.0, actor="tester")
    server.until(lambda found: found["shares"].get("shared", {}).keys() == {"shadow"})
    assert {answers(user) for user in first} == {"shared/1"}
    seen = 'loradock_requests_total{adapter="shared",outcome="ok",role="shadow",version="2"}'
    server.until(lambda _: seen in server.get("/metrics", key="")[1].decode())


def test_the_ledger_and_vllm_agree(server: Server) -> None:
    """What `/v1/models` lists, what the ledger holds, and what answers, are one."""
    status = server.status()
    resident = set(status["resident"])
    assert {row["version"] for row in status["adapters"].values()} <= resident
    for name in server.names():
        assert server.complete(name, 1)[0] in resident | {"SmolLM2-135M-Instruct"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/adapters"),
        ("DELETE", "/adapters/first"),
        ("POST", "/loradock/status"),
        ("DELETE", "/v1/models/first"),
    ],
)
def test_no_route_changes_what_is_served(method: str, path: str, server: Server) -> None:
    body = {"lora_name": "x", "lora_path": "/nowhere", "name": "x", "src": "/nowhere"}
    code, _ = server.ask(method, path, body)
    assert code in (404, 405)
    assert server.complete("first", 1)[0] == "first/1"


def test_without_the_key_only_readiness_and_health_are_open(server: Server) -> None:
    for path in ("/loradock/status", "/v1/models"):
        assert server.get(path, key="")[0] == 401
        assert server.get(path, key="wrong")[0] == 401
    body = {"model": "first", "prompt": "x", "max_tokens": 1}
    for path in ("/v1/completions", "/invocations", "/tokenize", "/scale_elastic_ep"):
        assert server.ask("POST", path, body, key="")[0] == 401
    assert server.get("/loradock/ready", key="")[0] == 200
    assert KEY not in server.log.read_text()


def test_the_tokens_of_an_answer_count_against_its_keys_quota(server: Server) -> None:
    secret = keyfile.add(server.home / "keys.json", "metered", may=["**"], tokens=["1000/d"])
    server.until(lambda found: found["keys"]["count"] == 1)
    used = 0
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0, timeout=120) as client:
        for model in ("first", "SmolLM2-135M-Instruct", "first"):
            answer = client.completions.with_raw_response.create(model=model, prompt=PROMPT, max_tokens=4)
            assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - used)
            used += answer.parse().usage.total_tokens


def test_one_request_is_one_call_however_vllm_splits_it_and_costs_what_was_computed(server: Server) -> None:
    secret = keyfile.add(server.home / "keys.json", "splitting", may=["**"], tokens=["100000/d"])
    server.until(lambda found: found["keys"]["count"] == len(keyfile.read(server.home / "keys.json").keys))
    version = server.promote(server.make("split"))
    server.until_answered_by(version)
    rows: list[Any] = []

    def newest() -> Any:
        rows[:] = server.get("/loradock/signals?name=split")[1]["rows"]
        return rows[-1] if rows else None

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0, timeout=120) as client:

        def complete(**asked: Any) -> Any:
            return client.completions.with_raw_response.create(**{"model": "split", "prompt": PROMPT} | asked)

        usage = complete(prompt=[PROMPT, "It was"], n=2, max_tokens=4).parse().usage
        assert (newest()["prompt_tokens"], len(rows)) == (usage.prompt_tokens, 1)
        used = usage.total_tokens
        beams = {"max_tokens": 4, "n": 3, "temperature": 0, "extra_body": {"use_beam_search": True}}
        raw = complete(**beams)
        assert raw.headers["x-ratelimit-remaining-tokens"] == str(100_000 - used)
        prompt = raw.parse().usage.prompt_tokens
        assert (newest()["prompt_tokens"], newest()["output_tokens"], len(rows)) == (prompt, 4, 2)
        used += prompt + 1 + 3 * 3
        with pytest.raises(openai.APITimeoutError):
            complete(max_tokens=400, extra_body={"ignore_eos": True}, timeout=3)
        server.until(lambda _: newest()["outcome"] == "aborted")
        assert rows[-1]["prompt_tokens"] == prompt
        assert 0 < rows[-1]["output_tokens"] < 400
        used += prompt + rows[-1]["output_tokens"]
        assert complete(max_tokens=1).headers["x-ratelimit-remaining-tokens"] == str(100_000 - used)


def test_the_registry_goes_and_comes_back_while_requests_are_answered(server: Server) -> None:
    file = server.home / "mlflow.db"
    version = server.promote(server.make("steady"))
    server.until_answered_by(version)
    gone = file.rename(server.home / "gone.db")
    try:
        status = server.until(lambda found: not found["registry"]["reachable"])
        assert "unreachable" in status["registry"]["error"]
        assert server.complete("steady")[0] == "steady/1"
        server.until(lambda found: found["registry"]["staleness_seconds"] > 1)
        assert not file.exists()
    finally:
        gone.rename(file)
    server.until(lambda found: found["registry"]["reachable"])
    server.until_answered_by(server.promote(server.make("steady")))


def test_the_command_line_shows_the_replica(server: Server) -> None:
    words = ["status", "--replica", server.url, "--json"]
    done = warm.run([warm.LORADOCK, *words], kind="registry", env=os.environ | {"VLLM_API_KEY": KEY})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["adapters"]["first"]["version"] == str(VersionRef("first", 1))


def test_a_second_server_on_the_same_port_is_told_so_at_once(server: Server) -> None:
    port = server.url.rsplit(":", 1)[1]
    done = warm.run([warm.LORADOCK, "serve", "--base", server.base.base.id, "--port", port], kind="serving", timeout=30)
    assert done.returncode == 2
    assert "address already in use" in done.stderr
    assert "Resolved architecture" not in done.stdout, "before vLLM looks at the model"
