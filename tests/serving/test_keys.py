"""Keys as clients meet them: OpenAI's own, against a small server behind the guard; and the file that holds them."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import openai
import pytest
import uvicorn
from click.testing import CliRunner
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from loradock.cli.keys import keys as command
from loradock.registry.errors import BadInput, NotFound
from loradock.registry.refs import VersionRef
from loradock.registry.replica_status import KeysView
from loradock.serving import keyfile, refusals
from loradock.serving.calls import Asked, Call, Role
from loradock.serving.guard import CALLER, Guard
from loradock.serving.keyfile import BASE, OWN
from loradock.serving.keys import ANYBODY, Caller, Keys
from loradock.serving.refusals import Denied

SECONDS = 30
SERVED = {"bot", "bot@canary", "bot/3", "other"}


class FakeClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeReplica:
    """What stands behind the guard here: it does with keys what a replica does, and has no model."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.refused: list[tuple[str, int]] = []
        self.app = Guard(
            self.serve, keys, open_metrics=True, refused=lambda name, code: self.refused.append((name, code))
        )
        self.url = ""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        caller: Caller = scope[CALLER]
        model = (await Request(scope, receive).json())["model"]
        try:
            if not caller.may(BASE if model == "base" else model):
                raise refusals.may_not_call(model, caller=caller.name)
            headers = self.keys.admit(caller)
            if model not in SERVED | {"base"}:
                raise refusals.no_such_model(model, caller=caller.name)
        except Denied as denied:
            await denied.response()(scope, receive, send)
            return
        choice = {"index": 0, "text": "yes", "finish_reason": "stop"}
        body = {"id": "1", "object": "text_completion", "created": 1, "model": model, "choices": [choice]}
        await JSONResponse(body, headers=headers)(scope, receive, send)

    def client(self, secret: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0, timeout=SECONDS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def serve(clock: FakeClock) -> Iterator[Callable[[Keys], FakeReplica]]:
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(keys: Keys) -> FakeReplica:
        served = FakeReplica(keys)
        server = uvicorn.Server(uvicorn.Config(served.app, port=0, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        until(lambda: server.started)
        served.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        return served

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(client: openai.OpenAI, model: str) -> str:
    with client:
        return client.completions.create(model=model, prompt="x").model


def body(error: openai.APIStatusError) -> Any:
    return error.response.json()["error"]


def test_the_right_key_gets_an_answer_and_others_what_openai_says(
    file: Path, serve: Callable[[Keys], FakeReplica]
) -> None:
    secret = keyfile.add(file, "ci", may=["bot", "bot@*"])
    server = serve(Keys(file))
    assert ask(server.client(secret), "bot") == "bot"
    assert ask(server.client(secret), "bot@canary") == "bot@canary"
    with pytest.raises(openai.AuthenticationError) as unknown:
        ask(server.client(f"{secret}x"), "bot")
    assert body(unknown.value) == {
        "message": "The API key is not known here.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert unknown.value.response.headers["www-authenticate"] == "Bearer"
    for model in ("bot/3", "other", "base", "nowhere"):
        with pytest.raises(openai.PermissionDeniedError) as forbidden:
            ask(server.client(secret), model)
        assert (body(forbidden.value)["code"], body(forbidden.value)["param"]) == ("permission_denied", "model")
    assert server.refused == [("", 401)]


def test_an_unknown_model_is_not_found_as_openai_says_it(file: Path, serve: Callable[[Keys], FakeReplica]) -> None:
    secret = keyfile.add(file, "all", may=["**"])
    server = serve(Keys(file))
    with pytest.raises(openai.NotFoundError) as missing:
        ask(server.client(secret), "nowhere")
    assert (body(missing.value)["code"], body(missing.value)["param"]) == ("model_not_found", "model")


def test_a_key_that_asks_too_often_waits_as_it_is_told(
    file: Path, clock: FakeClock, serve: Callable[[Keys], FakeReplica]
) -> None:
    secret = keyfile.add(file, "ci", may=["**"], requests=["2/m", "100/h"])
    server = serve(Keys(file, clock=clock))
    with server.client(secret) as client:
        raw = client.completions.with_raw_response.create(model="bot", prompt="x")
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == "1"
        assert raw.headers["x-ratelimit-reset-requests"] == "61s"
    ask(server.client(secret), "bot")
    with pytest.raises(openai.RateLimitError) as limited:
        ask(server.client(secret), "bot")
    assert (body(limited.value)["type"], body(limited.value)["code"]) == ("requests", "rate_limit_exceeded")
    assert "x-should-retry" not in limited.value.response.headers
    clock.now += int(limited.value.response.headers["retry-after"])
    assert ask(server.client(secret), "bot") == "bot"


def test_a_days_quota_is_not_worth_repeating(
    file: Path, clock: FakeClock, serve: Callable[[Keys], FakeReplica]
) -> None:
    secret = keyfile.add(file, "ci", may=["**"], tokens=["100/d"])
    keys = Keys(file, clock=clock)
    server = serve(keys)
    ask(server.client(secret), "bot")
    keys.spend("ci", 250)  # one call may go beyond: what it takes is known at its end
    with pytest.raises(openai.RateLimitError) as limited:
        ask(server.client(secret), "bot")
    assert body(limited.value)["code"] == body(limited.value)["type"] == "insufficient_quota"
    headers = limited.value.response.headers
    assert headers["x-should-retry"] == "false"
    assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) == ("100", "0")
    clock.now += 86400 * 61 / 60
    assert ask(server.client(secret), "bot") == "bot"


def denied(keys: Keys, header: str) -> Denied:
    with pytest.raises(Denied) as refused:
        keys.caller({"authorization": header} if header else {})
    return refused.value


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_without_keys_anybody_may_call_and_nobody_is_an_admin() -> None:
    keys = Keys()
    assert not keys.configured
    assert keys.caller({}) is ANYBODY
    assert ANYBODY.may("bot/3")
    assert not ANYBODY.admin
    assert keys.admit(ANYBODY) == {}


def test_a_file_without_keys_lets_nobody_in(file: Path) -> None:
    keyfile.add(file, "ci", may=["**"])
    keyfile.remove(file, "ci")
    keys = Keys(file)
    assert keys.configured
    assert denied(keys, "Bearer x").status == 401


@pytest.mark.parametrize("header", ["", "x", "Bearer", "Bearer ", "Basic {}", "Bearer {}x", "Bearer x{}", "{}"])
def test_only_the_whole_key_in_the_right_header_opens(header: str, file: Path) -> None:
    secret = keyfile.add(file, "ci", may=["**"])
    found = denied(Keys(file, own=["another"]), header.format(secret))
    assert (found.status, found.caller) == (401, "")
    assert secret not in str(found)


def test_vllms_own_key_is_an_admins_beside_the_file(file: Path) -> None:
    secret = keyfile.add(file, "ci", may=["bot"])
    keys = Keys(file, own=["one", "two"])
    assert keys.caller(bearer("two")) == Caller(OWN, admin=True)
    assert keys.caller(bearer(secret)).name == "ci"
    assert Keys(own=["one"]).caller({"authorization": "bearer one"}).admin


def test_a_key_ends_when_its_time_is_over(file: Path) -> None:
    end = datetime(2026, 5, 1, tzinfo=UTC)
    secret = keyfile.add(file, "ci", may=["**"], expires=end)
    now = end - timedelta(seconds=1)
    keys = Keys(file, now=lambda: now)
    assert keys.caller(bearer(secret)).name == "ci"
    now = end
    found = denied(keys, f"Bearer {secret}")
    assert (found.status, found.caller) == (401, "ci")
    assert "expired" in str(found)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("bot", ["bot"], ["bots", "bo", "bot@canary", "bot/3", BASE]),
        ("b*", ["b", "bot", "b.x"], ["a", "bot@canary", "bot/3"]),
        ("*", ["bot"], ["bot@canary", "bot/3", BASE]),
        ("b.t", ["b.t"], ["bot"]),
        ("bot@*", ["bot@canary", "bot@production"], ["bot", "bot/3", "other@canary"]),
        ("*@canary", ["bot@canary"], ["bot", "bot@production"]),
        ("bot/*", ["bot/3"], ["bot", "bot@canary", "other/3"]),
        ("bot/3", ["bot/3"], ["bot/33", "bot/4"]),
        (BASE, [BASE], ["bot", "base"]),
        ("**", ["bot", "bot@canary", "bot/3", BASE], []),
    ],
)
def test_a_pattern_is_written_as_models_are(pattern: str, yes: list[str], no: list[str], file: Path) -> None:
    secret = keyfile.add(file, "ci", may=[pattern])
    caller = Keys(file).caller(bearer(secret))
    assert [model for model in (*yes, *no) if caller.may(model)] == yes
    assert caller.restricted == (pattern != "**")


@pytest.mark.parametrize(
    "pattern", ["", "Bot", "bot@", "bot/", "bot/x", "bot@a@b", "b?t", "***@", "@other", "bot 3", 3]
)
def test_what_names_no_models_is_refused(pattern: object, file: Path) -> None:
    with pytest.raises(BadInput) as refused:
        keyfile.add(file, "ci", may=[pattern])
    assert "names no models" in refused.value.problems[0]
    assert not file.exists()


def test_a_shadow_costs_its_caller_nothing(file: Path, clock: FakeClock) -> None:
    keyfile.add(file, "ci", may=["**"], tokens=["100/m"])
    keys = Keys(file, clock=clock)

    def ended(role: Role, caller: str) -> None:
        asked = Asked("bot", role, caller)
        keys.ended(Call(asked, VersionRef("bot", 3), 0.0, prompt_tokens=30, output_tokens=20))

    ended("shadow", "ci")
    ended("production", "somebody else")
    assert keys.admit(Caller("ci"))["x-ratelimit-remaining-tokens"] == "100"
    ended("production", "ci")
    assert keys.admit(Caller("ci"))["x-ratelimit-remaining-tokens"] == "50"


def test_a_changed_file_is_read_and_what_was_counted_stays(file: Path, clock: FakeClock) -> None:
    first = keyfile.add(file, "first", may=["**"], requests=["2/m"])
    keys = Keys(file, clock=clock)
    keys.admit(keys.caller(bearer(first)))
    second = keyfile.add(file, "second", may=["bot"])
    assert denied(keys, f"Bearer {second}").status == 401
    keys.refresh()
    assert keys.caller(bearer(second)).name == "second"
    assert keys.admit(Caller("first"))["x-ratelimit-remaining-requests"] == "0"
    keyfile.remove(file, "first")
    keys.refresh()
    assert denied(keys, f"Bearer {first}").status == 401
    assert keys.status() == KeysView(file=str(file), count=1, error="")


def left(keys: Keys, name: str = "ci") -> tuple[str, str]:
    headers = keys.admit(Caller(name))
    return headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-remaining-tokens"]


@pytest.mark.parametrize("meanwhile", ["", "{}", '{"keys": {}}', "{"])
def test_an_edit_of_a_keys_limits_or_of_the_key_gives_nothing_back(
    meanwhile: str, file: Path, clock: FakeClock
) -> None:
    keyfile.add(file, "ci", may=["**"], requests=["10/m"], tokens=["1000/d"])
    keys = Keys(file, clock=clock)
    keys.spend("ci", 600)
    assert left(keys) == ("9", "400")
    file.write_text(meanwhile)
    keys.refresh()
    assert bool(keys.error) == (meanwhile in ("", "{"))
    file.unlink()
    keyfile.add(file, "ci", may=["**"], requests=["20/m", "9/h"], tokens=["900/d"])
    keys.refresh()
    assert left(keys) == ("7", "300")


def test_what_a_key_used_that_is_gone_is_forgotten_once_it_counts_no_more(file: Path, clock: FakeClock) -> None:
    for name in ("ci", "other"):
        keyfile.add(file, name, may=["**"], requests=["10/m"])
    keys = Keys(file, clock=clock)
    keys.admit(Caller("ci"))
    keyfile.remove(file, "ci")
    keys.refresh()
    assert keys._accounts.keys() == {"ci", "other"}
    clock.now += 120
    keyfile.add(file, "third", may=["**"])
    keys.refresh()
    assert keys._accounts.keys() == {"other", "third"}


def test_a_server_that_runs_follows_its_file(file: Path) -> None:
    keyfile.add(file, "first", may=["**"])
    keys = Keys(file)

    async def story() -> None:
        following = asyncio.create_task(keys.follow())
        secret = keyfile.add(file, "second", may=["bot"])
        await asyncio.to_thread(until, lambda: keys.status().count == 2)
        assert keys.caller(bearer(secret)).name == "second"
        following.cancel()

    asyncio.run(story())


def test_a_name_that_is_too_long_to_be_one_is_not_even_matched(file: Path) -> None:
    secret = keyfile.add(file, "ci", may=["*a*b*c*d*e*f*"])
    caller = Keys(file).caller(bearer(secret))
    assert caller.may("abcdef")
    assert not caller.may("abcde" * 100_000)


HASH = "0" * 64
BROKEN = {
    "empty": "",
    "blank": " \n",
    "nothing but zeros": "\0" * 512,
    "no JSON": "{",
    "unknown": {"ci": {"sha256": HASH, "mya": []}},
    "no hash": {"ci": {"sha256": "secret"}},
    "a name": {"C I": {"sha256": HASH}},
    "vLLM's": {OWN: {"sha256": HASH}},
    "a limit": {"ci": {"sha256": HASH, "requests": ["60"]}},
    "twice": {"a": {"sha256": HASH}, "b": {"sha256": HASH}},
    "no zone": {"ci": {"sha256": HASH, "expires": "2027-01-01"}},
}


@pytest.mark.parametrize("found", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_stops_a_start_and_later_leaves_the_last_good_keys(found: Any, file: Path) -> None:
    text = found if isinstance(found, str) else json.dumps({"keys": found})
    file.write_text(text)
    with pytest.raises(BadInput) as refused:
        Keys(file)
    assert str(file) in str(refused.value)
    assert HASH not in str(refused.value)
    file.unlink()
    secret = keyfile.add(file, "ci", may=["**"])
    keys = Keys(file)
    file.write_text(text)
    keys.refresh()
    assert keys.caller(bearer(secret)).name == "ci"
    assert str(file) in keys.status().error
    file.unlink()
    keys.refresh()
    assert keys.caller(bearer(secret)).name == "ci"
    assert "No such file" in keys.error
    keyfile.add(file, "new", may=["**"])
    keys.refresh()
    assert keys.status() == KeysView(file=str(file), count=1, error="")
    assert denied(keys, f"Bearer {secret}").status == 401


def test_a_file_that_is_missing_at_the_start_is_an_error(file: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        Keys(file)


def test_a_secret_is_in_nothing_that_is_written(file: Path) -> None:
    secret = keyfile.add(file, "ci", may=["bot"], tokens=["5/d"])
    assert len(secret) > 43
    assert secret[4:] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["keys"]["ci"]["tokens"] == ["5/d"]


def test_who_could_read_the_file_still_can_when_it_was_changed(file: Path) -> None:
    keyfile.add(file, "ci", may=["bot"])
    file.chmod(0o444)
    keyfile.add(file, "site", may=["bot"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o444
    keyfile.remove(file, "ci")
    assert stat.S_IMODE(file.stat().st_mode) == 0o444


@pytest.mark.chance
def test_writers_at_once_lose_no_key_and_readers_see_no_half(file: Path) -> None:
    keyfile.add(file, "first", may=["**"])
    done = threading.Event()

    def read() -> int:
        readings = 0
        while not done.is_set():
            assert "first" in keyfile.read(file).keys
            readings += 1
        return readings

    with ThreadPoolExecutor(9) as pool:
        reading = pool.submit(read)
        adding = [pool.submit(keyfile.add, file, f"k{number}", may=["**"]) for number in range(40)]
        secrets = {task.result() for task in adding}
        done.set()
        assert reading.result() > 0
    assert len(keyfile.read(file).keys) == 41
    assert len(secrets) == 40
    assert sorted(path.name for path in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_a_link_to_the_file_stays_one(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.json"
    keyfile.add(real, "ci", may=["**"])
    file.symlink_to(real)
    keys = Keys(file)
    keyfile.add(file, "second", may=["**"])
    keys.refresh()
    assert file.is_symlink()
    assert keys.status().count == 2


def run(*arguments: str) -> Any:
    return CliRunner().invoke(command, arguments)


def test_the_verb_makes_lists_and_removes_keys(file: Path) -> None:
    made = run("--file", str(file), "--add", "ci", "--may", "bot", "--requests", "60/m", "--expires", "2999-01-01")
    assert Keys(file).caller(bearer(made.stdout.strip())).name == "ci"
    admin = json.loads(run("--file", str(file), "--add", "root", "--admin", "--json").stdout)
    assert Keys(file).caller(bearer(admin["secret"])).admin
    rows = json.loads(run("--file", str(file), "--json").stdout)
    assert [row["name"] for row in rows] == ["ci", "root"]
    assert rows[0]["may"] == ["bot"]
    assert rows[0]["expires"] == "2999-01-01T00:00:00Z"
    assert "sha256" not in rows[0]
    assert run("--file", str(file), "--remove", "ci").exit_code == 0
    assert list(keyfile.read(file).keys) == ["root"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--add", "ci"], BadInput),
        (["--add", "ci", "--remove", "ci", "--admin"], BadInput),
        (["--may", "bot"], BadInput),
        (["--add", "C I", "--admin"], BadInput),
        (["--add", "first", "--admin"], BadInput),
        (["--add", "ci", "--admin", "--tokens", "many"], BadInput),
        (["--remove", "ci"], NotFound),
    ],
)
def test_the_verb_refuses_what_cannot_be_meant(arguments: list[str], error: type[Exception], file: Path) -> None:
    keyfile.add(file, "first", may=["**"])
    before = file.read_bytes()
    assert isinstance(run("--file", str(file), *arguments).exception, error)
    assert file.read_bytes() == before


def test_the_verb_needs_a_file_that_is_there_to_list_it(file: Path) -> None:
    assert isinstance(run("--file", str(file)).exception, NotFound)
    assert isinstance(CliRunner().invoke(command, [], env={"LORADOCK_SERVE_KEYS": ""}).exception, BadInput)


def test_importing_the_verb_loads_no_server() -> None:
    heavy = {"starlette", "pydantic", "mlflow"}
    code = f"import sys, loradock.cli.keys; print([*{heavy} & {{*sys.modules}}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_option_of_the_verb_has_help() -> None:
    assert not [param.name for param in command.params if isinstance(param, click.Option) and not param.help]
