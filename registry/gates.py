"""Whether a version may take an alias, by its family's policy: a pure decision on what was found beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from loradock.registry import policy
from loradock.registry.evidence import Evidence, Interval, Scores, paired_bootstrap
from loradock.registry.history import History
from loradock.registry.policy import Bound, Rules
from loradock.registry.records import Move, Record, Version
from loradock.registry.store import Store


class Verdict(Record):
    """What came of one rule."""

    rule: str
    """As the policy has it: `no_worse.loss`."""
    passed: bool
    figure: str
    """What was found, beside what was asked."""
    evidence: str = ""
    """The evaluation, as an MLflow run; empty where none was looked at."""

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}  {self.rule}: {self.figure}"


@dataclass(frozen=True, slots=True)
class Case:
    """What is known when a version asks for an alias."""

    version: Version
    incumbent: Move | None
    """The move that put the alias where it stands."""
    evidence: tuple[Evidence, ...]
    """Of this version's bytes, newest first."""
    tags: Mapping[str, str]
    """The version's, as MLflow has them."""
    heads: Mapping[str, Move]
    """Each alias's last move."""
    now: datetime


def judge(store: Store, past: History, version: Version, alias: str) -> tuple[Verdict, ...]:
    """What the policy in force says of a version that asks for an alias; nothing where there is no policy for it."""
    rules = policy.parse(past.policy.policy).of(alias) if past.policy else None
    if rules is None:
        return ()
    case = Case(
        version=version,
        incumbent=past.heads.get(alias),
        evidence=store.find_evidence(version.ref.name, version.facts.digest) if _asks_for_evidence(rules) else (),
        tags=store.tags(version.ref) if rules.tags else {},
        heads=past.heads,
        now=datetime.now(UTC),
    )
    return tuple(verdicts(rules, case))


def verdicts(rules: Rules, case: Case) -> Iterator[Verdict]:
    """One verdict a rule, in the policy's order."""
    if _asks_for_evidence(rules):
        yield from _by_evidence(rules, case)
    for tag, wanted in rules.tags.items():
        found = case.tags.get(tag)
        passed = found is not None and wanted in ("*", found)
        yield Verdict(rule=f"tags.{tag}", passed=passed, figure=f"is {found or 'not set'}, asked for {wanted}")
    for alias, hours in rules.min_hours.items():
        yield _stood(alias, hours, case)


def _asks_for_evidence(rules: Rules) -> bool:
    return bool(rules.metrics or rules.no_worse or rules.better_than_base or rules.effect or rules.parity is not None)


def _by_evidence(rules: Rules, case: Case) -> Iterator[Verdict]:
    usable = [found for found in case.evidence if not _unfit(found, rules, case)]
    if not usable:
        newest = case.evidence[0] if case.evidence else None
        why = _unfit(newest, rules, case) if newest else "this version was not evaluated"
        hint = f"run: loradock evaluate {case.version.ref} --data HELDOUT"
        yield Verdict(rule="evidence", passed=False, figure=f"{why}; {hint}", evidence=newest.run_id if newest else "")
        return
    for metric, bound in rules.metrics.items():
        found = _with(usable, metric)
        yield _bounded(metric, bound, found) if found else _not_measured(f"metrics.{metric}", metric, case)
    for metric, margin in rules.no_worse.items():
        compared = [found for found in usable if case.incumbent and found.incumbent == case.incumbent.digest]
        yield _no_worse(metric, margin, _with(compared, metric) or _with(usable, metric), case)
    for metric, margin in rules.better_than_base.items():
        found = _with(usable, metric)
        rule = f"better_than_base.{metric}"
        yield _better(rule, metric, margin, found) if found else _not_measured(rule, metric, case)
    if rules.effect:
        yield _effect(_with(usable, "loss"), case)
    if rules.parity is not None:
        yield _parity(rules.parity, usable)


def _unfit(found: Evidence, rules: Rules, case: Case) -> str:
    """Why an evaluation does not count; empty when it does."""
    if found.base != case.version.facts.base.weights_digest:
        return "it was evaluated on another base model"
    # How tokens are chosen is no part of it: an evaluation leaves the base's own settings of that out.
    if names := found.text.model_copy(update={"generation": ""}).unlike(case.version.facts.text):
        return f"it was evaluated with another {' and '.join(names)} than it was trained with"
    if not found.data_digest.startswith(rules.data):
        return f"it was evaluated on rows {found.data_digest[:12]}, asked for {rules.data[:12]}"
    if len(found.weights) < rules.min_rows:
        return f"it was evaluated on {len(found.weights)} rows, asked for at least {rules.min_rows}"
    if rules.max_age_days is not None and case.now - found.at > timedelta(days=rules.max_age_days):
        return f"it was evaluated on {found.at:%Y-%m-%d}, more than {rules.max_age_days:g} days ago"
    return ""


def _with(usable: list[Evidence], metric: str) -> Evidence | None:
    """The newest evaluation that has a metric."""
    return next((found for found in usable if found.value(metric, "candidate") is not None), None)


def _not_measured(rule: str, metric: str, case: Case) -> Verdict:
    command = f"loradock evaluate {case.version.ref} --data HELDOUT --metric {metric}"
    return Verdict(rule=rule, passed=False, figure=f"was not measured; run: {command}")


def _bounded(metric: str, bound: Bound, found: Evidence) -> Verdict:
    value = found.value(metric, "candidate") or 0.0
    asked = [f"at least {bound.min:g}"] if bound.min is not None else []
    asked += [f"at most {bound.max:g}"] if bound.max is not None else []
    passed = (bound.min is None or value >= bound.min) and (bound.max is None or value <= bound.max)
    figure = f"{value:.4f}, asked for {' and '.join(asked)}"
    return Verdict(rule=f"metrics.{metric}", passed=passed, figure=figure, evidence=found.run_id)


def _no_worse(metric: str, margin: float, found: Evidence | None, case: Case) -> Verdict:
    rule = f"no_worse.{metric}"
    if case.incumbent is None or not case.incumbent.digest:
        return Verdict(rule=rule, passed=True, figure="there is no incumbent")
    if found is None:
        return _not_measured(rule, metric, case)
    if case.incumbent.digest == found.candidate:
        return Verdict(rule=rule, passed=True, figure="it holds the incumbent's bytes", evidence=found.run_id)
    scores = found.metrics[metric]
    if found.incumbent != case.incumbent.digest or not scores.incumbent:
        at = case.incumbent.ref_in(case.version.ref.name)
        figure = f"{at} is at version {case.incumbent.to_version}, which it was not compared with; evaluate it again"
        return Verdict(rule=rule, passed=False, figure=figure, evidence=found.run_id)
    worse = _worse(scores, scores.incumbent, found)
    figure = f"{_told(worse)} worse than version {case.incumbent.to_version}, asked for at most {margin:g}"
    return Verdict(rule=rule, passed=worse.high <= margin, figure=figure, evidence=found.run_id)


def _better(rule: str, metric: str, margin: float, found: Evidence) -> Verdict:
    scores = found.metrics[metric]
    worse = _worse(scores, scores.base, found)
    better = Interval(mean=-worse.mean, low=-worse.high, high=-worse.low)
    figure = f"{_told(better)} better than the base, asked for at least {margin:g}"
    return Verdict(rule=rule, passed=worse.high <= -margin, figure=figure, evidence=found.run_id)


def _worse(scores: Scores, theirs: tuple[float, ...], found: Evidence) -> Interval:
    """How much worse the version is, with what the rows leave open; negative where it is better."""
    pair = (scores.candidate, theirs) if scores.better == "lower" else (theirs, scores.candidate)
    return paired_bootstrap(*pair, found.weights if scores.weighted else None)


def _told(worse: Interval) -> str:
    return f"{worse.mean:+.4f} ({worse.low:+.4f} to {worse.high:+.4f})"


def _effect(found: Evidence | None, case: Case) -> Verdict:
    if found is None:
        return _not_measured("effect", "loss", case)
    scores = found.metrics["loss"]
    largest = max(abs(ours - bare) for ours, bare in zip(scores.candidate, scores.base, strict=True))
    figure = f"the largest difference of a row's loss from the base's is {largest:.4f}"
    return Verdict(rule="effect", passed=largest > _NO_EFFECT, figure=figure, evidence=found.run_id)


def _parity(limit: float, usable: list[Evidence]) -> Verdict:
    """Two evaluations of the same rows, one through an endpoint and one through transformers."""
    losses = [found for found in usable if "loss" in found.metrics]
    for served in (found for found in losses if found.through == "endpoint"):
        for found in losses:
            if found.through != "endpoint" and found.data_digest == served.data_digest:
                apart = abs((served.value("loss", "candidate") or 0.0) - (found.value("loss", "candidate") or 0.0))
                figure = f"the loss is {apart:.4f} from that of transformers, asked for at most {limit:g}"
                return Verdict(rule="parity", passed=apart <= limit, figure=figure, evidence=served.run_id)
    figure = "it was not evaluated on the same rows through an endpoint and through transformers"
    return Verdict(rule="parity", passed=False, figure=figure)


def _stood(alias: str, hours: float, case: Case) -> Verdict:
    rule, move = f"min_hours.{alias}", case.heads.get(alias)
    if move is None or move.to_version != case.version.ref.number:
        return Verdict(rule=rule, passed=False, figure=f"it does not stand there; promote it --alias {alias} first")
    stood = (case.now - move.at) / timedelta(hours=1)
    return Verdict(rule=rule, passed=stood >= hours, figure=f"has stood there for {stood:.1f} h, asked for {hours:g}")


_NO_EFFECT = 1e-4
"""Nats; what two runs of the same weights may differ by."""
