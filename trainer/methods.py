"""A recipe's method as PEFT's configuration, held against the modules that the base has."""

from __future__ import annotations

import difflib

import torch
from peft import LoraConfig, TaskType
from transformers.pytorch_utils import Conv1D

from registry.errors import BadInput
from trainer.recipe import Lora


def configure(method: Lora, model: torch.nn.Module) -> LoraConfig:
    """PEFT's configuration of `method` for `model`; raises BadInput when a target is none of its modules."""
    if method.target_modules != "all-linear":
        _check_targets(method.target_modules, model)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=method.r,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        target_modules=method.target_modules if isinstance(method.target_modules, str) else list(method.target_modules),
        use_rslora=method.use_rslora,
        bias="none",
    )


def linear_modules(model: torch.nn.Module) -> tuple[str, ...]:
    """The last parts of the names of every module that multiplies by a matrix, sorted, each once."""
    kinds = (torch.nn.Linear, Conv1D, torch.nn.Embedding)
    return tuple(
        sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, kinds)})
    )


def _check_targets(targets: tuple[str, ...], model: torch.nn.Module) -> None:
    """PEFT takes a list of which one name fits, and says nothing of the others."""
    kinds = (torch.nn.Linear, Conv1D, torch.nn.Embedding)
    names = [f".{name}" for name, module in model.named_modules() if isinstance(module, kinds)]
    there = linear_modules(model)
    problems = []
    for target in targets:
        if not any(name.endswith(f".{target}") for name in names):
            near = difflib.get_close_matches(target, there, n=1)
            problems.append(f"method.target_modules: {target!r}" + (f"; did you mean {near[0]}?" if near else ""))
    if problems:
        raise BadInput(
            "target modules that the base does not have",
            problems=problems,
            hint=f"this base has {', '.join(there)}; all-linear takes all but the embeddings and the head",
        )
