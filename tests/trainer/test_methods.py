"""A method's configuration is held against the modules that the base has."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from registry.errors import BadInput
from trainer import methods
from trainer.recipe import Lora

BLOCK = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@pytest.fixture(scope="module")
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


def lora(**given: object) -> Lora:
    return Lora.model_validate(given)


def carriers(model: torch.nn.Module, method: Lora) -> set[str]:
    names = get_peft_model(model, methods.configure(method, model)).targeted_module_names
    return {name.rsplit(".", 1)[-1] for name in names}


def test_the_recipes_values_reach_peft(model: torch.nn.Module) -> None:
    config = methods.configure(lora(r=4, lora_alpha=12, lora_dropout=0.1, use_rslora=True), model)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 12, 0.1)
    assert (config.use_rslora, config.bias, config.task_type) == (True, "none", "CAUSAL_LM")


def test_all_linear_is_attention_and_mlp_without_the_head() -> None:
    fresh = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4)
    )
    assert carriers(fresh, lora()) == set(BLOCK)


def test_linear_modules(model: torch.nn.Module) -> None:
    assert set(methods.linear_modules(model)) >= {*BLOCK, "lm_head", "embed_tokens"}
    assert "norm" not in methods.linear_modules(model)


def test_a_target_that_is_no_module_is_refused_though_another_fits(model: torch.nn.Module) -> None:
    with pytest.raises(BadInput) as raised:
        methods.configure(lora(target_modules=["q_proj", "v_prj", "norm", "proj"]), model)
    assert [problem.split("; ")[0] for problem in raised.value.problems] == [
        "method.target_modules: 'v_prj'",
        "method.target_modules: 'norm'",
        "method.target_modules: 'proj'",
    ]
    assert "did you mean v_proj?" in raised.value.problems[0]
    assert "gate_proj" in raised.value.hint


def test_a_target_can_be_the_end_of_a_longer_name(model: torch.nn.Module) -> None:
    assert methods.configure(lora(target_modules=["self_attn.q_proj"]), model).target_modules == {"self_attn.q_proj"}
