"""From a recipe to a run that holds an adapter: the whole story on one page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import datasets
import torch
from safetensors import SafetensorError

from loradock.registry import base as bases
from loradock.registry.errors import LoradockError, first_line
from loradock.registry.machine import is_full
from loradock.registry.records import TextSettings
from loradock.registry.settings import Settings
from loradock.registry.text import settings_of
from loradock.registry.versions import describe
from loradock.trainer import (
    adapter,
    base,
    environment,
    fit,
    generation,
    meta,
    methods,
    preflight,
    processes,
    room,
    samples,
    tokens,
    undertaking,
)
from loradock.trainer.data import Rows
from loradock.trainer.prepared import Prepared, prepare
from loradock.trainer.quiet import quiet
from loradock.trainer.recipe import Recipe
from loradock.trainer.recipe_file import RecipeFile
from loradock.trainer.tokens import Sides
from loradock.trainer.undertaking import Undertaking

Say = Callable[[str], None]
_MAIN_SPEAKS_WITHIN: Final = 5.0  # seconds
_READ_ONLY: Final = ("Read-only file system", "os error 30")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished training came to."""

    run_id: str
    name: str
    digest: str
    """The adapter's; empty for full fine-tuning, which leaves none."""
    trainable: int
    """Weights that were trained."""
    loss: float
    """Training loss at the last report, in nats a token."""
    eval_loss_before: float
    eval_loss: float
    """On the held-out rows, before training and by the weights that are kept; NaN when no row is held out."""
    steps: int
    kept_step: int
    """The step whose weights are kept."""
    seconds: float
    """From the recipe to the stored adapter."""
    tokens: int
    """Tokens trained on, padding left out; those before an interruption count too."""
    tokens_per_second: float
    """Of these, over the time in training steps since the start or the resumption."""


def train(source: RecipeFile, rows: Rows, settings: Settings, say: Say, *, resume: bool = False) -> Outcome | None:
    """Train what a recipe says and log it to MLflow as one run, which holds the adapter at its end.

    With `resume`, a run of the same recipe, data and base that was interrupted on this machine goes on from its last
    checkpoint. Where several processes train together, the main one returns the outcome, and the others None.
    Raises BadInput, NotFound or Unreachable, and LoradockError when the training diverges or memory runs out; the run
    then ends as failed, and nothing of it can be registered.
    """
    began = time.perf_counter()
    recipe = source.recipe
    crew = processes.join()
    say = say if crew.main else _silent
    train_rows, heldout_rows = rows.split(recipe.data.heldout)
    datasets.disable_progress_bars()
    with quiet(), _told_by_main(crew), processes.losses_told():
        local = bases.resolve(recipe.base, settings, relative_to=source.directory)
        config = meta.config(local.path)
        preflight.check(source, config)
        text = settings_of(local.path)
        tokenizer = base.tokenizer_of(local)
        sides = tokens.fitting(
            train_rows,
            heldout_rows,
            tokenizer,
            recipe.training.max_length,
            completion_only_loss=recipe.training.completion_only_loss,
            stops=generation.stops(local.path, tokenizer),
        )
        preflight.check_lengths(source, sides, config)
        idle = preflight.check_rows(source, sides.train, tokenizer, config)
        free = room.available()
        with (
            undertaking.opened(source, rows.digest, local.base, text, settings, crew, resume=resume) as task,
            _machine_told(recipe, local.path, free),
            processes.losses_told(),
        ):
            say(f"run {task.run.id}: {recipe.name} on {recipe.base}{task.since}")
            _say_rows(say, rows, sides, recipe.training.max_length)
            for words in idle:
                say(f"warning: {words}")
            if words := room.lacking(recipe, local.path, max(sides.train.lengths), free):
                say(f"warning: {words}")
            loaded = base.load(local, recipe, tokenizer)
            prepared = prepare(source, loaded, local.path, sides, task)
            say(f"{prepared.trainable:,} of {prepared.total:,} weights are trained ({prepared.share:.3%})")
            _describe(task, source, rows, sides, loaded, prepared, text)
            done = fit.fit(recipe, prepared, loaded, sides, task, say)
            digest = ""
            if crew.main:
                with _passed_over(say, "the run has not every picture and table"):
                    _show(task, sides, recipe.training.max_length, loaded, done)
                task.run.ended(done.steps, _figures(done))
                if prepared.config is not None:
                    directory = task.work.empty("adapter")
                    digest = adapter.save(prepared.model, directory, loaded.base, prepared.start).digest
                    facts = describe(directory, loaded.base, run_id=task.run.id, data_digest=rows.digest, text=text)
                    task.run.finish(facts, directory, name=recipe.name)
        return (
            Outcome(
                run_id=task.run.id,
                name=recipe.name,
                digest=digest,
                trainable=prepared.trainable,
                loss=done.curves.last("loss"),
                eval_loss_before=done.curves.first("eval_loss"),
                eval_loss=done.eval_loss,
                steps=done.steps,
                kept_step=done.kept_step,
                seconds=time.perf_counter() - began,
                tokens=done.tokens,
                tokens_per_second=done.tokens_per_second,
            )
            if crew.main
            else None
        )


def _say_rows(say: Say, rows: Rows, sides: Sides, max_length: int) -> None:
    say(f"{len(sides.train.examples)} examples to train on, {len(sides.heldout.examples)} held out")
    if rows.duplicates.count:
        say(f"warning: {rows.duplicates.count} rows duplicate an earlier one: {', '.join(rows.duplicates.places)}")
    if left_out := sides.train.left_out + sides.heldout.left_out:
        say(f"warning: {left_out} examples exceed training.max_length ({max_length}) and are skipped")
    for words in tokens.oddities(sides.train, sides.heldout):
        say(f"warning: {words}")


def _describe(
    task: Undertaking,
    source: RecipeFile,
    rows: Rows,
    sides: Sides,
    loaded: base.Loaded,
    prepared: Prepared,
    text: TextSettings,
) -> None:
    """Log all that is known before the first step."""
    if task.checkpoint:
        return
    of_base = loaded.base.model_dump(mode="json") | text.model_dump(mode="json")
    task.run.text(source.text, "recipe.yaml")
    if source.original:
        task.run.text(source.original, "original.yaml")
    task.run.data(rows.name, rows.digest, len(rows.rows))
    task.run.tags(_commit(source.directory))
    task.run.parameters(
        {
            **{f"recipe.{key}": value for key, value in source.recipe.parameters().items()},
            **{f"peft.{key}": value for key, value in methods.shape(prepared.config).items()},
            "trainable": str(prepared.trainable),
            "trainable.share": f"{prepared.share:.6f}",
            **{f"data.{key}": str(value) for key, value in rows.statistics().items()},
            **{f"data.train.{key}": value for key, value in sides.train.statistics().items()},
            **{f"data.heldout.{key}": value for key, value in sides.heldout.statistics().items()},
            **{f"base.{key}": str(value) for key, value in of_base.items() if value},
            **{f"environment.{key}": value for key, value in environment.facts().items()},
            "environment.dtype": str(loaded.dtype).removeprefix("torch."),
            "environment.processes": str(task.crew.size),
        }
    )


def _figures(done: fit.Done) -> dict[str, float]:
    """What the training came to, of the weights that are kept."""
    found = {"kept_step": done.kept_step, "kept_eval_loss": done.eval_loss, "tokens": done.tokens}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _show(task: Undertaking, sides: Sides, max_length: int, loaded: base.Loaded, done: fit.Done) -> None:
    """Log what people would rather look at than read."""
    task.run.figure(done.curves.plot(task.name, kept_step=done.kept_step), "loss.png")
    task.run.figure(done.curves.plot_learning_rate(task.name), "learning_rate.png")
    task.run.figure(tokens.histogram(sides, max_length), "tokens.png")
    if done.prompts:
        table = samples.table(loaded.tokenizer, done.prompts, done.said_before, done.said_after)
        task.run.table(table, "samples.json")


def _commit(directory: Path) -> dict[str, str]:
    """The recipe's commit, under MLflow's own tag."""
    found = environment.commit(directory)
    return {"mlflow.source.git.commit": found[0], "loradock.git.dirty": str(found[1]).lower()} if found else {}


@contextmanager
def _told_by_main(crew: processes.Crew) -> Iterator[None]:
    """Let the main process tell a fault that all have, and a process that is gone itself: who waits is not the first.

    The first process of a machine to end with an error ends all others there.
    """
    try:
        yield
    except LoradockError as error:
        if not crew.main or isinstance(error, processes.ProcessLost):
            time.sleep(_MAIN_SPEAKS_WITHIN)
        raise


@contextmanager
def _passed_over(say: Say, lacking: str) -> Iterator[None]:
    """Say what could not be made of what helps alone, and go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 # whatever it is, the adapter is worth more
        say(f"warning: {lacking}: {first_line(error)}")


def _silent(_: str) -> None:
    """What the processes beside the main one say."""


@contextmanager
def _machine_told(recipe: Recipe, directory: Path, free: int) -> Iterator[None]:
    """Say in one line what the machine was short of, or what a library raised that nobody foresaw."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LoradockError("memory ran out", hint=room.advice(recipe, directory, free)) from error
    except (RuntimeError, OSError, SafetensorError) as error:
        if "can't allocate memory" in str(error):
            raise LoradockError("memory ran out", hint=room.advice(recipe, directory, free)) from error
        if is_full(error) or any(words in str(error) for words in _READ_ONLY):
            raise LoradockError(
                f"a file could not be written: {first_line(error)}",
                hint="free space where LORADOCK_HOME and MLflow's artifacts are, and go on with --resume",
            ) from error
        raise _unforeseen(error) from error
    except LoradockError:
        raise
    except Exception as error:  # whatever the libraries raise
        raise _unforeseen(error) from error


def _unforeseen(error: Exception) -> LoradockError:
    return LoradockError(
        f"the training broke off: {type(error).__name__}: {first_line(error)}",
        hint="--debug shows where; --resume goes on from the last checkpoint, if there is one",
    )
