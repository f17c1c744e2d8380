"""Rollouts on a real replica under real traffic: one that ends in production, and one that takes itself back.

The canary that is taken back has such weights that its sentences do not end.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from loradock.cli.rollout import rollout
from loradock.registry import history, traffic
from loradock.registry.base import LocalBase
from loradock.registry.errors import Refused
from loradock.registry.records import Version
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from tests.support.clients import at_work
from tests.support.serving.server import KEY, Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.minutes]

CLIENTS = 4
LIKE_THE_BASE: dict[str, Any] = {"scale": 0.5}
WITHOUT_AN_END: dict[str, Any] = {"scale": 60.0, "layers": 30}
"""What it says has no full stop, at which the others end after a few words."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base: LocalBase) -> Iterator[Server]:
    scratch = tmp_path_factory.mktemp("rollout")
    home = scratch / "home"
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("LORADOCK_HOME", str(home))
        environ.setenv("VLLM_API_KEY", KEY)
        with serving(home, base, Store(Settings(home=home)), scratch) as running:
            yield running


class Traffic:
    """Users who ask for the bare name, each only once."""

    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name
        self.answers: Counter[str] = Counter()
        self.failures: list[Exception] = []
        self.stop = threading.Event()

    def ask(self, user: str) -> str:
        """Which version answered."""
        answer = self._server.client.completions.create(
            model=self._name,
            prompt="The keeper of the lighthouse wrote in his diary: Today",
            max_tokens=32,
            temperature=0.7,
            stop=".",
            user=user,
        )
        return answer.model

    def run(self, client: int) -> None:
        turn = 0
        while not self.stop.is_set():
            turn += 1
            try:
                self.answers[self.ask(f"{client}-{turn}")] += 1
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.failures.append(error)


@contextmanager
def asked(server: Server, name: str) -> Iterator[Traffic]:
    found = Traffic(server, name)
    with at_work(found.run, CLIENTS, found.stop):
        yield found


def roll(server: Server, version: Version) -> Any:
    margins = [part for each in ("unstopped", "slow", "long") for part in ("--margin", f"{each}=35%")]
    given = ["--replica", server.url, "--steps", "25%,50%", "--min-requests", "8", "--for", "0s", "--within", "5m"]
    given += ["--every", "0.5s", "--baseline", "40", "--alpha", "0.05", "--margin", "error=10%", *margins, "--json"]
    return CliRunner().invoke(rollout, [str(version.ref), *given])


def shares(server: Server, name: str) -> list[float]:
    return [entry.weight for entry in history.read(server.store, name).entries if entry.op == "traffic"]


def test_a_canary_that_does_as_well_is_promoted_under_traffic(server: Server) -> None:
    first = server.promote(server.make("steady", **LIKE_THE_BASE))
    second = server.make("steady", **LIKE_THE_BASE)
    server.until_answered_by(first)
    with asked(server, "steady") as users:
        found = roll(server, second)
        assert found.exit_code == 0, found.output
        server.until_answered_by(second)
        assert {users.ask(f"late-{number}") for number in range(8)} == {str(second.ref)}
    outcome = json.loads(found.stdout)
    assert outcome["result"] == "promoted"
    assert {finding["signal"]: finding["shown"] for finding in outcome["findings"]} == dict.fromkeys(
        ("error", "unstopped", "slow", "long"), True
    )
    assert not users.failures
    assert users.answers.keys() == {str(first.ref), str(second.ref)}
    assert shares(server, "steady") == [0.25, 0.5, 0.0]
    assert server.store.family("steady").aliases["production"] == 2


def test_a_canary_whose_sentences_do_not_end_is_taken_back_under_traffic(server: Server) -> None:
    first = server.promote(server.make("wordy", **LIKE_THE_BASE))
    second = server.make("wordy", **WITHOUT_AN_END)
    server.until_answered_by(first)
    with asked(server, "wordy") as users:
        found = roll(server, second)
        assert isinstance(found.exception, Refused), found.output
        server.until(lambda status: "wordy" not in status["shares"])
        assert {users.ask(f"late-{number}") for number in range(8)} == {str(first.ref)}
    outcome = json.loads(found.stdout)
    assert outcome["result"] == "rolled back"
    alarmed = {finding["signal"] for finding in outcome["findings"] if finding["alarmed"]}
    assert alarmed & {"unstopped", "long"}
    assert "error" not in alarmed
    assert not users.failures
    assert users.answers[str(second.ref)] >= 8
    assert shares(server, "wordy")[-1] == 0.0
    assert not traffic.shares(server.store.family("wordy").traffic)
    assert server.store.family("wordy").aliases == {"production": 1, "canary": 2}
