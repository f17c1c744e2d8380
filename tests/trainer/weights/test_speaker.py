"""A model that is compared holds the whole adapter, or says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loradock.registry.artifact import WEIGHTS
from loradock.registry.base import LocalBase, identify
from loradock.registry.errors import Refused
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.trainer.weights import speaker
from loradock.trainer.weights.speaker import streamed
from tests.support.trainer.adapters import adapter_maker

pytestmark = pytest.mark.slow

LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"use_dora": True},
        {"bias": "lora_only", "lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": [], "target_parameters": ["q_proj.weight"]},
        {"trainable_token_indices": [1, 2]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_a_whole_adapter_is_compared_as_it_is(
    said: dict[str, Any], settings: Settings, shallow_dir: Path, tmp_path: Path
) -> None:
    adapters = adapter_maker(settings, Store(settings), shallow_dir, tmp_path)
    directory = adapters.raw("one", "lora", **(LORA | said))
    assert speaker.speaker(adapters.local, directory, "lora")
    assert streamed(adapters.local, directory)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["score.weight", "model.unembed_tokens.lora_A.weight"])
def test_what_peft_leaves_out_of_the_model_is_said_and_nothing_is_compared(
    name: str, stream: bool, settings: Settings, shallow_dir: Path, tmp_path: Path
) -> None:
    adapters = adapter_maker(settings, Store(settings), shallow_dir, tmp_path)
    directory = adapters.raw("one", "lora", **LORA)
    tensors = load_file(directory / WEIGHTS)
    save_file(tensors | {f"base_model.model.{name}": torch.ones(2, 576)}, directory / WEIGHTS)
    local = LocalBase(shallow_dir, identify(shallow_dir, base_id="smol"))
    with pytest.raises(Refused, match="leaves out"):
        streamed(local, directory) if stream else speaker.speaker(local, directory, "lora")
