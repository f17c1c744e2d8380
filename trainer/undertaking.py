"""One training as an undertaking: its MLflow run, its place on this machine, and where it goes on from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loradock.registry.errors import LoradockError
from loradock.registry.outside import inside
from loradock.registry.records import Base, TextSettings
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer import scattered, tracking, workdir
from loradock.trainer.processes import Crew, ProcessLost
from loradock.trainer.recipe_file import RecipeFile
from loradock.trainer.tracking import Run, Silent
from loradock.trainer.workdir import Workdir

_MAIN_CLOSES_WITHIN: Final = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Undertaking:
    """What `opened` gives."""

    name: str
    run: Run | Silent
    """The run; in processes beside the main one, one that keeps nothing."""
    work: Workdir
    checkpoint: Path | None
    """Where an interrupted training goes on from."""
    crew: Crew

    @property
    def step(self) -> int:
        """The step that it goes on after; 0 for a new training."""
        return workdir.step_of(self.checkpoint) if self.checkpoint else 0

    @property
    def since(self) -> str:
        """Words for where it goes on from."""
        return f", going on after step {self.step}" if self.checkpoint else ""


@contextmanager
def opened(
    source: RecipeFile,
    data_digest: str,
    base: Base,
    text: TextSettings,
    settings: Settings,
    crew: Crew,
    *,
    resume: bool,
) -> Iterator[Undertaking]:
    """Open a training's run and its place for checkpoints; a training that ends well leaves none of these behind.

    Runs whose process was killed without a word are closed on the way. Raises BadInput when the processes do not train
    the same, and LoradockError when the run to resume is under way in another process, or when nothing can be written.
    """
    found: tuple[str, Path | None] | None = None
    recipe = source.recipe.model_dump_json(exclude={"name"})
    crew.agree(
        {
            "recipe": recipe,
            "data": data_digest,
            "base": base.weights_digest + base.config_digest,
            "tokenizer or chat template": text.tokenizer + text.template,
        }
    )
    identity = workdir.identity(source.recipe, data_digest, base, text)
    if crew.main:
        store = Store(settings)
        bury_the_dead(store, settings)
        found = _find(store, settings, identity) if resume else None
        found = found or (tracking.create(store, source.recipe.name), None)
    run_id, checkpoint = crew.share(found)
    work = Workdir(inside(settings.trainings, run_id, what="MLflow", deep=False))
    if not crew.main:
        with _closed_without_main(settings, run_id), scattered.place(crew, work) as place:
            mine = scattered.handed_out(crew, place, checkpoint) if checkpoint else None
            yield Undertaking(source.recipe.name, Silent(run_id), place, mine, crew)
        return
    with tracking.opened(store, run_id, again=checkpoint is not None) as run:
        if checkpoint is None:
            work.make(identity)
        with work.held(), scattered.place(crew, work):
            try:
                if checkpoint:
                    workdir.rebase(checkpoint)
                    scattered.handed_out(crew, work, checkpoint)
                yield Undertaking(source.recipe.name, run, work, checkpoint, crew)
            except BaseException:
                if work.last() is None:
                    work.remove()
                raise
    work.remove()


@contextmanager
def _closed_without_main(settings: Settings, run_id: str) -> Iterator[None]:
    """Close the run when the main process is gone with its whole machine, which MLflow can only learn from others."""
    try:
        yield
    except ProcessLost:
        if settings.tracking_uri:
            with suppress(LoradockError):
                _close_unless_main_does(Store(settings), run_id)
        raise


def _close_unless_main_does(store: Store, run_id: str) -> None:
    deadline = time.monotonic() + _MAIN_CLOSES_WITHIN
    while tracking.status(store, run_id) == "RUNNING":
        if time.monotonic() > deadline:
            tracking.bury(store, run_id)
            return
        time.sleep(0.5)


def _find(store: Store, settings: Settings, identity: str) -> tuple[str, Path | None] | None:
    """The newest interrupted run of the same training that left a checkpoint."""
    for work in workdir.unfinished(settings):
        if work.is_of(identity) and (checkpoint := work.last()) and tracking.status(store, work.run_id):
            with work.held():
                return work.run_id, checkpoint
    return None


def bury_the_dead(store: Store, settings: Settings) -> None:
    """Close the runs of this machine whose process is gone without a word."""
    for work in workdir.unfinished(settings):
        if not work.is_held() and tracking.status(store, work.run_id) == "RUNNING":
            tracking.bury(store, work.run_id)
