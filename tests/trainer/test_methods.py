"""A method is PEFT's configuration of it, held against what PEFT declares and what the base has."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftType
from transformers import LlamaConfig, LlamaForCausalLM

from loradock.registry.errors import BadInput
from loradock.trainer import catalogue, hyperparameters, methods
from loradock.trainer.recipe import Method, Quantization


@pytest.fixture
def model() -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def test_the_catalogue_has_every_type_of_peft_and_no_other() -> None:
    types = {Method(type=name).peft_type for name in catalogue.ENTRIES} - {""}
    assert types == {kind.value.lower() for kind in PeftType}


@pytest.mark.parametrize("name", sorted(catalogue.ENTRIES))
def test_every_method_says_what_it_is(name: str) -> None:
    entry = catalogue.ENTRIES[name]
    assert entry.title
    assert entry.paper.startswith("https://")
    assert 1e-5 <= entry.learning_rate <= 0.1
    assert not list(hyperparameters.faults(Method(type=name), Quantization() if entry.quantized else None))


def test_types_with_layers_for_a_quantised_base_are_those_that_have_them() -> None:
    tuners = Path(inspect.getfile(peft)).parent / "tuners"
    assert {path.parent.name for path in tuners.glob("*/bnb.py")} == set(catalogue.QUANTIZED)


def test_the_recipes_values_reach_peft(model: Any) -> None:
    config = methods.configure(Method(r=4, lora_alpha=12, lora_dropout=0.1, use_rslora=True), model)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 12, 0.1)
    assert (config.use_rslora, config.bias, config.task_type) == (True, "none", "CAUSAL_LM")


def test_what_a_recipe_need_not_say(model: Any) -> None:
    config = methods.configure(Method(), model)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)
    assert config.target_modules == "all-linear"
    assert methods.configure(Method(r=4), model).lora_alpha == 8
    assert methods.configure(Method(type="full"), model) is None


def test_text_that_is_a_number_in_yaml_1_2_is_one(model: Any) -> None:
    method = Method(type="adalora", orth_reg_weight="5e-1")
    assert not list(hyperparameters.faults(method, None))
    assert methods.configure(method, model, steps=20).orth_reg_weight == 0.5


def test_adaloras_schedule_is_laid_over_the_training(model: Any) -> None:
    config = methods.configure(Method(type="adalora"), model, steps=100)
    assert (config.total_step, config.tinit, config.tfinal) == (100, 10, 50)
    assert (config.init_r, config.target_r) == (12, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"r": 9}, "method.r: 9 is larger than model.layers.0.self_attn.k_proj, which has 8"),
        ({"r": 9, "type": "loha"}, "method.r: 9 is larger than"),
        ({"type": "ia3", "target_modules": ["k_proj"], "feedforward_modules": ["up_proj"]}, "PEFT refuses"),
        ({"type": "c3a", "block_size": 7}, "PEFT cannot put c3a on this base: The block size"),
    ],
)
def test_what_the_base_does_not_bear_is_told(model: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        methods.wrap(model, methods.configure(Method(**given), model))


def test_a_rank_as_large_as_the_smallest_layer_is_none_too_large(model: Any) -> None:
    methods.wrap(model, methods.configure(Method(r=8), model))


def test_what_peft_was_told_can_be_read(model: Any) -> None:
    shape = methods.shape(methods.configure(Method(r=4, target_modules=["v_proj", "q_proj"]), model))
    assert shape["type"] == "lora"
    assert (shape["r"], shape["lora_alpha"], shape["target_modules"]) == ("4", "8", "q_proj, v_proj")
    assert methods.shape(None) == {}
