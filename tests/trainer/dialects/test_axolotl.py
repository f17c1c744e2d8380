"""Axolotl's recipes become ours, value for value."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from loradock.registry.errors import BadInput
from loradock.trainer import dialects, recipe_file
from loradock.trainer.recipe import Recipe

FIXTURES = Path(__file__).parent / "axolotl"
START: Mapping[str, Any] = {
    "base_model": "org/base",
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    "adapter": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_linear": True,
    "learning_rate": 0.0002,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Greet.", "output": "Ahoy!", "story": "Once."}\n' * 100)
    for file in FIXTURES.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "base").mkdir()
    return tmp_path


def example(home: Path, name: str) -> tuple[Recipe, dialects.Translation]:
    path = home / name
    found = dialects.translate(path.read_text(), path)
    assert found is not None
    return recipe_file.parse(found.recipe_text, path).recipe, found


def changed(**keys: Any) -> tuple[Recipe, dialects.Translation]:
    path = Path("other.yml").absolute()
    found = dialects.translate(yaml.safe_dump({**START, **keys}, sort_keys=False), path)
    assert found is not None
    return recipe_file.parse(found.recipe_text, path).recipe, found


def faults(**keys: Any) -> tuple[str, ...]:
    with pytest.raises(BadInput) as raised:
        changed(**keys)
    return raised.value.problems


def test_a_lora_on_instructions(home: Path) -> None:
    found, translation = example(home, "lora-alpaca.yml")
    assert translation.dialect == "Axolotl"
    assert found.base == "NousResearch/Llama-3.2-1B"
    assert (found.data.path, found.data.format, found.data.template, found.data.heldout) == (
        ("rows.jsonl",),
        "alpaca",
        "alpaca",
        0.1,
    )
    assert found.method.type == "lora"
    assert found.method.settings == {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
    }
    told = found.training
    assert (told.max_length, told.packing, told.per_device_train_batch_size, told.gradient_accumulation_steps) == (
        2048,
        False,
        2,
        2,
    )
    assert (told.num_train_epochs, told.learning_rate, told.optim, told.lr_scheduler_type) == (
        3,
        2e-4,
        "adamw_8bit",
        "cosine",
    )
    assert (told.warmup_steps, told.weight_decay, told.dtype, told.attn_implementation) == (0.1, 0.01, "auto", "sdpa")
    assert (told.gradient_checkpointing, told.logging_steps, told.load_best_model_at_end) == (True, 1, False)
    # 90 rows in batches of 4 are 23 steps, 69 in three epochs; twice an epoch is every 11.5 of them
    assert told.eval_steps == 12


def test_what_changes_nothing_is_named_with_its_reason_once(home: Path) -> None:
    _, translation = example(home, "lora-alpaca.yml")
    for line in (
        "lora-alpaca.yml:3: model_type: the class is found from the base's own configuration",
        "lora-alpaca.yml:12: dataset_prepared_path: rows are read anew for each run",
        "lora-alpaca.yml:51: loss_watchdog_threshold, loss_watchdog_patience: a run stops by itself when it diverges",
        "lora-alpaca.yml:59: special_tokens.pad_token: padding is never trained on, and left out where it can be",
    ):
        assert line in translation.warnings
        assert line.split(": ")[0] in translation.recipe_text
    assert "wandb" not in " ".join(translation.warnings)


def test_a_qlora_on_conversations(home: Path) -> None:
    found, translation = example(home, "qlora-fsdp-chat.yml")
    assert found.quantization
    assert (found.quantization.kind, found.quantization.bnb_4bit_use_double_quant) == ("nf4", True)
    assert (found.method.type, found.method.settings["use_rslora"], found.method.settings["lora_dropout"]) == (
        "qlora",
        True,
        0.0,
    )
    assert found.method.settings["target_modules"] == "all-linear"
    assert found.data.path == ("mlabonne/FineTome-100k",)
    assert (found.data.format, found.data.split, found.data.heldout) == ("chat", "train[:20%]", 0)
    assert found.data.columns == {"messages": "conversations", "role": "from", "content": "value"}
    told = found.training
    assert (told.max_steps, told.num_train_epochs, told.packing, told.dtype) == (200, None, True, "bfloat16")
    assert (told.lr_scheduler_type, told.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.1})
    assert (told.warmup_steps, told.adam_beta2, told.neftune_noise_alpha, found.seed) == (10, 0.95, 5, 7)
    assert told.attn_implementation == "flash_attention_2"
    said = "\n".join(translation.warnings)
    assert "fsdp_version, fsdp_config (offload_params, auto_wrap_policy): how work is spread over devices" in said
    assert "plugins[0], plugins[1], liger_rms_norm, liger_glu_activation, lora_mlp_kernel: it changes how fast" in said
    assert "num_epochs: max_steps is given too" in said
    assert "evals_per_epoch: nothing is held out" in said
    assert "which must be that one (qwen3)" in said


def test_every_weight_on_plain_text(home: Path) -> None:
    found, translation = example(home, "full-completion.yml")
    assert (found.method.type, found.method.settings, found.base) == ("full", {}, "base")
    assert (found.data.path, found.data.format, found.data.columns) == (("rows.jsonl",), "text", {"text": "story"})
    assert found.data.heldout == 0.03
    told = found.training
    assert (told.per_device_train_batch_size, told.gradient_accumulation_steps) == (2, 4)
    assert "# worked out: 8 rows to a step" in translation.recipe_text
    assert (told.completion_only_loss, told.eval_steps, told.save_steps, told.early_stopping_patience) == (
        False,
        20,
        20,
        3,
    )
    assert (told.load_best_model_at_end, told.warmup_steps, told.optim) == (True, 0.03, "adamw_torch_fused")
    assert "full-completion.yml:7: lora_alpha: there is no adapter: every weight is trained" in translation.warnings
    assert any("float16: there is no float16 here" in warning for warning in translation.warnings)


def test_every_fault_is_told_at_its_own_line(home: Path) -> None:
    path = home / "refused.yml"
    lines = path.read_text().splitlines()
    with pytest.raises(BadInput) as raised:
        dialects.translate(path.read_text(), path)
    assert [int(problem.split(":")[1]) for problem in raised.value.problems] == [
        number for number, line in enumerate(lines, 1) if line.endswith("# refused")
    ]


def test_our_defaults_do_not_slip_in() -> None:
    found, translation = changed()
    assert (found.training.num_train_epochs, found.training.per_device_train_batch_size) == (1, 1)
    assert (found.training.max_length, found.training.optim, found.data.heldout) == (512, "adamw_torch_fused", 0)
    assert found.method.settings["lora_dropout"] == 0.0
    assert "  max_length: 512  # Axolotl's default" in translation.recipe_text


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"lora_r": None}, "other.yml:6: lora_r: is missing, and Axolotl has no default for it"),
        ({"lora_target_linear": None}, "other.yml:8: lora_target_linear: is missing, and so is lora_target_modules"),
        ({"learning_rate": None}, "other.yml:9: learning_rate: is missing"),
        ({"adapter": "llama-adapter"}, "other.yml:5: adapter: llama-adapter is neither lora nor qlora"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit: load_in_4bit is true too"),
        ({"adapter": None, "load_in_8bit": True}, "load_in_8bit: needs an adapter"),
        ({"base_model": "./nowhere"}, "other.yml:1: base_model: ./nowhere is no directory that is there"),
        ({"tokenizer_config": "other/one"}, "tokenizer_config: the base's own configuration and tokenizer are used"),
        ({"model_type": "LlamaForSequenceClassification"}, "model_type: only causal language models are trained"),
        ({"plugins": ["axolotl.integrations.kd.KDPlugin"]}, "plugins[0]: axolotl.integrations.kd.KDPlugin is no part"),
        ({"val_set_size": 0.1, "early_stopping_patience": 3}, "early_stopping_patience: needs training.eval_steps"),
        ({"peft": {"loftq_config": {"loftq_bits": 8}}}, "peft.loftq_config.loftq_bits: LoftQ starts from 4 bits here"),
        ({"warmup_ratio": 10}, "warmup_ratio: should be a share of all steps"),
        ({"load_in_4bit": "perhaps"}, "load_in_4bit: should be true or false"),
        ({"datasets": []}, "datasets: should be a list of data sets"),
    ],
)
def test_what_cannot_be_honoured(keys: dict[str, Any], fault: str) -> None:
    found = faults(**keys)
    assert any(fault in problem for problem in found), found


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"type": "alpaca:chat"}, "datasets[0].type: writes rows in a way not known here"),
        ({"type": {"format": "[INST] {instruction} [/INST]"}}, "datasets[0].type: writes rows in a way"),
        ({"type": None}, "datasets[0].type: is missing"),
        ({"split": "train[:10%]"}, "datasets[0].split: a file is read whole"),
        ({"path": "nowhere.jsonl"}, "datasets[0].path: there is no nowhere.jsonl"),
        ({"path": "other.yml"}, "datasets[0].path: there is no other.yml"),
        ({"path": "lora-alpaca.yml"}, "datasets[0].path: lora-alpaca.yml ends in none of .jsonl"),
        ({"ds_type": "csv"}, "datasets[0].ds_type: csv is not what the file's name ends in"),
        ({"path": "some/set", "data_files": "a.json"}, "datasets[0].data_files: files of a data set on the Hub"),
        ({"type": "chat_template", "roles_to_train": ["user"]}, "roles_to_train: the assistant's turns are trained on"),
        ({"type": "chat_template", "train_on_eos": "all"}, "train_on_eos: the end of each of the assistant's turns"),
        ({"type": "chat_template", "roles": {"user": ["visitor"]}}, "datasets[0].roles.user: roles have the names"),
        (
            {"type": "chat_template", "message_property_mappings": {"name": "who"}},
            "datasets[0].message_property_mappings.name: a turn is a role and its text",
        ),
    ],
)
def test_rows_that_cannot_be_read_as_they_are_meant(data: dict[str, Any], fault: str) -> None:
    found = faults(datasets=[{"path": "rows.jsonl", "type": "alpaca", **data}])
    assert any(fault in problem for problem in found), found


def test_data_sets_of_one_form_are_joined_and_others_are_not() -> None:
    found, _ = changed(datasets=[{"path": "rows.jsonl", "type": "alpaca"}, {"path": "some/set", "type": "alpaca"}])
    assert found.data.path == ("rows.jsonl", "some/set")
    assert any(
        problem.startswith("other.yml:5: datasets[1]: its rows differ")
        for problem in faults(
            datasets=[{"path": "rows.jsonl", "type": "alpaca"}, {"path": "a/b", "type": "chat_template"}]
        )
    )


def test_files_of_a_directory_can_be_chosen(home: Path) -> None:
    (home / "rows").mkdir()
    shutil.move(home / "rows.jsonl", home / "rows" / "some.jsonl")
    found, _ = changed(datasets=[{"path": "rows", "data_files": "some.jsonl", "ds_type": "json", "type": "alpaca"}])
    assert found.data.path == ("rows/some.jsonl",)
    assert changed(datasets=[{"path": "rows", "type": "alpaca"}])[0].data.path == ("rows",)


def test_conversations_in_the_ways_that_axolotl_names_them() -> None:
    found, _ = changed(datasets=[{"path": "some/set", "type": "sharegpt", "revision": "v1", "name": "en"}])
    assert (found.data.path, found.data.subset) == (("some/set@v1",), "en")
    assert found.data.columns == {"messages": "conversations", "role": "from", "content": "value"}
    found, _ = changed(datasets=[{"path": "some/set", "type": "chat_template", "message_field_role": "from"}])
    assert found.data.columns == {"role": "from"}


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({}, "auto"),
        ({"bf16": "auto"}, "auto"),
        ({"bf16": True, "fp16": False}, "bfloat16"),
        ({"bf16": False}, "float32"),
        ({"bf16": "auto", "fp16": True}, "auto"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_precision(keys: dict[str, Any], dtype: str) -> None:
    assert changed(**keys)[0].training.dtype == dtype


def test_kinds_of_lora() -> None:
    found, _ = changed(peft_use_dora=True, lora_modules_to_save=["embed_tokens"], load_in_8bit=True)
    assert (found.method.settings["use_dora"], found.method.settings["modules_to_save"]) == (True, ["embed_tokens"])
    assert found.quantization
    assert found.quantization.kind == "int8"
    found, _ = changed(peft={"loftq_config": {"loftq_bits": 4}})
    assert (found.method.type, found.quantization and found.quantization.kind) == ("loftq", "nf4")


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"evals_per_epoch": 4}, 23),
        ({"evals_per_epoch": 1, "max_steps": 50, "num_epochs": 2}, 25),
        ({"eval_steps": 0.1}, 9),
        ({"eval_steps": 7}, 7),
        ({"eval_strategy": "epoch", "num_epochs": 3}, 90),
        ({"evals_per_epoch": 1, "sample_packing": True}, None),
        ({"eval_strategy": "no"}, None),
    ],
)
def test_evaluations_are_told_in_steps(keys: dict[str, Any], steps: int | None) -> None:
    found, translation = changed(val_set_size=0.1, **keys)
    assert found.training.eval_steps == steps
    if steps is None:
        assert any(key in warning for key in keys for warning in translation.warnings)


def test_checkpoints_fall_on_evaluations() -> None:
    found, translation = changed(val_set_size=0.1, eval_steps=7, save_steps=20)
    assert (found.training.eval_steps, found.training.save_steps) == (7, 21)
    assert "# worked out: the multiple of eval_steps that follows 20" in translation.recipe_text


def test_the_alpaca_wording_is_the_one_the_warning_tells_of() -> None:
    from loradock.trainer.rows import Instruction

    (row,) = Instruction("Greet.", "Ahoy!").examples()
    assert row.plain() == {"prompt": "### Instruction:\nGreet.\n### Response:\n", "completion": "Ahoy!"}
    assert any("nor its empty lines" in warning for warning in changed()[1].warnings)
