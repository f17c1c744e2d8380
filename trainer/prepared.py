"""A base made ready for a method: quantised layers prepared, the method's weights added, their start set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftConfig, prepare_model_for_kbit_training

from loradock.trainer import adapter, loftq, methods, packing
from loradock.trainer.base import Loaded
from loradock.trainer.processes import Crew
from loradock.trainer.recipe import Recipe, Training
from loradock.trainer.recipe_file import RecipeFile
from loradock.trainer.tokens import Sides
from loradock.trainer.undertaking import Undertaking


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that can be trained."""

    model: Any
    config: PeftConfig | None
    """None for full fine-tuning."""
    start: Path | None
    """What the method took out of the base, to be put back when the adapter is saved."""
    steps: int
    """Optimiser steps that the recipe comes to."""
    trainable: int
    total: int
    """Weights, those of the method included; a quantised layer counts as it would unquantised."""

    @property
    def share(self) -> float:
        """The part of all weights that is trained."""
        return self.trainable / self.total


def prepare(source: RecipeFile, loaded: Loaded, directory: Path, sides: Sides, task: Undertaking) -> Prepared:
    """Put the recipe's method on its base; raises BadInput when the base does not bear it.

    `directory` holds the base's files. What the method takes out of the base is kept beside the task's checkpoints.
    """
    recipe = source.recipe
    transformers.set_seed(recipe.seed)
    steps = count_steps(recipe.training, len(sides.train.examples), task.crew)
    if recipe.training.packing:
        packing.check(loaded.model, sides.train.tokens)
    checkpointed = recipe.checkpoints_activations(cuda=loaded.cuda)
    model, config, start = loaded.model, None, None
    if recipe.quantization:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointed)
    config = methods.configure(recipe.method, model, directory=source.directory, steps=steps)
    if config is not None:
        model = methods.wrap(model, config)
        start = adapter.keep_start(model, task.work.empty("start")) if task.crew.main else None
        if recipe.method.settings.get("init_lora_weights") == "loftq":
            loftq.start(model, directory)
    else:
        model.requires_grad_(True)
    return Prepared(model, config, start, steps, *_count(model))


def count_steps(training: Training, examples: int, crew: Crew) -> int:
    """Optimiser steps for so many examples, packing left out of account."""
    if training.max_steps:
        return training.max_steps
    rows, batches = crew.batch(training)
    in_epoch = -(-examples // (rows * crew.size))
    return max(1, math.ceil(-(-in_epoch // batches) * (training.num_train_epochs or 1)))


def keep_precision(recipe: Recipe, loaded: Loaded, model: Any) -> None:
    """Undo TRL's cast of a quantised base's adapter to bfloat16 where nothing here multiplies that fast."""
    if recipe.quantization and loaded.dtype is torch.float32:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def _count(model: Any) -> tuple[int, int]:
    trainable = total = 0
    for parameter in model.parameters():
        held = getattr(parameter, "quant_state", None)
        count = held.shape.numel() if held is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total
