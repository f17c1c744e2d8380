"""Several replicas on one page: what each holds, what a person should see to, and where they differ.

What they say of themselves comes from real replicas, with an engine and a registry that are not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from loradock.cli.status import status as command
from loradock.registry.errors import DigestMismatch, Unreachable
from loradock.registry.records import TextSettings, Version
from loradock.registry.replica_status import ReplicaStatus, read
from loradock.serving import fleet
from loradock.serving.fleet import Asked
from tests.support.adapters import SMOL
from tests.support.serving.fakes import ReplicaHarness
from tests.support.serving.status import FakeReplicaHandler
from tests.support.serving.versions import CAT, ONE, TWO, version
from tests.support.web import running

NOBODY = "http://127.0.0.1:9"

Start = Callable[[ReplicaStatus], str]


def status(*versions: Version, harness: ReplicaHarness | None = None) -> ReplicaStatus:
    harness = harness or ReplicaHarness(*versions)
    asyncio.run(harness.replica.start())
    return read(json.loads(json.dumps(harness.replica.status().as_json())), "http://a")


def behind() -> ReplicaStatus:
    """Of a replica that answers with `bot/1`, and cannot take up `bot/2`, which is promoted."""
    harness = ReplicaHarness(ONE, CAT)
    harness.cache.errors[TWO.ref] = DigestMismatch("bot/2", expected="a", found="b")

    async def story() -> None:
        harness.registry.promote(TWO, CAT)
        await harness.until(lambda: harness.replica.status().quarantined)

    harness.follow(story)
    return status(harness=harness)


def test_a_version_of_another_template_stands_among_what_a_person_should_see_to() -> None:
    here, there = TextSettings(template="a"), TextSettings(template="b")
    [row] = fleet.troubles([Asked("a", status(harness=ReplicaHarness(version("bot", text=there), text=here)))])
    assert row["what"] == "bot/1 (answers otherwise)"
    assert row["why"] == "bot/1 was trained with another chat template than its base has here"


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server that gives a status, and returns its URL."""
    stack = ExitStack()

    def serve(found: ReplicaStatus) -> str:
        server: Any = ThreadingHTTPServer(("127.0.0.1", 0), FakeReplicaHandler)
        server.asked, server.answer = [], (200, json.dumps(found.as_json()).encode())
        stack.enter_context(running(server))
        return f"http://127.0.0.1:{server.server_port}"

    with stack:
        yield serve


def run(*words: str) -> Any:
    return CliRunner().invoke(command, words)


def test_replicas_that_agree_are_one_row_for_each_adapter() -> None:
    asked = [Asked("a", status(TWO, CAT)), Asked("b", status(CAT, TWO))]
    assert [(row["adapter"], row["version"], row["replicas"]) for row in fleet.answers(asked)] == [
        ("bot", "bot/2", "all"),
        ("cat", "cat/1", "all"),
    ]
    assert fleet.troubles(asked) == []
    assert fleet.differing(asked) == {}


def test_a_replica_that_is_behind_shows_as_drift_with_the_reason_and_as_a_difference() -> None:
    asked = [Asked("a", status(TWO, CAT)), Asked("b", behind())]
    assert [(row["version"], row["replicas"]) for row in fleet.answers(asked)] == [
        ("bot/1", ["b"]),
        ("bot/2", ["a"]),
        ("cat/1", "all"),
    ]
    rows = {row["what"]: row for row in fleet.troubles(asked)}
    assert rows.keys() == {"bot (waiting)", "bot/2 (quarantined)", "bot (differs)"}
    assert rows["bot (waiting)"]["replicas"] == ["b"]
    assert "bot/1 answers it: bot/2 is quarantined" in rows["bot (waiting)"]["why"]
    assert rows["bot (differs)"]["replicas"] == ["a", "b"]


def test_the_same_trouble_everywhere_is_told_once() -> None:
    rows = fleet.troubles([Asked("a", behind()), Asked("b", behind())])
    assert [(row["what"], row["replicas"]) for row in rows] == [
        ("bot (waiting)", ["a", "b"]),
        ("bot/2 (quarantined)", ["a", "b"]),
    ]


def test_replicas_of_different_bases_do_not_differ() -> None:
    other = SMOL.model_copy(update={"id": "other/base", "weights_digest": "0" * 64})
    elsewhere = CAT.model_copy(update={"facts": CAT.facts.model_copy(update={"base": other})})
    both = [status(ONE, elsewhere), status(harness=ReplicaHarness(ONE, elsewhere, base=other))]
    assert [list(found.adapters) for found in both] == [["bot"], ["cat"]]
    assert fleet.differing([Asked("a", both[0]), Asked("b", both[1])]) == {}


def test_a_version_that_is_cold_on_one_replica_is_no_difference() -> None:
    small = status(harness=ReplicaHarness(ONE, CAT, version("dog"), capacity=3))
    asked = [Asked("a", status(ONE, CAT, version("dog"))), Asked("b", small)]
    assert len(small.cold) == 2
    assert fleet.differing(asked) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["adapters"]["bot"].update(digest="0" * 64),
        lambda found: found["adapters"].pop("bot"),
        lambda found: found.update(shares={"bot": {"canary": {"version": "bot/1", "weight": 0.5}}}),
    ],
    ids=["other bytes", "no answer", "another share"],
)
def test_what_else_makes_a_difference(change: Callable[[dict[str, Any]], Any]) -> None:
    canary = version(number=1)
    harness = ReplicaHarness(TWO)
    harness.registry.promoted = harness.registry.promoted.model_copy(
        update={"versions": {"bot": TWO, "bot@canary": canary}}
    )
    one = status(harness=harness)
    told = one.as_json()
    change(told)
    two = read(told, "http://b")
    assert fleet.differing([Asked("a", one), Asked("b", two)]).keys() <= {"bot", "bot@canary"}
    assert fleet.differing([Asked("a", one), Asked("b", two)])
    assert not fleet.differing([Asked("a", one), Asked("b", one)])


def test_one_url_gives_that_status_and_several_a_list(start: Start) -> None:
    good, bad = status(TWO, CAT), behind()
    one, two = start(good), start(bad)
    assert json.loads(run("--replica", one, "--json").stdout) == good.as_json()
    done = run("--replica", one, "--replica", two, "--replica", NOBODY, "--json")
    assert done.exit_code == 0
    rows = json.loads(done.stdout)
    assert [row["url"] for row in rows] == [one, two, NOBODY]
    assert [row["status"] for row in rows] == [good.as_json(), bad.as_json(), None]
    assert [row["differs"] for row in rows] == [["bot"], ["bot"], []]
    assert rows[0]["error"] is None
    assert "no replica answers" in rows[2]["error"]


def test_the_page_of_several_shows_each_with_what_a_person_asks_for(start: Start) -> None:
    urls = (start(status(TWO, CAT)), start(behind()), NOBODY)
    text = run(*(word for url in urls for word in ("--replica", url))).stdout
    for part in (*urls, "no replica answers", "of 32", "read 0 s ago", "quarantined", "differs", "bot/1", "bot/2"):
        assert part in text


def test_the_page_of_one_shows_what_waits_and_how_much_is_held(start: Start) -> None:
    text = run("--replica", start(behind())).stdout
    for part in ("bot (waiting)", "bot/1 answers it", "2 of 32", "tried again in"):
        assert part in text


def test_the_replicas_of_the_environment_are_asked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = start(status(ONE)), start(status(ONE))
    monkeypatch.setenv("LORADOCK_REPLICAS", f"{one}, {two}")
    assert [row["url"] for row in json.loads(run("--json").stdout)] == [one, two]


def test_where_none_answers_that_is_an_error() -> None:
    done = run("--replica", NOBODY, "--replica", "http://127.0.0.1:10")
    assert isinstance(done.exception, Unreachable)
    assert done.exception.exit_code == 6
    assert done.stdout == ""
    assert str(done.exception).count("no replica answers") == 2
