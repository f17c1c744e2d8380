"""A recipe's method as PEFT's configuration, held against what PEFT knows and what the base has."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper
from pydantic import ConfigDict, TypeAdapter, ValidationError

from loradock.registry import patterns
from loradock.registry.errors import BadInput, first_line
from loradock.trainer import catalogue, defaults, targets
from loradock.trainer.recipe import Method, Quantization, as_number

QUANTIZED: Final = ("lora", "adalora", "ia3", "hira", "pvera", "randlora", "road")
"""PEFT's types that have layers of their own for bitsandbytes' quantised ones."""
PROMPTS: Final = ("prompt_tuning", "p_tuning", "prefix_tuning", "cartridge", "cpt", "multitask_prompt_tuning")
"""PEFT's types that put something before the text and leave the weights alone."""
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

_OURS: Final = {field.name for field in dataclasses.fields(PeftConfig)} | {
    # what PEFT reads off the model, or what only its own machinery sets
    *("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers", "hidden_size", "total_step"),
    *("runtime_config", "megatron_config", "megatron_core", "loftq_config", "arrow_config"),
}
_COUNTS: Final = ("r", "init_r", "target_r", "num_virtual_tokens", "effective_rank", "n_frequency", "adapter_len")
_TOKENS: Final = ("token_indices", "trainable_token_indices", "alora_invocation_tokens")
_UNREADY: Final = {
    "eva": "PEFT computes it from the data in a pass of its own before training",
    "corda": "PEFT computes it from the data in a pass of its own, and its adapters do not load again",
    "lora_ga": "PEFT computes it from gradients in a pass of its own before training",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One hyper-parameter of a method, as PEFT declares it."""

    name: str
    annotation: Any
    default: Any
    help: str


def kind_of(config: PeftConfig) -> str:
    """PEFT's type of a configuration in lower case."""
    kind: str = config.peft_type.value.lower()
    return kind


def task_ids(config: PeftConfig, rows: int, device: torch.device) -> dict[str, torch.Tensor]:
    """What the model asks for beside so many rows: task 0 for each where it knows tasks, else nothing."""
    return {"task_ids": torch.zeros(rows, dtype=torch.long, device=device)} if kind_of(config) in TASKS else {}


@cache
def settings_of(peft_type: str) -> dict[str, Setting]:
    """Every hyper-parameter that a recipe can set for one of PEFT's types, by name."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type.upper())]
    hints = typing.get_type_hints(config)
    return {
        field.name: Setting(
            field.name,
            hints[field.name],
            None if field.default is dataclasses.MISSING else field.default,
            _help(field.metadata.get("help", "")),
        )
        for field in dataclasses.fields(config)
        if field.name not in _OURS
    }


def _help(said: str | tuple[str, ...]) -> str:
    return " ".join((said if isinstance(said, str) else " ".join(said)).split())


def faults(method: Method, quantization: Quantization | None) -> Iterator[tuple[str, str]]:
    """Every fault of a method's hyper-parameters, as (key, what is wrong)."""
    if not method.peft_type:
        for key in method.model_extra or {}:
            yield key, "full fine-tuning has no hyper-parameters of its own"
        if quantization:
            yield "type", "a quantised base cannot be trained in full; take qlora, or leave quantization out"
        return
    known = settings_of(method.peft_type)
    for key, value in method.settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            rest = f"did you mean {near[0]}?" if near else f"`loradock methods {method.type}` lists what is"
            yield key, f"is no hyper-parameter of {method.type}; {rest}"
        elif fault := _fault(known[key], value) or _by_module_fault(known[key], value) or _no_token(key, value):
            yield key, fault
    yield from _start_faults(method.settings, quantization)
    yield from _pattern_faults(method)
    if quantization and method.peft_type not in (*QUANTIZED, *PROMPTS):
        able = ", ".join(sorted((*QUANTIZED, *PROMPTS)))
        yield "type", f"{method.type} has no layers for a quantised base; these methods have: {able}"


def _start_faults(settings: Mapping[str, Any], quantization: Quantization | None) -> Iterator[tuple[str, str]]:
    key = "init_lora_weights"
    start = str(settings.get(key, ""))
    if start.startswith(catalogue.FROM_BASE):
        for other in ("modules_to_save", "trainable_token_indices", "bias", "use_dora"):
            if settings.get(other, "none") not in ("none", None, False, [], {}):
                yield other, f"PEFT cannot save it with what {start} takes out of the base: leave out one of the two"
    if start in _UNREADY:
        yield key, f"{start} is not to be had here: {_UNREADY[start]}"
    if start == "loftq" and (quantization is None or quantization.load_in_8bit):
        yield key, "loftq starts from the error of a base in 4 bits: it needs quantization"
    if start.startswith(catalogue.FROM_BASE) and quantization:
        yield key, f"{start} decomposes the base's weights, and a quantised base has them no more"


def _pattern_faults(method: Method) -> Iterator[tuple[str, str]]:
    """Settings by module that PEFT passes over, or refuses only when it saves."""
    given = [key for key, value in method.settings.items() if key.endswith("_pattern") and isinstance(value, dict)]
    for key in given:
        if key not in patterns.RULES.get(method.peft_type.upper(), {}):
            yield key, f"PEFT takes it for {method.type}, and does nothing with it: leave it out"
    from_base = str(method.settings.get("init_lora_weights", "")).startswith(catalogue.FROM_BASE)
    if given and from_base and method.settings.get("use_rslora"):
        what = "what starts from the base's own parts cannot be saved with use_rslora and"
        yield given[0], f"{what} {given[0]}: leave out one of the three"


def _by_module_fault(setting: Setting, given: Any) -> str:
    """What is wrong with a setting by module, whatever the base."""
    if not setting.name.endswith("_pattern") or not isinstance(given, dict):
        return ""
    counts = setting.name not in ("alpha_pattern", "lambda_pattern")
    kinds = (int, float) if not counts or "float" in str(setting.annotation) else (int,)
    for key, each in _as_declared(setting, given).items():
        if not isinstance(key, str) or not key:
            return f"{key!r} should be the end of a module's name, or a regular expression for it"
        try:
            re.compile(key)
        except re.error as error:
            return f"{key!r} is no regular expression: {error}"
        if not patterns.is_tame(key):
            return f"{key!r} is an expression that may never end: repeat less in it"
        if type(each) not in kinds or not math.isfinite(each) or (counts and each <= 0):
            number = "a whole number above 0" if kinds == (int,) else f"a number{' above 0' if counts else ''}"
            return f"{key}: should be {number}, not {each!r}"
    return ""


def _no_token(key: str, given: Any) -> str:
    none = key in _TOKENS and not all(given.values() if isinstance(given, dict) and given else [given])
    return "should name at least one token, or be left out" if none else ""


def _fault(setting: Setting, value: Any) -> str:
    if setting.name == "init_lora_weights" and re.fullmatch(r"pissa_niter_\d+|loftq", str(value)):
        return ""  # a pattern, which the type does not say; and ours to set
    try:
        TypeAdapter(setting.annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(
            _as_declared(setting, value)
        )
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].replace("Input should be", "should be", 1)
        return f"{said}, not {value!r}"
    if setting.name in _COUNTS and isinstance(value, int) and value < 1:
        return f"should be at least 1, not {value}"
    if "dropout" in setting.name and isinstance(value, int | float) and not 0 <= value < 1:
        return f"should be at least 0 and less than 1, not {value}"
    if setting.name == "target_modules" and not value:
        return "should be all-linear, attention, mlp, or a list of module names such as [q_proj, v_proj]"
    return ""


def _as_declared(setting: Setting, value: Any) -> Any:
    """YAML's value as PEFT's type wants it: `5e-4` is text in YAML 1.1."""
    if isinstance(value, str) and float in (setting.annotation, *typing.get_args(setting.annotation)):
        return as_number(value)
    if setting.name.endswith("_pattern") and isinstance(value, dict):
        return {key: as_number(each) for key, each in value.items()}
    return value


def configure(method: Method, model: Any, *, directory: Path | None = None, steps: int = 0) -> PeftConfig | None:
    """PEFT's configuration of `method` for `model`; None for full fine-tuning.

    `steps` is the number of optimiser steps, which AdaLoRA's schedule is laid over, and `directory` what relative
    paths of adapters are relative to. Raises BadInput when a target is none of the model's modules, or when PEFT
    refuses.
    """
    if not method.peft_type:
        return None
    known = settings_of(method.peft_type)
    values = {key: _as_declared(known[key], value) for key, value in method.settings.items()}
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
    found = {
        key: value for key, value in vars(config).items() if key not in _OURS and value not in (None, {}, [], False, "")
    }
    texts = {
        key: ", ".join(sorted(map(str, value)))
        if isinstance(value, set | list)
        else str(getattr(value, "value", value))
        for key, value in found.items()
    }
    return {"type": kind_of(config), **texts}
