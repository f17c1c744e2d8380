"""Which modules carry an adapter, by architecture, held against the modules of models that transformers builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from loradock.registry.errors import BadInput
from loradock.trainer import methods, targets
from loradock.trainer.recipe import Method

LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FUSED = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
SMALL = {
    "hidden_size": 16,
    "n_embd": 16,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_layers": 2,
    "vocab_size": 32,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "head_dim": 4,
    "ffn_dim": 24,
    "word_embed_proj_dim": 16,
    "pad_token_id": 0,
}


def model(kind: str) -> Any:
    known = AutoConfig.for_model(kind).to_dict()
    given = {key: value for key, value in SMALL.items() if key in known or key == "pad_token_id"}
    if kind == "gpt_neo":
        given |= {"attention_types": [[["global", "local"], 1]], "hidden_size": 16}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **given))


def carriers(kind: str, target: Any) -> set[str]:
    found = model(kind)
    wrapped = methods.wrap(found, methods.configure(Method(target_modules=target, r=2), found))
    return {name.rsplit(".", 1)[-1] for name in wrapped.targeted_module_names}


@pytest.mark.parametrize("kind", sorted(targets.ARCHITECTURES))
def test_attention_and_mlp_together_are_every_linear_layer(kind: str) -> None:
    assert carriers(kind, "attention") | carriers(kind, "mlp") == carriers(kind, "all-linear")


@pytest.mark.parametrize("kind", sorted(targets.ARCHITECTURES))
def test_ia3_scales_keys_values_and_the_last_layer_of_the_mlp(kind: str) -> None:
    found = model(kind)
    config = methods.configure(Method(type="ia3"), found)
    wrapped = methods.wrap(found, config)
    assert config.feedforward_modules <= config.target_modules
    assert {name.rsplit(".", 1)[-1] for name in wrapped.targeted_module_names} == {
        name.rsplit(".", 1)[-1] for name in targets.ARCHITECTURES[kind].ia3
    }


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        *((kind, LLAMA) for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        *((kind, FUSED) for kind in ("falcon", "bloom")),
    ],
)
def test_the_lists_that_people_copy_fit(kind: str, given: set[str]) -> None:
    assert carriers(kind, sorted(given)) == given == carriers(kind, "all-linear")


@pytest.mark.parametrize(("kind", "named"), [("gpt2", "q_proj"), ("llama", "c_attn"), ("bloom", "q_proj")])
def test_a_target_of_another_architecture_is_refused_with_what_there_is(kind: str, named: str) -> None:
    with pytest.raises(BadInput) as raised:
        carriers(kind, [named])
    assert named in raised.value.problems[0]
    assert raised.value.hint.startswith("this base has ")
    assert all(name in raised.value.hint for name in carriers(kind, "all-linear"))


def test_a_target_that_is_no_module_is_refused_though_another_fits() -> None:
    with pytest.raises(BadInput) as raised:
        carriers("llama", ["q_proj", "v_prj", "nrm", "proj"])
    assert [problem.split("; ")[0] for problem in raised.value.problems] == [
        "method.target_modules: 'v_prj'",
        "method.target_modules: 'nrm'",
        "method.target_modules: 'proj'",
    ]
    assert "did you mean v_proj?" in raised.value.problems[0]


def test_a_group_of_an_unknown_architecture_is_refused_and_all_linear_is_not() -> None:
    with pytest.raises(BadInput, match="of a codegen model are attention") as raised:
        carriers("codegen", "attention")
    assert "qkv_proj" in raised.value.hint
    assert "qkv_proj" in carriers("codegen", "all-linear")


def test_the_common_size_divides_every_width() -> None:
    assert targets.common_size(model("llama")) == 8
