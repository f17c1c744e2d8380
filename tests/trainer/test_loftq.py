"""LoftQ's start makes up for a part of what a base loses in 4 bits, on a CPU too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import Linear4bit
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from loradock.registry.base import LocalBase, identify
from loradock.registry.errors import BadInput
from loradock.trainer import base, loftq, methods
from loradock.trainer.recipe import Recipe

pytestmark = pytest.mark.slow


def wrapped(directory: Path, rank: int) -> Any:
    given = {"name": "tiny", "base": str(directory), "data": "rows.jsonl", "method": {"type": "loftq", "r": rank}}
    recipe = Recipe.model_validate(given)
    model = base.load(LocalBase(directory, identify(directory, base_id="base")), recipe).model
    return methods.wrap(model, methods.configure(recipe.method, model))


def error(model: Any, exact: Any, *, adapted: bool) -> float:
    """How far the weights that the model computes with are from the base's own, by Frobenius norm over all layers."""
    total = 0.0
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            held = layer.get_base_layer().weight
            weight = dequantize_4bit(held.data, held.quant_state)
            weight = weight + layer.get_delta_weight("default") if adapted else weight
            whole = exact[f"{name.removeprefix('base_model.model.')}.weight"].to(weight.device)
            total += float((weight - whole).square().sum())
    return total**0.5


def test_the_more_rank_the_nearer_to_the_base_as_it_was(shallow_dir: Path) -> None:
    exact = AutoModelForCausalLM.from_pretrained(shallow_dir).state_dict()
    found = []
    for rank in (16, 128):
        model = wrapped(shallow_dir, rank)
        told = loftq.start(model, shallow_dir)
        with torch.inference_mode():
            found.append(error(model, exact, adapted=True) / error(model, exact, adapted=False))
        assert told == pytest.approx(found[-1], rel=1e-3)
    assert 0 < found[1] < found[0] < 1


def test_a_base_whose_files_lack_a_layer(shallow_dir: Path, tmp_path: Path) -> None:
    model = wrapped(shallow_dir, 16)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"the base's files have no model\.layers\.0"):
        loftq.start(model, tmp_path)
