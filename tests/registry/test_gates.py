"""What a policy asks for, what was found, and what comes of it: each rule alone, then on a real store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from loradock.registry import entries, gates, history, policy, promotion
from loradock.registry.errors import BadInput, GateFailed
from loradock.registry.evidence import Evidence, Scores
from loradock.registry.gates import Case, Verdict
from loradock.registry.policy import Rules
from loradock.registry.records import Move, Version
from loradock.registry.store import Store
from tests.support.adapters import NAME, SMOL, aliases, make_version, ref

NOW = datetime(2030, 1, 2, tzinfo=UTC)
ROWS = 40
BETTER, LIKE, WORSE = (tuple(1.0 + 0.01 * (row % 7) + step for row in range(ROWS)) for step in (-0.2, 0.0, 0.2))


def evidence(
    version: Version, *, incumbent: str = "i" * 64, loss: tuple[float, ...] = BETTER, **other: Any
) -> Evidence:
    """An evaluation whose incumbent and base have the losses LIKE."""
    scores = Scores(better="lower", weighted=True, candidate=loss, incumbent=LIKE if incumbent else (), base=LIKE)
    given = {
        "run_id": "r1",
        "name": NAME,
        "candidate": version.facts.digest,
        "incumbent": incumbent,
        "base": SMOL.weights_digest,
        "data_digest": "d" * 64,
        "at": NOW,
        "metrics": {"loss": scores},
        "weights": (5.0,) * len(loss),
    }
    return Evidence.model_validate(given | other)


def moved(number: int, *, digest: str = "i" * 64, hours_ago: float = 0) -> Move:
    at = NOW - timedelta(hours=hours_ago)
    return Move(
        seq=0,
        op="promote",
        alias="production",
        from_version=None,
        to_version=number,
        actor="ann",
        reason="",
        at=at,
        digest=digest,
        nonce="",
        prev="",
    )


@pytest.fixture(scope="module")
def version() -> Version:
    return Version.model_validate(
        {
            "ref": ref(3),
            "facts": {
                "digest": "c" * 64,
                "base": SMOL,
                "method": "lora",
                "rank": 4,
                "targets": (),
                "run_id": "",
                "data_digest": "",
            },
            "source": "",
            "created_at": NOW,
        }
    )


@pytest.fixture(scope="module")
def case(version: Version) -> Case:
    """A version that is better than its incumbent on forty rows."""
    return Case(version, moved(2), (evidence(version),), {"review.ann": "yes"}, {"staging": moved(3, hours_ago=5)}, NOW)


def judged(case: Case, **rules: Any) -> list[tuple[str, bool]]:
    return [(verdict.rule, verdict.passed) for verdict in gates.verdicts(Rules.model_validate(rules), case)]


def figure(case: Case, **rules: Any) -> str:
    (verdict,) = gates.verdicts(Rules.model_validate(rules), case)
    return verdict.figure


def with_loss(case: Case, loss: tuple[float, ...], **other: Any) -> Case:
    return replace(case, evidence=(evidence(case.version, loss=loss, **other),))


@pytest.mark.parametrize(
    ("rules", "passed"),
    [
        ({"metrics": {"loss": {"max": 0.9}}}, True),
        ({"metrics": {"loss": {"max": 0.8}}}, False),
        ({"metrics": {"loss": {"min": 0.9}}}, False),
        ({"metrics": {"perplexity": {"max": 2.5}}}, True),
        ({"metrics": {"perplexity": {"max": 2.2}}}, False),
        ({"metrics": {"rouge": {"min": 0.1}}}, False),
        ({"no_worse": {"loss": 0}}, True),
        ({"no_worse": {"exact_match": 0.1}}, False),
        ({"better_than_base": {"loss": 0.1}}, True),
        ({"better_than_base": {"loss": 0.3}}, False),
        ({"effect": True}, True),
        ({"parity": 0.1}, False),
        ({"tags": {"review.ann": "yes"}}, True),
        ({"tags": {"review.ann": "*"}}, True),
        ({"tags": {"review.ann": "no"}}, False),
        ({"tags": {"review.bob": "*"}}, False),
        ({"min_hours": {"staging": 4}}, True),
        ({"min_hours": {"staging": 6}}, False),
        ({"min_hours": {"canary": 0}}, False),
    ],
)
def test_a_rule(case: Case, rules: dict[str, Any], passed: bool) -> None:
    assert [found for _, found in judged(case, **rules)] == [passed]


def test_every_rule_is_told_with_its_figure(case: Case) -> None:
    verdicts = list(
        gates.verdicts(
            Rules.model_validate({"metrics": {"loss": {"max": 0.5}}, "no_worse": {"loss": 0.1}, "tags": {"ok": "*"}}),
            case,
        )
    )
    assert [str(verdict) for verdict in verdicts] == [
        "FAILED  metrics.loss: 0.8287, asked for at most 0.5",
        "passed  no_worse.loss: -0.2000 (-0.2000 to -0.2000) worse than version 2, asked for at most 0.1",
        "FAILED  tags.ok: is not set, asked for *",
    ]
    assert [verdict.evidence for verdict in verdicts] == ["r1", "r1", ""]


def test_no_worse_asks_for_the_whole_interval_and_not_for_the_mean(case: Case) -> None:
    noisy = tuple(like + (2.0 if row % 2 else -2.05) for row, like in enumerate(LIKE))
    assert sum(noisy) < sum(LIKE)
    assert judged(with_loss(case, noisy), no_worse={"loss": 0.1}) == [("no_worse.loss", False)]
    assert judged(with_loss(case, LIKE), no_worse={"loss": 0}) == [("no_worse.loss", True)]
    assert judged(with_loss(case, WORSE), no_worse={"loss": 0.1}) == [("no_worse.loss", False)]


def test_higher_is_better_where_the_metric_says_so(case: Case) -> None:
    scores = Scores(better="higher", weighted=False, candidate=BETTER, incumbent=LIKE, base=LIKE)
    worse = replace(case, evidence=(evidence(case.version, metrics={"rouge": scores}),))
    assert judged(worse, no_worse={"rouge": 0.1}) == [("no_worse.rouge", False)]
    assert judged(worse, no_worse={"rouge": 0.3}) == [("no_worse.rouge", True)]


def test_an_effect_is_a_row_whose_loss_is_another(case: Case) -> None:
    assert judged(with_loss(case, LIKE), effect=True) == [("effect", False)]
    assert judged(with_loss(case, (*LIKE[:-1], LIKE[-1] + 0.01)), effect=True) == [("effect", True)]


def test_parity_holds_an_endpoint_against_transformers_on_the_same_rows(case: Case) -> None:
    served = evidence(case.version, loss=tuple(value + 0.02 for value in BETTER), through="endpoint", run_id="r2")
    both = replace(case, evidence=(served, *case.evidence))
    assert judged(both, parity=0.05) == [("parity", True)]
    assert judged(both, parity=0.01) == [("parity", False)]
    elsewhere = served.model_copy(update={"data_digest": "e" * 64})
    assert judged(replace(case, evidence=(elsewhere, *case.evidence)), parity=0.05) == [("parity", False)]


@pytest.mark.parametrize(
    ("change", "rules", "why"),
    [
        ({"base": "x" * 64}, {}, "on another base model"),
        ({}, {"data": "abc"}, "on rows dddddddddddd, asked for abc"),
        ({}, {"min_rows": 41}, "on 40 rows, asked for at least 41"),
        ({"at": NOW - timedelta(days=3)}, {"max_age_days": 2}, "more than 2 days ago"),
    ],
)
def test_evidence_that_does_not_fit_is_none(
    case: Case, change: dict[str, Any], rules: dict[str, Any], why: str
) -> None:
    stale = replace(case, evidence=(evidence(case.version, **change),))
    assert judged(stale, effect=True, **rules) == [("evidence", False)]
    assert why in figure(stale, effect=True, **rules)
    assert "loradock evaluate support-bot/3" in figure(stale, effect=True, **rules)


def test_a_comparison_with_what_is_no_longer_the_incumbent_is_stale(case: Case) -> None:
    later = replace(case, incumbent=moved(9, digest="j" * 64))
    assert "production is at version 9, which it was not compared with" in figure(later, no_worse={"loss": 0.1})
    assert judged(later, no_worse={"loss": 0.1}) == [("no_worse.loss", False)]


def test_without_an_incumbent_there_is_nothing_to_be_worse_than(case: Case) -> None:
    assert judged(replace(case, incumbent=None), no_worse={"loss": 0.1}) == [("no_worse.loss", True)]


def test_a_version_that_was_never_evaluated_is_told_how(case: Case) -> None:
    assert figure(replace(case, evidence=()), effect=True) == (
        "this version was not evaluated; run: loradock evaluate support-bot/3 --data HELDOUT"
    )


POLICY = """
production:
  no_worse: {loss: 0.05}
  tags: {review: ann}
"""


@pytest.fixture
def two(store: Store, tmp_path: Path) -> Store:
    """Two versions, the first in production, and a policy."""
    for seed in range(2):
        make_version(store, tmp_path / str(seed), seed=seed)
    promotion.promote(store, ref(1), "production", actor="ann")
    entries.set_policy(store, NAME, POLICY, actor="ann", reason="no surprises")
    return store


def log(store: Store, number: int, loss: tuple[float, ...]) -> Evidence:
    """An evaluation of a version against the first, in MLflow."""
    run_id = store.begin_evaluation("test")
    first, version = (store.version(ref(each)) for each in (1, number))
    found = evidence(version, incumbent=first.facts.digest, loss=loss, run_id=run_id, at=datetime.now(UTC))
    store.record_evidence(found)
    return found


def test_a_version_is_refused_until_better_data_and_a_reviewer_let_it_through(two: Store) -> None:
    log(two, 2, WORSE)
    with pytest.raises(GateFailed, match="does not pass the policy") as caught:
        promotion.promote(two, ref(2), "production", actor="bob")
    assert caught.value.exit_code == 3
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "FAILED  no_worse.loss",
        "FAILED  tags.review",
    ]
    assert aliases(two) == {"production": 1}
    found = log(two, 2, BETTER)
    two.client.set_model_version_tag(NAME, "2", "review", "ann")
    move = promotion.promote(two, ref(2), "production", actor="bob")
    assert move is not None
    assert (move.evidence, move.failed) == ((found.run_id,), ())
    assert aliases(two) == {"production": 2}


def test_an_alias_without_rules_is_free(two: Store) -> None:
    assert promotion.promote(two, ref(2), "staging", actor="bob") is not None


def test_a_forced_move_says_in_history_what_it_went_past(two: Store) -> None:
    log(two, 2, WORSE)
    with pytest.raises(BadInput, match="--force needs a --reason"):
        promotion.promote(two, ref(2), "production", actor="bob", force=True)
    move = promotion.promote(two, ref(2), "production", actor="bob", force=True, reason="the old one insults people")
    assert move is not None
    assert (move.forced, move.failed) == (True, ("no_worse.loss", "tags.review"))
    assert history.read(two, NAME).moves[-1] == move


def test_a_dry_run_tells_the_verdicts_and_moves_nothing(two: Store) -> None:
    verdicts = promotion.verdicts(two, ref(2), "production")
    assert [(verdict.rule, verdict.passed) for verdict in verdicts] == [
        ("check", True),
        ("evidence", False),
        ("tags.review", False),
    ]
    assert aliases(two) == {"production": 1}


def test_a_rollback_asks_no_policy(two: Store) -> None:
    promotion.promote(two, ref(2), "production", actor="bob", force=True, reason="now")
    assert promotion.rollback(two, NAME, "production", actor="bob").to_version == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("production: {metrics: {loss: {}}}", "production.metrics.loss: .*give min, or max, or both"),
        ("production: {metrix: {loss: {max: 1}}}", "production.metrix: Extra inputs"),
        ("production: {no_worse: {loss: -1}}", "production.no_worse.loss: .*greater than or equal to 0"),
        ("production: {no_worse: {perplexity: 1}}", "compare loss"),
        ("production: {min_rows: 0, max_age_days: x}", "production.min_rows.*production.max_age_days"),
        ("Latest: {}", "is not an alias"),
        ("production: {min_hours: {v1: 3}}", "is not an alias"),
        ("- production", "holds no rules"),
        ("a: [", "is not YAML"),
        ("", "holds no rules"),
    ],
)
def test_a_policy_that_cannot_be_meant(text: str, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        policy.parse(text)
    assert_found(problem, " ".join([str(caught.value), *caught.value.problems]))


def assert_found(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text


def test_a_verdict_reads_as_a_line() -> None:
    assert str(Verdict(rule="a.b", passed=True, figure="1")) == "passed  a.b: 1"
