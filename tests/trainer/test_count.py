"""Weights are counted without loading any, and as PEFT itself counts them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from loradock.registry.errors import BadInput
from loradock.trainer import adapter, catalogue, count, meta, methods
from loradock.trainer.recipe import Recipe

pytestmark = pytest.mark.slow

BASES = Path(__file__).resolve().parent.parent / "bases"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
NEEDED: dict[str, dict[str, Any]] = {
    "cpt": {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "trainable_tokens": {"token_indices": [1, 2]},
    "adamss": {"r": 16},
    "shira": {"r": 8},
    "road": {"group_size": 32},
    "waveft": {"n_frequency": 500},
}
COUNTED = sorted(set(catalogue.ENTRIES) - {catalogue.FULL, "xlora"})


def recipe(name: str, **settings: Any) -> Recipe:
    method = {"type": name, **settings}
    return Recipe.model_validate({"name": "x", "base": "base", "data": "rows.jsonl", "method": method})


@pytest.fixture(scope="module")
def tiny() -> PretrainedConfig:
    return LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        use_cache=False,
    )


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("Llama-3.1-8B", 8_030_261_248),
        ("Llama-3.1-70B", 70_553_706_496),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Gemma-2-9B", 9_241_705_984),
        ("Mistral-7B", 7_241_732_096),
        ("GPT-2", 124_439_808),
        ("Falcon-7B", 6_921_720_704),
        ("BLOOM-7b1", 7_069_016_064),
        ("Phi-3-mini", 3_821_079_552),
    ],
)
def test_published_sizes(name: str, weights: int) -> None:
    found = count.parameters(recipe(catalogue.FULL), meta.config(BASES / name))
    assert (found.base, found.trainable, found.total, found.file) == (weights, weights, weights, 0)


@pytest.mark.parametrize(
    ("name", "settings", "trainable"),
    [
        ("lora", {"r": 4, "target_modules": ATTENTION}, 3_407_872),
        ("lora", {"r": 16, "target_modules": ATTENTION}, 13_631_488),
        ("lora", {"r": 64, "target_modules": ATTENTION}, 54_525_952),
        ("lora", {"r": 16}, 41_943_040),
        ("ia3", {}, 524_288),
    ],
)
def test_llama_8b(name: str, settings: dict[str, Any], trainable: int) -> None:
    found = count.parameters(recipe(name, **settings), meta.config(BASES / "Llama-3.1-8B"))
    assert found.trainable == trainable
    assert found.total == 8_030_261_248 + trainable
    assert found.quantizable == 6_979_321_856


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_counted_is_what_peft_makes_and_saves(name: str, tiny: PretrainedConfig, tmp_path: Path) -> None:
    wanted = recipe(name, **NEEDED.get(name, {}))
    found = count.parameters(wanted, tiny)
    model = AutoModelForCausalLM.from_config(tiny)
    config = methods.configure(wanted.method, model)
    assert config is not None
    torch.manual_seed(0)
    wrapped = methods.wrap(model, config)
    assert found.trainable == sum(each.numel() for each in wrapped.parameters() if each.requires_grad)
    assert found.total == sum(each.numel() for each in wrapped.parameters())
    start = adapter.keep_start(wrapped, tmp_path / "start")
    options = {"path_initial_model_for_weight_conversion": str(start)} if start else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of PiSSA beside other adapters
        wrapped.save_pretrained(tmp_path / "out", save_embedding_layers=False, **options)
    size = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    # ADAMSS clusters the rows by their values, which moves a few digits in the file's header
    assert found.file == (pytest.approx(size, abs=64) if name == "adamss" else size)


def test_a_method_that_does_not_fit_the_base(tiny: PretrainedConfig) -> None:
    with pytest.raises(BadInput, match="cannot put road on this base"):
        count.parameters(recipe("road"), tiny)
    with pytest.raises(BadInput, match="target modules that the base does not have"):
        count.parameters(recipe("lora", target_modules=["c_attn"]), tiny)


def test_x_lora_is_counted_with_the_adapters_that_it_mixes(tiny: PretrainedConfig, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="with the adapters that it mixes"):
        count.parameters(recipe("xlora"), tiny)
    for letter in "ab":
        config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_config(tiny), config).save_pretrained(tmp_path / letter)
    given = recipe("xlora", adapters={letter: str(tmp_path / letter) for letter in "ab"})
    model = AutoModelForCausalLM.from_config(tiny)
    wanted = methods.configure(given.method, model)
    assert wanted is not None
    wrapped = methods.wrap(model, wanted)
    found = count.parameters(given, tiny)
    assert found.total == sum(each.numel() for each in wrapped.parameters())
    assert found.trainable == sum(each.numel() for each in wrapped.parameters() if each.requires_grad) > 0
