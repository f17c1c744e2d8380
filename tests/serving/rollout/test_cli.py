"""A rollout from its command to the registry: what it moves, what it says, what it leaves behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from loradock.cli.rollout import rollout
from loradock.registry import entries, history, promotion, traffic
from loradock.registry.errors import BadInput, Conflict, GateFailed, LoradockError, NotFound, Refused
from loradock.registry.records import Move, Traffic
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.store.rollouts import EXPERIMENT
from tests.support import warm
from tests.support.adapters import NAME, aliases, make_version, ref
from tests.support.serving.fake_replica import FakeReplica, replica
from tests.support.serving.status import quarantined

pytestmark = pytest.mark.slow

QUICK = ("--every", "0.01s", "--for", "0s", "--baseline", "200", "--min-requests", "20", "--within", "5m")
USUAL = {"error": 0.01, "unstopped": 0.02, "long": 0.01}


@pytest.fixture
def versions(store: Store, tmp_path: Path) -> Store:
    """Three versions, of which the first is in production."""
    for seed in (1, 2, 3):
        make_version(store, tmp_path / str(seed), seed=seed)
    promotion.promote(store, ref(1), "production", actor="tester")
    return store


def roll(*urls: str, options: tuple[str, ...] = (), to: int = 2) -> Result:
    where = [part for url in urls for part in ("--replica", url)]
    return CliRunner().invoke(rollout, [str(ref(to)), *where, *QUICK, "--json", *options])


def failed(found: Result, kind: type[LoradockError]) -> LoradockError:
    assert isinstance(found.exception, kind), found.output
    return found.exception


def share(store: Store) -> float | None:
    """What replicas read."""
    found = traffic.shares(store.family(NAME).traffic).get("canary")
    return found.weight if found else None


def told(store: Store) -> list[tuple[str, float | int | None]]:
    """The history since the versions were made."""
    entries_ = history.read(store, NAME).entries[1:]
    return [
        (entry.alias, entry.weight if isinstance(entry, Traffic) else entry.to_version)
        for entry in entries_
        if isinstance(entry, Traffic | Move)
    ]


def test_a_canary_that_does_as_well_goes_to_production_by_steps(
    versions: Store, settings: Settings, tmp_path: Path
) -> None:
    with replica(settings, {1: USUAL, 2: USUAL}) as running:
        found = roll(running.url)
    assert found.exit_code == 0, found.output
    outcome = json.loads(found.stdout)
    assert (outcome["result"], outcome["version"], outcome["weight"]) == ("promoted", "support-bot/2", 0.5)
    assert all(finding["shown"] and not finding["alarmed"] for finding in outcome["findings"])
    assert aliases(versions) == {"production": 2, "canary": 2}
    assert share(versions) is None
    steps = [("canary", 2), ("canary", 0.05), ("canary", 0.25), ("canary", 0.5), ("production", 2), ("canary", 0.0)]
    assert told(versions) == steps
    move = history.read(versions, NAME).heads["production"]
    assert outcome["run_id"] in move.reason
    assert "error, unstopped, slow, long shown to be within bounds" in move.reason
    is_recorded(versions, outcome["run_id"], tmp_path)


def is_recorded(store: Store, run_id: str, scratch: Path) -> None:
    """What the rollout saw is a run in MLflow."""
    run = store.client.get_run(run_id)
    assert store.client.get_experiment(run.info.experiment_id).name == EXPERIMENT
    assert (run.info.status, run.data.tags["loradock.rollout.result"]) == ("FINISHED", "promoted")
    assert run.data.params["steps"] == "0.05, 0.25, 0.5"
    weights = [metric.value for metric in store.client.get_metric_history(run_id, "weight")]
    assert weights[:3] == [0.05, 0.25, 0.5]
    assert run.data.metrics["error/high"] < 0.02
    picture = store.client.download_artifacts(run_id, "rollout.png", str(scratch))
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    outcome = json.loads(Path(store.client.download_artifacts(run_id, "rollout.json", str(scratch))).read_text())
    assert outcome["findings"][0]["signal"] == "error"


@pytest.mark.parametrize("signal_", ["error", "unstopped", "long"])
def test_a_worse_canary_is_rolled_back_by_itself(versions: Store, settings: Settings, signal_: str) -> None:
    with replica(settings, {1: USUAL, 2: {**USUAL, signal_: 0.5}}) as running:
        found = roll(running.url)
    error = failed(found, Refused)
    assert error.exit_code == 3
    assert f"support-bot/2 was rolled back: {signal_}: " in str(error)
    assert json.loads(found.stdout)["result"] == "rolled back"
    assert aliases(versions) == {"production": 1, "canary": 2}
    assert share(versions) is None
    last = history.read(versions, NAME).entries[-1]
    assert isinstance(last, Traffic)
    assert last.weight == 0
    assert last.reason.startswith(f"rollout: {signal_}: ")
    runs = versions.client.search_runs([versions.client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert [run.data.tags["loradock.rollout.result"] for run in runs] == ["rolled back"]


def test_without_enough_evidence_in_its_time_it_is_rolled_back(versions: Store, settings: Settings) -> None:
    known = ("--slow-first", "1", "--slow-token", "1", "--long-tokens", "100")
    with replica(settings, {1: USUAL, 2: USUAL}, requests=2) as running:
        error = failed(roll(running.url, options=("--within", "1s", *known)), Refused)
    assert "undecided after 1 s" in str(error)
    assert (aliases(versions)["production"], share(versions)) == (1, None)


def test_production_without_traffic_gives_no_limits_and_no_share(versions: Store, settings: Settings) -> None:
    with replica(settings, {}, requests=0) as running:
        error = failed(roll(running.url, options=("--within", "0.2s")), Refused)
    assert "production gave 0 of 200 answers" in str(error)
    assert told(versions) == [("canary", 2)]


def test_a_version_that_every_replica_has_quarantined_is_rolled_back(versions: Store, settings: Settings) -> None:
    found = {"support-bot/2": quarantined("it has no effect")}
    with replica(settings, {1: USUAL}, quarantined=found, requests=100) as running:
        assert "every replica quarantined it: it has no effect" in str(failed(roll(running.url), Refused))
    assert (aliases(versions)["production"], share(versions)) == (1, None)


JUDGE = "def good(prompt, answer):\n    return {judgement}\n"


def judged(tmp_path: Path, judgement: str, prompts: int = 80) -> tuple[str, ...]:
    (tmp_path / "judge.py").write_text(JUDGE.format(judgement=judgement))
    rows = [json.dumps({"prompt": f"Question {number}?", "max_tokens": 8}) for number in range(prompts)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    off = [part for each in ("error", "unstopped", "slow", "long") for part in ("--margin", f"{each}=off")]
    return (
        *off,
        "--margin",
        "judge=20%",
        "--judge",
        f"{tmp_path / 'judge.py'}:good",
        "--judge-prompts",
        str(tmp_path / "prompts.jsonl"),
    )


def test_a_judge_that_likes_both_lets_it_through(versions: Store, settings: Settings, tmp_path: Path) -> None:
    with replica(settings, {}) as running:
        found = roll(running.url, options=judged(tmp_path, '"says" in answer and prompt.startswith("Question")'))
    assert found.exit_code == 0, found.output
    (finding,) = json.loads(found.stdout)["findings"]
    assert (finding["signal"], finding["canary"], finding["production"], finding["shown"]) == ("judge", 0, 0, True)
    canary, production = running.asked[:2]
    assert (canary["model"], production["model"]) == ("support-bot@canary", "support-bot@production")
    assert canary["prompt"] == production["prompt"]
    assert (canary["max_tokens"], canary["temperature"]) == (8, 0)


def test_a_judge_waits_for_a_replica_that_does_not_serve_the_canary_yet(
    versions: Store, settings: Settings, tmp_path: Path
) -> None:
    with replica(settings, {}, unserved=2) as running:
        found = roll(running.url, options=judged(tmp_path, "True"))
    assert found.exit_code == 0, found.output
    assert f"the judge gets no answer from {running.url}: it answers with 404 Not Found" in found.stderr


def test_a_judge_that_likes_only_productions_answers_ends_it(
    versions: Store, settings: Settings, tmp_path: Path
) -> None:
    with replica(settings, {}) as running:
        error = failed(roll(running.url, options=judged(tmp_path, 'answer.startswith("production")')), Refused)
    assert "rolled back: judge: 100.0% of" in str(error)


@pytest.mark.parametrize(
    ("judgement", "prompts", "text"),
    [
        ("1 / 0", 80, "the judge fails on prompt 1: ZeroDivisionError"),
        ("7", 80, "the judge gives 7.0 for prompt 1"),
        ("True", 20, "20 prompts cannot show"),
    ],
)
def test_a_judge_that_is_no_use_ends_it(
    versions: Store, settings: Settings, tmp_path: Path, judgement: str, prompts: int, text: str
) -> None:
    with replica(settings, {}) as running:
        assert text in str(failed(roll(running.url, options=judged(tmp_path, judgement, prompts)), BadInput))
    assert (aliases(versions)["production"], share(versions)) == (1, None)


def test_what_the_policy_refuses_moves_nothing(versions: Store, settings: Settings) -> None:
    entries.set_policy(versions, NAME, "production:\n  tags: {reviewed: 'yes'}\n  min_hours: {canary: 1}\n", actor="x")
    with replica(settings, {}) as running:
        error = failed(roll(running.url), GateFailed)
    assert any("tags.reviewed" in problem for problem in error.problems)
    assert (aliases(versions), running.looks) == ({"production": 1}, 0)


def test_what_the_policy_asks_the_canary_to_stand_is_waited_for(versions: Store, settings: Settings) -> None:
    hours = 4 / 3600
    entries.set_policy(versions, NAME, f"production:\n  min_hours: {{canary: {hours}}}\n", actor="x")
    with replica(settings, {}, requests=1000) as running:
        found = roll(running.url)
    assert found.exit_code == 0, found.output
    heads = history.read(versions, NAME).heads
    assert (heads["production"].at - heads["canary"].at).total_seconds() >= 4


def after(looks: int, act: Any) -> Any:
    """Something that happens once, before a look."""

    def before(running: FakeReplica) -> None:
        if running.looks == looks:
            act(running)

    return before


def test_production_that_somebody_else_moves_ends_it(versions: Store, settings: Settings) -> None:
    act = after(6, lambda _: promotion.promote(versions, ref(3), "production", actor="somebody"))
    with replica(settings, {}, before=act) as running:
        error = failed(roll(running.url), Conflict)
    assert (error.exit_code, error.winner) == (4, "somebody")
    assert (aliases(versions), share(versions)) == ({"production": 3, "canary": 2}, None)


def test_a_canary_that_somebody_else_moves_is_left_to_them(versions: Store, settings: Settings) -> None:
    def take(_: FakeReplica) -> None:
        promotion.promote(versions, ref(3), "canary", actor="somebody")
        traffic.set_share(versions, ref(3), "canary", 0.1, actor="somebody")

    with replica(settings, {}, before=after(6, take)) as running:
        found = roll(running.url)
    assert isinstance(found.exception, Conflict)
    assert "because somebody else moved the canary" in found.stderr
    assert (aliases(versions), share(versions)) == ({"production": 1, "canary": 3}, 0.1)


def test_a_share_that_somebody_else_sets_ends_it(versions: Store, settings: Settings) -> None:
    act = after(6, lambda _: traffic.set_share(versions, ref(2), "canary", 0.9, actor="somebody"))
    with replica(settings, {}, before=act) as running:
        assert "a share of 90%" in str(failed(roll(running.url), Conflict))
    assert share(versions) is None


@pytest.mark.chance
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_takes_the_share_away(versions: Store, settings: Settings, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with replica(settings, {}, before=after(6, lambda _: os.kill(os.getpid(), number)), requests=50) as running:
        found = roll(running.url)
    assert found.exit_code == 1
    assert "support-bot/2 answers 0%: interrupted" in found.stderr
    assert json.loads(found.stdout)["result"] == "interrupted"
    assert (aliases(versions), share(versions)) == ({"production": 1, "canary": 2}, None)
    assert signal.getsignal(number) is before


@pytest.mark.chance
def test_one_that_was_killed_goes_on_where_it_stood_and_tests_anew(
    versions: Store, settings: Settings, tmp_path: Path
) -> None:
    with replica(settings, {}) as running:
        code = "from loradock.cli.rollout import rollout; rollout()"
        options = (*QUICK, "--min-requests", "100000")
        command = [sys.executable, "-c", code, str(ref(2)), "--replica", running.url, "--steps", "25%,50%", *options]
        with (
            (tmp_path / "log").open("wb") as log,
            warm.Popen(command, kind="registry", stdout=log, stderr=log) as process,
        ):
            deadline = time.monotonic() + 60
            while share(versions) != 0.25:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.kill()
        assert share(versions) == 0.25
        found = roll(running.url, options=("--steps", "5%,25%,50%"))
    assert found.exit_code == 0, found.output
    assert "an earlier rollout was cut off at 25%: it continues, with a new test" in found.stderr
    steps = [("canary", 2), ("canary", 0.25), ("canary", 0.5), ("production", 2), ("canary", 0.0)]
    assert told(versions) == steps


def test_replicas_may_restart_and_be_away_and_nothing_rises_meanwhile(versions: Store, settings: Settings) -> None:
    shares = set[float | None]()

    def away(running: FakeReplica) -> None:
        running.status = 503 if 3 <= running.looks < 20 else 200
        if 3 <= running.looks < 20:
            shares.add(share(versions))
        if running.looks == 20:
            running.restart()

    with replica(settings, {}, requests=100, before=away) as one, replica(settings, {}, requests=100) as other:
        found = roll(one.url, other.url)
    assert found.exit_code == 0, found.output
    assert f"{one.url} is away: it answers with 503" in found.stderr
    assert f"{one.url} was restarted" in found.stderr
    assert shares == {0.05}
    assert aliases(versions)["production"] == 2


def test_what_needs_no_rollout_says_so(versions: Store, settings: Settings) -> None:
    with replica(settings, {}) as running:
        found = roll(running.url, to=1)
        assert json.loads(found.stdout)["result"] == "in production already"
        promotion.promote(versions, ref(3), "canary", actor="somebody")
        traffic.set_share(versions, ref(3), "canary", 0.1, actor="somebody")
        assert "version 3 with 10% of requests by somebody" in str(failed(roll(running.url), Conflict))
        assert running.looks == 0
    assert aliases(versions) == {"production": 1, "canary": 3}


def test_the_first_version_needs_no_rollout(store: Store, settings: Settings, tmp_path: Path) -> None:
    make_version(store, tmp_path / "first")
    error = failed(roll("http://127.0.0.1:9", to=1), NotFound)
    assert "no version in production to compare with" in str(error)
    assert aliases(store) == {}


def test_a_wrong_key_ends_it_before_a_share_is_given(versions: Store, settings: Settings) -> None:
    with replica(settings, {}, key="right") as running:
        assert "asks for an admin key" in str(failed(roll(running.url, options=("--api-key", "wrong")), BadInput))
        assert told(versions) == [("canary", 2)]
        assert roll(running.url, options=("--api-key", "right")).exit_code == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--steps", "50%,5%"), "no steps of a rollout"),
        (("--steps", "5%,100%"), "no steps of a rollout"),
        (("--margin", "mood=5%"), "'mood=5%' is no margin"),
        (("--margin", "judge=5%"), "'judge=5%' is no margin"),
        (("--margin", "error=0%"), "can never be shown"),
        (("--margin", "error"), "'error' is no margin"),
        (("--judge", "judge.py:good"), "go together"),
        (tuple(part for each in ("error", "unstopped", "slow", "long") for part in ("--margin", f"{each}=off")), "off"),
    ],
)
def test_what_cannot_be_meant_is_refused(home: Path, options: tuple[str, ...], text: str) -> None:
    assert text in str(failed(roll("http://127.0.0.1:9", options=options), BadInput))


def test_a_replica_is_named_by_a_url(versions: Store) -> None:
    assert "is not a URL" in str(failed(roll("127.0.0.1:9"), BadInput))
    assert aliases(versions) == {"production": 1}


def test_a_time_has_a_unit(home: Path) -> None:
    found = roll("http://127.0.0.1:9", options=("--for", "10"))
    assert found.exit_code == 2
    assert "write NUMBER and s, m, h or d" in found.output


def test_every_option_has_help() -> None:
    assert rollout.help
    assert all(option.help for option in rollout.params if isinstance(option, click.Option))
