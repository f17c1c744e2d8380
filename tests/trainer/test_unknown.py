"""What only helps says that it does not know, and ends nothing: estimates, columns, samples, references."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoConfig

from loradock.cli.plan import plan
from loradock.registry import recording, versions
from loradock.registry.base import LocalBase, identify
from loradock.registry.store import Store
from loradock.trainer import count, meta, recipe_file, room
from loradock.trainer.recipe import Method
from loradock.trainer.recipe_file import RecipeFile
from tests.support.adapters import write_adapter
from tests.support.trainer.training import write_rows

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "vocab_size": 64,
    "intermediate_size": 48,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 16}
LINEAR = {**{f"linear_num_{side}_heads": 2 for side in ("key", "value")}, "linear_key_head_dim": 8}
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": EXPERTS,
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": SHARED | LINEAR | {"linear_value_head_dim": 8},
    "qwen2_moe": SHARED,
    "phimoe": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"state_size": 4},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "jamba": {"num_experts": 4},
}


def recipe(directory: Path, kind: str) -> RecipeFile:
    known = AutoConfig.for_model(kind).to_dict()
    given = {key: value for key, value in SMALL.items() if key in known or key.endswith("_id")} | KINDS[kind]
    AutoConfig.for_model(kind, **given, architectures=["X"]).save_pretrained(directory / "base")
    write_rows(directory, 4)
    target = "in_proj" if kind in ("mamba", "jamba") else "q_proj"
    whole = {"base": "base", "data": "rows.jsonl", "method": {"r": 4, "target_modules": [target]}}
    (directory / "r.yaml").write_text(json.dumps(whole | {"training": {"max_steps": 1, "max_length": 32}}))
    return recipe_file.load(directory / "r.yaml")


@pytest.fixture(autouse=True)
def _nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_that_cannot_be_made_ends_neither_training_nor_plan(kind: str, tmp_path: Path) -> None:
    source = recipe(tmp_path, kind)
    words = room.lacking(source.recipe, source.directory / "base", 32, 2**60)
    assert words == "" or words.startswith("how much memory this needs is unknown: ")
    assert room.advice(source.recipe, source.directory / "base", 2**20)
    found = json.loads(CliRunner().invoke(plan, [str(source.path), "--json"], catch_exceptions=False).stdout)
    assert found["trainable"] > 0
    titles = {"this recipe", "full", "LoRA", "QLoRA", "IA3"}
    assert found["memory_gib"].keys() | {part.removeprefix("memory of ") for part in found["unknown"]} >= titles
    assert all(found["unknown"].values())


def test_a_plan_says_what_it_does_not_know(tmp_path: Path) -> None:
    source = recipe(tmp_path, "qwen3_moe")
    told = CliRunner().invoke(plan, [str(source.path), "--gpu", "24"], catch_exceptions=False).stdout
    assert "unknown: which modules of a qwen3_moe model are attention" in told


def test_lora_of_fused_experts_has_no_dropout_unless_it_is_said(tmp_path: Path) -> None:
    source = recipe(tmp_path, "qwen3_moe")
    config = meta.config(tmp_path / "base")
    whole = source.recipe.model_copy(update={"method": Method(r=4)})
    assert count.parameters(whole, config).trainable > count.parameters(source.recipe, config).trainable > 0


def test_a_base_without_a_tokenizer_gives_a_version_and_a_warning(
    store: Store, shallow_dir: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(shallow_dir, bare, ignore=shutil.ignore_patterns("*token*", "*chat*", "*special*"))
    local = LocalBase(bare, identify(bare, base_id="base"))
    version = versions.import_directory(store, write_adapter(tmp_path / "a"), local, "support-bot")
    said: list[str] = []
    recording.attempt(store, version, said.append, str(bare))
    assert said[-2].startswith("warning: support-bot/1 has no reference")
    assert "loradock reference support-bot/1" in said[-1]
