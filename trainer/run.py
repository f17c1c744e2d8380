"""From a recipe to a run that holds an adapter: the whole story on one page."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from trl import SFTConfig, SFTTrainer

import registry.base
from registry.base import LocalBase
from registry.errors import LoradockError
from registry.settings import Settings
from registry.versions import describe
from trainer import adapter, base, environment, methods, tokens, tracking
from trainer.curves import Curves
from trainer.data import Rows
from trainer.recipe import RecipeFile, Training
from trainer.tokens import Sides
from trainer.watch import Watch

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished training came to."""

    run_id: str
    name: str
    digest: str
    """The adapter's."""
    loss: float
    """Training loss at the last report, in nats a token."""
    eval_loss_before: float
    eval_loss: float
    """On the held-out rows, before training and at its end."""
    steps: int
    seconds: float
    """From the recipe to the stored adapter."""
    tokens_per_second: float
    """Tokens trained on, padding and evaluation left out."""


def train(source: RecipeFile, rows: Rows, settings: Settings, say: Say) -> Outcome:
    """Train what a recipe says and log it to MLflow as one run, which holds the adapter at its end.

    Raises BadInput, NotFound or Unreachable, and LoradockError when the training diverges or memory runs out; the run
    then ends as failed, and nothing of it can be registered.
    """
    began = time.perf_counter()
    recipe = source.recipe
    train_rows, heldout_rows = rows.split(recipe.data.heldout)
    with _quiet():
        local = registry.base.resolve(recipe.base, settings, relative_to=source.directory)
        with tracking.started(settings, recipe.name) as run, tempfile.TemporaryDirectory(prefix="loradock-") as scratch:
            say(f"run {run.id}: {recipe.name} on {recipe.base}")
            run.text(source.text, "recipe.yaml")
            loaded = base.load(local)
            sides = tokens.fitting(train_rows, heldout_rows, loaded.tokenizer, recipe.training.max_length)
            _say_rows(say, sides, recipe.training.max_length)
            run.parameters(_parameters(source, rows, sides, local, loaded))
            run.data(rows.name, rows.digest, len(rows.rows))
            run.tags(_commit(source.directory))
            curves = Curves()
            with _memory_told(), Watch(curves, run.measured) as watch:
                trainer = _trainer(source, loaded, sides, watch, output=Path(scratch) / "trainer")
                _fit(trainer, curves, say)
            manifest = adapter.save(trainer.model, directory := Path(scratch) / "adapter", local)
            facts = describe(directory, local.base, run_id=run.id, data_digest=rows.digest)
            run.finish(curves, facts, directory)
    return Outcome(
        run_id=run.id,
        name=recipe.name,
        digest=manifest.digest,
        loss=curves.last("loss"),
        eval_loss_before=curves.first("eval_loss"),
        eval_loss=curves.last("eval_loss"),
        steps=trainer.state.global_step,
        seconds=time.perf_counter() - began,
        tokens_per_second=watch.tokens / max(watch.seconds, 1e-9),
    )


def _trainer(source: RecipeFile, loaded: base.Loaded, sides: Sides, watch: Watch, *, output: Path) -> SFTTrainer:
    recipe = source.recipe
    transformers.set_seed(recipe.seed)
    trainer = SFTTrainer(
        model=loaded.model,
        args=_arguments(recipe.training, recipe.seed, loaded, output),
        train_dataset=datasets.Dataset.from_list([example.plain() for example in sides.train.examples]),
        eval_dataset=datasets.Dataset.from_list([example.plain() for example in sides.heldout.examples]),
        processing_class=loaded.tokenizer,
        peft_config=methods.configure(recipe.method, loaded.model),
        callbacks=[watch],
    )
    trainer.remove_callback(transformers.PrinterCallback)  # it writes to stdout
    found = (len(trainer.train_dataset), len(trainer.eval_dataset))
    if found != (len(sides.train.examples), len(sides.heldout.examples)):
        raise LoradockError("TRL left out rows that fit into max_length", hint="report this with the recipe")
    return trainer


def _arguments(training: Training, seed: int, loaded: base.Loaded, output: Path) -> SFTConfig:
    """The recipe's own names as they are, and what follows from the machine."""
    given = training.model_dump(exclude_none=True)
    return SFTConfig(
        **given,
        output_dir=str(output),
        per_device_eval_batch_size=training.per_device_train_batch_size,
        eval_strategy="steps" if training.eval_steps else "no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        use_cpu=not loaded.cuda,
        bf16=loaded.dtype is torch.bfloat16,
        gradient_checkpointing=loaded.cuda,
        train_sampling_strategy="group_by_length",
        completion_only_loss=True,
        dataloader_pin_memory=loaded.cuda,
        logging_first_step=True,  # so that a training shorter than logging_steps has a loss too
        logging_nan_inf_filter=False,
    )


def _fit(trainer: SFTTrainer, curves: Curves, say: Say) -> None:
    trainer.evaluate()
    say(f"held-out loss {curves.last('eval_loss'):.3f} before training")
    trainer.train()
    if curves.points["eval_loss"][-1][0] != trainer.state.global_step:
        trainer.evaluate()
    say(f"held-out loss {curves.last('eval_loss'):.3f} after {trainer.state.global_step} steps")


def _say_rows(say: Say, sides: Sides, max_length: int) -> None:
    say(f"{len(sides.train.examples)} examples to train on, {len(sides.heldout.examples)} held out")
    if left_out := sides.train.left_out + sides.heldout.left_out:
        say(f"warning: {left_out} examples are left out: they are longer than training.max_length {max_length}")


def _parameters(source: RecipeFile, rows: Rows, sides: Sides, local: LocalBase, loaded: base.Loaded) -> dict[str, str]:
    """All that is known before the first step."""
    of_base = {key: str(value) for key, value in local.base.model_dump(mode="json").items() if value}
    return {
        **{f"recipe.{key}": value for key, value in source.recipe.parameters().items()},
        "data.file": rows.name,
        "data.digest": rows.digest,
        "data.rows": str(len(rows.rows)),
        **{f"data.train.{key}": value for key, value in sides.train.statistics().items()},
        **{f"data.heldout.{key}": value for key, value in sides.heldout.statistics().items()},
        **{f"base.{key}": value for key, value in of_base.items()},
        **{f"environment.{key}": value for key, value in environment.facts().items()},
        "environment.dtype": str(loaded.dtype).removeprefix("torch."),
    }


def _commit(directory: Path) -> dict[str, str]:
    """The recipe's commit, under MLflow's own tag."""
    found = environment.commit(directory)
    return {"mlflow.source.git.commit": found[0], "loradock.git.dirty": str(found[1]).lower()} if found else {}


@contextmanager
def _memory_told() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise LoradockError(
            "memory ran out",
            hint="halve per_device_train_batch_size and double gradient_accumulation_steps, or lower max_length",
        ) from error


@contextmanager
def _quiet() -> Iterator[Any]:
    """Let the libraries below speak of errors only, and show no bars of their own."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        for library in ("transformers", "trl", "peft", "torch", "accelerate", "datasets"):
            warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
        yield
