"""What a mending and `diff` say of a difference, held against what PEFT adds to the real modules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loradock.registry import distance
from loradock.registry.artifact import CONFIG, WEIGHTS
from loradock.registry.check import BaseShapes, examine, read_shapes
from loradock.registry.check.effect import apart, meant, taken_up
from loradock.registry.check.mend import Mended, mend
from loradock.registry.errors import LoradockError, NotServable
from tests.support.registry.ailing import write

pytestmark = [  # PEFT holds keys against modules alone when it warns, and against parameters when it takes them
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match"),
    pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern"),
]

Q0 = "model.layers.0.self_attn.q_proj"
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense base, and two whose layers have four experts, with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    root = tmp_path_factory.mktemp("bases")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"intermediate_size": 48, "vocab_size": 64, "head_dim": 8}
    experts = {"num_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
    kinds = {"llama": {}, "qwen3_moe": experts, "gpt_oss": {"num_local_experts": 4}}
    for kind, more in kinds.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **more)).save_pretrained(root / kind)
    return {kind: root / kind for kind in kinds}


def trained(base: Path, directory: Path, *, body: bool = False, seed: int = 1, **settings: Any) -> dict[str, Any]:
    """An adapter as PEFT saves it, on the base or on its body alone, and what it adds to each module or parameter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    model = (AutoModel if body else AutoModelForCausalLM).from_pretrained(base)
    wrapped = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8} | settings))
    torch.manual_seed(seed)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    wrapped.save_pretrained(directory)
    return added(wrapped)


def loaded(base: Path, directory: Path) -> dict[str, Any]:
    """What PEFT adds once it has loaded an adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return added(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory))


def added(model: Any) -> dict[str, Any]:
    return {
        f"{name.removeprefix('base_model.model.')}:{getattr(module, 'parameter_name', 'weight')}": (
            module.get_delta_weight("default").detach().double().numpy()
        )
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def mended(directory: Path, base: Path) -> Mended:
    shapes = read_shapes(base)
    done = mend(directory, directory / "../out", examine(directory, base=shapes), base=shapes, max_rank=512)
    assert done is not None
    return done


def compiled(directory: Path) -> None:
    """As a model that was compiled before it got its adapter names its modules, in the tensors and in the patterns."""
    rename(directory, lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."))


def rename(directory: Path, change: Callable[[str], str]) -> None:
    save_file({change(name): value for name, value in load_file(directory / WEIGHTS).items()}, directory / WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"alpha_pattern": {"^layers.0.self_attn.q_proj": 512}, "target_modules": ["q_proj", "v_proj"]},
        {"rank_pattern": {r"^layers\.\d\.self_attn\.q_proj": 2}, "target_modules": ["q_proj"]},
        {"alpha_pattern": {"layers.1.mlp.up_proj": 99}, "target_modules": ["layers.1.mlp.up_proj", "q_proj"]},
        {"target_modules": r"layers\.[01]\.self_attn\.(q|k)_proj"},
        {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["layers.0.self_attn.o_proj"]},
        {"target_modules": ["q_proj", "o_proj"], "exclude_modules": r"layers\.0\.self_attn\.o_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "use_rslora": True, "rank_pattern": {"^layers.1.self_attn.q_proj": 2}},
    ],
    ids=str,
)
def test_an_adapter_of_the_body_alone_adds_to_the_whole_model_what_it_added(
    settings: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    before = trained(bases["llama"], tmp_path / "in", body=True, **settings)
    done = mended(tmp_path / "in", bases["llama"])
    after = loaded(bases["llama"], tmp_path / "out")
    assert after.keys() == {f"model.{name}" for name in before}
    assert max(abs(after[f"model.{name}"] - value).max() for name, value in before.items()) < 1e-6
    assert done.largest < 1e-6
    assert done.diagnosis.servable, done.diagnosis


@pytest.mark.slow
def test_names_that_a_wrapper_left_are_mended_in_the_patterns_too(bases: dict[str, Path], tmp_path: Path) -> None:
    before = trained(bases["llama"], tmp_path / "in", target_modules=["q_proj"], alpha_pattern={f"^{Q0}": 800})
    compiled(tmp_path / "in")
    config = json.loads((tmp_path / "in" / CONFIG).read_text())
    config["alpha_pattern"] = {f"^_orig_mod.{Q0}": 800}
    (tmp_path / "in" / CONFIG).write_text(json.dumps(config))
    assert mended(tmp_path / "in", bases["llama"]).largest < 1e-6
    after = loaded(bases["llama"], tmp_path / "out")
    assert max(abs(after[name] - value).max() for name, value in before.items()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"gate_up_proj": 2}, "alpha_pattern": {"down_proj": 40}}])
def test_experts_of_the_body_alone_keep_their_ranks_and_scales(
    patterns: dict[str, Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    wanted = {"target_modules": ["q_proj"], "target_parameters": EXPERTS} | patterns
    before = trained(bases["gpt_oss"], tmp_path / "in", body=True, **wanted)
    assert mended(tmp_path / "in", bases["gpt_oss"]).largest < 1e-6
    after = loaded(bases["gpt_oss"], tmp_path / "out")
    assert after.keys() == {f"model.{name}" for name in before}
    assert max(abs(after[f"model.{name}"] - value).max() for name, value in before.items()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["r", "lora_alpha", "target_modules"])
def test_experts_are_not_mended_by_what_takes_a_module_for_one_matrix(
    spoilt: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    trained(bases["gpt_oss"], tmp_path / "in", target_modules=["q_proj"], target_parameters=EXPERTS)
    config = json.loads((tmp_path / "in" / CONFIG).read_text())
    (tmp_path / "in" / CONFIG).write_text(json.dumps({key: config[key] for key in config if key != spoilt}))
    shapes = read_shapes(bases["gpt_oss"])
    found = examine(tmp_path / "in", base=shapes)
    assert not {"settings", "one-rank", "zero-layers"} & {finding.remedy for finding in found.findings}
    with pytest.raises(NotServable):
        mend(tmp_path / "in", tmp_path / "out", found, base=shapes, max_rank=512)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_the_effect_of_the_files_is_what_peft_adds(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}}
    if kind == "qwen3_moe":
        settings |= {"target_parameters": EXPERTS, "alpha_pattern": {"experts.down_proj": 3}, "use_rslora": True}
    theirs = trained(bases[kind], tmp_path, **settings)
    for effect in (meant(tmp_path, read_shapes(bases[kind])), taken_up(tmp_path, read_shapes(bases[kind]))):
        ours = {
            name: np.stack([b @ a for b, a in effect.factors(name)]).squeeze(0 if effect.parts[name].count == 1 else ())
            for name in effect.parts
        }
        assert sorted(map(norm, ours.values())) == pytest.approx(sorted(map(norm, theirs.values())), rel=1e-5)
        assert ours[Q0] == pytest.approx(theirs[f"{Q0}:weight"], abs=1e-6)
        if kind == "qwen3_moe":
            stacked = "model.layers.1.mlp.experts"
            assert ours[f"{stacked}.down_proj"] == pytest.approx(theirs[f"{stacked}:down_proj"], abs=1e-6)
            inner = theirs[f"{stacked}.base_layer:gate_up_proj"]
            assert ours[f"{stacked}.gate_up_proj"] == pytest.approx(inner, abs=1e-6)


def norm(value: Any) -> float:
    return float(np.linalg.norm(value))


@pytest.mark.slow
def test_diff_sees_how_far_experts_are_apart(bases: dict[str, Path], tmp_path: Path) -> None:
    """The second has the first's experts in another order, so that the product of the whole files is the same."""
    wanted = {"target_modules": ["q_proj"], "target_parameters": EXPERTS}
    one = trained(bases["qwen3_moe"], tmp_path / "one", **wanted)
    trained(bases["qwen3_moe"], tmp_path / "other", **wanted)
    tensors = load_file(tmp_path / "other" / WEIGHTS)
    for name, value in tensors.items():
        if ".experts" in name:
            order = np.roll(np.arange(16), 4)
            tensors[name] = np.ascontiguousarray(value[order] if "lora_A" in name else value[:, order])
    save_file(tensors, tmp_path / "other" / WEIGHTS)
    other = loaded(bases["qwen3_moe"], tmp_path / "other")
    found = distance.between(tmp_path / "one", tmp_path / "other")
    assert found.total is not None
    whole = np.sqrt(sum(norm(value) ** 2 for value in one.values()))
    theirs = np.sqrt(sum(norm(value - other[name]) ** 2 for name, value in one.items())) / whole
    assert theirs > 1
    assert found.total.distance == pytest.approx(theirs, rel=1e-5)
    assert found.total.norms[0] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(alpha_pattern={"^nowhere": 3}), None),
        (lambda c: c.update(target_modules=["v_proj", "down_proj"]), "PEFT leaves model.layers.0.self_attn.q_proj out"),
        (lambda c: c.update(exclude_modules=[Q0]), f"PEFT leaves {Q0} out"),
        (lambda c: c.update(layers_to_transform=[0]), "PEFT leaves model.layers.1"),
        (lambda c: c.update(modules_to_save=["down_proj"]), "PEFT leaves model.layers.0.mlp.down_proj out"),
        (lambda c: c.update(r=4), "has rank 8, and 4 is configured"),
        (lambda c: c.update(fan_in_fan_out=True), "more than LoRA weights"),
    ],
)
def test_what_a_configuration_takes_from_the_effect_is_seen(
    change: Callable[[dict[str, Any]], None], said: str | None, tmp_path: Path
) -> None:
    write(tmp_path / "one")
    write(tmp_path / "other")
    config = json.loads((tmp_path / "one" / CONFIG).read_text())
    change(config)
    (tmp_path / "other" / CONFIG).write_text(json.dumps(config))
    before = meant(tmp_path / "one", BaseShapes())
    if said is None:
        assert max(far for _, far, _ in apart(before, taken_up(tmp_path / "other", BaseShapes()))) == 0
        return
    with pytest.raises(LoradockError, match=said):
        list(apart(before, taken_up(tmp_path / "other", BaseShapes())))


def test_another_scale_is_a_difference_of_the_product(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "other", config={"alpha_pattern": {Q0: 48}})
    tensors = load_file(tmp_path / "one" / WEIGHTS)
    b, a = (tensors[f"base_model.model.{Q0}.lora_{side}.weight"].astype("float64") for side in "BA")
    effects = [meant(tmp_path / name, BaseShapes()) for name in ("one", "other")]
    found = {name: far for name, far, _ in apart(*effects)}
    assert found.pop(Q0) == pytest.approx(abs((6 - 2) * b @ a).max())
    assert set(found.values()) == {0.0}


def test_a_module_whose_names_have_two_settings_is_refused(tmp_path: Path) -> None:
    write(tmp_path, config={"alpha_pattern": {f"^_orig_mod.{Q0}": 8, f"^{Q0}": 16}})
    rename(tmp_path, lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."))
    with pytest.raises(NotServable, match="alpha_pattern says 8, 16"):
        meant(tmp_path, BaseShapes())
