from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from registry import check
from registry.artifact import CONFIG, WEIGHTS
from registry.errors import BadInput
from tests.adapters import write_adapter

SMOL = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
}


def test_a_plain_lora_on_its_own_base_has_no_findings(tmp_path: Path) -> None:
    assert check.findings(write_adapter(tmp_path), base_config=SMOL, max_rank=16) == []


@pytest.mark.parametrize(
    ("config", "finding"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"rank_pattern": {"q_proj": 32}}, "rank is 32"),
        ({"r": 64}, "rank is 64"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"layer_replication": [[0, 2]]}, "replicates"),
        ({"alora_invocation_tokens": [1]}, "activated"),
    ],
)
def test_what_vllm_rejects_or_serves_wrongly_is_found_in_the_configuration(
    tmp_path: Path, config: dict[str, Any], finding: str
) -> None:
    found = check.findings(write_adapter(tmp_path, config=config), max_rank=16)
    assert any(finding in line for line in found), found


def test_an_adapter_for_a_wider_base_is_found_by_its_shapes(tmp_path: Path) -> None:
    found = check.findings(write_adapter(tmp_path, hidden=2048), base_config=SMOL)
    assert any("2048 wide where the base is 576" in line for line in found)


def test_an_adapter_for_a_deeper_base_is_found_by_its_layers(tmp_path: Path) -> None:
    found = check.findings(write_adapter(tmp_path, layers=32), base_config=SMOL)
    assert sum("the base has 30 layers" in line for line in found) == 8


def test_a_tensor_with_a_foreign_name_is_found(tmp_path: Path) -> None:
    tensors = load_file(write_adapter(tmp_path) / WEIGHTS)
    save_file({name.removeprefix("base_model."): value for name, value in tensors.items()}, tmp_path / WEIGHTS)
    found = check.findings(tmp_path)
    assert any("no LoRA weight" in line for line in found)
    assert "it has no LoRA weights" in found


def test_half_a_pair_and_unequal_ranks_are_found(tmp_path: Path) -> None:
    tensors = load_file(write_adapter(tmp_path) / WEIGHTS)
    prefix = "base_model.model.model.layers.0.self_attn"
    del tensors[f"{prefix}.q_proj.lora_B.weight"]
    tensors[f"{prefix}.o_proj.lora_B.weight"] = tensors[f"{prefix}.o_proj.lora_B.weight"][:, :2].copy()
    save_file(tensors, tmp_path / WEIGHTS)
    found = " ".join(check.findings(tmp_path))
    assert "only one of lora_A and lora_B" in found
    assert "their ranks differ" in found


def test_pickled_and_damaged_weights_are_found(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"short")
    assert any("safetensors" in line for line in check.findings(tmp_path))
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    assert any("pickled" in line for line in check.findings(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_configuration_that_is_none_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (write_adapter(tmp_path) / CONFIG).write_text(text)
    with pytest.raises(BadInput, match="JSON"):
        check.findings(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("value", "finding"), [(float("nan"), "no finite number"), (float("inf"), "no finite number")])
def test_a_weight_that_is_no_number_is_found_in_every_type(
    tmp_path: Path, dtype: str, value: float, finding: str
) -> None:
    import torch
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    tensors = {
        name: tensor.to(getattr(torch, dtype)) for name, tensor in load(write_adapter(tmp_path) / WEIGHTS).items()
    }
    save(tensors, tmp_path / WEIGHTS)
    assert check.findings(tmp_path) == []
    name, tensor = next(iter(tensors.items()))
    tensor.view(-1)[-1] = value
    save(tensors, tmp_path / WEIGHTS)
    assert check.findings(tmp_path) == [f"{name} holds a value that is {finding}"]


def test_an_adapter_whose_b_is_zero_has_no_effect(tmp_path: Path) -> None:
    assert check.findings(write_adapter(tmp_path, scale=0.0)) == ["it has no effect: every lora_B is zero"]
