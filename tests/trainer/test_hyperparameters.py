"""A method's hyper-parameters are held against what PEFT declares, in the same words as with PEFT itself."""

from __future__ import annotations

import typing
from dataclasses import replace
from typing import Any

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from loradock.trainer import catalogue, declared, hyperparameters
from loradock.trainer.recipe import Method, Quantization

GIVEN = (
    *(0, 1, -2, 3.5, True, None, "x", "none", "5e-4", "RANDOM"),
    *([], ["q_proj"], [1], [[1, 2]], {}, {"q_proj": 4}, {"rho": 0.5}),
)


@pytest.mark.parametrize("kind", sorted(kind.value.lower() for kind in PeftType))
def test_every_hyper_parameter_of_peft_can_be_set(kind: str) -> None:
    for setting in declared.settings_of(kind).values():
        if setting.default is not None and setting.name != "target_modules":
            method = Method(type=kind, **{setting.name: setting.default})
            faults = [fault for key, fault in hyperparameters.faults(method, None) if key == setting.name]
            # 0 is PEFT's way of saying "none" of a rank that another setting replaces
            assert not faults or setting.default == 0, (setting, faults)


@pytest.mark.parametrize("name", sorted(catalogue.ENTRIES))
def test_every_value_meets_the_same_faults_as_with_peft_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantization = Quantization() if catalogue.ENTRIES[name].quantized else None
    peft_type = Method(type=name).peft_type
    keys = [*(declared.from_peft(peft_type) if peft_type else ()), "no_such_setting"]
    given = [Method(type=name, **{key: value}) for key in keys for value in GIVEN]
    told = [[*hyperparameters.faults(method, quantization)] for method in given]
    monkeypatch.setattr(declared, "settings_of", declared.from_peft)
    assert told == [[*hyperparameters.faults(method, quantization)] for method in given]
    assert any(told)
    # in a union of PEFT's own, which part is named first follows from what was imported before
    monkeypatch.setattr(declared, "settings_of", as_peft_has_them)
    keys_of = [[key for key, _ in faults] for faults in told]
    assert keys_of == [[key for key, _ in hyperparameters.faults(method, quantization)] for method in given]


def as_peft_has_them(kind: str) -> dict[str, declared.Setting]:
    hints = typing.get_type_hints(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind.upper())])
    return {key: replace(each, annotation=hints[key]) for key, each in declared.from_peft(kind).items()}


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        ({"type": "pissa", "use_rslora": True, "alpha_pattern": {"q_proj": 2}}, "alpha_pattern", "cannot be saved"),
        ({"type": "olora", "use_rslora": True, "rank_pattern": {"q_proj": 2}}, "rank_pattern", "cannot be saved"),
        ({"type": "pissa", "modules_to_save": ["lm_head"]}, "modules_to_save", "PEFT cannot save it"),
        ({"type": "olora", "trainable_token_indices": [1]}, "trainable_token_indices", "PEFT cannot save it"),
        ({"type": "pissa", "bias": "lora_only"}, "bias", "PEFT cannot save it"),
        ({"type": "pissa", "use_dora": True}, "use_dora", "PEFT cannot save it"),
        ({"type": "hira", "rank_pattern": {"q_proj": 2}}, "rank_pattern", "does nothing with it"),
        ({"type": "adalora", "alpha_pattern": {"q_proj": 2}}, "alpha_pattern", "does nothing with it"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern", "q_proj: should be a whole number above 0, not 0"),
        ({"rank_pattern": {"q_proj": "many"}}, "rank_pattern", "should be a whole number above 0"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern", "q_proj: should be a number, not inf"),
        ({"alpha_pattern": {"(q_proj": 2}}, "alpha_pattern", "is no regular expression"),
        ({"alpha_pattern": {"(a+)+": 2}}, "alpha_pattern", "may never end"),
        ({"alpha_pattern": {0: 2}}, "alpha_pattern", "should be the end of a module's name"),
    ],
    ids=str,
)
def test_what_would_be_refused_late_or_passed_over_is_told_at_once(given: dict[str, Any], key: str, said: str) -> None:
    assert [(place, said in words) for place, words in hyperparameters.faults(Method(**given), None)] == [(key, True)]
