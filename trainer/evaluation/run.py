"""From a version and rows to evidence in MLflow: the whole story on one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from loradock.registry.errors import LoradockError
from loradock.registry.evidence import Evidence, Scores, Subject
from loradock.registry.records import TextSettings, Version
from loradock.registry.store import Store
from loradock.registry.text import generation_of, settings_of
from loradock.trainer import base, meta, tracking
from loradock.trainer.data import Rows
from loradock.trainer.evaluation import contestants, heldout, local, plots, table
from loradock.trainer.evaluation.contestants import Contestants
from loradock.trainer.evaluation.endpoint import GREEDY, Endpoint
from loradock.trainer.evaluation.heldout import Item
from loradock.trainer.evaluation.plots import Differences
from loradock.trainer.evaluation.scorer import Scorer, shown
from loradock.trainer.evaluation.table import Measured
from loradock.trainer.evaluation.task import Case, Task
from loradock.trainer.generation import stops
from loradock.trainer.quiet import quiet

Say = Callable[[str], None]

_GENERATION: Final = ", ".join(f"{key} {value}" for key, value in GREEDY.items())
_ANYHOW: Final = ("eos_token_id", "do_sample", "max_length", "max_new_tokens")
_BASE_OF_ENDPOINT: Final = "as the endpoint holds it"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished evaluation came to."""

    version: Version
    incumbent: Version | None
    evidence: Evidence
    differences: Differences
    seconds: float


@dataclass(frozen=True, slots=True)
class _Bench:
    """A scorer, with what it reads the rows by."""

    scorer: Scorer
    tokenizer: Any
    held: Mapping[str, str]
    """How it holds the base, for the run's params."""


def evaluate(case: Case, say: Say) -> Outcome:
    """Measure a version, the incumbent and the bare base on the same rows, and log it all to MLflow as evidence.

    Every version's bytes are verified first. The run counts as evidence only when all of it is there. Raises NotFound,
    Unreachable, DigestMismatch, BadInput for a metric that fails, and LoradockError when memory runs out; the run then
    ends as failed.
    """
    began = time.perf_counter()
    task, found, rows = case.task, case.found, case.rows
    store = Store(case.settings)
    with quiet(), ExitStack() as stack:
        tokenizer = base.tokenizer_of(case.local)
        endpoint = None
        if task.endpoint:
            ends = stops(case.local.path, tokenizer)
            endpoint = Endpoint(task.endpoint, task.api_key, ends)
            found = contestants.served(found, endpoint, say)
        directories = {} if endpoint else contestants.fetch(store, found, stack)
        # One token is left for the answer that vLLM gives to every request.
        longest = endpoint.max_length - 1 if endpoint else meta.longest(meta.config(case.local.path))
        rows, items = heldout.items(rows, tokenizer, longest, say)
        title = f"{found.candidate.ref} on {rows.name}"
        run_id = store.begin_evaluation(title)
        with tracking.opened(store, run_id), _memory_told():
            say(f"run {run_id}: {found.words} on {len(rows.rows)} rows of {rows.name}; loading")
            if task.asks:
                say(_choosing(case))
            bench = _by_endpoint(endpoint, tokenizer) if endpoint else _by_transformers(case, directories)
            measured = {subject: _measure(task, subject, bench, items) for subject in found.apart}
            if found.same:
                measured["incumbent"] = measured["candidate"]
            evidence = _evidence(task, run_id, found, rows, items, measured, settings_of(case.local.path))
            differences = _differences(evidence)
            store.record_evidence(
                evidence,
                incumbent_version=str(found.incumbent.ref) if found.incumbent else "",
                data_name=rows.name,
                details=_details(case, found, evidence, bench),
                table=table.columns(items, bench.tokenizer, measured, texts=task.texts),
                figure=plots.plot(evidence, differences, title),
            )
    return Outcome(found.candidate, found.incumbent, evidence, differences, time.perf_counter() - began)


def _by_transformers(case: Case, directories: Mapping[Subject, Path]) -> _Bench:
    recipe = contestants.as_trained(case.found.candidate, case.trained)
    scorer = local.Local(case.local, recipe, directories)
    held = {"base.quantization": recipe.quantization.kind if recipe.quantization else "none", "dtype": scorer.dtype}
    return _Bench(scorer, scorer.tokenizer, held)


def _by_endpoint(endpoint: Endpoint, tokenizer: Any) -> _Bench:
    return _Bench(endpoint, tokenizer, {"base.quantization": _BASE_OF_ENDPOINT})


def _choosing(case: Case) -> str:
    """Words for how answers are chosen, and for what the base's own settings would do otherwise."""
    given = {key: value for key, value in generation_of(case.local.path).items() if key not in _ANYHOW}
    left = ", ".join(f"{key} {value}" for key, value in given.items())
    without = f", without {left} of the base's generation_config.json" if left else ""
    return f"answers: {_GENERATION}, at most {case.task.new_tokens} tokens{without}"


def _measure(task: Task, subject: Subject, bench: _Bench, items: Sequence[Item]) -> Measured:
    """One subject's losses and answers, with the scores of each example."""
    scores: dict[str, list[float]] = {}
    if any(metric.score is None for metric in task.metrics):
        with shown(f"loss of the {subject}", len(items)) as step:
            nats = bench.scorer.nats(subject, items, step)
        scores["loss"] = [value / item.weight for value, item in zip(nats, items, strict=True)]
    answers: list[str] = []
    if task.asks:
        with shown(f"answers of the {subject}", len(items)) as step:
            answers = bench.scorer.answers(subject, items, task.new_tokens, step)
        prompts = [bench.tokenizer.decode(item.prompt, skip_special_tokens=True) for item in items]
        for metric in task.metrics:
            if metric.score:
                scores[metric.name] = [
                    metric.of(answer, item.reference, prompt, row=item.row + 1)
                    for answer, item, prompt in zip(answers, items, prompts, strict=True)
                ]
    return Measured(scores, answers)


def _evidence(
    task: Task,
    run_id: str,
    found: Contestants,
    rows: Rows,
    items: Sequence[Item],
    measured: Mapping[Subject, Measured],
    text: TextSettings,
) -> Evidence:
    weights = [float(item.weight) for item in items]
    alike = [1.0] * len(items)
    return Evidence(
        run_id=run_id,
        name=found.candidate.ref.name,
        candidate=found.candidate.facts.digest,
        incumbent=found.incumbent.facts.digest if found.incumbent else "",
        base=found.candidate.facts.base.weights_digest,
        data_digest=rows.digest,
        through="endpoint" if task.endpoint else "transformers",
        at=datetime.now(UTC),
        metrics={
            metric.name: Scores(
                better=metric.better,
                weighted=metric.score is None,
                **{
                    subject: heldout.by_row(items, each.scores[metric.name], weights if metric.score is None else alike)
                    for subject, each in measured.items()
                },
            )
            for metric in task.metrics
        },
        weights=heldout.weights(items),
        rows=heldout.hashes(rows),
        text=text,
    )


def _differences(evidence: Evidence) -> Differences:
    against: tuple[Subject, ...] = ("incumbent", "base")
    return {
        (metric, subject): found
        for metric in evidence.metrics
        for subject in against
        if (found := evidence.difference(metric, subject))
    }


def _details(case: Case, found: Contestants, evidence: Evidence, bench: _Bench) -> dict[str, str]:
    """What decided the figures, as params of the run."""
    task = case.task
    return {
        "version": str(found.candidate.ref),
        "incumbent": str(found.incumbent.ref) if found.incumbent else "none",
        "base.id": case.local.base.id,
        "data": case.rows.name,
        "data.digest": evidence.data_digest,
        "metrics": ", ".join(metric.name for metric in task.metrics),
        **{f"metric.{metric.name}.sha256": metric.digest for metric in task.metrics if metric.digest},
        "through": evidence.through,
        **bench.held,
        **({"max_new_tokens": str(task.new_tokens), "generation": _GENERATION} if task.asks else {}),
        **{f"base.{name}": digest for name, digest in evidence.text.model_dump().items() if digest},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@contextmanager
def _memory_told() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LoradockError(
            "memory ran out", hint="evaluate on a machine with more, or through a running endpoint: --replica URL"
        ) from error
