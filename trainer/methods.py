"""A recipe's method as PEFT's configuration, held against what the base has."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper

from loradock.registry import patterns
from loradock.registry.errors import BadInput, first_line
from loradock.trainer import declared, defaults, targets
from loradock.trainer.hyperparameters import as_declared
from loradock.trainer.recipe import Method

PLAIN: Final = ("adaption_prompt", "cpt", "multitask_prompt_tuning", "poly", "trainable_tokens", "xlora")
"""PEFT's types whose model gives only plain logits, so that TRL's fused loss cannot be used."""
UNUSED: Final = ("shadow",)
"""PEFT's types that have weights which no loss depends on, so that several processes have to look for them."""
TASKS: Final = ("multitask_prompt_tuning", "poly")
"""PEFT's types that ask for a task id with every row; a recipe trains one task, number 0."""

REFUSALS: Final = (
    *(ValueError, TypeError, KeyError, IndexError, NotImplementedError, AttributeError, AssertionError, ImportError),
    re.error,
)
"""What PEFT raises where it does not take a configuration, or cannot put it on a model."""


def kind_of(config: PeftConfig) -> str:
    """PEFT's type of a configuration in lower case."""
    kind: str = config.peft_type.value.lower()
    return kind


def task_ids(config: PeftConfig, rows: int, device: torch.device) -> dict[str, torch.Tensor]:
    """What the model asks for beside so many rows: task 0 for each where it knows tasks, else nothing."""
    return {"task_ids": torch.zeros(rows, dtype=torch.long, device=device)} if kind_of(config) in TASKS else {}


def configure(method: Method, model: Any, *, directory: Path | None = None, steps: int = 0) -> PeftConfig | None:
    """PEFT's configuration of `method` for `model`; None for full fine-tuning.

    `steps` is the number of optimiser steps, which AdaLoRA's schedule is laid over, and `directory` what relative
    paths of adapters are relative to. Raises BadInput when a target is none of the model's modules, or when PEFT
    refuses.
    """
    if not method.peft_type:
        return None
    known = declared.settings_of(method.peft_type)
    values = {key: as_declared(known[key], value) for key, value in method.settings.items()}
    if values.get("init_lora_weights") == "loftq":
        values["init_lora_weights"] = True  # the start is set on the quantised layers, after they are made
    values = defaults.of(method.peft_type, method.settings, model, steps) | values
    if "target_modules" in known:
        values.setdefault("target_modules", defaults.targets(method.peft_type))
    if values.get("target_modules") is not None:
        values["target_modules"] = _targets(values["target_modules"], model)
    if "adapters" in values:  # PEFT numbers them as it loads them, and looks for them by those numbers
        paths = [str((directory or Path()) / path) for path in values["adapters"].values()]
        values["adapters"] = {str(number): path for number, path in enumerate(paths)}
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.peft_type.upper())]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return config(task_type=TaskType.CAUSAL_LM, **values)
    except REFUSALS as error:
        raise BadInput(f"PEFT refuses the settings of {method.type}: {first_line(error)}") from error


def _targets(given: Any, model: Any) -> Any:
    if given in targets.GROUPS:
        return targets.named(given, model)
    if isinstance(given, list):
        targets.check(given, model)
    return given


def wrap(model: Any, config: PeftConfig) -> PeftModel:
    """The model with the method's weights added, which alone are trained.

    Raises BadInput when a rank is larger than a layer, or when PEFT refuses, which it does with any of these errors.
    """
    kind = kind_of(config)
    if kind == "xlora":
        model.config.use_cache = False  # it scales by a first pass over the whole text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(model, config)
    except REFUSALS as error:
        raise BadInput(
            f"PEFT cannot put {kind} on this base: {first_line(error)}",
            hint=f"this base has {', '.join(targets.names(model))}; see `loradock methods {kind}`",
        ) from error
    _check_rank(wrapped, config)
    _settle(wrapped, config)
    return wrapped


def _settle(wrapped: PeftModel, config: PeftConfig) -> None:
    """Write what the configuration sets by module so that it means the same in every order: PEFT's saving sorts it."""
    carriers = carriers_of(wrapped)
    kind = config.peft_type.value
    found = patterns.settled(vars(config) | {"peft_type": kind}, carriers)
    for key in patterns.RULES.get(kind, {}):
        setattr(config, key, found[key])


def carriers_of(wrapped: PeftModel) -> tuple[str, ...]:
    """The modules and parameters that carry the method's weights, by the base's names."""
    kinds = ("targeted_module_names", "targeted_parameter_names")
    return tuple(name for kind in kinds for name in getattr(wrapped, kind, ()))


def _check_rank(wrapped: PeftModel, config: PeftConfig) -> None:
    """Raise BadInput where a rank is larger than a layer that carries it: the rest of it could not be used."""
    if config.peft_type not in (PeftType.LORA, PeftType.LOHA, PeftType.LOKR):
        return
    for name, layer in wrapped.named_modules():
        if not isinstance(layer, BaseTunerLayer) or getattr(layer, "in_features", None) is None:
            continue
        rank, smallest = getattr(layer, "r", {}).get("default", 0), min(layer.in_features, layer.out_features)
        if rank > smallest:
            key = "method.r" if rank == config.r else "method.rank_pattern"
            raise BadInput(
                f"{key}: {rank} is larger than {name.removeprefix('base_model.model.')}, which has {smallest}",
                hint=f"lower {key} to {smallest} or less, or leave that module out of method.target_modules",
            )


def wants_logits(model: Any) -> bool:
    """Whether a wrapped model's loss takes plain logits: TRL's fused loss reads the head's own weight alone."""
    if kind_of(model.peft_config["default"]) in PLAIN:
        return True
    return isinstance(model.get_output_embeddings(), BaseTunerLayer | TrainableTokensWrapper)


def shape(config: PeftConfig | None) -> dict[str, str]:
    """What PEFT was told in the end, defaults included, as text; empty for full fine-tuning."""
    if config is None:
        return {}
    left_out = declared.not_a_recipes()
    found = {
        key: value
        for key, value in vars(config).items()
        if key not in left_out and value not in (None, {}, [], False, "")
    }
    texts = {
        key: ", ".join(sorted(map(str, value)))
        if isinstance(value, set | list)
        else str(getattr(value, "value", value))
        for key, value in found.items()
    }
    return {"type": kind_of(config), **texts}
