"""The training itself: what the trainer is told, the loop, and what is measured around it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from loradock.registry.errors import LoradockError, first_line
from loradock.trainer import methods, samples
from loradock.trainer.base import Loaded
from loradock.trainer.curves import Curves
from loradock.trainer.prepared import Prepared, keep_precision
from loradock.trainer.recipe import Recipe
from loradock.trainer.samples import Prompt
from loradock.trainer.tokens import Side, Sides
from loradock.trainer.trainers import Fused, MovesRanks, Plain
from loradock.trainer.undertaking import Undertaking
from loradock.trainer.watch import Watch

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Done:
    """A loop that came to its end."""

    curves: Curves
    steps: int
    kept_step: int
    eval_loss: float
    """By the weights that are kept; NaN when no row is held out."""
    tokens: int
    tokens_per_second: float
    prompts: list[Prompt]
    said_before: list[str]
    said_after: list[str]


def fit(
    recipe: Recipe,
    prepared: Prepared,
    loaded: Loaded,
    sides: Sides,
    task: Undertaking,
    say: Say,
) -> Done:
    """Train; raises Diverged when the loss is lost, and what the libraries raise when memory is."""
    curves = Curves(task.run.history(until=task.step) if task.checkpoint else {})

    def measured(step: int, values: Mapping[str, float]) -> None:
        task.run.measured(step, values)
        if step == 0:
            say(f"held-out loss {values['eval_loss']:.3f} before training")

    with Watch(curves, measured, shown=task.crew.main, evaluated=bool(sides.heldout.examples)) as watch:
        trainer = _trainer(recipe, prepared, loaded, sides, task, watch)
        prompts = samples.choose(sides.heldout.tokens or sides.train.tokens, recipe.samples) if task.crew.main else []
        said_before = _before(task, prepared, loaded, prompts, say)
        trainer.train(resume_from_checkpoint=str(task.checkpoint) if task.checkpoint else None)
    state = trainer.state
    kept = state.best_global_step if trainer.args.load_best_model_at_end else state.global_step
    eval_loss = dict(curves.points.get("eval_loss", [])).get(kept, math.nan)
    if sides.heldout.examples:
        by = "" if kept == state.global_step else f", with the weights of step {kept}, which were the best"
        say(f"held-out loss {eval_loss:.3f} after {state.global_step} steps{by}")
    return Done(
        curves=curves,
        steps=state.global_step,
        kept_step=kept,
        eval_loss=eval_loss,
        tokens=watch.tokens,
        tokens_per_second=watch.tokens_per_second,
        prompts=prompts,
        said_before=said_before,
        said_after=_answers(prepared, loaded, prompts, say),
    )


def _trainer(
    recipe: Recipe, prepared: Prepared, loaded: Loaded, sides: Sides, task: Undertaking, watch: Watch
) -> Trainer:
    kind = recipe.method.peft_type
    callbacks: list[Any] = [watch]
    if kind == "adalora":
        callbacks.append(MovesRanks())
    if recipe.training.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    options: dict[str, Any] = {
        "model": prepared.model,
        "args": _arguments(recipe, prepared, loaded, sides, task),
        "train_dataset": _dataset(sides.train),
        "eval_dataset": _dataset(sides.heldout) if sides.heldout.examples else None,
        "processing_class": loaded.tokenizer,
        "callbacks": callbacks,
    }
    if prepared.config is not None and methods.wants_logits(prepared.model):
        collator = DataCollatorForLanguageModeling(loaded.tokenizer.pad_token_id)
        trainer: Any = Plain(data_collator=collator, **options)
    else:
        trainer = Fused(**options)
    keep_precision(recipe, loaded, prepared.model)
    trainer.remove_callback(PrinterCallback)  # it writes to stdout
    if not recipe.training.packing and len(trainer.train_dataset) != len(sides.train.examples):
        raise LoradockError("TRL skipped rows that fit into max_length", hint="report this with the recipe")
    return trainer


def _dataset(side: Side) -> Any:
    return datasets.Dataset.from_list([row.plain() for row in side.tokens])


def _arguments(recipe: Recipe, prepared: Prepared, loaded: Loaded, sides: Sides, task: Undertaking) -> SFTConfig:
    """The recipe's own names as they are, and what follows from the machine."""
    training = recipe.training
    rows, batches = task.crew.batch(training)
    every = _every(training.eval_steps, prepared.steps) if sides.heldout.examples else None
    best = every is not None and training.load_best_model_at_end
    given = training.model_dump(
        exclude={
            *("dtype", "attn_implementation", "early_stopping_patience", "completion_only_loss", "eval_steps"),
            *("save_steps", "load_best_model_at_end", "learning_rate", "gradient_checkpointing"),
            *("per_device_train_batch_size", "gradient_accumulation_steps"),
        },
        exclude_none=True,
    )
    return SFTConfig(
        **given,
        output_dir=str(task.work.checkpoints),
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        gradient_accumulation_steps=batches,
        gradient_checkpointing=recipe.checkpoints_activations(cuda=loaded.cuda),
        eval_strategy="steps" if every else "no",
        eval_steps=every,
        # Not by evaluate() before train(): accelerate then takes the model for prepared, and gradients stay apart.
        eval_on_start=bool(sides.heldout.examples) and task.checkpoint is None,
        eval_packing=False,
        save_strategy="steps",
        save_steps=training.save_steps or (every if best else None) or max(1, prepared.steps // 10),
        save_total_limit=2,
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if every else None,
        greater_is_better=False if every else None,
        restore_callback_states_from_checkpoint=True,
        report_to="none",
        disable_tqdm=True,
        seed=recipe.seed,
        use_cpu=not loaded.cuda,
        bf16=loaded.dtype is torch.bfloat16,
        train_sampling_strategy="group_by_length",
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=loaded.cuda,
        ddp_find_unused_parameters=recipe.method.peft_type in methods.UNUSED,
        logging_first_step=True,  # so that a training shorter than logging_steps has a loss too
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
    )


def _every(given: float | None, steps: int) -> int | None:
    """Steps between two evaluations, where they may be given as a share of all."""
    if given is None:
        return None
    return int(given) if given >= 1 else max(1, round(given * steps))


def _before(task: Undertaking, prepared: Prepared, loaded: Loaded, prompts: list[Prompt], say: Say) -> list[str]:
    """What the model says before it is trained, kept beside the checkpoints for a run that is taken up again."""
    kept = task.work.path / "before.json"
    if kept.is_file():
        said: list[str] = json.loads(kept.read_text(encoding="utf-8"))
        return said
    said = _answers(prepared, loaded, prompts, say)
    if prompts:
        kept.write_text(json.dumps(said), encoding="utf-8")
    return said


def _answers(prepared: Prepared, loaded: Loaded, prompts: list[Prompt], say: Say) -> list[str]:
    """What the model says to the prompts; where it cannot, nothing to each."""
    tasks = methods.task_ids(prepared.config, len(prompts), prepared.model.device) if prepared.config else {}
    cached = prepared.config is None or methods.kind_of(prepared.config) != "xlora"
    # TRL and Trainer turn the cache off for training.
    try:
        return samples.answers(prepared.model, loaded.tokenizer, prompts, use_cache=cached, **tasks)
    except Exception as error:  # noqa: BLE001 # a model's own code, for a table that only helps
        say(f"warning: the samples cannot be answered: {first_line(error)}")
        return [""] * len(prompts)
