"""A merged model's files hold what older readers look for, and today's transformers reads them as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from loradock.trainer.weights.readers import readable
from loradock.trainer.weights.shards import Shards

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize(
    ("kind", "parameters", "written"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 1e5}, {"rope_theta": 1e5}),
        ("qwen2", {**YARN, "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": YARN}),
        (
            "phi",
            {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 2e4, "partial_rotary_factor": 0.5},
        ),
        (
            "gemma3_text",
            {
                "full_attention": {**LINEAR, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
            {"rope_theta": 1e6, "rope_scaling": LINEAR, "rope_local_base_freq": 5e3},
        ),
    ],
)
def test_rotary_embeddings_stand_where_transformers_4_looks_for_them(
    kind: str, parameters: dict[str, Any], written: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.for_model(kind, rope_parameters=parameters, num_hidden_layers=2)
    given = config.to_dict()
    found = readable(given)
    assert {key: found.get(key) for key in written} == written
    assert {key: found[key] for key in given if key not in ("torch_dtype", *written)} == {
        key: given[key] for key in given if key not in ("torch_dtype", *written)
    }
    assert readable({"text_config": given})["text_config"] == found
    (tmp_path / "config.json").write_text(json.dumps(found))
    again = AutoConfig.from_pretrained(tmp_path).rope_parameters
    for name, value in config.rope_parameters.items():
        assert again[name] == value if not isinstance(value, dict) else again[name].items() >= value.items()


def test_experts_are_counted_where_transformers_4_looks_for_their_number() -> None:
    assert readable(AutoConfig.for_model("qwen3_moe", num_experts=4).to_dict())["num_experts"] == 4
    assert "num_experts" not in readable(AutoConfig.for_model("mixtral").to_dict())


def test_a_merged_model_s_files_are_read_by_both(shallow_dir: Path, tmp_path: Path) -> None:
    Shards(shallow_dir).copy_beside(tmp_path, {"dtype": "bfloat16"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no TokenizersBackend
    text = "Don't  split — 24 spaces,\n\tor tabs; schön."
    one, other = (AutoTokenizer.from_pretrained(path) for path in (shallow_dir, tmp_path))
    assert one(text)["input_ids"] == other(text)["input_ids"]
    assert one.get_vocab() == other.get_vocab()
    messages = [{"role": "user", "content": "Hello"}]
    assert one.apply_chat_template(messages, tokenize=False) == other.apply_chat_template(messages, tokenize=False)
