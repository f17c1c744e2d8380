"""A rollout as it runs: look, decide, act; whatever ends it, the canary's share is settled first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from loradock.registry.errors import GateFailed, Unreachable
from loradock.registry.records import canonical_json
from loradock.serving.rollout.blocks import Comparison, Finding
from loradock.serving.rollout.judge import Judge
from loradock.serving.rollout.measures import Limits, usual
from loradock.serving.rollout.moves import Moves
from loradock.serving.rollout.plan import Abort, Promote, Raise, Seen, Wait, decide
from loradock.serving.rollout.record import Point, Record
from loradock.serving.rollout.task import Outcome, Result, Shown, Task
from loradock.serving.rollout.watching import Look, Replicas
from loradock.serving.signals import Ended

_LONGEST: Final = 900  # characters of a reason; history takes 1,000
_PATIENCE: Final = 60.0
"""Seconds that an interrupted rollout tries to take the share away while the registry is out of reach."""


class Rollout:
    """One version's way to production."""

    def __init__(
        self,
        task: Task,
        moves: Moves,
        replicas: Replicas,
        record: Record,
        shown: Shown,
        stop: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task, self._moves, self._replicas, self._record = task, moves, replicas, record
        self._shown, self._stop, self._clock = shown, stop, clock
        self._began = clock()
        self._production = 0
        self._weight = self._most = 0.0
        self._step, self._step_began, self._step_answers = 0, self._began, 0
        self._limits: Limits | None = None
        self._comparison: Comparison | None = None
        self._judge: Judge | None = None
        self._out_of_reach, self._problem = False, ""

    def run(self) -> Outcome:
        """Roll it out, or back.

        Raises GateFailed, NotFound or Conflict before anything has moved; Conflict when somebody else moves production
        or the canary meanwhile.
        """
        standing = self._moves.begin()
        if standing is None:
            return Outcome(str(self._task.ref), "", "in production already")
        self._production, self._weight, self._most = standing.production, standing.weight, standing.weight
        if standing.weight:
            self._shown.tell(f"an earlier rollout was cut off at {standing.weight:.0%}: it continues, with a new test")
        try:
            self._begin_record()
            outcome = self._roll()
        except BaseException as error:
            left = self._withdraw(f"rollout: ended by {type(error).__name__}: {error}", patience=_PATIENCE)
            self._shown.tell(f"{self._task.ref} answers {left}")
            self._finish("rolled back", str(error))
            raise
        return outcome

    def _roll(self) -> Outcome:
        limits = self._usual()
        if isinstance(limits, Outcome):
            return limits
        task = self._task
        self._limits = limits
        self._comparison = comparison = Comparison(task.margins, limits, task.alpha)
        if task.judge:
            self._judge = Judge(task.judge, task.ref, self._production, task.urls, task.api_key)
            self._judge.start()
        self._began = self._clock()
        self._weigh(task.rules.step_at(self._weight), f"begun against {task.ref.name}/{self._production}")
        while not self._stop.wait(task.every):
            look = self._look()
            self._count(comparison, look)
            findings = comparison.findings()
            self._record.note(Point(self._clock() - self._began, self._weight, findings))
            action = decide(self._seen(look, comparison, findings), task.rules)
            if isinstance(action, Abort):
                return self._back("rolled back", action.why)
            try:
                if outcome := self._act(action, comparison, findings):
                    return outcome
            except Unreachable as error:
                self._away(error)
            else:
                self._out_of_reach = False
        return self._back("interrupted", "interrupted")

    def _seen(self, look: Look, comparison: Comparison, findings: Sequence[Finding]) -> Seen:
        now = self._clock()
        return Seen(
            step=self._step,
            in_step=now - self._step_began,
            in_all=now - self._began,
            answers=comparison.answers - self._step_answers,
            findings=findings,
            replicas=len(self._task.urls),
            answering=look.answering,
            quarantined=look.quarantined,
        )

    def _act(
        self, action: Wait | Raise | Promote, comparison: Comparison, findings: Sequence[Finding]
    ) -> Outcome | None:
        """Do it; how it ended, if it has."""
        self._moves.check()
        match action:
            case Raise(step):
                answers = comparison.answers - self._step_answers
                self._weigh(step, f"{answers} answers at {self._weight:.0%} without an alarm")
            case Promote():
                if not (longer := self._moves.patience()):
                    return self._promote(comparison, findings)
                self._shown.show(self._weight, longer, findings)
            case Wait(why):
                self._shown.show(self._weight, why, findings)
        return None

    def _usual(self) -> Limits | Outcome:
        """What is slow and long, by production's answers before the canary's count; or how it ended before that."""
        task, rows = self._task, list[Ended]()
        while True:
            look = self._look()
            rows += [
                row
                for batch in look.batches
                for row in batch.rows
                if row.role == "production" and row.version == self._production and row.outcome == "ok"
            ]
            if len(rows) >= task.baseline or len(task.limits) == 3:
                return usual(rows, task.limits)
            try:
                self._moves.check()
            except Unreachable as error:
                self._away(error)
            if self._clock() - self._began > task.rules.within:
                found = f"production gave {len(rows)} of {task.baseline} answers in {task.rules.within:.0f} s"
                return self._back("rolled back", f"{found}, too few to set the thresholds of slow and long")
            self._shown.show(self._weight, f"{len(rows)} of {task.baseline} answers of production's, for limits", ())
            if self._stop.wait(task.every):
                return self._back("interrupted", "interrupted")

    def _look(self) -> Look:
        look = self._replicas.look()
        for news in look.news:
            self._shown.tell(news)
        return look

    def _count(self, comparison: Comparison, look: Look) -> None:
        for batch in look.batches:
            comparison.add(batch.process, batch.rows, self._task.ref.number, self._production)
        if self._judge:
            for canary, production in self._judge.take():
                comparison.judged(canary, production)
            if (problem := self._judge.problem) != self._problem and problem:
                self._shown.tell(problem)
            self._problem = problem

    def _weigh(self, step: int, why: str) -> None:
        weight = self._task.rules.steps[step]
        self._moves.weigh(weight, f"rollout: {why}{self._run_named()}")
        self._weight, self._most = weight, max(self._most, weight)
        self._step, self._step_began = step, self._clock()
        self._step_answers = self._comparison.answers if self._comparison else 0
        self._shown.tell(f"{self._task.ref} answers {weight:.0%}: {why}")

    def _promote(self, comparison: Comparison, findings: Sequence[Finding]) -> Outcome:
        within = ", ".join(finding.signal for finding in findings)
        reason = f"rollout: {within} shown to be within bounds on {comparison.answers} answers{self._run_named()}"
        try:
            self._moves.promote(reason)
        except GateFailed as error:
            return self._back("rolled back", "; ".join([str(error), *error.problems]))
        self._weight = 0.0
        self._shown.tell(f"{self._task.ref} is in production")
        return self._finish("promoted", reason)

    def _back(self, result: Result, why: str) -> Outcome:
        patience = _PATIENCE if result == "interrupted" else float("inf")
        left = self._withdraw(f"rollout: {why[:_LONGEST]}", patience=patience)
        self._shown.tell(f"{self._task.ref} answers {left}: {why}")
        return self._finish(result, why)

    def _withdraw(self, reason: str, *, patience: float) -> str:
        """Take the share away, however long the registry is out of reach; what it has then.

        Raises Unreachable where it stays so longer than there is patience.
        """
        deadline = self._clock() + patience
        while True:
            try:
                if not self._moves.withdraw(reason[:_LONGEST]):
                    return "because somebody else moved the canary"
            except Unreachable as error:
                self._away(error)
                if self._clock() > deadline:
                    error.hint = f"its share stays: loradock promote {self._task.ref} --alias canary --weight 0"
                    raise
                time.sleep(self._task.every)
            else:
                self._weight = 0.0
                return "0%"

    def _away(self, error: Unreachable) -> None:
        if not self._out_of_reach:
            self._shown.tell(f"{error}; nothing moves until it answers")
        self._out_of_reach = True

    def _begin_record(self) -> None:
        task, rules = self._task, self._task.rules
        self._record.begin(
            {"loradock.rollout.name": task.ref.name, "loradock.rollout.version": str(task.ref)},
            {
                "canary": str(task.ref),
                "production": f"{task.ref.name}/{self._production}",
                "steps": ", ".join(f"{step:.4g}" for step in rules.steps),
                "answers": str(rules.answers),
                "seconds": f"{rules.seconds:.4g}",
                "alpha": f"{task.alpha:.4g}",
                **{f"margin.{signal}": f"{margin:.4g}" for signal, margin in task.margins.items()},
            },
        )

    def _run_named(self) -> str:
        return f" (run {self._record.run_id})" if self._record.run_id else ""

    def _finish(self, result: Result, reason: str) -> Outcome:
        if self._judge:
            self._judge.stop()
        comparison = self._comparison
        findings = comparison.findings() if comparison else ()
        outcome = Outcome(
            version=str(self._task.ref),
            production=f"{self._task.ref.name}/{self._production}",
            result=result,
            reason=reason,
            weight=self._most,
            answers=comparison.answers if comparison else 0,
            seconds=round(self._clock() - self._began, 1),
            limits=self._limits,
            findings=findings,
            run_id=self._record.run_id,
        )
        if comparison:
            self._record.note(Point(self._clock() - self._began, self._weight, findings))
        self._record.end(result, canonical_json(outcome.as_json()))
        return outcome
