"""LLaMA-Factory's SFT recipes become ours, value for value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from loradock.registry.errors import BadInput
from loradock.trainer import dialects, recipe_file
from loradock.trainer.recipe import Recipe

FIXTURES = Path(__file__).parent / "llamafactory"
START: Mapping[str, Any] = {
    "model_name_or_path": "org/base",
    "stage": "sft",
    "dataset": "identity",
    "template": "llama3",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def example(home: Path, name: str) -> tuple[Recipe, dialects.Translation]:
    path = home / name
    found = dialects.translate(path.read_text(), path)
    assert found is not None
    return recipe_file.parse(found.recipe_text, path).recipe, found


def changed(**keys: Any) -> tuple[Recipe, dialects.Translation]:
    path = Path("other.yaml").absolute()
    found = dialects.translate(yaml.safe_dump({**START, **keys}, sort_keys=False), path)
    assert found is not None
    return recipe_file.parse(found.recipe_text, path).recipe, found


def faults(**keys: Any) -> tuple[str, ...]:
    with pytest.raises(BadInput) as raised:
        changed(**keys)
    return raised.value.problems


def test_a_lora_on_instructions(home: Path) -> None:
    found, translation = example(home, "lora_sft.yaml")
    assert translation.dialect == "LLaMA-Factory"
    assert found.base == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert found.data.path == ("data/identity.json", "data/alpaca_demo.jsonl")
    assert (found.data.format, found.data.template, found.data.heldout) == ("alpaca", "chat", 0.1)
    assert found.method.type == "lora"
    assert found.method.settings == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
    told = found.training
    assert (told.max_length, told.per_device_train_batch_size, told.gradient_accumulation_steps) == (2048, 1, 8)
    assert (told.learning_rate, told.num_train_epochs, told.lr_scheduler_type) == (1e-4, 3, "cosine")
    assert (told.warmup_steps, told.dtype, told.eval_steps, told.save_steps) == (0.1, "bfloat16", 500, 500)
    said = "\n".join(translation.warnings)
    assert (
        "lora_sft.yaml:15: template: rows are written by the base's own chat template, which must be that one (llama3)"
        in said
    )
    assert "cutoff_len: rows that are too long are left out and counted here, not cut" in said
    assert "max_samples: no file has more rows than that" in said
    assert "report_to" not in said


def test_a_qlora_on_conversations_with_defaults(home: Path) -> None:
    found, translation = example(home, "qlora_sharegpt.yaml")
    assert found.quantization
    assert (found.quantization.kind, found.quantization.bnb_4bit_use_double_quant) == ("nf4", False)
    assert found.method.type == "qlora"
    assert found.method.settings == {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "use_dora": True,
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
    }
    assert found.data.path == ("someone/talks",)
    assert (found.data.subset, found.data.split, found.data.format) == ("en", "train[:500]", "chat")
    assert found.data.columns == {"messages": "turns", "role": "from", "content": "value"}
    told = found.training
    assert (told.learning_rate, told.lr_scheduler_type, told.num_train_epochs) == (5e-5, "linear", 3)
    assert (told.per_device_train_batch_size, told.warmup_steps, told.optim) == (8, 0, "adamw_torch_fused")
    assert (told.packing, told.attn_implementation, told.max_length) == (True, "flash_attention_2", 2048)
    assert (found.data.heldout, told.load_best_model_at_end) == (0, False)
    assert "  learning_rate: 5.0e-05  # LLaMA-Factory's default" in translation.recipe_text
    assert any("deepspeed: how work is spread over devices" in warning for warning in translation.warnings)


def test_every_fault_is_told_at_its_own_line(home: Path) -> None:
    path = home / "refused.yaml"
    with pytest.raises(BadInput) as raised:
        dialects.translate(path.read_text(), path)
    marked = [
        number
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for _ in range(2 if line.endswith("twice") else int(line.endswith("# refused")))
    ]
    assert [int(problem.split(":")[1]) for problem in raised.value.problems] == marked


def test_columns_are_those_of_dataset_info() -> None:
    found, _ = changed(dataset="questions")
    assert found.data.columns == {"instruction": "question", "output": "answer"}


def test_a_directory_of_data_sets_can_be_named(home: Path) -> None:
    shutil.move(home / "data", home / "elsewhere")
    assert changed(dataset_dir="elsewhere")[0].data.path == ("elsewhere/identity.json",)
    assert "dataset: there is no data/dataset_info.json" in faults()[0]
    assert changed(dataset_dir="ONLINE", dataset="some/set")[0].data.path == ("some/set",)


def test_full_fine_tuning_and_oft() -> None:
    found, translation = changed(finetuning_type="full", lora_rank=8)
    assert (found.method.type, found.method.settings) == ("full", {})
    assert any("lora_rank: it says nothing about full" in warning for warning in translation.warnings)
    found, _ = changed(finetuning_type="oft", oft_block_size=64)
    assert found.method.type == "oft"
    assert found.method.settings == {"oft_block_size": 64, "module_dropout": 0.0, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"stage": "pt"}, "other.yaml:2: stage: pt is not sft"),
        ({"do_train": False}, "do_train: there is nothing to train"),
        ({"finetuning_type": "freeze"}, "finetuning_type: freeze is none of lora, full and oft"),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, "quantization_method: hqq is not bnb"),
        ({"quantization_bit": 3}, "quantization_bit: should be 4 or 8"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "quantization_bit: needs an adapter"),
        ({"dataset": "nobody"}, "other.yaml:3: dataset: nobody is not in dataset_info.json; alpaca_demo, identity"),
        ({"dataset": "identity,talks"}, "dataset: the rows of talks differ in form from those of identity"),
        (
            {"dataset": "pictures"},
            "dataset: pictures in dataset_info.json: columns.images: only messages, system are read",
        ),
        ({"dataset": None}, "dataset: should name data sets"),
        ({"template": "alpaca"}, "template: alpaca is no model's own"),
        ({"max_samples": 1}, "max_samples: a file is read whole, and one has more than 1 rows"),
        ({"mix_strategy": "interleave_under"}, "mix_strategy: data sets are joined"),
        ({"flash_attn": "xformers"}, "flash_attn: should be one of auto, disabled"),
        ({"val_size": 0.9}, "val_size: should be less than or equal to 0.5"),
        ({"loraplus_lr_ratio": 16.0}, "loraplus_lr_ratio: one learning rate holds"),
    ],
)
def test_what_cannot_be_honoured(keys: dict[str, Any], fault: str) -> None:
    found = faults(**keys)
    assert any(fault in problem for problem in found), found


def test_dataset_info_is_read_with_care(home: Path) -> None:
    info = home / "data" / "dataset_info.json"
    info.write_text(json.dumps({"identity": {"file_name": "identity.json", "num_samples": 5, "colums": {}}}))
    assert faults() == (
        "other.yaml:3: dataset: identity in dataset_info.json: num_samples: data sets are joined, each whole",
        "other.yaml:3: dataset: identity in dataset_info.json: colums is no key that is known; did you mean columns?",
    )
    info.write_text("{")
    assert "is not JSON" in faults()[0]
    info.write_text("[]")
    assert "holds no data sets by name" in faults()[0]


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"eval_strategy": "epoch", "per_device_train_batch_size": 1}, 1),
        ({"eval_strategy": "steps", "eval_steps": 3}, 3),
        ({"eval_strategy": "steps", "logging_steps": 4}, 4),
        ({"eval_strategy": "no"}, None),
        ({"eval_steps": 3}, None),
    ],
)
def test_evaluations_are_told_in_steps(keys: dict[str, Any], steps: int | None) -> None:
    found, translation = changed(val_size=0.5, **keys)
    assert found.training.eval_steps == steps
    if steps is None:
        assert any("not between" in warning for warning in translation.warnings)


def test_packing_keeps_rows_apart_and_says_so() -> None:
    assert any("packing: rows that share a sequence" in warning for warning in changed(packing=True)[1].warnings)
    found, translation = changed(neat_packing=True)
    assert found.training.packing
    assert not any("packing" in warning for warning in translation.warnings)
