"""A method's hyper-parameters, held against what PEFT declares, without importing PEFT."""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from loradock.registry import patterns
from loradock.trainer import catalogue, declared
from loradock.trainer.catalogue import PROMPTS, QUANTIZED
from loradock.trainer.declared import Setting
from loradock.trainer.recipe import Method, Quantization, as_number

_COUNTS: Final = ("r", "init_r", "target_r", "num_virtual_tokens", "effective_rank", "n_frequency", "adapter_len")
_TOKENS: Final = ("token_indices", "trainable_token_indices", "alora_invocation_tokens")
_UNREADY: Final = {
    "eva": "PEFT computes it from the data in a pass of its own before training",
    "corda": "PEFT computes it from the data in a pass of its own, and its adapters do not load again",
    "lora_ga": "PEFT computes it from gradients in a pass of its own before training",
}


def faults(method: Method, quantization: Quantization | None) -> Iterator[tuple[str, str]]:
    """Every fault of a method's hyper-parameters, as (key, what is wrong)."""
    if not method.peft_type:
        for key in method.model_extra or {}:
            yield key, "full fine-tuning has no hyper-parameters of its own"
        if quantization:
            yield "type", "a quantised base cannot be trained in full; take qlora, or leave quantization out"
        return
    known = declared.settings_of(method.peft_type)
    for key, value in method.settings.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            rest = f"did you mean {near[0]}?" if near else f"`loradock methods {method.type}` lists what is"
            yield key, f"is no hyper-parameter of {method.type}; {rest}"
        elif (
            fault := _fault(_typed(known[key], method.peft_type), value)
            or _by_module_fault(known[key], value)
            or _no_token(key, value)
        ):
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
    for key, each in as_declared(setting, given).items():
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


def _typed(setting: Setting, peft_type: str) -> Setting:
    """The setting with its type, for which PEFT is imported where that is a class of PEFT's own."""
    return declared.from_peft(peft_type)[setting.name] if setting.annotation is declared.PEFTS_OWN else setting


def _no_token(key: str, given: Any) -> str:
    none = key in _TOKENS and not all(given.values() if isinstance(given, dict) and given else [given])
    return "should name at least one token, or be left out" if none else ""


def _fault(setting: Setting, value: Any) -> str:
    if setting.name == "init_lora_weights" and re.fullmatch(r"pissa_niter_\d+|loftq", str(value)):
        return ""  # a pattern, which the type does not say; and ours to set
    try:
        TypeAdapter(setting.annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(
            as_declared(setting, value)
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


def as_declared(setting: Setting, value: Any) -> Any:
    """YAML's value as PEFT's type wants it: `5e-4` is text in YAML 1.1."""
    if isinstance(value, str) and float in (setting.annotation, *typing.get_args(setting.annotation)):
        return as_number(value)
    if setting.name.endswith("_pattern") and isinstance(value, dict):
        return {key: as_number(each) for key, each in value.items()}
    return value
