"""A run from its input to its output, on one page."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from loradock.registry import base as bases
from loradock.registry import text
from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput
from loradock.registry.records import Record, Version
from loradock.registry.scratch import room
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.serving import launch
from loradock.serving.batch import asked, manifest
from loradock.serving.batch import rows as inputs
from loradock.serving.batch.answering import Model, answer
from loradock.serving.batch.journal import Journal, opened
from loradock.serving.batch.loading import Boot, Loading
from loradock.serving.batch.manifest import RESTART, Manifest
from loradock.serving.batch.offline import boot
from loradock.serving.batch.progress import Spent, shown
from loradock.serving.batch.rows import Rows, Sampling

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked for."""

    base: str
    """A directory, ORG/NAME on the Hub, or pypi:NAME==VERSION."""
    input: Path
    output: Path
    model: str = ""
    """Whom rows ask that name nobody; empty for the base."""
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=256))
    """Where a row sets nothing itself."""
    max_loras: int | None = None
    """Adapters in one batch; None to go by how many there are, up to 16."""
    restart: bool = False
    """Delete what an earlier run wrote to `output`, whatever it was asked for."""
    retry_failed: bool = False
    """Answer the rows again whose line is an error."""
    vllm: tuple[str, ...] = ()
    """Arguments for vLLM, as they are."""
    proof: Literal["parity", "effect"] = "parity"
    """What a version must show before its first row, as `loradock.serving.settings` has it."""


class Done(Record):
    """What a run came to."""

    output: str
    rows: int
    failed: int
    """Those whose line is an error."""
    kept: int
    """Those whose line was there when this process began."""
    prompt_tokens: int
    """By this process."""
    completion_tokens: int
    seconds: float
    """That this process spent on answers, without loading."""
    models: dict[str, str]
    """Which version answered for each alias and version that rows ask for."""

    @property
    def answered(self) -> int:
        """Rows with an answer."""
        return self.rows - self.failed


def run(job: Job, settings: Settings, *, boot: Boot = boot) -> Done:
    """Answer every row of a file that has no line in the output yet; can be called again after any interruption.

    While it works, lines are in OUTPUT.partial, as they come; in the end OUTPUT appears whole, in the input's order.
    Raises BadInput with every fault of the input, for an output that belongs to another run, and for refs that cannot
    answer on this base; NotFound for an unknown base; Unreachable, DigestMismatch and NotServable for versions that
    cannot be had, or must not be used; LoradockError when vLLM does not start or fails, or the disk is full.
    """
    launch.check_extra(job.vllm)
    found = inputs.read(job.input)
    local = bases.resolve(job.base, settings)
    base_names = {local.name, local.base.id, job.base}
    refs = asked.refs_of(job.input, found.rows, job.model, base_names)
    with room(job.output.absolute().parent), opened(job.output) as journal:
        begun = _begun(job, journal)
        plan = _manifest(job, found, local, begun)
        if begun is not None:
            manifest.refuse_another(job.output, begun, plan)
            journal.read()
        else:
            asked.refuse_shared(job.input, found.rows, job.model, base_names, settings)
            if any(refs):
                versions = asked.resolve(job.input, found.rows, refs, local, Store(settings))
                plan = plan.model_copy(update={"versions": versions})
                for version in {version.ref: version for version in versions.values()}.values():
                    text.warn(version, local.path)
        kept = journal.done - (journal.failed if job.retry_failed else frozenset())
        spent = Spent()
        if waiting := [
            (row, _model(plan.versions[ref] if ref else None, local))
            for row, ref in zip(found.rows, refs, strict=True)
            if row.index not in kept
        ]:
            for line in asked.moved(begun.versions, settings) if begun and begun.versions else ():
                log.warning(line)
            needed = {model.ref for _, model in waiting}
            by_ref = {version.ref: version for version in plan.versions.values() if version.ref in needed}
            loading = Loading(settings, local, job.proof, boot)
            engine = loading.engine(by_ref.values(), max_loras=job.max_loras, extra=job.vllm)
            if begun is None:
                journal.clear()
                manifest.save(job.output, plan)
            spent = Spent()
            with shown(len(found.rows), len(kept), spent) as watch:
                answer(waiting, engine, journal, plan.settings, watch)
        if not journal.finished:
            journal.finish()
        return _done(job, plan, journal, len(kept), spent)


def _begun(job: Job, journal: Journal) -> Manifest | None:
    """The run whose answers are there, if it is to go on; raises BadInput for an output that is no run's."""
    if job.restart or journal.empty:
        return None
    begun = manifest.load(job.output)
    if begun is None:
        raise BadInput(f"{job.output} is there, and no run of `loradock generate` left it", hint=RESTART)
    return begun


def _manifest(job: Job, found: Rows, local: LocalBase, begun: Manifest | None) -> Manifest:
    """What is asked for now, with the versions of the run that goes on."""
    return Manifest(
        input=found.sha256,
        rows=len(found.rows),
        base=local.base,
        text=text.settings_of(local.path),
        model=job.model,
        settings=job.sampling.given(),
        vllm=manifest.lasting(job.vllm),
        versions=begun.versions if begun else {},
        started_at=datetime.now(UTC),
    )


def _done(job: Job, plan: Manifest, journal: Journal, kept: int, spent: Spent) -> Done:
    return Done(
        output=str(job.output),
        rows=plan.rows,
        failed=len(journal.failed),
        kept=kept,
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        seconds=round(spent.seconds, 3),
        models={ref: str(version.ref) for ref, version in plan.versions.items()},
    )


def _model(version: Version | None, local: LocalBase) -> Model:
    if version is None:
        return Model(None, local.name, local.base.weights_digest)
    return Model(version.ref, str(version.ref), version.facts.digest)
