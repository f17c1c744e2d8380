"""A base is held as the recipe says, and one that cannot be read is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loradock.registry.base import LocalBase
from loradock.registry.errors import BadInput
from loradock.registry.records import Base
from loradock.trainer import base
from loradock.trainer.recipe import Quantization, Recipe
from loradock.trainer.weights.layers import filled

RECIPE = Recipe.model_validate({"name": "tiny", "base": "org/model", "data": "rows.jsonl"})


def local(path: Path) -> LocalBase:
    return LocalBase(path, Base(id="org/model", config_digest="0", weights_digest="0"))


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="the tokenizer of org/model cannot be read"):
        base.load(local(tmp_path), RECIPE)


def test_no_weights(base_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base_dir / name, tmp_path)
    with pytest.raises(BadInput, match="the model of org/model cannot be read"):
        base.load(local(tmp_path), RECIPE)


@pytest.mark.slow
def test_a_base_in_four_bits_says_so_and_computes_as_it_was_told(shallow_dir: Path) -> None:
    recipe = RECIPE.model_copy(update={"quantization": Quantization(bnb_4bit_compute_dtype="bfloat16")})
    loaded = base.load(local(shallow_dir), recipe)
    layer = loaded.model.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == "Linear4bit"
    assert (layer.weight.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    assert layer.compute_dtype is torch.bfloat16
    assert (loaded.base.quantization, loaded.base.id) == ("nf4", "org/model")


@pytest.mark.slow
def test_gradients_pass_through_four_bits_after_an_evaluation_as_before_it(shallow_dir: Path) -> None:
    recipe = RECIPE.model_copy(update={"quantization": Quantization(bnb_4bit_compute_dtype="float32")})
    model = base.load(local(shallow_dir), recipe).model
    layer = model.model.layers[0].mlp.up_proj
    given = torch.randn(1, 4, layer.in_features, generator=torch.Generator().manual_seed(0)).to(model.device)

    def gradient() -> torch.Tensor:
        ours = given.clone().requires_grad_()
        layer(ours).sum().backward()
        assert ours.grad is not None
        return ours.grad

    before = gradient()
    with torch.inference_mode():
        model.eval()(input_ids=torch.tensor([[1, 2, 3]]))
    model.train()
    assert before.abs().max() > 0
    assert torch.equal(gradient(), before)


@pytest.mark.slow
def test_a_base_in_eight_bits(shallow_dir: Path) -> None:
    recipe = RECIPE.model_copy(update={"quantization": Quantization.model_validate({"load_in_8bit": True})})
    loaded = base.load(local(shallow_dir), recipe)
    assert type(loaded.model.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    assert loaded.base.quantization == "int8"


def test_weights_that_would_be_read_without_their_scales_are_not_loaded(shallow_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "base"
    shutil.copytree(shallow_dir, directory)
    tensors = load_file(directory / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    size = tensors[name].abs().max() / 448
    tensors |= {name: (tensors[name] / size).to(torch.float8_e4m3fn), f"{name}_scale_inv": size.reshape(1, 1)}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    for load in (lambda: base.load(local(directory), RECIPE), lambda: filled(local(directory))):
        with pytest.raises(BadInput, match="does not say so"):
            load()
