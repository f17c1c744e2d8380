"""Whether this machine has the memory that a training needs, and what to change when it has not."""

from __future__ import annotations

from pathlib import Path

import torch

from loradock.registry import machine
from loradock.registry.errors import first_line
from loradock.registry.machine import GIB
from loradock.trainer import meta, plan
from loradock.trainer.recipe import Recipe


def available() -> int:
    """Bytes that are free for a training: on the GPU where there is one, else in this machine or its container."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return machine.memory().available


def lacking(recipe: Recipe, directory: Path, longest: int, free: int) -> str:
    """Words for a training that needs more than the `free` bytes by the plan's estimate; empty when it does not.

    Where no estimate can be made, it says so. `directory` holds the base's config.json, and `longest` is the length of
    the longest row in tokens.
    """
    if not recipe.training.packing:
        shorter = recipe.training.model_copy(update={"max_length": min(recipe.training.max_length, longest)})
        recipe = recipe.model_copy(update={"training": shorter})
    cuda = torch.cuda.is_available()
    try:
        needed = plan.needed(recipe, meta.config(directory), cuda=cuda).needed
    except Exception as error:  # noqa: BLE001 # the model's own code runs on shapes, and may do anything
        return f"how much memory this needs is unknown: {first_line(error)}"
    if needed <= free:
        return ""
    said = f"this needs about {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free"
    return f"{said}: {advice(recipe, directory, free)}"


def advice(recipe: Recipe, directory: Path, free: int) -> str:
    """The plan's advice for so many bytes; of a recipe that cannot be planned, the changes that always help."""
    try:
        return plan.advice(recipe, meta.config(directory), free)
    except Exception:  # noqa: BLE001 # as above
        return "halve per_device_train_batch_size and double gradient_accumulation_steps, or lower max_length"
