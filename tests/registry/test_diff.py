from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loradock.registry import diff, distance
from loradock.registry.artifact import WEIGHTS
from loradock.registry.errors import DigestMismatch, NotFound
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.versions import register
from tests.support.adapters import SMOL, log_adapter, make_version, write_adapter

ROOT = "base_model.model.model.layers"


@pytest.fixture
def whole(settings: Settings) -> Store:
    return Store(settings)


def products(directory: Path, scale: float) -> dict[str, Any]:
    """What an adapter adds to each module's weight, as whole matrices."""
    tensors = load_file(directory / WEIGHTS)
    ends = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        end.removeprefix("base_model.model."): scale
        * (tensors[f"{end}.lora_B.weight"].astype("float64") @ tensors[f"{end}.lora_A.weight"].astype("float64"))
        for end in ends
    }


def hold(found: distance.Weights, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Hold every distance against whole matrices."""
    assert {module.module for module in found.modules} == one.keys() | other.keys()
    for module in found.modules:
        a, b = (side.get(module.module) for side in (one, other))
        a, b = (np.zeros_like(b) if a is None else a), (np.zeros_like(a) if b is None else b)
        assert module.norms == pytest.approx((np.linalg.norm(a), np.linalg.norm(b)), rel=1e-12)
        if module.norms[0]:
            assert module.distance == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-12)
        if all(module.norms):
            cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
            assert module.cosine == pytest.approx(cosine, rel=1e-9, abs=1e-14)


def test_distances_are_those_of_the_whole_matrices(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "a", rank=4, hidden=96)
    other = write_adapter(tmp_path / "b", rank=6, hidden=96, seed=1, config={"lora_alpha": 3, "use_rslora": True})
    found = distance.between(one, other)
    a, b = products(one, 2.0), products(other, 3 / 6**0.5)
    hold(found, a, b)
    assert found.total is not None
    flat = [np.concatenate([side[key].ravel() for key in sorted(a)]) for side in (a, b)]
    assert found.total.distance == pytest.approx(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0]), rel=1e-12)


def test_a_module_that_only_one_has(tmp_path: Path) -> None:
    one, other = write_adapter(tmp_path / "a", hidden=32), write_adapter(tmp_path / "b", hidden=32, layers=3)
    hold(distance.between(one, other), products(one, 2.0), products(other, 2.0))
    more, less = (distance.between(*pair).modules[-1] for pair in ((one, other), (other, one)))
    assert (more.module, more.distance, more.cosine) == ("model.layers.2.self_attn.q_proj", None, None)
    assert (less.distance, less.cosine) == (1.0, None)


def test_what_hardly_differs_keeps_its_digits(tmp_path: Path) -> None:
    """From norms and the inner product, this difference would be lost in rounding."""
    one, other = write_adapter(tmp_path / "a", hidden=64), write_adapter(tmp_path / "b", hidden=64)
    tensors = {name: values.astype("float64") for name, values in load_file(other / WEIGHTS).items()}
    save_file(tensors, one / WEIGHTS)
    save_file({n: v * (1 + 1e-11) if "lora_B" in n else v for n, v in tensors.items()}, other / WEIGHTS)
    found = distance.between(one, other)
    assert [module.distance for module in found.modules] == pytest.approx([1e-11] * 4, rel=1e-4)


@pytest.mark.parametrize(
    ("config", "why"),
    [({"use_dora": True}, "DoRA"), ({"init_lora_weights": "pissa"}, "changed base"), ({"peft_type": "IA3"}, "IA3")],
)
def test_what_is_no_plain_lora_is_not_compared(tmp_path: Path, config: dict[str, Any], why: str) -> None:
    one, other = write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", config=config)
    found = distance.between(one, other, names=("bot/1", "bot/2"))
    assert found.why_not.startswith("bot/2: ")
    assert why in found.why_not
    assert found.modules == ()


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.base_layer.weight", "model.norm.weight"])
def test_what_two_files_hold_besides_is_told_where_it_differs(name: str, tmp_path: Path) -> None:
    one, other, third = (write_adapter(tmp_path / each) for each in "abc")
    for directory, value in ((one, 1.0), (other, 2.0)):
        held = load_file(directory / WEIGHTS) | {f"base_model.model.{name}": np.full((4, 32), value, np.float32)}
        save_file(held, directory / WEIGHTS)
    for pair in ((one, other), (other, third)):
        found = distance.between(*pair)
        assert found.total is not None
        assert found.total.distance == pytest.approx(0, abs=1e-12)
        assert found.besides == (f"tensors that are no LoRA matrices, and differ: base_model.model.{name}",)
    assert distance.between(one, one).besides == ()


def test_shapes_that_cannot_be_held_against_each_other(tmp_path: Path) -> None:
    found = distance.between(write_adapter(tmp_path / "a", hidden=32), write_adapter(tmp_path / "b", hidden=64))
    assert "another shape" in found.why_not


def test_recipe_data_metrics_and_configuration_that_differ(whole: Store, tmp_path: Path) -> None:
    made = []
    for seed in range(2):
        run_id = log_adapter(whole, write_adapter(tmp_path / str(seed), seed=seed, rank=4 + seed), rank=4 + seed)
        for key, value in {"recipe.seed": seed, "recipe.base": "x", "data.rows": 100 + seed, "peft.r": seed}.items():
            whole.client.log_param(run_id, key, value)
        whole.client.log_metric(run_id, "loss", 9.0, step=1)
        whole.client.log_metric(run_id, "loss", 1.0 + seed, step=2)
        whole.client.log_metric(run_id, "system/cpu", seed)
        made.append(register(whole, run_id, f"bot-{seed}"))
    found = diff.compare(whole, *made)
    assert found.versions == ("bot-0/1", "bot-1/1")
    assert found.recipe == {"seed": ("0", "1")}
    assert found.data == {"rows": ("100", "101")}
    assert found.metrics == {"loss": (1.0, 2.0)}
    assert found.config == {"lora_alpha": (8, 10), "r": (4, 5)}
    assert found.facts.keys() == {"digest", "rank"}
    assert (found.base, found.runs_gone) == ({}, ())
    assert found.weights.total is not None
    assert found.weights.total.distance == pytest.approx(2**0.5, rel=0.2)
    assert found.weights.total.cosine == pytest.approx(0, abs=0.05)


def test_adapters_of_two_bases_are_not_held_against_each_other(whole: Store, tmp_path: Path) -> None:
    one = make_version(whole, tmp_path / "a")
    other = make_version(whole, tmp_path / "b", "b", seed=1, base=SMOL.model_copy(update={"weights_digest": "f" * 64}))
    found = diff.compare(whole, one, other)
    assert found.base == {"weights_digest": ("d" * 64, "f" * 64)}
    assert "another base" in found.weights.why_not


def test_both_are_hashed_first_and_a_run_that_is_gone_is_said(whole: Store, tmp_path: Path) -> None:
    one, other = (make_version(whole, tmp_path / str(seed), seed=seed) for seed in range(2))
    whole.client.delete_run(other.facts.run_id)
    assert diff.compare(whole, one, other).runs_gone == ()  # it is in MLflow's trash, with all it held
    gone = other.model_copy(update={"facts": other.facts.model_copy(update={"run_id": "f" * 32})})
    assert diff.compare(whole, one, gone).runs_gone == ("f" * 32,)
    location = whole.client.get_logged_model(other.source.removeprefix("models:/")).artifact_location
    (Path(location.removeprefix("file://")) / WEIGHTS).write_bytes(b"something else")
    with pytest.raises(DigestMismatch, match=str(other.ref)):
        diff.compare(whole, one, other)
    with pytest.raises(NotFound):
        diff.compare(whole, one, one.model_copy(update={"source": "models:/m-" + "0" * 32}))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_distances_are_those_that_peft_would_add(tmp_path: Path, dtype: str) -> None:
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def adapter(path: Path, seed: int, **settings: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        shape = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_hidden_layers": 2}
        base = LlamaForCausalLM(LlamaConfig(vocab_size=100, **shape))
        torch.manual_seed(seed)
        config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
        model = peft.get_peft_model(base, config).to(getattr(torch, dtype))
        model.save_pretrained(path, save_embedding_layers=False)
        layers = {
            name: module for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)
        }
        for module in layers.values():
            module.to(torch.float64)
        return {
            name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().double().numpy()
            for name, module in layers.items()
        }

    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 3}, "alpha_pattern": {r".*\.down_proj": 40}}
    one = adapter(tmp_path / "a", 1, r=4, target_modules=["q_proj", "down_proj", "embed_tokens"], **patterns)
    other = adapter(tmp_path / "b", 2, r=6, use_rslora=True, target_modules=["q_proj", "v_proj", "embed_tokens"])
    found = distance.between(tmp_path / "a", tmp_path / "b")
    assert found.why_not == ""
    hold(found, one, other)
